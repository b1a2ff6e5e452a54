"""``kill -9`` of the real server while it trains and while labels are submitted; two kills here, more by a variable:

    MONAI_MIL_KILLS=20 .venv-label/bin/python -m pytest tests/label/test_kills.py -s

What was submitted and answered is there, and the model that is served is the last whole one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from http.client import HTTPException

import pytest

from monai_mil.label import init_project
from monai_mil.model_card import read_model
from tests.label.drawn import LESION, asap, draw_studies
from tests.label.served import Served

monailabel = pytest.importorskip("monailabel", reason="MONAI Label is absent: run scripts/setup.sh label")
KILLS = int(os.environ.get("MONAI_MIL_KILLS", "1"))
"""Of each kind."""
pytestmark = pytest.mark.timeout(600 + 600 * KILLS)

MODEL = "pathology_asmil"
SIZE = (1024, 768)
SENDERS = ("anna", "ben", "cleo")
SETTINGS = {"max_epochs": 2, "val_split": 0, "learning_rate": 0.002}


def label_of(name: str) -> str:
    return "tumor" if name.startswith("pos") else "normal"


def submit_until_killed(server: Served, annotator: str, answered: list[tuple[str, str, str]]) -> None:
    """Submit one label after the other; keeps who, which slide and the submission's own words once it is answered."""
    number = 0
    while True:
        name = f"{('pos', 'neg')[number % 2]}_{number // 2 % 2}"
        words = f"{annotator} {time.monotonic_ns()}"
        try:
            reply = server.qupath.submit(name, asap(label_of(name), LESION), client_id=annotator, words=words)
        except (OSError, ValueError, HTTPException):
            return
        if reply.status != 200:
            return
        answered.append((annotator, name, words))
        number += 1


def kept(server: Served) -> set[tuple[str, str, str]]:
    return {
        (each.annotator, record.image, str(each.params.get("words")))
        for record in server.store.records()
        for each in record.submissions
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    server = Served(init_project(folder / "app", [MODEL]), draw_studies(folder / "studies", count=4))
    server.start()
    yield server
    server.stop()


def test_killed_while_it_trains_and_while_labels_come_it_loses_nothing(server, capsys):
    rng = random.Random(0)
    answered: list[tuple[str, str, str]] = []
    for name in ("pos_0", "neg_0", "pos_1", "neg_1"):
        server.qupath.infer(MODEL, name, (0, 0, *SIZE))
        assert server.qupath.submit(name, asap(label_of(name), LESION), client_id="dora", words=name).status == 200
        answered.append(("dora", name, name))
    server.ended("/scoring/")
    took = _train(server)
    told = []
    for number in range(2 * KILLS):
        is_training = number % 2 == 0
        senders = [
            threading.Thread(target=submit_until_killed, args=(server, who, answered))
            for who in (() if is_training else SENDERS)
        ]
        if is_training:
            assert server.qupath.train(MODEL, **SETTINGS).status == 200
        for sender in senders:
            sender.start()
        time.sleep(took * rng.uniform(0.4, 1) if is_training else rng.uniform(0.1, 1))
        with_children = rng.random() < 0.7
        server.kill(with_children=with_children)
        for sender in senders:
            sender.join()
        lost = set(answered) - kept(server)
        assert not lost, f"kill {number} lost {lost}"
        whole = read_model(server.weights(MODEL)).weights
        server.start()
        served = server.qupath.infer(MODEL, "pos_1", (0, 0, *SIZE), output="json").json["fingerprint"]
        later = read_model(server.weights(MODEL)).weights  # what outlived the server may have published
        assert served == whole if with_children else served in (whole, later)
        what = "training" if is_training else "submitting"
        told.append(f"killed while {what}: {len(answered)} answered, {len(kept(server))} kept, serves {served[:8]}")
    server.ended("/scoring/")
    _train(server)
    with capsys.disabled():
        print("", *told, sep="\n")


def _train(server: Served) -> float:
    begun = time.monotonic()
    assert server.qupath.train(MODEL, **SETTINGS).status == 200
    task = server.ended("/train/")
    assert task["status"] == "DONE", "\n".join(task["details"])
    return time.monotonic() - begun
