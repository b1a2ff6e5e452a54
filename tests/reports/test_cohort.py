import csv
import json
import re

import numpy as np
import pytest

from monai_mil.errors import CohortError
from monai_mil.heatmaps import assemble
from monai_mil.metrics import auroc
from monai_mil.reports import write_report
from tests.conftest import shared
from tests.heatmaps.examples import frame, slide_heatmap

SLIDE = "data/wsi/CMU-1-Small-Region.svs"


def write_table(path, classes, n=24, multi_label=False, labels=True, slide_ids=None):
    rng = np.random.default_rng(0)
    table = []
    for index in range(n):
        truth = index % len(classes)
        logits = rng.normal(size=len(classes)) + 1.5 * (np.arange(len(classes)) == truth)
        prob = 1 / (1 + np.exp(-logits)) if multi_label else np.exp(logits) / np.exp(logits).sum()
        row = {"slide_id": (slide_ids or {}).get(index, f"slide_{index}"), "patient_id": f"p{index // 2}"}
        row["label"] = classes[truth] if labels else ""
        chosen = [name for name, p in zip(classes, prob, strict=True) if p >= 0.5]
        row["pred"] = ";".join(chosen) if multi_label else classes[prob.argmax()]
        row |= {f"prob_{name}": f"{p:.6f}" for name, p in zip(classes, prob, strict=True)}
        if multi_label:
            row |= {f"label_{name}": "" if index == 0 else str(int(name == classes[truth])) for name in classes}
        table.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    return table


def save_heatmap(folder, slide_id, **changes):
    heatmap = assemble([0.2, 0.8], [[0, 0], [100, 0]], frame(slide_id=slide_id, **changes))
    heatmap.save(folder / f"{slide_id}.h5")


def report(tmp_path, **options):
    path = write_report(tmp_path / "a.csv", tmp_path / "heatmaps", tmp_path / "a.html", resamples=50, **options)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("classes", "multi_label"), [(("normal", "tumor"), False), (("a", "b", "c"), False), (("x", "y"), True)]
)
def test_every_kind_of_cohort_has_its_metrics_and_curves(tmp_path, classes, multi_label):
    table = write_table(tmp_path / "a.csv", classes, multi_label=multi_label)
    page = report(tmp_path)
    prob = np.array([[float(row[f"prob_{name}"]) for name in classes] for row in table])
    label = [classes.index(row["label"]) for row in table]
    if multi_label:
        label = np.array([[float(row[f"label_{name}"] or "nan") for name in classes] for row in table])
    assert f'<div class="figure-value">{auroc(prob, label):.3f}</div>' in page
    assert page.count('class="line s') == 2 * (1 if len(classes) == 2 and not multi_label else len(classes))
    assert page.count("Confusion matrix") == (len(classes) if multi_label else 1)
    assert page.count("<tr>\n<td>slide_") == len(table)


def test_a_label_that_is_always_1_is_named_beside_the_mean_it_is_missing_from(tmp_path):
    table = write_table(tmp_path / "a.csv", ("x", "y", "<z>"), multi_label=True)
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(row | {"label_<z>": "1"} for row in table)
    page = report(tmp_path)
    assert "AUROC, without &lt;z&gt; (always 1)</div>" in page
    assert "Macro F1</div>" in page, "it has an F1"


