import json
import os
import signal
import socket
import time

import pytest
from filelock import FileLock
from ignite.engine import Engine, Events
from torch import nn

from monai_mil.errors import BusyError, OutputError, SettingsError
from monai_mil.training import Checkpointer, claim_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("model.pt", "model.json", "time_bins.json", "checkpoints/checkpoint_epoch=3.pt", "notes.txt"):
        (tmp_path / name).write_text("another run's")
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_new_folder_is_anybody_s(tmp_path):
    claim_folder(tmp_path / "new")
    claim_folder(tmp_path, resume=True)
    (tmp_path / "time_bins.json").touch()
    claim_folder(tmp_path)


def test_another_run_s_model_is_not_replaced_unasked(folder):
    before = names(folder)
    with pytest.raises(SettingsError, match=r"of another run \('model.pt'\), go on with it by --resume"):
        claim_folder(folder)
    (folder / "model.pt").unlink()
    with pytest.raises(SettingsError, match=r"\('checkpoint_epoch=3.pt'\)"):
        claim_folder(folder)
    assert names(folder) == [name for name in before if name != "model.pt"]


def test_a_resumed_run_goes_on_and_one_without_checkpoints_does_not_begin_anew(folder):
    claim_folder(folder, resume=True)
    claim_folder(folder, resume=True, overwrite=True)
    assert len(names(folder)) == 5
    (folder / "checkpoints" / "checkpoint_epoch=3.pt").unlink()
    with pytest.raises(SettingsError, match="and no checkpoint to go on from: give another --ckpt_dir"):
        claim_folder(folder, resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_is_resumed_from_the_beginning(tmp_path):
    def improve(engine):
        (tmp_path / "model.pt").write_text("better")
        raise OutputError("the disk is full")

    def trainer(*handlers):
        engine = Engine(lambda engine, batch: None)
        for handler in handlers:
            engine.add_event_handler(Events.EPOCH_COMPLETED, handler)
        Checkpointer(tmp_path / "checkpoints", {"network": nn.Linear(1, 1)}, resume=True).attach(engine)
        return engine

    claim_folder(tmp_path, resume=True)
    with pytest.raises(OutputError):
        trainer(improve).run([0])
    claim_folder(tmp_path, resume=True)
    trainer().run([0], max_epochs=2)
    assert [name for name in names(tmp_path) if not name.endswith((".lock", ".run"))] == [
        "checkpoint_epoch=1.pt",
        "checkpoint_epoch=2.pt",
        "model.pt",
    ]
    for checkpoint in (tmp_path / "checkpoints").glob("*.pt"):
        checkpoint.unlink()
    with pytest.raises(SettingsError, match="and no checkpoint to go on from"):
        claim_folder(tmp_path, resume=True)


def test_an_overwriting_run_removes_what_was_the_other_s(folder):
    claim_folder(folder, overwrite=True)
    assert names(folder) == ["notes.txt"]


@pytest.fixture
def other_run(tmp_path):
    """Another process that trains in the folder, as far as anybody can see."""
    lock, note = (tmp_path / f".checkpoints.{kind}" for kind in ("lock", "run"))
    ours, theirs = os.pipe()
    process = os.fork()
    if not process:
        with FileLock(lock):
            note.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": "noon"}))
            os.write(theirs, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(ours, 1)
    os.close(ours), os.close(theirs)
    yield process
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_two_trainings_do_not_write_into_one_folder(folder, other_run):
    told = rf"is being written by another run \(process {other_run} on .*, since noon\)"
    before = names(folder)
    for asked in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(BusyError, match=told):
            claim_folder(folder, **asked)
    trainer = Engine(lambda engine, batch: None)
    Checkpointer(folder / "checkpoints", {"network": nn.Linear(1, 1)}).attach(trainer)
    with pytest.raises(BusyError, match=told):
        trainer.run([0])
    assert names(folder) == before


def test_a_training_holds_its_folder_until_it_ends_and_leaves_no_lock(tmp_path):
    held = []
    trainer = Engine(lambda engine, batch: held.extend(path.name for path in tmp_path.glob(".*")))
    Checkpointer(tmp_path / "checkpoints", {"network": nn.Linear(1, 1)}).attach(trainer)
    trainer.run([0])
    assert sorted(held) == [".checkpoints.lock", ".checkpoints.run"]
    assert names(tmp_path) == ["checkpoint_epoch=1.pt"]
