"""The command ``monai-mil`` as a user meets it."""

import json
import re
import shutil
import sys
import tarfile
from importlib.metadata import PackageNotFoundError

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from monai_mil import __version__
from monai_mil.bags import BagFile, BagInfo
from monai_mil.cli import app
from monai_mil.encoders.cards import CARDS
from monai_mil.encoders.weights import url_file
from monai_mil.errors import MonaiMILError
from monai_mil.files import write_json
from monai_mil.metrics import survival_report
from monai_mil.synthetic import make_bag_cohort
from monai_mil.synthetic.scan_cohort import make_scan_cohort
from tests.conftest import shared
from tests.processes import run

pytestmark = pytest.mark.usefixtures("fork_server")


def monai_mil(*arguments, check=True):
    done = run("-m", "monai_mil.cli", *arguments)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "command",
    ["predict", "train", "evaluate", "calibrate", "bundles", "bundles copy", "bundles pack", "embed", "embed-scans",
     "check", "report", "demo", "doctor"],
)  # fmt: skip
def test_every_command_shows_an_example(command):
    shown = CliRunner().invoke(app, [*command.split(), "--help"]).stdout
    assert f"monai-mil {command}" in shown.split("Example")[1]


def test_damaged_bags_are_found_and_removed(tmp_path):
    bags = [tmp_path / "bags" / f"{name}.h5" for name in "abcd"]
    for path in bags:
        BagFile.write(path, np.ones((2, 8)), np.zeros((2, 2), int), BagInfo(path.stem))
    with h5py.File(bags[0], "r+") as file:
        place = file["features"].id.get_offset() + 3
    with bags[0].open("r+b") as file:
        file.seek(place)
        file.write(b"\x99\x99")
    bags[1].write_bytes(bytes(100))
    with h5py.File(bags[2], "r+") as file:
        del file.attrs["monai_mil.digests"], file["feature_checksums"]
    shown = CliRunner().invoke(app, ["check", str(tmp_path)])
    first, second, last = shown.stdout.splitlines()
    assert f"bag '{bags[0]}': the features of instances 0 to 1 are not what was written" in first
    assert f"bag '{bags[1]}': truncated or not an HDF5 file" in second
    assert last == "4 bags: 2 can be read, 1 of them without digests; 2 are damaged"
    assert shown.exit_code == 1
    shown = CliRunner().invoke(app, ["check", str(tmp_path), "--remove"])
    assert shown.stdout.endswith("; 2 are damaged and removed\n")
    shown = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert (shown.stdout, shown.exit_code) == ("2 bags: 2 can be read, 1 of them without digests; 0 are damaged\n", 0)


def test_bundles_are_listed_copied_and_packed(tmp_path):
    shown = CliRunner().invoke(app, ["bundles"]).stdout
    for name in ("ct_insight", "pathology_hagmil", "texture", "synthetic"):
        assert name in shown
    copied = CliRunner().invoke(app, ["bundles", "copy", "mil_baselines", str(tmp_path)]).stdout
    assert copied.strip() == str(tmp_path / "mil_baselines")
    packed = CliRunner().invoke(app, ["bundles", "pack", copied.strip(), str(tmp_path)]).stdout
    assert re.fullmatch(r".*mil_baselines_v[\d.]+\.zip\nsha256 [0-9a-f]{64}\n", packed)


def test_a_dry_run_prints_the_command_that_monai_takes(tmp_path):
    (tmp_path / "slides").mkdir()
    place = str(tmp_path / "slides")
    words = ["--heatmaps", "png,tiff", "--mpp", "0.25", "--device", "cpu", "--set", "min_tissue=0.5", "--dry-run"]
    shown = CliRunner().invoke(app, ["predict", "pathology_asmil", place, "--out", "out", *words]).stdout
    assert shown.startswith("python -m monai.bundle run --config_file ")
    for part in ("--heatmap_formats \"['png', 'tiff']\"", "--mpp 0.25", "--min_tissue 0.5", "torch.device('cpu')"):
        assert part in shown.replace("'\"'\"'", "'"), shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "pathology", "slides"], "no bundle 'pathology'"),
        (["predict", "ct_insight", "nowhere"], "'nowhere' is not there"),
        (["predict", "ct_insight", ".", "--heatmaps", "png"], "no heatmap format 'png' of scans"),
        (["train", "mil_baselines", "."], "no cohort.csv"),
        (["evaluate", "mil_baselines", "cohort.csv"], "train first"),
        (["train", "mil_baselines", ".", "--set", "epochs"], "is not KEY=VALUE"),
    ],
)
def test_what_cannot_be_run_is_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--out", "out"])
    assert isinstance(done.exception, MonaiMILError)
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_version_is_the_package_s():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"monai-mil {__version__}\n"


