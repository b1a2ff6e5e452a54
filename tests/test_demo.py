"""The main job, as the README's first command runs it: from synthetic slides to a report."""

import re
import subprocess
from functools import partial

import pytest
from typer.testing import CliRunner

from monai_mil import demo as steps
from monai_mil import synthetic
from monai_mil.cli import app
from monai_mil.cohorts import read_cohort
from monai_mil.synthetic import make_slide_cohort
from tests.conftest import ROOT
from tests.processes import Forks, run

pytestmark = pytest.mark.usefixtures("fork_server")
SLIDES = 20


class Steps(Forks):
    """The steps of the demo: forks, but for the prediction, whose start without half of MONAI is its own."""

    @staticmethod
    def run(command, **options):
        return (subprocess if "predict" in command else Forks).run(command, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demo of slides that are there already: fewer and smaller ones than its own."""
    folder = tmp_path_factory.mktemp("demo")
    make_slide_cohort(folder, num_slides=SLIDES, size=(2048, 2048))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "subprocess", Steps)
        done = CliRunner().invoke(app, ["demo", str(folder)])
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def test_its_own_slides_are_painted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "make_slide_cohort", partial(make_slide_cohort, size=(512, 512)))
    monkeypatch.setattr(steps, "NUM_SLIDES", 10)
    painted = steps._make_slides(tmp_path, 0)
    assert len(read_cohort(painted).slides) == 10
    monkeypatch.setattr(steps, "NUM_SLIDES", 11)
    assert steps._make_slides(tmp_path, 0) == painted
    assert len(read_cohort(painted).slides) == 10


def test_slides_and_tiles_are_told_apart(finished):
    _, shown = finished
    assert float(re.search(r"slides: AUROC ([\d.]+)", shown)[1]) >= 0.95
    assert float(re.search(r"tiles: +AUROC ([\d.]+)", shown)[1]) >= 0.9


def test_everything_it_names_is_there(finished):
    folder, shown = finished
    for place in re.findall(rf"{folder}/\S+", shown.split("Look at")[1]):
        assert (folder / place).exists(), place
    assert len(list((folder / "test" / "heatmaps").glob("*.png"))) == SLIDES // 5
    page = (folder / "test" / "report.html").read_text()
    assert "AUROC" in page
    assert not re.search(r"(src|href)=.https?:", page), "the report opens without a network"


def test_another_seed_does_not_mix_with_it(finished):
    folder, _ = finished
    done = run("-m", "monai_mil.cli", "demo", folder, "--seed", "1", folder=ROOT)
    assert done.returncode == 1
    assert "holds another demo" in done.stderr
