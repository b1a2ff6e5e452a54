"""The command ``monai-mil`` as a user meets it."""

import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from monai_mil import __version__
from monai_mil.bags import BagFile, make_bag_cohort
from monai_mil.cli import app
from tests.conftest import shared


def monai_mil(*arguments, check=True):
    command = [sys.executable, "-m", "monai_mil.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("command", ["embed", "embed-scans", "report", "demo", "doctor"])
def test_every_command_shows_an_example(command):
    shown = CliRunner().invoke(app, [command, "--help"]).stdout
    assert f"monai-mil {command}" in shown.split("Example")[1]


def test_the_version_is_the_package_s():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"monai-mil {__version__}\n"


def test_doctor_says_what_works_and_what_to_do_for_the_rest():
    shown = monai_mil("doctor").stdout
    assert f"monai-mil {__version__}" in shown
    for line in (r"cucim\s+│ yes", r"openslide\s+│ yes", r"texture\s+│ yes", r"uni\s+│ no .*gated: MahmoodLab/UNI"):
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


def test_an_error_of_the_user_is_one_line_without_a_traceback(tmp_path):
    for arguments in (["embed", tmp_path, "--out", tmp_path], ["report", tmp_path / "none.csv"]):
        done = monai_mil(*arguments, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert str(tmp_path) in done.stderr
        assert "Traceback" not in done.stderr


def test_a_table_stands_alone(tmp_path):
    table = make_bag_cohort(tmp_path, num_bags=12, width=4)
    done = monai_mil("embed", table, tmp_path, "--out", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert "give it alone" in done.stderr
