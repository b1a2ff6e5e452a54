"""The page of a comparison: everything of 20 methods with 25 runs each, in one file that needs no network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from monai_mil.reports import ComparedMethod, write_comparison
from monai_mil.reports.small_charts import box_chart, curve_charts

FIGURES = ("AUROC", "Macro F1", "Balanced accuracy", "Dice")
AXES = {
    "Learning curves": ("epoch", "validation AUROC", False),
    "Stability of attention": ("epoch", "divergence", True),
}


def many_methods(count: int = 20, runs: int = 25) -> list[ComparedMethod]:
    generator = np.random.default_rng(0)
    methods = []
    for number in range(count):
        rises = [[(e, 1 - 0.5 * 0.9**e + 0.02 * generator.normal()) for e in range(1, 31)] for _ in range(runs)]
        calms = [[(e, 0.1 * 0.8**e * np.exp(generator.normal())) for e in range(2, 31)] for _ in range(runs)]
        folds = {name: (0.8 + 0.005 * number + 0.03 * generator.normal(size=5)).tolist() for name in FIGURES}
        cells = [f"mil_baselines:method_{number:02d}", "25/25"]
        cells += [f"{np.mean(folds[name]):.3f} (0.801 to 0.899), p 0.{number:03d}" for name in FIGURES]
        vectors = generator.normal(size=(40, 2)), [case % 2 for case in range(40)]
        better = {"AUROC": "good" if number > 15 else ""}
        command = f"python -m monai.bundle run --method {number}"
        methods.append(
            ComparedMethod(
                cells[0],
                [*cells, "37,891", "12.3"],
                better,
                folds,
                {"Learning curves": rises, "Stability of attention": calms},
                vectors,
                "mil_baselines",
                command,
                "1 of 25 runs have no result: out of <memory>" if number == 3 else "",
            )
        )
    return methods


def test_a_page_of_many_methods_is_one_file_with_all_of_them(tmp_path: Path) -> None:
    columns = ["method", "runs", *FIGURES, "parameters", "training s"]
    page = write_comparison(
        tmp_path / "page.html",
        columns,
        many_methods(),
        title="Comparison",
        summary="60 slides",
        note="means",
        classes=["normal", "tumor"],
        axes=AXES,
        settings={"reference": "method_00"},
    )
    text = page.read_text()
    assert not re.search(r"(src|href)=.https?:", text)
    assert len(text) < 2_000_000
    assert text.count("<svg") == len(FIGURES) + 2 * 20 + 20
    assert text.count("<details>") == 20
    assert "out of &lt;memory&gt;" in text
    assert text.count('<td class="good">') == 4


def test_a_box_holds_the_middle_half_of_the_values() -> None:
    chart = box_chart([("one", [0.0, 1.0, 2.0, 3.0, 4.0]), ("none", [])], "value")
    assert chart.count("<circle") == 5
    box = re.search(r'<rect class="box" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    dots = [float(x) for x in re.findall(r'cx="([\d.]+)"', chart)]
    assert box is not None
    assert float(box[1]) == dots[1]
    assert abs(float(box[1]) + float(box[2]) - dots[3]) < 0.2


def test_curves_share_their_axes_and_logarithms_know_zero() -> None:
    first, second = curve_charts(
        [("a", [[(1, 1.0), (2, 0.1)]]), ("b", [[(1, 0.0), (3, None)]])], "epoch", "divergence", logarithmic=True
    )
    thin = [re.search(r'faint s0" points="([^"]*)"', chart) for chart in (first, second)]
    assert thin[0] is not None
    assert thin[1] is not None
    assert len(thin[0][1].split()) == 2
    assert len(thin[1][1].split()) == 1
    grid = [re.findall(r'd="(M[^"]+)"', chart) for chart in (first, second)]
    assert grid[0] == grid[1]
    assert curve_charts([("a", [[]])], "epoch", "nothing") == []


def test_labels_of_a_short_logarithmic_axis_differ() -> None:
    (chart,) = curve_charts([("one", [[(1, 2.9), (2, 2.8)]])], "epoch", "loss", logarithmic=True)
    labels = re.findall(r'text-anchor="end">([^<]+)<', chart)
    assert len(labels) > 1
    assert len(set(labels)) == len(labels)
    assert all(2.7 < float(label) < 3 for label in labels)
