"""Dask's workers: started here where there is no scheduler, and none of their failures ends the run."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monai_mil.embedding import CaseResult, dask
from monai_mil.embedding.dask import embed_with_dask
from monai_mil.embedding.slide import EmbedSettings
from monai_mil.embedding.slide_job import SlideJob
from monai_mil.errors import SettingsError


def test_without_dask_several_workers_are_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"several workers need Dask: pip install 'monai-mil\[scale\]'"):
        next(embed_with_dask({}, "texture"))


def test_a_worker_that_has_no_encoder_fails_its_cases_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    in_threads = partial(distributed.LocalCluster, processes=False)  # a process would take seconds to start
    monkeypatch.setattr(distributed, "LocalCluster", in_threads)
    jobs = {
        number: SlideJob(f"S-{number}", tmp_path / f"{number}.svs", tmp_path, "cpu", False, EmbedSettings(256, 0.5), 8)
        for number in (3, 5)
    }
    found = dict(embed_with_dask(jobs, "no such encoder"))
    assert {number: (result.case_id, result.status) for number, result in found.items()} == {
        3: ("S-3", "failed"),
        5: ("S-5", "failed"),
    }
    for number, result in found.items():
        assert result.error is not None
        assert result.error.startswith(f"slide '{tmp_path / str(number)}.svs': its worker was lost (")
        assert "no such encoder" in result.error
        assert result.error.endswith("run again to go on where it stopped")


def test_a_run_whose_results_come_steadily_goes_on_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    monkeypatch.setattr(dask, "_PATIENCE", 0.3)

    class Steady:
        """A client one of whose cases is done every twentieth of a second."""

        status, sent = "running", 0

        def submit(self, function: Any, job: SlideJob, **options: Any) -> Any:
            self.sent += 1
            result = CaseResult(job.case_id, str(job.path), "embedded")
            wait = 0.05 * self.sent
            return SimpleNamespace(
                result=lambda timeout: result,
                add_done_callback=lambda done: threading.Timer(wait, done, [None]).start(),
            )

        def nthreads(self) -> dict[str, int]:
            return {}

    jobs = {
        number: SlideJob(f"S-{number}", tmp_path / "a.svs", tmp_path, "cpu", False, EmbedSettings(256, 0.5), 8)
        for number in range(20)
    }
    assert sorted(index for index, _ in dask._Hand(Steady(), jobs, "texture").results()) == list(range(20))


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Workers in threads of this process, the first so many of which are lost in the middle of a case."""
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")

    @contextmanager
    def in_threads(workers: int) -> Iterator[Any]:
        settings = {"dashboard_address": None, "silence_logs": logging.CRITICAL, "processes": False}
        with distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **settings) as cluster:
            yield cluster

    def prepare(count: int) -> list[str]:
        begun: list[str] = []

        def work(job: SlideJob, encoder: Any, on_instances: object, *, wait: bool) -> CaseResult:
            assert encoder.name == "sent"
            begun.append(job.case_id)
            if len(begun) <= count:
                worker = distributed.get_worker()
                closing = worker.close(nanny=False, executor_wait=False)
                asyncio.run_coroutine_threadsafe(closing, worker.loop.asyncio_loop)
                time.sleep(1)
            return CaseResult(job.case_id, str(job.path), "embedded")

        monkeypatch.setattr(dask, "run_job", work)
        return begun

    monkeypatch.setattr(dask, "_local_cluster", in_threads)
    monkeypatch.setattr(dask, "_LOOK", 0.1)
    monkeypatch.setattr(dask, "_PATIENCE", 0.5)
    return prepare


def test_an_interruption_takes_back_what_workers_have_begun(tmp_path, monkeypatch):
    (tmp_path / ".partial").mkdir()
    (job,) = jobs_in(tmp_path, 1).values()
    begin = partial(job.attempt.write_text, "begun by a worker that is ended with this process")
    with pytest.raises(KeyboardInterrupt), dask._interruptible({0: job}):
        raise KeyboardInterrupt(begin())
    assert not job.attempt.exists()

    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(dask, "at_hard_end", lambda tidy: ends.append(tidy) or nullcontext())
    with dask._interruptible({0: job}):
        begin()
        ends[0]()
        assert not job.attempt.exists()


@pytest.mark.parametrize("lost", [1, 2])
def test_the_cases_of_lost_workers_are_done_by_others_which_get_the_encoder(tmp_path, losing, lost):
    begun = losing(lost)
    found = dict(embed_with_dask(jobs_in(tmp_path, 4), SimpleNamespace(name="sent"), workers=2))
    assert {number: result.status for number, result in found.items()} == dict.fromkeys(range(4), "embedded")
    assert len(begun) == 4 + lost