def test_a_cohort_without_labels_has_predictions_only(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"), labels=False)
    page = report(tmp_path)
    assert "predictions only, no metrics" in page
    assert "<svg" not in page
    assert "Confusion matrix" not in page


def test_nobody_is_called_a_patient_where_the_table_does_not_say_whose_a_slide_is(tmp_path):
    text = "slide_id,patient_id,pred,prob_normal,prob_tumor\na,{},tumor,0.2,0.8\nb,{},tumor,0.1,0.9\n"
    for first, second in (("", ""), ("a", "b")):
        (tmp_path / "a.csv").write_text(text.format(first, second))
        page = report(tmp_path)
        assert "2 slides, 0 labelled; binary" in page
        assert "patient" not in page
    (tmp_path / "a.csv").write_text(text.format("p", "p"))
    assert "2 slides of 1 patient, 0 labelled" in report(tmp_path)


def test_a_slide_below_its_operating_point_is_muted_in_the_report_and_says_so(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"), n=2)
    said = {"called": False, "finding": "tumor", "finding_probability": 0.003, "operating_point": 0.5}
    heatmap = assemble([0.75, 0.25], [[0, 0], [100, 0]], frame(slide_id="slide_0"), attributes=said)
    heatmap.save(tmp_path / "heatmaps" / "slide_0.h5")
    page = report(tmp_path)
    assert (
        "attention, coloured by multiples of an even share, below the operating point: drawn muted (tumor 0.003" in page
    )
    assert '<span class="num">≤ 1' in page


def test_a_cohort_of_one_class_has_a_report(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"), n=1)
    assert "needs slides of both outcomes" in report(tmp_path)


def test_the_page_needs_no_network(tmp_path):
    slide = shared(SLIDE)
    write_table(tmp_path / "a.csv", ("normal", "tumor"), slide_ids={0: "CMU-1-Small-Region"})
    slide_heatmap(slide).save(tmp_path / "heatmaps" / "CMU-1-Small-Region.h5")
    page = report(tmp_path, tiles=5)
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]+)', page)
    assert sources
    assert all(source.startswith(("data:image/", "#slide-")) for source in sources)
    assert "http" not in page
    assert page.count('alt="tile at ') == 5
    assert page.count("data:image/jpeg;base64,") == 6, "five tiles and the thumbnail"


def test_names_from_the_table_cannot_write_html(tmp_path):
    name = '<script>alert("x")</script>'
    write_table(tmp_path / "a.csv", ("<i>normal", "tumor"), slide_ids={0: name})
    page = report(tmp_path, title="<b>title")
    assert name not in page
    assert "<i>normal" not in page
    assert "<b>title" not in page
    assert "&lt;script&gt;" in page


def test_wrong_and_certain_predictions_are_shown_first_and_their_number_is_bounded(tmp_path):
    table = write_table(tmp_path / "a.csv", ("normal", "tumor"))
    for row in table:
        save_heatmap(tmp_path / "heatmaps", row["slide_id"])
    page = report(tmp_path, max_figures=9)
    shown = re.findall(r"<section.*?<h3>(.*?)</h3>", page, flags=re.DOTALL)

    def interest(row):
        return row["pred"] == row["label"], -max(float(row["prob_normal"]), float(row["prob_tumor"]))

    assert shown == [row["slide_id"] for row in sorted(table, key=interest)][:9]
    assert "9 of 24 slides: wrong predictions first" in page
    assert page.count('href="#slide-') == 9


def test_a_missing_slide_and_a_damaged_heatmap_are_said_and_not_fatal(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    save_heatmap(tmp_path / "heatmaps", "slide_1", slide_path="gone/slide_1.svs")
    (tmp_path / "heatmaps" / "slide_2.h5").write_bytes(b"nothing")
    page = report(tmp_path)
    assert "The slide file slide_1.svs was not found: scores only." in page
    assert "slide_2.h5&#39; cannot be read" in page or "slide_2.h5&#39;: cannot be read" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table has no rows"),
        ("slide_id,label\na,x\n", "no column pred, prob_<class>; it has slide_id, label"),
        ("slide_id,pred,prob_x\na,x,0.5\na,x,0.5\n", "slide 'a' stands there twice"),
        ("scan_id,pred,prob_x\na,x,0.5\na,x,0.5\n", "scan 'a' stands there twice; keep one row a scan"),
        ("slide_id,pred,prob_x\na,x,1.5\n", "row 2, column 'prob_x': '1.5' is no number from 0 to 1"),
        ("slide_id,pred,prob_x\na,x,\n", "row 2: a probability is empty"),
        ("slide_id,label,pred,prob_x,prob_y\na,z,x,0.5,0.5\n", "row 2, column 'label': 'z' is none of x, y"),
    ],
)
def test_an_invalid_table_is_named_with_row_and_column(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(CohortError, match=message):
        report(tmp_path)


def test_one_class_alone_is_a_question_of_yes_and_no(tmp_path):
    (tmp_path / "a.csv").write_text("slide_id,pred,prob_x,label_x\na,x,0.9,1\nb,,0.2,0\nc,x,0.6,0\n")
    assert re.findall(r'figure-value">(.*?)<', report(tmp_path))[0] == "1.000"
    (tmp_path / "a.csv").write_text("slide_id,label,pred,prob_x\na,x,x,0.9\n")
    assert "predictions only, no metrics" in report(tmp_path)


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("slide_id,pred,prob_é\na,é,1\n".encode("latin-1"))
    with pytest.raises(CohortError, match=r"a\.csv': not UTF-8 text"):
        report(tmp_path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(CohortError, match=r"a\.csv.*run inference first"):
        report(tmp_path)


def with_points(path, points):
    rows = list(csv.DictReader(path.open(newline="", encoding="utf-8")))
    rows = [row | {f"operating_point_{name}": str(point) for name, point in points.items()} for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_operating_points_of_the_table_decide_what_is_predicted(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    rows = with_points(tmp_path / "a.csv", {"normal": 0.9, "tumor": 0.1})
    page = report(tmp_path)
    positive = [float(row["prob_tumor"]) >= 0.1 for row in rows]
    matrix = [
        sum(p == predicted and (row["label"] == "tumor") == label for row, p in zip(rows, positive, strict=True))
        for label in (False, True)
        for predicted in (False, True)
    ]
    cells = [int(count) for count in re.findall(r'<td style="--share: [^"]*" title="[^"]*">(\d+)</td>', page)]
    assert cells == matrix
    assert "predicted from its operating point on (tumor 0.1)" in page
    assert "Sensitivity, tumor" in page
    assert f"{matrix[3] / (matrix[2] + matrix[3]):.3f}" in page


def test_operating_points_that_differ_between_rows_are_refused(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    with_points(tmp_path / "a.csv", {"tumor": 0.1})
    with pytest.raises(CohortError, match="column 'operating_point_normal' must hold one number"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("threshold", "text"), [(0.5, "outlined above 0.5"), (np.inf, "below the operating point: no foreground")]
)
def test_the_report_shows_the_smooth_map_and_its_outline(tmp_path, threshold, text):
    write_table(tmp_path / "a.csv", ("normal", "tumor"), n=2)
    scores = np.zeros((2, 4, 4), np.float32)
    scores[1, 1:3, 1:3] = 1
    heatmap = assemble(scores, [[0, 0], [100, 0]], frame(slide_id="slide_0"), threshold=threshold)
    heatmap.save(tmp_path / "heatmaps" / "slide_0.h5")
    page = report(tmp_path)
    assert 'class="heat smooth"' in page
    assert ('class="outline"' in page) == np.isfinite(threshold)
    assert f"attention, coloured by score, {text}" in page


def test_heatmaps_of_every_class_are_found_and_counted_by_slide(tmp_path):
    write_table(tmp_path / "a.csv", ("x", "y"), n=4, multi_label=True)
    folder = tmp_path / "heatmaps"
    for name, stem in (("slide_1", "slide_1_x"), ("slide_1", "slide_1_y"), ("slide_2", "slide_2")):
        heatmap = assemble([0.2, 0.8], [[0, 0], [100, 0]], frame(slide_id=name), name=f"heatmap of {stem}")
        heatmap.save(folder / f"{stem}.h5")
    page = report(tmp_path)
    assert page.count('<section class="card" id="slide-') == 3
    assert "2 of 4 slides: wrong predictions first" in page
    assert "2 slides have a heatmap. 3 heatmaps are shown, one a class." in page
    first, second = page.index("<h3>slide_1 · x</h3>"), page.index("<h3>slide_1 · y</h3>")
    assert 0 < first < second
    assert "<h3>slide_2</h3>" in page
    number = int(re.search(r'id="slide-(\d+)">\s*<div class="slide-head">\s*<h3>slide_1 · x', page)[1])
    assert f'<a href="#slide-{number}">slide_1</a>' in page
    assert len(re.findall(r'<section class="card" id="slide-', report(tmp_path, max_figures=2))) == 2


def write_stability(path, divergences):
    epochs = [
        {"epoch": number, "jsd": jsd, "effective_tiles": 100.0 - number, "effective_share": 0.5, "cases": 3}
        for number, jsd in enumerate([None, *divergences], 1)
    ]
    path.write_text(json.dumps({"epochs": epochs}))
    return path


def test_the_curve_of_attention_beside_the_predictions_is_shown(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    assert "Stability of attention" not in report(tmp_path)
    write_stability(tmp_path / "attention_stability.json", [1e-3, 1e-4])
    page = report(tmp_path)
    assert "Stability of attention" in page
    assert page.count('class="line s0"') == 1 + 2  # of the ROC, and these


def test_curves_of_several_runs_are_compared_by_name(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    first = write_stability(tmp_path / "first.json", [1e-3, 1e-4, 1e-2])
    second = write_stability(tmp_path / "second.json", [0.0, 0.0])
    page = report(tmp_path, stability={"with <anchor>": first, "without": second})
    assert page.count('class="line s1"') == 2
    assert "with &lt;anchor&gt;</span>" in page
    lines = [line.split() for line in re.findall(r'class="line s[01]" points="([\d., -]+)"', page)[-4:]]
    assert [len(points) for points in lines] == [3, 2, 4, 3]  # divergence begins with the second epoch
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights[1] - heights[0] == pytest.approx(heights[0] - heights[2], abs=0.2)  # a decade up is one down


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{}", "no curve of a training"),
        ('{"epochs": []}', "no curve of a training"),
        ('{"epochs": [{"epoch": 1, "jsd": null}]}', "no curve of a training"),
        ('{"epochs": [{"epoch": 0, "jsd": null, "effective_tiles": 3}]}', "no curve of a training"),
        ('{"epochs": [{"epoch": "1", "jsd": null, "effective_tiles": 3}]}', "no curve of a training"),
        ('{"epochs": [{"epoch": 1, "jsd": "x", "effective_tiles": 3}]}', "no curve of a training"),
        ('{"epochs": [{"epoch": 1, "jsd": Infinity, "effective_tiles": 3}]}', "no curve of a training"),
    ],
)
def test_a_curve_that_is_none_is_named(tmp_path, text, message):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    if text is not None:
        (tmp_path / "curve.json").write_text(text)
    with pytest.raises(CohortError, match=rf"attention stability '.*curve.json': {message}"):
        report(tmp_path, stability={"a": tmp_path / "curve.json"})


def test_a_curve_without_any_known_figure_is_shown_empty(tmp_path):
    write_table(tmp_path / "a.csv", ("normal", "tumor"))
    epoch = {"epoch": 1, "jsd": None, "effective_tiles": None}
    (tmp_path / "attention_stability.json").write_text(json.dumps({"epochs": [epoch]}))
    assert report(tmp_path).count('class="line s0" points=""') == 2


def test_risks_are_sent_to_the_survival_report(tmp_path):
    (tmp_path / "a.csv").write_text("slide_id,patient_id,time,event,risk,survival_3\ns,p,1,1,-0.5,0.5\n")
    with pytest.raises(CohortError, match=r"give its survival.json"):
        report(tmp_path)