@pytest.mark.parametrize("command", ["embed", "embed-scans"])
def test_the_number_type_reaches_the_encoder(command):
    done = CliRunner().invoke(app, [command, "slides", "--out", "out", "--dtype", "bfloat16", "--encoder", "texture"])
    assert isinstance(done.exception, MonaiMILError)
    assert "computes in float32 alone, not in bfloat16" in str(done.exception)


def test_doctor_says_what_works_and_what_to_do_for_the_rest():
    shown = monai_mil("doctor").stdout
    assert f"monai-mil {__version__}" in shown
    for line in (
        r"bfloat16 on this CPU: [\d.]+ times as fast as float32",
        r"nibabel\s+│ yes",
        r"pydicom\s+│ yes",
        r"cucim\s+│ yes",
        r"openslide\s+│ yes",
        r"texture\s+│ yes",
        r"vit_b16_ct\s+│ (no .*download:|yes .*on this machine)",
        r"uni\s+│ no .*gated: MahmoodLab/UNI",
        r"pathology_insight\s+│ .*token maps.*│ texture\s+│ 38",
        r"ct_normal_guidance\s+│ .*│ ct_texture\s+│ 112",
    ):
        assert re.search(line, shown), line


def test_doctor_says_what_is_missing_and_what_is_here_already(tmp_path, monkeypatch):
    def known(package):
        if package in ("dask", "nibabel"):
            raise PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr("importlib.metadata.version", known)
    for module in ("timm", "lungmask"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = url_file(CARDS["vit_b16_ct"].url)
    weights.parent.mkdir(parents=True)
    weights.touch()
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    for line in (
        r"torch\s+│ 1\.2\.3",
        r"dask\s+│ not installed",
        r"nibabel\s+│ yes\s+│ unknown",
        r"pydicom\s+│ yes\s+│ 1\.2\.3",
        r"lungmask\s+│ no .*optional: pip install lungmask",
        r"vit_b16_ct\s+│ no .*on this machine",
        r"missing: timm cannot be imported .*install it with pip install 'monai-mil\[encoders\]'",
    ):
        assert re.search(line, shown), line


def test_embed_takes_a_folder_and_goes_on_past_a_bad_slide(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(shared("data/wsi/CMU-1-Small-Region.svs"), slides)
    shutil.copy(shared("data/wsi/TCGA-CR-7395-01A-01-TS1.svs"), slides)
    done = monai_mil("embed", slides, "--out", tmp_path / "bags", check=False)
    assert done.returncode == 1
    assert re.search(r"no pixel size \(mpp\) in the file; pass --mpp", done.stdout + done.stderr)
    with BagFile(tmp_path / "bags" / "CMU-1-Small-Region.h5") as bag:
        assert bag.info.encoder == "texture"
        assert bag.n > 20


def test_embed_scans_takes_a_folder_and_goes_on_past_a_bad_series(tmp_path):
    make_scan_cohort(tmp_path, num_scans=2, slices=(6, 6), size=48, slice_mm=15.0, fractions=(1, 0, 0))
    damaged = sorted((tmp_path / "scans" / "scan_001").glob("*.dcm"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    done = monai_mil("embed-scans", tmp_path / "scans", "--out", tmp_path / "bags", "--preset", "lung", check=False)
    assert done.returncode == 1
    assert re.search(rf"1 of 2 scans failed:\n  .*{damaged.name}.*truncated", done.stderr)
    assert "Traceback" not in done.stderr
    with BagFile(tmp_path / "bags" / "scan_000.h5") as bag:
        assert (bag.n, bag.info.encoder, bag.info.preset["name"]) == (6, "ct_texture", "lung")
    assert not (tmp_path / "bags" / "scan_001.h5").exists()


def test_a_real_series_is_embedded_whole(tmp_path):
    archive = shared("data/ct_head_ge_gantrytilt/ge_head_dicom.tar.xz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "scans", filter="data")
    done = monai_mil("embed-scans", tmp_path / "scans", "--out", tmp_path / "bags", "--preset", "head_rsna")
    monai_mil("embed-scans", tmp_path / "scans", "--out", tmp_path / "eight", "--depth", "8")
    with BagFile(tmp_path / "eight" / "GE.h5") as bag:
        assert (bag.n, bag.info.depth.mode) == (8, "resize")
    blank = monai_mil(
        "embed-scans", tmp_path / "scans", "--out", tmp_path / "none", "--lungs", "threshold", check=False
    )
    assert blank.returncode == 1
    assert "no lungs were found" in blank.stderr
    assert "18.5 degrees" in done.stderr, "what is unusual about a scan is said"
    with BagFile(tmp_path / "bags" / "GE.h5") as bag:
        assert bag.n == len(set(bag.extra("sop_uids"))) == 28


def test_an_error_of_the_user_is_one_line_without_a_traceback(tmp_path):
    for arguments in (
        ["embed", tmp_path, "--out", tmp_path],
        ["embed-scans", tmp_path, "--out", tmp_path],
        ["embed-scans", tmp_path / "none.csv", "--out", tmp_path],
        ["report", tmp_path / "none.csv"],
        ["report", tmp_path / "none.json"],
    ):
        done = monai_mil(*arguments, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert str(tmp_path) in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def survival(tmp_path):
    """``survival.json`` of six patients."""
    report = survival_report([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1, 1, 0, 1, 1, 1], n=0)
    write_json(report, tmp_path / "survival.json")
    return tmp_path / "survival.json"


def curve(folder):
    """A run's curve of attention."""
    folder.mkdir(parents=True)
    epochs = [{"epoch": 1, "jsd": None, "effective_tiles": 9.0}, {"epoch": 2, "jsd": 1e-3, "effective_tiles": 8.0}]
    (folder / "curve.json").write_text(json.dumps({"epochs": epochs}))
    return str(folder / "curve.json")


def test_a_survival_report_compares_runs_also_those_with_an_equals_sign_in_their_path(survival, tmp_path):
    first, second = curve(tmp_path / "lr=0.1" / "one"), curve(tmp_path / "lr=0.2" / "two")
    done = CliRunner().invoke(app, ["report", str(survival), "--stability", first, "--stability", f"<two>={second}"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert "Stability of attention" in page
    assert "one</span>" in page
    assert "&lt;two&gt;</span>" in page


def test_what_a_report_cannot_show_is_refused(survival, tmp_path):
    same = [curve(tmp_path / run / "eval") for run in ("anchor", "plain")]
    for options, message in (
        (["--stability", same[0], "--stability", same[1]], "several runs are called 'eval': give NAME=FILE"),
        (["--heatmaps", str(tmp_path)], "leave --heatmaps out"),
    ):
        done = CliRunner().invoke(app, ["report", str(survival), *options])
        assert done.exit_code == 2
        assert message in done.output


@pytest.mark.parametrize("command", ["embed", "embed-scans"])
def test_a_table_stands_alone(tmp_path, command):
    table = make_bag_cohort(tmp_path, num_bags=12, width=4)
    done = monai_mil(command, table, tmp_path, "--out", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert "give it alone" in done.stderr


@pytest.mark.parametrize("command", ["predict", "train", "evaluate", "calibrate"])
def test_a_bundle_that_does_not_come_with_the_package_is_not_run_unasked(tmp_path, monkeypatch, command):
    from monai_mil import cli, runs

    monkeypatch.setattr(runs.BundleRun, "start", lambda run: started.append(run.bundle.name))
    monkeypatch.setattr(runs, "predict", lambda run, **_: started.append(run.bundle.name))
    monkeypatch.setattr(runs, "show_outcome", lambda *_: None)
    name = "pathology_insight" if command == "calibrate" else "pathology_asmil"
    stranger = runs.copy_bundle(runs.find_bundle(name), tmp_path)
    cohort = make_bag_cohort(tmp_path / "cohort", num_bags=12, width=76, bag_size=(4, 6))
    given = {"predict": [], "train": []}.get(command, ["--model", stranger / "models"])

    def invoke(bundle, *more, **options):
        words = [command, bundle, cohort, "--out", tmp_path / "out", *given, *more]
        return CliRunner().invoke(app, list(map(str, words)), **options)

    started: list[str] = []
    refused = invoke(stranger)
    assert str(refused.exception).endswith("read them, then run again with --trust")
    assert str(stranger) in str(refused.exception)
    assert started == []
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    assert invoke(stranger, input="n\n").exit_code == 1
    assert started == []
    for bundle, more, options in (
        (stranger, [], {"input": "y\n"}),
        (stranger, ["--trust"], {}),
        (name, [], {}),
    ):
        invoke(bundle, *more, **options)
        assert started.pop() == name
