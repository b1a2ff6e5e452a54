"""The experiments of the docs, at a size that takes seconds."""

import numpy as np
import pytest
import torch
from PIL import Image

from monai_mil.bags import BagFile
from monai_mil.cohorts import read_cohort
from monai_mil.networks import HAGMIL
from monai_mil.synthetic import make_bag_cohort
from tests.conftest import ROOT
from tests.processes import Forks, run


@pytest.fixture
def experiment(monkeypatch, fork_server):
    """The experiment of Normal Guidance with one seed, one trained method and few scans."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import bundles, normal_guidance

    monkeypatch.setattr(bundles, "subprocess", Forks)

    monkeypatch.setattr(normal_guidance, "SEEDS", (1001,))
    monkeypatch.setattr(normal_guidance, "SCANS", (64, 16, 16))
    monkeypatch.setattr(normal_guidance, "METHODS", {"ABMIL": normal_guidance.METHODS["ABMIL"]})
    return normal_guidance


def test_a_table_has_every_method_and_a_second_call_trains_nothing(experiment, tmp_path):
    table = experiment.run(tmp_path)
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert names == [
        "centre of the scan, rank",
        "centre of the scan, sigma 1",
        "best possible",
        "ABMIL",
        "slice labels, supervised",
    ]
    scan, slices, _ = (float(figure) for figure in table.splitlines()[4].split("|")[2].split("/"))
    assert scan > 0.8
    assert slices > 0.9
    models = sorted(tmp_path.rglob("model.pt"))
    written = [path.stat().st_mtime_ns for path in models]
    assert len(models) == 2
    assert experiment.run(tmp_path) == table
    assert [path.stat().st_mtime_ns for path in models] == written


@pytest.mark.usefixtures("fork_server")
def test_an_unknown_experiment_is_refused_with_the_known_ones():
    done = run(ROOT / "scripts" / "experiment.py", "nonsense")
    assert done.returncode == 2
    assert "normal_guidance" in done.stderr
    assert "two_lesions" in done.stderr


def test_the_tiles_that_count_as_seen_are_those_that_hagmil_looks_at(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import levels

    for coarse, k in ((9, 2), (9, 12), (5, 1000)):
        network = HAGMIL(4, 2, k_train=k, k_eval=k, hidden_dims=(8, 8), instance_channels=4, attention_dim=4).eval()
        output = network(torch.randn(1, 4, 21 * coarse), return_dict=True)
        assert int(levels.tiles_seen(coarse, k)) == int(torch.isfinite(output["attention_logits"]).sum())


def test_tiles_by_chance_are_as_many_as_hagmil_sees_and_keep_their_places(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import levels

    table = make_bag_cohort(tmp_path, num_bags=10, width=4, bag_size=(160, 160))
    cohort = read_cohort(table)
    for level, count in ((0, 160), (2, 10)):
        for slide in cohort.slides:
            with BagFile(tmp_path / "bags" / f"{slide.slide_id}.h5") as bag:
                path = tmp_path / f"level_{level}" / f"{slide.slide_id}.h5"
                BagFile.write(path, bag.features()[:count], bag.coords[:count], bag.info)
    levels.draw_finest(cohort, tmp_path, tmp_path / "chance", k=3)
    for slide in cohort.slides:
        with (
            BagFile(tmp_path / "chance" / f"{slide.slide_id}.h5") as drawn,
            BagFile(tmp_path / "level_0" / f"{slide.slide_id}.h5") as bag,
        ):
            assert drawn.n == 10 + 12 + 12
            places = {tuple(place): row for row, place in enumerate(bag.coords.tolist())}
            rows = [places[tuple(place)] for place in drawn.coords.tolist()]
            assert len(set(rows)) == len(rows)
            np.testing.assert_array_equal(drawn.features(), bag.features()[rows])


def test_tiles_are_probed_by_folds_and_by_slide(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import tile_probe

    monkeypatch.setattr(tile_probe, "SEEDS", (0,))
    generator = np.random.default_rng(0)
    for label, contrast in (("normal", 8), ("tumor", 80)):
        (tmp_path / label).mkdir()
        for index in range(6):
            pixels = 128 + contrast * (generator.random((32, 32, 3)) - 0.5)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / label / f"tumor_{index % 3:03d}_{index}_7.png")
    tiles = tile_probe.read_tiles(tmp_path)
    assert tiles.pixels.shape == (12, 3, 32, 32)
    assert tiles.tumor.tolist() == [False] * 6 + [True] * 6
    assert sorted(set(tiles.slides)) == ["tumor_000", "tumor_001", "tumor_002"]
    lines = tile_probe.run(tmp_path / "out", tmp_path).splitlines()
    for line, name in zip(lines[2:4], ("texture", "efficientnet_lite0"), strict=True):
        assert line.startswith(f"| `{name}` | 1.000 ± 0.000 | 1.000 | ")
    assert lines[-1] == "12 tiles, 6 with tumour, of 3 slides."
    with pytest.raises(SystemExit, match=r"no tiles in .*needs the folders normal/ and tumor/"):
        tile_probe.read_tiles(tmp_path / "out")


@pytest.fixture
def stability(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import attention_stability

    return attention_stability


def stability_run(jsd, tiles, probabilities):
    """What one run of one seed leaves: two epochs and twelve test slides of twelve patients."""
    epochs = [{"epoch": 1, "jsd": None, "effective_tiles": tiles, "effective_share": 1.0, "cases": 3}]
    epochs.append({**epochs[0], "epoch": 2, "jsd": jsd})
    rows = [
        {"patient_id": f"p{index}", "label": ("normal", "tumor")[index % 2], "prob_tumor": str(value)}
        for index, value in enumerate(probabilities)
    ]
    return {
        "attention_stability": {"epochs": epochs},
        "metrics": {"auroc": {"value": 1.0}},
        "localisation": {"dice": {"value": 0.5}},
        "predictions": rows,
    }


def test_arms_are_compared_slide_by_slide_over_the_same_seeds(stability):
    right, wrong = [0.1, 0.9] * 6, [0.9, 0.1] * 6
    plain = [stability_run(1e-2, 9.0, right), stability_run(3e-2, 7.0, wrong)]
    assert vars(stability._paired(plain, plain)) == {"value": 0, "low": 0, "high": 0}
    better = stability._paired([stability_run(0, 9, right)] * 2, plain)
    assert (better.value, better.low, better.high) == (0.5, 0.5, 0.5)
    first, second = stability._mean_curve([each["attention_stability"]["epochs"] for each in plain])
    assert first.jsd != first.jsd
    assert (second.epoch, second.jsd, second.effective_tiles, second.cases) == (2, pytest.approx(2e-2), 8.0, 3)


def test_the_table_of_the_arms_gives_every_figure_and_the_price_of_the_anchor(stability):
    runs = {name: [stability_run(10.0**-index, 9, [0.1, 0.9] * 6)] * 2 for index, name in enumerate(stability.ARMS)}
    curves = {
        name: stability._mean_curve([each["attention_stability"]["epochs"] for each in arm])
        for name, arm in runs.items()
    }
    lines = stability._table(runs, curves).splitlines()
    assert lines[2] == "| without anchor | 1.0e+00 | 9.0 | 1.000 ± 0.000 |  | 0.500 ± 0.000 |"
    assert lines[4].startswith("| anchor, beta 1 | 1.0e-02 | 9.0 | 1.000 ± 0.000 | +0.000 (+0.000 to +0.000) |")
    assert "12 test slides" in lines[-1]


def test_what_was_trained_is_read_again_and_stands_in_the_table_of_methods(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import methods

    row = {"auroc": 0.95, "low": 0.9, "high": 1.0, "epochs": 20, "seconds": 11.3}
    for cohort in ("slides", "mnist"):
        methods.append_row(tmp_path / "results.csv", {"cohort": cohort, "method": "abmil", **row}, methods.COLUMNS)
    done = methods._read(tmp_path / "results.csv")
    assert done.keys() == {("slides", "abmil"), ("mnist", "abmil")}
    line = methods._table(["abmil"], {"slides": tmp_path, "mnist": tmp_path}, done).splitlines()[-1]
    cell = "0.950 (0.900 to 1.000) | 20, 11"
    assert line == f"| `abmil` | {cell} | {cell} |"


def test_every_training_of_the_table_of_methods_has_as_many_steps(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from experiments import methods

    make_bag_cohort(tmp_path, num_bags=20, width=4, bag_size=(2, 3), fractions=(0.6, 0.2, 0.2))
    assert methods.epochs_of(tmp_path) == 6000 // 12
