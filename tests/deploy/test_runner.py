"""Every end has its code; results appear at once, status.json last; nobody's name is told."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from monai_mil.deploy import DeployConf, Exit, Job, JobError, Redaction, run_job
from monai_mil.deploy.logs import ALLOW, logged, told
from monai_mil.errors import BagError, EncoderError, OutputError, ScanReadError, SettingsError, SlideReadError

FILES = {f"part_{number}.dcm": bytes([number]) * 200_000 for number in range(4)}


def job(tmp_path, model="ct_insight", modality="ct") -> Job:
    (tmp_path / "in").mkdir(exist_ok=True)
    return Job(modality, tmp_path / "in", tmp_path / "out", Path(model))


def status(tmp_path):
    return json.loads((tmp_path / "out" / "status.json").read_text())


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def writing(job, steps, pause=0.0):
    """What an application leaves: some files, written one after the other."""
    folder = next(job.output.glob(".partial-*")) / "results"
    folder.mkdir()
    for name, content in FILES.items():
        with (folder / name).open("wb") as file:
            for start in range(0, len(content), 20_000):
                file.write(content[start : start + 20_000])
                file.flush()
                time.sleep(pause)
    return folder


def raising(error):
    def execute(job, steps):
        raise error

    return execute


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("s"), Exit.USAGE),
        (JobError(Exit.NO_INPUT, "n"), Exit.NO_INPUT),
        (ScanReadError("a gap"), Exit.INVALID_INPUT),
        (SlideReadError("cut off"), Exit.INVALID_INPUT),
        (EncoderError("e"), Exit.INFERENCE),
        (BagError("b"), Exit.INFERENCE),
        (RuntimeError("r"), Exit.INFERENCE),
        (OutputError("o"), Exit.OUTPUT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_every_cause_has_its_code_and_a_status(tmp_path, error, code):
    assert run_job(job(tmp_path), raising(error)) is code
    said = status(tmp_path)
    assert (said["exit_code"], said["cause"]) == (code.value, code.name.lower())
    assert listed(tmp_path / "out") == ["status.json"]


def test_an_application_that_gives_nothing_has_failed(tmp_path):
    assert run_job(job(tmp_path), lambda job, steps: None) is Exit.INFERENCE


@pytest.mark.parametrize(
    ("model", "modality", "message"),
    [
        ("pathology_asmil", "ct", "start the application 'slide' with it"),
        ("ct_insight", "slide", "start the application 'ct' with it"),
        ("nowhere", "ct", "no bundle 'nowhere'"),
    ],
)
def test_a_bundle_of_the_other_modality_is_refused(tmp_path, model, modality, message):
    assert run_job(job(tmp_path, model, modality), writing) is Exit.USAGE
    assert message in status(tmp_path)["message"]


def test_a_folder_of_models_holds_one_bundle(tmp_path, monkeypatch):
    root = Path(__file__).parents[2] / "bundles"
    models = tmp_path / "models"
    models.mkdir()
    (models / "ct_insight").symlink_to(root / "ct_insight")
    assert run_job(job(tmp_path, models), writing) is Exit.OK
    assert status(tmp_path)["bundle"] == "ct_insight"
    (models / "ct_normal_guidance").symlink_to(root / "ct_normal_guidance")
    assert run_job(job(tmp_path, models), writing) is Exit.USAGE
    assert "2 bundles in the folder of models" in status(tmp_path)["message"]


def test_results_appear_at_once_and_the_status_last(tmp_path):
    seen = []

    def looking(job, steps):
        folder = writing(job, steps)
        seen.extend(path.name for path in job.output.iterdir() if not path.name.startswith("."))
        return folder

    assert run_job(job(tmp_path), looking) is Exit.OK
    assert seen == []
    files = {f"results/{name}": hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert status(tmp_path)["files"] == files
    assert listed(tmp_path / "out") == sorted([*files, "status.json"])


def test_what_an_earlier_job_left_is_gone_before_the_next_begins(tmp_path):
    assert run_job(job(tmp_path), writing) is Exit.OK
    (tmp_path / "out" / ".partial-dead").mkdir()
    seen = []

    def failing(job, steps):
        seen.extend(path.name for path in job.output.iterdir() if not path.name.startswith("."))
        raise ScanReadError("a gap")

    assert run_job(job(tmp_path), failing) is Exit.INVALID_INPUT
    assert seen == []
    assert listed(tmp_path / "out") == ["status.json"]


def test_two_jobs_in_one_folder_do_not_mix(tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def slow(job, steps):
        inside.set()
        assert go_on.wait(60)
        return writing(job, steps)

    child = os.fork()
    if child == 0:
        inside.wait = lambda *_: True  # type: ignore[method-assign]
        os._exit(run_job(job(tmp_path), lambda job, steps: (time.sleep(1.5), writing(job, steps))[1]))
    for _ in range(500):
        if list((tmp_path / "out").glob(".partial-*")):
            break
        time.sleep(0.01)
    assert run_job(job(tmp_path), slow) is Exit.OUTPUT
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert status(tmp_path)["exit_code"] == 0


def test_a_folder_that_cannot_be_written_is_told_by_the_code(tmp_path):
    (tmp_path / "out").write_text("a file")
    assert run_job(job(tmp_path), writing) is Exit.OUTPUT


def test_a_status_that_cannot_be_written_leaves_no_results(tmp_path, monkeypatch):
    def full(status, path):
        raise OutputError("no space")

    monkeypatch.setattr("monai_mil.deploy.output.write_json", full)
    assert run_job(job(tmp_path), writing) is Exit.OUTPUT
    assert listed(tmp_path / "out") == []


@pytest.mark.parametrize("moment", [number * 0.016 for number in range(20)])
def test_killed_at_any_moment_nothing_looks_finished_that_is_not(tmp_path, moment):
    child = os.fork()
    if child == 0:
        os._exit(run_job(job(tmp_path), lambda job, steps: writing(job, steps, 0.003)))
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    out = tmp_path / "out"
    seen = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    assert seen in ([], ["results"], ["results", "status.json"])
    if "results" in seen:
        assert {path.name: path.read_bytes() for path in (out / "results").iterdir()} == FILES
    if "status.json" in seen:
        assert status(tmp_path)["exit_code"] == 0
    assert run_job(job(tmp_path), writing) is Exit.OK
    assert listed(out) == sorted([*(f"results/{name}" for name in FILES), "status.json"])


def test_names_of_what_came_in_are_told_nowhere(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv(ALLOW, raising=False)
    place = tmp_path / "DOE_JANE_1970"
    (place / "Doe^Jane").mkdir(parents=True)
    (place / "Doe^Jane" / "jane.doe.0001.dcm").touch()
    message = f"scan '{place}/Doe^Jane': missing slices after jane.doe.0001.dcm (frame 1) of Doe^Jane"
    given = Job("ct", place, tmp_path / "out", Path("ct_insight"))

    def chatty(job, steps):
        os.write(1, b"Doe^Jane\n")
        os.write(2, b"Doe^Jane\n")
        logging.getLogger("pydicom").error("Doe^Jane")
        logging.getLogger("monai_mil.scans").warning(message)
        raise ScanReadError(message)

    with logged(Redaction(place), "DEBUG"):
        assert run_job(given, chatty) is Exit.INVALID_INPUT
    out, err = capfd.readouterr()
    assert err.count("missing slices after (name)") == 2
    assert "(input)" in err
    told = (out + err + (tmp_path / "out" / "status.json").read_text()).lower()
    assert "doe" not in told
    assert "jane" not in told


def test_what_lies_beside_a_named_file_and_behind_links_is_not_told_either(tmp_path):
    (tmp_path / "DOE_JANE").mkdir()
    (tmp_path / "elsewhere" / "DOE_JOHN").mkdir(parents=True)
    for path in (tmp_path / "DOE_JANE" / "one.dcm", tmp_path / "DOE_JANE" / "jane2.dcm"):
        path.touch()
    (tmp_path / "elsewhere" / "DOE_JOHN" / "john.dcm").touch()
    (tmp_path / "DOE_JANE" / "more").symlink_to(tmp_path / "elsewhere")
    folder = tmp_path / "DOE_JANE"
    for place in (folder, folder / "one.dcm"):
        text = Redaction(place).of(f"'{folder}/jane2.dcm', '{folder}/more/DOE_JOHN/john.dcm' of DOE_JANE, john.dcm")
        assert text == "'(input)/(name)', '(input)/(name)/(name)/(name)' of (name), (name)"


def test_what_is_not_there_has_no_neighbours_and_modules_keep_their_names(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv(ALLOW, raising=False)
    (tmp_path / "deploy.json").touch()
    (tmp_path / "DOE_JANE").mkdir()
    with logged(Redaction(tmp_path / "gone"), "INFO"):
        logging.getLogger("monai_mil.deploy.runner").info("deploy %s", "gone")
    assert "monai_mil.deploy.runner: deploy (name)" in capfd.readouterr().err
    with logged(Redaction(tmp_path), "INFO"):
        logging.getLogger("monai_mil.deploy.runner").info("deploy of %s", "DOE_JANE")
    assert "monai_mil.deploy.runner: (name) of (name)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"operating_points": {"positive": 0.4}},
            "operating_points must be a list: as many numbers as the model's own",
        ),
        ({"operating_points": "05"}, "operating_points must be a list"),
        ({"operating_points": ["0.4", "0.6"]}, "operating_points must be a list"),
        ({"operating_points": [True, 0.5]}, "operating_points must be a list"),
        ({"objects": "sr"}, "objects must be a list"),
        ({"pictures": {"montage": 1}}, "pictures must be a list"),
        ({"series": {"SliceThickness": [1, 5]}}, "series must be a list: of rules"),
    ],
)
def test_a_config_of_another_shape_is_refused(tmp_path, changes, message):
    (tmp_path / "configs").mkdir()
    kept = {"operating_points": None, "objects": ["sr"], "pictures": []}
    (tmp_path / "configs" / "deploy.json").write_text(json.dumps(kept | changes))
    bundle = SimpleNamespace(name="own", reads="scans", config=lambda name: tmp_path / "configs" / f"{name}.json")
    with pytest.raises(SettingsError, match=message):
        DeployConf.of(bundle)


def test_errors_of_others_are_told_by_kind_and_place_alone(monkeypatch):
    monkeypatch.delenv(ALLOW, raising=False)
    with pytest.raises(ValueError, match="Doe") as caught:
        raise ValueError("Doe^Jane")
    text = told(caught.value, Redaction(Path("x")))
    assert "ValueError at test_runner.py" in text
    assert "Doe" not in text
    monkeypatch.setenv(ALLOW, "1")
    assert "Doe^Jane" in told(caught.value, Redaction(Path("x")))


def test_debug_is_refused_unless_patient_data_may_be_logged(monkeypatch, capsys, tmp_path):
    from monai_mil.deploy import main

    monkeypatch.delenv(ALLOW, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["ct", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "-m", "ct_insight", "-l", "DEBUG"])
    assert caught.value.code == Exit.USAGE
    assert ALLOW in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
