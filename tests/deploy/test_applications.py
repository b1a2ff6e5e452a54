"""The applications themselves, by MONAI Deploy's SDK, the packager, and the sandbox.

Needs the SDK: ``scripts/setup.sh deploy`` and ``.venv-deploy/bin/python -m pytest tests/deploy``.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from monai_mil.deploy import Exit, Job, in_order, run_job
from monai_mil.deploy.command import by_monai_deploy
from tests.conftest import ROOT
from tests.deploy.drawn import draw_study
from tests.label.drawn import draw_slide

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("holoscan") is None, reason="MONAI Deploy is absent: run scripts/setup.sh deploy"
    ),
    pytest.mark.timeout(900),
]


def status(out):
    return json.loads((out / "status.json").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return draw_study(tmp_path_factory.mktemp("study") / "in")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """What the packager would have an image built of."""
    place = tmp_path_factory.mktemp("package") / "ct_insight"
    command = [str(ROOT / "scripts" / "package_deploy.sh"), "ct_insight", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Succeeded" in done.stdout
    return place / "context"


def test_the_application_answers_as_the_steps_without_it(study, tmp_path):
    for name, execute in (("sdk", by_monai_deploy), ("plain", in_order)):
        assert run_job(Job("ct", study, tmp_path / name, Path("ct_insight")), execute) is Exit.OK
    assert status(tmp_path / "sdk")["files"] == status(tmp_path / "plain")["files"]
    assert {"results/sr.dcm", "results/pm.dcm"} <= set(status(tmp_path / "sdk")["files"])


def test_a_slide_is_answered(tmp_path):
    draw_slide(tmp_path / "in" / "slide.tif", positive=True, seed=1)
    assert run_job(Job("slide", tmp_path / "in", tmp_path / "out", Path("pathology_asmil")), by_monai_deploy) is Exit.OK
    files = {f"results/{name}" for name in ("heatmap.png", "heatmap.geojson", "heatmap.tif", "result.json")}
    assert set(status(tmp_path / "out")["files"]) == files


@pytest.mark.parametrize(("removed", "code"), [(24, Exit.NO_INPUT), (1, Exit.INVALID_INPUT)], ids=["empty", "a gap"])
def test_a_failing_step_ends_the_application_with_its_code(study, tmp_path, removed, code):
    shutil.copytree(study, tmp_path / "in")
    for number in range(removed):
        next((tmp_path / "in").rglob(f"IM{number + 10:04d}" if removed == 1 else "IM*")).unlink()
    assert run_job(Job("ct", tmp_path / "in", tmp_path / "out", Path("ct_insight")), by_monai_deploy) is code
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["status.json"]


def test_the_packager_is_given_all_that_an_image_needs(context):
    application = json.loads((context / "map" / "app.json").read_text())
    package = json.loads((context / "map" / "pkg.json").read_text())
    assert application["command"] == '["python3", "/opt/holoscan/app"]'
    assert application["input"]["formats"][0]["format"] == "dicom"
    assert "dicom" in application["output"]["formats"]
    assert (application["sdk"], application["sdkVersion"]) == ("monai-deploy", "4.0.0")
    assert application["version"] == package["version"] == "0.1.0"
    assert application["timeout"] > 0
    assert package["resources"] == {"cpu": 2, "gpu": 0, "memory": "4Gi"}
    assert package["models"] == {"ct_insight": "/opt/holoscan/models/ct_insight"}
    pins = (context / "pip" / "requirements.txt").read_text().split()
    assert {"monai-deploy-app-sdk==4.0.0", "holoscan-cu13==4.2.0", "holoscan-cli==4.2.0", "monai==1.6.1"} <= set(pins)
    for dockerfile in ("Dockerfile", "Dockerfile.map"):
        text = (context / dockerfile).read_text()
        assert "HOLOSCAN_INPUT_PATH=/var/holoscan/input" in text
        assert "\nUSER " in text
    own = (context / "Dockerfile.map").read_text()
    assert "ARG UID=1001" in own
    assert 'ENTRYPOINT ["python3", "/opt/holoscan/app"]' in own


def test_the_context_holds_the_package_and_the_bundle_and_nothing_that_docker_would_leave_out(context):
    packed = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
    rooms = {path.relative_to(ROOT).as_posix() for path in (ROOT / "monai_mil").rglob("*.py")}
    assert {f"app/{path}" for path in rooms if "/label/" not in path and not path.endswith("/cli.py")} <= packed
    bundle = {path.relative_to(ROOT / "bundles").as_posix() for path in (ROOT / "bundles/ct_insight/configs").iterdir()}
    assert {f"models/{path}" for path in bundle} | {"models/ct_insight/models/model.pt"} <= packed
    assert {"docs/README.md", "docs/LICENSE", "docs/model.json", "tools", "app.config"} <= packed
    left_out = ("/wheels/", "/env/", ".spec", ".log", ".manifest", "/__pycache__/")
    assert not [path for path in packed if any(part in f"/{path}" for part in left_out)]


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is absent: apt-get install bubblewrap")
def test_in_the_sandbox_good_input_ends_with_0_and_bad_input_does_not(context, study, tmp_path):
    sandbox = str(ROOT / "scripts" / "run_map_sandbox.sh")

    def run(source, out):
        command = [sandbox, str(context), str(source), str(tmp_path / out)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = run(study, "good")
    assert good.returncode == 0, good.stderr
    assert status(tmp_path / "good")["exit_code"] == 0
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "bad").returncode == Exit.NO_INPUT
    assert status(tmp_path / "bad")["cause"] == "no_input"