def test_where_no_worker_lasts_every_case_is_told(tmp_path, losing):
    losing(100)
    found = dict(embed_with_dask(jobs_in(tmp_path, 2), SimpleNamespace(name="sent"), workers=1))
    assert [result.status for result in found.values()] == ["failed"] * 2
    assert all("run again to go on where it stopped" in str(result.error) for result in found.values())


def test_a_scheduler_that_is_lost_ends_in_a_report(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    settings = {"dashboard_address": None, "silence_logs": logging.CRITICAL, "processes": False}
    hasty = pytest.importorskip("dask", reason="the extra 'scale' is not installed").config.set(
        {"distributed.comm.timeouts.connect": "1s"}
    )
    with hasty, distributed.LocalCluster(n_workers=1, threads_per_worker=1, protocol="tcp", **settings) as cluster:

        def work(job: SlideJob, encoder: Any, on_instances: object, *, wait: bool) -> CaseResult:
            if job.case_id == "S-1":
                assert first_is_told.wait(60)
                closing = cluster.scheduler.close()
                asyncio.run_coroutine_threadsafe(closing, cluster.loop.asyncio_loop)
                time.sleep(1)
            return CaseResult(job.case_id, str(job.path), "embedded")

        monkeypatch.setattr(dask, "run_job", work)
        first_is_told, found = threading.Event(), {}
        address = cluster.scheduler_address
        for number, result in embed_with_dask(jobs_in(tmp_path, 3), SimpleNamespace(name="sent"), scheduler=address):
            found[number] = result
            first_is_told.set()
    assert {number: result.status for number, result in found.items()} == {0: "embedded", 1: "failed", 2: "failed"}
    assert "no worker is left" in found[2].error


def test_a_scheduler_that_is_not_there_is_the_user_s_error(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    monkeypatch.setattr(distributed, "Client", partial(distributed.Client, timeout=0.2))
    with pytest.raises(SettingsError, match=r"no Dask scheduler at 'tcp://127.0.0.1:9'"):
        next(embed_with_dask(jobs_in(tmp_path, 1), "texture", scheduler="tcp://127.0.0.1:9"))


@pytest.mark.parametrize(("times", "status"), [(4, "embedded"), (5, "failed")])
def test_a_case_that_is_lost_on_its_way_is_sent_again_four_times(tmp_path, times, status):
    """Dask forgets a case when its only worker is lost: asking for its result raises."""
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")

    class Losing:
        status, sent = "running", 0

        def submit(self, function: Any, job: SlideJob, **options: Any) -> Any:
            self.sent += 1
            lost = self.sent <= times

            def result(timeout: float) -> CaseResult:
                if lost:
                    raise distributed.client.FutureCancelledError("a key", "already forgotten")
                return CaseResult(job.case_id, str(job.path), "embedded")

            state = "cancelled" if lost else "finished"
            return SimpleNamespace(status=state, result=result, add_done_callback=lambda done: done(None))

    client = Losing()
    ((number, result),) = dask._Hand(client, jobs_in(tmp_path, 1), "texture").results()
    assert (number, result.status, client.sent) == (0, status, 5)
    assert status == "embedded" or "its worker was lost (FutureCancelledError" in str(result.error)


@pytest.mark.parametrize("failures", [2, 3])
def test_workers_that_are_lost_while_they_start_are_started_again(monkeypatch, failures):
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    started: list[int] = []

    def start(**settings: Any) -> Any:
        started.append(settings["n_workers"])
        if len(started) <= failures:
            raise RuntimeError("a worker died while it started")
        return SimpleNamespace(close=lambda timeout: None)

    monkeypatch.setattr(distributed, "LocalCluster", start)
    if failures == 3:
        with pytest.raises(SettingsError, match=r"3 workers cannot be started \(a worker died .*; try --workers 1"):
            dask._local_cluster(3).__enter__()
    else:
        with dask._local_cluster(3):
            pass
    assert started == [3, 3, 3]


@pytest.mark.parametrize("lost", [4, 5])
def test_an_encoder_is_sent_again_where_a_worker_is_lost_meanwhile(lost):
    pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    from monai_mil.embedding.dask_encoder import send_encoder

    names: list[str] = []

    class Losing:
        def register_plugin(self, plugin: Any, name: str) -> None:
            names.append(name)
            if len(names) <= lost:
                raise OSError("a worker was lost")

    if lost == 5:
        with pytest.raises(OSError, match="a worker was lost"):
            send_encoder(Losing(), SimpleNamespace(name="sent"))
    else:
        assert send_encoder(Losing(), SimpleNamespace(name="sent")) == names[0]
    assert names == [names[0]] * 5


def jobs_in(folder: Path, count: int) -> dict[int, SlideJob]:
    settings = EmbedSettings(256, 0.5)
    return {k: SlideJob(f"S-{k}", folder / f"{k}.svs", folder, "cpu", False, settings, 8) for k in range(count)}
