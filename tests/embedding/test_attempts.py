"""A case that takes its process down: the others are done, it is tried once more alone, then set aside."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from monai_mil.embedding import EmbedReport, embed_cohort
from monai_mil.embedding.attempts import attempted, resting
from monai_mil.embedding.slide import EmbedSettings
from monai_mil.embedding.slide_job import SlideJob
from monai_mil.errors import SetAsideError
from monai_mil.interrupts import INTERRUPTED, answering_interrupts
from monai_mil.slides import write_pyramid
from tests.embedding.conftest import slide_of
from tests.embedding.counting import CountingEncoder
from tests.processes import start


@pytest.fixture
def slides(tmp_path):
    (tmp_path / "slides").mkdir()
    for name in "ac":
        slide_of(tmp_path / "slides" / f"{name}.tif", 600, 700)
    write_pyramid(tmp_path / "slides" / "bad.tif", np.full((1024, 1024, 3), (180, 60, 140), np.uint8), mpp=0.5)
    return tmp_path / "slides"


class Deadly(CountingEncoder):
    """An encoder whose process dies of the tiles of one colour."""

    def __call__(self, tiles):
        if not tiles.float().std(dim=(2, 3)).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tiles)


def killed(slides: Path, out: Path) -> bool:
    """Whether a run in a process of its own is killed by its encoder."""
    return start(__file__, slides, out).wait(60) == -signal.SIGKILL


def run(slides: Path, out: Path, **settings) -> EmbedReport:
    return embed_cohort(slides, out, CountingEncoder(out / "log"), batch_size=2, **settings)


def statuses(report: EmbedReport) -> dict[str, str]:
    return {result.case_id: result.cause or result.status for result in report.results}


def job(name: str, out: Path) -> SlideJob:
    (out / ".partial").mkdir(exist_ok=True)
    return SlideJob(name, out / f"{name}.svs", out, "cpu", False, EmbedSettings(256, 0.5), 8)


def die_in(*cases: SlideJob) -> None:
    """End a process in the middle of an attempt at each of them."""
    pid = os.fork()
    if pid == 0:
        with ExitStack() as stack:
            for case in cases:
                stack.enter_context(attempted(case))
            os._exit(0)  # as a crash: no block ends
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def is_set_aside(case: SlideJob) -> bool:
    try:
        with attempted(case):
            raise KeyboardInterrupt  # so that nothing is changed
    except SetAsideError:
        return True
    except KeyboardInterrupt:
        return False


@pytest.mark.usefixtures("fork_server")
def test_a_slide_that_kills_its_process_twice_stops_nobody_and_is_set_aside_until_it_is_asked_for(
    slides, tmp_path, capfd
):
    out = tmp_path / "bags"
    assert killed(slides / "bad.tif", out)
    assert killed(slides, out)
    assert sorted(bag.stem for bag in out.glob("*.h5")) == ["a", "c"], "the others are done first"
    report = run(slides, out)
    assert statuses(report) == {"a": "kept", "bad": "set aside", "c": "kept"}
    assert "died 2 times" in report.failed[0].error
    assert "--retry" in report.failed[0].error
    with (out / "failed.csv").open(newline="") as file:
        assert [(row["slide_id"], row["status"]) for row in csv.DictReader(file)] == [("bad", "set aside")]
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "3 slides found: 0 embedded, 2 kept, 1 left out (1 set aside)"
    assert statuses(run(slides, out, progress=False))["bad"] == "set aside", "it stays so"
    assert statuses(run(slides, out, progress=False, retry=True))["bad"] == "embedded"
    assert not (out / "failed.csv").exists()
    assert not list((out / ".partial").glob("*.attempt"))


def test_asked_for_again_it_is_tried_once(tmp_path):
    bad = job("bad", tmp_path)
    die_in(bad)
    die_in(bad)
    assert is_set_aside(bad)
    die_in(dataclasses.replace(bad, retry=True))
    assert is_set_aside(bad)


def test_deaths_at_different_places_are_not_the_slide_s_fault(tmp_path):
    case = job("a", tmp_path)
    for tiles in range(4):
        die_in(case)
        case.rows[0].write_bytes(bytes(12 * tiles + 12))
    assert not is_set_aside(case)
    die_in(case)
    assert is_set_aside(case)


def test_an_interruption_is_no_death(slides, tmp_path):
    class Interrupted(CountingEncoder):
        def __call__(self, tiles):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            embed_cohort(slides, tmp_path, Interrupted(tmp_path / "log"), progress=False)
    assert not list((tmp_path / ".partial").glob("*.attempt"))


def test_where_ctrl_c_ends_the_process_at_once_the_attempt_is_taken_back(tmp_path):
    case = job("a", tmp_path)
    die_in(case)
    before = case.attempt.read_bytes()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with answering_interrupts("go on so"), attempted(case):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(20)
            finally:
                threading.Event().wait(20)  # a library that does not come to an end
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == INTERRUPTED
    assert case.attempt.read_bytes() == before


def test_of_two_slides_in_flight_the_one_that_kills_again_is_blamed(tmp_path):
    good, bad = job("good", tmp_path), job("bad", tmp_path)
    die_in(good, bad)
    order = []

    def work(case: SlideJob, until: threading.Event) -> None:
        with attempted(case):
            order.append(f"{case.case_id} begins")
            until.wait(5)
            order.append(f"{case.case_id} ends")

    release = threading.Event()
    threads = [threading.Thread(target=work, args=(case, release)) for case in (good, bad, job("new", tmp_path))]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    begun = [order.index(f"{name} begins") for name in ("good", "bad")]
    assert all(order[index + 1] == order[index].replace("begins", "ends") for index in begun), "alone, each"
    assert not list((tmp_path / ".partial").iterdir())


def test_a_note_cut_by_a_loss_of_power_counts_as_one_death(tmp_path):
    case = job("a", tmp_path)
    case.attempt.write_text("")
    die_in(case)
    assert is_set_aside(case)


if __name__ == "__main__":
    embed_cohort(sys.argv[1], sys.argv[2], Deadly(Path(os.devnull)), batch_size=2, progress=False)


def test_a_death_while_a_slide_waits_for_the_encoder_is_not_its_own(tmp_path):
    case = job("a", tmp_path)
    pid = os.fork()
    if pid == 0:
        with attempted(case), resting():
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not case.attempt.exists()
    with attempted(case):
        with resting():
            assert not case.attempt.exists()
        assert case.attempt.exists()
    assert not case.attempt.exists()
