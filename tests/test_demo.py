"""The main job, as the README's first command runs it: from synthetic slides to a report."""

import re

import pytest

from tests.conftest import ROOT
from tests.processes import run

pytestmark = pytest.mark.usefixtures("fork_server")


def demo(folder, *options):
    return run("-m", "monai_mil.cli", "demo", folder, *options, folder=ROOT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_slides_and_tiles_are_told_apart(finished):
    _, shown = finished
    assert float(re.search(r"slides: AUROC ([\d.]+)", shown)[1]) >= 0.95
    assert float(re.search(r"tiles: +AUROC ([\d.]+)", shown)[1]) >= 0.9


def test_everything_it_names_is_there(finished):
    folder, shown = finished
    for place in re.findall(rf"{folder}/\S+", shown.split("Look at")[1]):
        assert (folder / place).exists(), place
    assert len(list((folder / "test" / "heatmaps").glob("*.png"))) == 12
    page = (folder / "test" / "report.html").read_text()
    assert "AUROC" in page
    assert not re.search(r"(src|href)=.https?:", page), "the report opens without a network"


def test_another_seed_does_not_mix_with_it(finished):
    folder, _ = finished
    done = demo(folder, "--seed", "1")
    assert done.returncode == 1
    assert "holds another demo" in done.stderr
