"""The requests of QuPath's plugin 0.3.1, the Digital Slide Archive's and OHIF's, byte for byte as they send them."""

from __future__ import annotations

import gzip
import json
import socket
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

_BOUNDARY = "boundary-of-a-java-client"


@dataclass(frozen=True)
class Reply:
    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """What talks HTTP/1.1 to a port of this machine, with no header that it is not told to send."""

    port: int
    agent: str = "Java-http-client/17.0.5"

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"User-Agent: {self.agent}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
        with socket.create_connection(("127.0.0.1", self.port), timeout=300) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            response = HTTPResponse(connection, method=method)
            response.begin()
            body = response.read()  # a store behind MONAI Label's proxy packs long answers, whoever asks
            if response.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            return Reply(response.status, response.headers.get("content-type", ""), body)

    def _multipart(self, method: str, path: str, parts: list[tuple[str, bytes, str | None]]) -> Reply:
        body = b""
        for name, content, file in parts:
            said = f'; filename="{file}"\r\nContent-Type: application/octet-stream' if file else ""
            body += f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{said}\r\n\r\n'.encode()
            body += content + b"\r\n"
        body += f"--{_BOUNDARY}--\r\n".encode()
        return self.send(method, path, body, Content_Type=f"multipart/form-data; boundary={_BOUNDARY}")


@dataclass(frozen=True)
class QuPath(Client):
    """The plugin, which sends JSON without a Content-Type and asks for ``/auth/`` before each call."""

    def has_image(self, name: str) -> int:
        self.send("GET", "/auth/")
        return self.send("HEAD", f"/datastore/image?image={quote(name)}").status

    def infer(self, model: str, name: str, box: tuple[int, int, int, int], output: str = "asap") -> Reply:
        self.send("GET", "/auth/")
        body = self._body(box[:2], box[2:])
        return self.send("POST", f"/infer/wsi/{model}?output={output}&image={quote(name)}", body.encode())

    def infer_picture(self, model: str, png: bytes) -> Reply:
        self.send("GET", "/auth/")
        parts = [("file", png, "roi.png"), ("wsi", self._body((0, 0), (0, 0)).encode(), None)]
        return self._multipart("POST", f"/infer/wsi_v2/{model}?output=asap", parts)

    def next(self, strategy: str, name: str = "", size: tuple[int, int] = (0, 0)) -> Reply:
        self.send("GET", "/auth/")
        body = f'{{"image": "{name}", "patch_size": [256, 256],"image_size": [{size[0]}, {size[1]}]}}'
        return self.send("POST", f"/activelearning/{strategy}", body.encode())

    def submit(self, name: str, xml: str, **params: Any) -> Reply:
        self.send("GET", "/auth/")
        parts = [("label", xml.encode(), f"{name}.xml"), ("params", json.dumps(params).encode(), None)]
        return self._multipart("PUT", f"/datastore/label?image={quote(name)}", parts)

    def train(self, model: str, **changed: Any) -> Reply:
        self.send("GET", "/auth/")
        return self.send("POST", f"/train/{model}", json.dumps(changed).encode())

    @staticmethod
    def _body(location: tuple[int, ...], size: tuple[int, ...]) -> str:
        return (
            f'{{"level":0,"location":[{location[0]},{location[1]}],"size":[{size[0]},{size[1]}],'
            '"tile_size":[1024,1024],"min_poly_area":30,'
            '"params":{"foreground":[],"background":[],"max_workers":1}}'
        )


@dataclass(frozen=True)
class Script(Client):
    """``docs/pages/monai_mil.groovy`` in QuPath 0.5 or 0.6: compact JSON, GeoJSON in both directions."""

    annotator: str = "anna"

    def heatmap(self, model: str, name: str, size: tuple[int, int]) -> Reply:
        params = f'"params":{{"client_id":"{self.annotator}"}}'
        body = f'{{"level":0,"location":[0,0],"size":[{size[0]},{size[1]}],{params}}}'
        return self._json("POST", f"/infer/wsi/{model}?output=json&image={quote(name)}", body)

    def submit(self, name: str, geojson: str) -> Reply:
        kind = "Content-Type: application/geo+json\r\n"
        parts = [
            f'Content-Disposition: form-data; name="label"; filename="{name}.geojson"\r\n{kind}\r\n{geojson}\r\n',
            f'Content-Disposition: form-data; name="params"\r\n\r\n{{"client_id":"{self.annotator}"}}\r\n',
        ]
        body = "".join(f"--monai-mil-1\r\n{part}" for part in parts) + "--monai-mil-1--\r\n"
        kind = "multipart/form-data; boundary=monai-mil-1"
        return self.send("PUT", f"/datastore/label?image={quote(name)}", body.encode(), Content_Type=kind)

    def next(self, strategy: str, name: str, size: tuple[int, int]) -> Reply:
        sizes = f'"patch_size":[1024,1024],"image_size":[{size[0]},{size[1]}]'
        body = f'{{"image":"{name}",{sizes},"client_id":"{self.annotator}"}}'
        return self._json("POST", f"/activelearning/{strategy}", body)

    def _json(self, method: str, path: str, body: str) -> Reply:
        return self.send(method, path, body.encode(), Content_Type="application/json")


@dataclass(frozen=True)
class Archive(Client):
    """The Digital Slide Archive's plugin, which asks for the whole slide by -1."""

    agent: str = "python-requests/2.28.1"

    def infer(self, model: str, name: str) -> Reply:
        body = {
            "level": 0,
            "location": [-1, -1],
            "size": [-1, -1],
            "tile_size": [1024, 1024],
            "min_poly_area": 80.0,
            "output": "dsa",
            "girder_api_url": "http://127.0.0.1:8080/api/v1",
            "girder_token": "token",
            "params": {"wsi_tiles": []},
            "client_id": None,
        }
        content = json.dumps(body).encode()
        return self.send(
            "POST", f"/infer/wsi/{model}?image={quote(name)}&output=dsa", content, Content_Type="application/json"
        )


@dataclass(frozen=True)
class Ohif(Client):
    """OHIF 3 with MONAI Label's extension, which names a scan by its SeriesInstanceUID and sends bare voxels."""

    agent: str = "Mozilla/5.0"

    def infer(self, model: str, series: str, output: str = "all", **further: Any) -> Reply:
        usual = {"result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False}
        params = json.dumps({**usual, "restore_label_idx": False, **further})
        path = f"/infer/{model}?image={series}&output={output}"
        return self._multipart("POST", path, [("params", params.encode(), None)])

    def submit(self, series: str, voxels: bytes, names: list[str]) -> Reply:
        params = json.dumps({"label_info": [{"name": name, "idx": idx} for idx, name in enumerate(names, start=1)]})
        parts = [("params", params.encode(), None), ("label", voxels, "label.bin")]
        return self._multipart("PUT", f"/datastore/label?image={series}", parts)

    def train(self, model: str, **settings: Any) -> Reply:
        body = json.dumps({model: settings}).encode()
        return self.send("POST", "/train/", body, Content_Type="application/json")

    def next(self, strategy: str) -> Reply:
        return self.send("POST", f"/activelearning/{strategy}", b"{}", Content_Type="application/json")
