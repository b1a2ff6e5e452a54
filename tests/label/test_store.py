"""The records of a folder of studies: nothing is lost, whoever writes and whenever they are killed."""

import os
import signal
import time

import pytest

from monai_mil.errors import BagError
from monai_mil.label import LabelStore, Scores

IMAGES = [f"S-{number}" for number in range(50)]


def forked(work):
    """Run ``work`` in a fork; returns its process number."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return process


def test_a_label_keeps_annotator_time_and_the_model_that_was_shown(tmp_path):
    store = LabelStore(tmp_path)
    store.show("S-1", "anna", "asmil", "old")
    store.show("S-1", "ben", "insight", "other")
    store.show("S-1", "anna", "asmil", "new")
    file = tmp_path / "label.xml"
    file.write_text("first")
    first = store.submit("S-1", "anna", label="tumor", source="annotation", file=file, boxes=((1, 2, 3, 4),))
    file.write_text("second")
    second = store.submit("S-1", "ben", label="normal", source="annotation", file=file)
    record = LabelStore(tmp_path).read("S-1")
    assert record.submissions == (first, second)
    assert [(each.model, each.fingerprint) for each in record.submissions] == [("asmil", "new"), ("insight", "other")]
    assert [(tmp_path / each.file).read_text() for each in record.submissions] == ["first", "second"]
    assert (record.label, record.annotators) == (second, {"anna", "ben"})
    cleo = store.submit("S-1", "cleo", label=None, source="saw no model")
    assert (cleo.model, cleo.fingerprint) == ("", "")
    assert first.time <= second.time
    assert first.time.endswith("+00:00")


def test_a_later_submission_without_a_label_takes_none_away(tmp_path):
    store = LabelStore(tmp_path)
    store.submit("S-1", "anna", label="tumor", source="annotation")
    store.submit("S-1", "anna", label=None, source="no annotation of a class of the model")
    assert store.read("S-1").label.label == "tumor"
    assert store.read("S-2").label is None


def test_two_processes_that_write_a_thousand_times_each_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_mil.files._flush", lambda path: None)  # what a power cut takes is not tried here
    store = LabelStore(tmp_path)

    def write(annotator):
        for number in range(500):
            image = IMAGES[number % len(IMAGES)]
            store.submit(image, annotator, label="tumor", source=str(number))
            store.score(image, annotator, Scores("f", {"uncertainty": float(number)}))

    processes = [forked(lambda name=name: write(name)) for name in ("anna", "ben")]
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
    records = list(store.records())
    assert len(records) == len(IMAGES)
    for annotator in ("anna", "ben"):
        kept = [int(each.source) for record in records for each in record.submissions if each.annotator == annotator]
        assert sorted(kept) == list(range(500))
        assert sorted(record.scores[annotator].values["uncertainty"] for record in records) == list(range(450, 500))


def test_a_killed_process_loses_nothing_that_was_answered(tmp_path):
    store = LabelStore(tmp_path)
    file = tmp_path / "label.xml"
    file.write_text("<xml/>")
    for attempt in range(20):
        read, write = os.pipe()

        def submit(write=write):
            while True:
                submission = store.submit("S-1", "anna", label="tumor", source="s", file=file)
                os.write(write, submission.number.to_bytes(4, "big"))

        process = forked(submit)
        os.close(write)
        answered = int.from_bytes(os.read(read, 4), "big")
        time.sleep(0.002 * attempt)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with os.fdopen(read, "rb") as pipe:
            for number in iter(lambda pipe=pipe: pipe.read(4), b""):
                answered = int.from_bytes(number, "big")
        submissions = store.read("S-1").submissions
        assert len(submissions) >= answered
        assert [each.number for each in submissions] == list(range(1, len(submissions) + 1))
        assert all((tmp_path / each.file).read_text() == "<xml/>" for each in submissions)


def test_a_damaged_record_is_told(tmp_path):
    store = LabelStore(tmp_path)
    store.serve("S-1", "anna")
    (tmp_path / "images" / "S-1.json").write_text("{")
    with pytest.raises(BagError, match=r"images/S-1\.json': cannot be read"):
        store.read("S-1")
