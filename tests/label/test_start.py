"""What starts a server, and what is said where MONAI Label is not installed."""

import pytest
from typer.testing import CliRunner

from monai_mil import cli
from monai_mil.errors import OutputError, SettingsError
from monai_mil.label import Conf, init_project, start_command


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "app"
    done = CliRunner().invoke(cli.app, ["label", "init", str(folder), "--bundles", "pathology_asmil,ct_insight"])
    assert done.exit_code == 0
    return folder


def test_init_makes_a_main_of_one_line_and_copies_the_bundles(app):
    assert (app / "main.py").read_text().startswith("from monai_mil.label.app import MILApp")
    assert sorted(path.name for path in (app / "model").iterdir()) == ["ct_insight", "pathology_asmil"]
    assert Conf.read(app).bundles == ("pathology_asmil", "ct_insight")
    with pytest.raises(OutputError, match="exists"):
        init_project(app, ["pathology_asmil"])


def test_the_server_listens_on_this_machine_unless_told_otherwise(app, monkeypatch):
    monkeypatch.setattr("monai_mil.label.start.find_spec", lambda name: object())
    command = start_command(app, "slides")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[-2:] == ["--uvicorn_app", "monai_mil.label.server:app"]
    with pytest.raises(SettingsError, match="monai-mil label init"):
        start_command(app / "model", "slides")


def test_without_monai_label_it_says_how_to_get_it(app, monkeypatch):
    monkeypatch.setattr("monai_mil.label.start.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"scripts/setup\.sh label"):
        start_command(app, "slides")
