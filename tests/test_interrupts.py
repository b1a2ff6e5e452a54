"""Ctrl-C: within a second, with a word on how to go on, whatever the process is in the middle of."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import start

pytestmark = pytest.mark.usefixtures("fork_server")

SCRIPT = """
import pathlib, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
from monai_mil.interrupts import answering_interrupts, at_hard_end
folder = pathlib.Path({folder!r})
begin = (folder / "begun").touch
with answering_interrupts("go on so"), at_hard_end((folder / "tidied").touch):
    try:
        {work}
    finally:
        {tidy}
"""


def interrupted(folder: Path, work: str, tidy: str) -> tuple[int, str, float]:
    """Exit code, what was said, and the seconds that it took to come to an end."""
    process = start("-c", SCRIPT.format(folder=str(folder), work=work, tidy=tidy))
    while not (folder / "begun").exists() and process.poll() is None:
        time.sleep(0.01)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    done = process.result(30)
    return done.returncode, done.stderr, time.monotonic() - begun


@pytest.mark.parametrize(
    ("work", "tidy", "hard"),
    [
        ("begin(); time.sleep(20)", "pass", False),
        ("begin(); time.sleep(20)", "time.sleep(20)", True),
        (
            "import torch, threading; big = torch.randn(4000, 4000, dtype=float); "
            "threading.Timer(0.2, begin).start(); torch.linalg.svd(big)",
            "pass",
            True,
        ),
    ],
    ids=["idle", "ends slowly", "within a library"],
)
def test_it_ends_within_a_second_and_says_how_to_go_on(tmp_path, work, tidy, hard):
    code, said, seconds = interrupted(tmp_path, work, tidy)
    assert (code, said) == (130, "\ninterrupted: go on so\n")
    assert seconds < 1.5, "a second, on a machine that does other things too"
    assert (tmp_path / "tidied").exists() is hard
