/* A monai-mil server (monai-mil label start ...) asked from QuPath 0.5 and 0.6, whose extensions the older MONAI Label
   plugin does not fit. Open a slide of the server's folder, set ACTION below and run the script (Automate > Script editor).

   "heatmap"  draws the model's heat as annotations of the classes MIL high and MIL medium, in place of the last ones.
              With a rectangle selected, only within it.
   "submit"   sends your annotations. Those of the model never count as labels: draw your own, of the model's classes
              (say: tumor), or one of the class Normal on a slide that has nothing.
   "next"     says which slide to label next.
   "part"     draws a rectangle around the part of this slide to look at next (class Region*).
   "train"    lets the model learn from all that was submitted; "heatmap" then shows the new one.
   "info"     lists models and strategies.

   Written for QuPath's scripting API: importObjectsFromFile and exportObjectsToGeoJson. */

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.nio.charset.StandardCharsets
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.regions.ImagePlane
import qupath.lib.roi.ROIs

def ACTION = "heatmap"
SERVER = "http://127.0.0.1:8000"
MODEL = "pathology_asmil"
STRATEGY = "uncertainty"
ANNOTATOR = System.getProperty("user.name")

HEAT = ["MIL high", "MIL medium"]

switch (ACTION) {
    case "heatmap": heatmap(); break
    case "submit": submit(); break
    case "next": println next("")?.id ?: "every slide is labelled"; break
    case "part": part(); break
    case "train": println text(request("POST", "/train/" + MODEL, "{}")); break
    case "info": println text(request("GET", "/info/", null)); break
    default: println "ACTION: heatmap, submit, next, part, train or info"
}

def heatmap() {
    def box = getSelectedROI()
    def server = getCurrentServer()
    def location = box ? [box.getBoundsX() as int, box.getBoundsY() as int] : [0, 0]
    def size = box ? [box.getBoundsWidth() as int, box.getBoundsHeight() as int] : [server.getWidth(), server.getHeight()]
    def body = JsonOutput.toJson([level: 0, location: location, size: size, params: [client_id: ANNOTATOR]])
    def reply = request("POST", "/infer/wsi/" + MODEL + "?output=json&image=" + quoted(slideName()), body)
    def answer = new JsonSlurper().parseText(text(reply))
    removeObjects(getAnnotationObjects().findAll { it.getPathClass()?.getName() in HEAT }, false)
    def file = File.createTempFile("monai-mil", ".geojson")
    file.setText(text(reply), "UTF-8")
    importObjectsFromFile(file.getPath())
    file.delete()
    println slideName() + ": " + answer.prediction + (answer.note ? " (" + answer.note + ")" : "")
}

def submit() {
    def own = getAnnotationObjects().findAll { it.getPathClass() != null && !(it.getPathClass().getName() in HEAT) }
    if (own.isEmpty()) {
        println "nothing to send: draw an annotation and give it a class"
        return
    }
    def file = File.createTempFile("monai-mil", ".geojson")
    exportObjectsToGeoJson(own, file.getPath(), "FEATURE_COLLECTION")
    def params = JsonOutput.toJson([client_id: ANNOTATOR])
    println text(upload("/datastore/label?image=" + quoted(slideName()), slideName() + ".geojson", file.getText("UTF-8"), params))
    file.delete()
}

def part() {
    def found = next(slideName())
    if (!found?.bbox) {
        println "nothing is left to look at in " + slideName()
        return
    }
    def (x, y, width, height) = found.bbox
    def roi = ROIs.createRectangleROI(x, y, width, height, ImagePlane.getDefaultPlane())
    addObject(PathObjects.createAnnotationObject(roi, PathClass.fromString("Region*")))
}

def next(image) {
    def server = getCurrentServer()
    def size = server ? [server.getWidth(), server.getHeight()] : [0, 0]
    def body = JsonOutput.toJson([image: image, patch_size: [1024, 1024], image_size: size, client_id: ANNOTATOR])
    return new JsonSlurper().parseText(text(request("POST", "/activelearning/" + STRATEGY, body)))
}

def slideName() {
    def name = new File(getCurrentServer().getURIs()[0].getPath()).getName()
    return name.contains(".") ? name.substring(0, name.lastIndexOf(".")) : name
}

def request(method, path, body) {
    def publisher = body == null ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofString(body)
    def built = HttpRequest.newBuilder(URI.create(SERVER + path)).header("Content-Type", "application/json")
    return send(built.method(method, publisher).build())
}

def upload(path, name, content, params) {
    def boundary = "monai-mil-" + System.nanoTime()
    def body = "--" + boundary + "\r\nContent-Disposition: form-data; name=\"label\"; filename=\"" + name + "\"\r\n" +
        "Content-Type: application/geo+json\r\n\r\n" + content + "\r\n--" + boundary +
        "\r\nContent-Disposition: form-data; name=\"params\"\r\n\r\n" + params + "\r\n--" + boundary + "--\r\n"
    def built = HttpRequest.newBuilder(URI.create(SERVER + path))
        .header("Content-Type", "multipart/form-data; boundary=" + boundary)
    return send(built.PUT(HttpRequest.BodyPublishers.ofString(body, StandardCharsets.UTF_8)).build())
}

def send(built) {
    def client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build()
    return client.send(built, HttpResponse.BodyHandlers.ofString(StandardCharsets.UTF_8))
}

def text(reply) {
    if (reply.statusCode() != 200) {
        throw new RuntimeException("the server answers " + reply.statusCode() + ": " + reply.body())
    }
    return reply.body()
}

def quoted(name) {
    return URLEncoder.encode(name, "UTF-8").replace("+", "%20")
}
