"""A killed run, resumed, ends exactly where an uninterrupted one ends."""

from __future__ import annotations

import signal
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from tests.processes import run

pytestmark = pytest.mark.usefixtures("fork_server")


def train(folder: Path, *options: str) -> CompletedProcess[str]:
    return run(Path(__file__).with_name("run_training.py"), folder, *options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder).returncode == 0
    return folder


def assert_same_weights(left: Path, right: Path) -> None:
    expected, actual = (torch.load(path, weights_only=True) for path in (left, right))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_killed_run_resumes_bit_identically(uninterrupted: Path, tmp_path: Path, epoch: int) -> None:
    assert train(tmp_path, "--kill", str(epoch), "2").returncode == -signal.SIGKILL
    assert not (tmp_path / "last.pt").exists()
    resumed = train(tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(uninterrupted / "last.pt", tmp_path / "last.pt")
    assert_same_weights(uninterrupted / "models" / "model.pt", tmp_path / "models" / "model.pt")


def test_two_checkpoints_are_kept_and_nothing_temporary(uninterrupted: Path) -> None:
    names = sorted(path.name for path in uninterrupted.rglob("*") if path.is_file())
    assert names == ["checkpoint_epoch=4.pt", "checkpoint_epoch=5.pt", "last.pt", "model.pt"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(uninterrupted: Path, tmp_path: Path) -> None:
    for path in uninterrupted.glob("checkpoint*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    newest = tmp_path / "checkpoint_epoch=5.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train(tmp_path, "--resume").returncode == 0
    assert_same_weights(uninterrupted / "last.pt", tmp_path / "last.pt")


def test_a_finished_run_can_be_resumed_for_more_epochs(uninterrupted: Path, tmp_path: Path) -> None:
    assert train(tmp_path, "--epochs", "3").returncode == 0
    assert train(tmp_path, "--epochs", "5", "--resume").returncode == 0
    assert_same_weights(uninterrupted / "last.pt", tmp_path / "last.pt")


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    first = train(tmp_path, "--epochs", "40", "--patience", "2")
    assert first.stdout.startswith("epoch ")
    assert not first.stdout.startswith("epoch 40,")
    again = train(tmp_path, "--epochs", "40", "--patience", "2", "--resume")
    assert again.stdout == first.stdout
