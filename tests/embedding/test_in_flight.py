"""Cases in flight: what goes on side by side, what never does, and what an end leaves behind."""

from __future__ import annotations

import threading
import time

import pytest

from monai_mil.embedding.in_flight import each_in_flight, encoding, still_wanted

PATIENCE = 10


def test_the_next_case_is_begun_while_one_is_encoded_and_no_more_than_that() -> None:
    begun = [threading.Event() for _ in range(6)]
    in_flight, most, encoders = set(), [], []

    def work(case: int) -> int:
        in_flight.add(case)
        most.append(len(in_flight))
        begun[case].set()
        with encoding():
            encoders.append(case)
            if case + 1 < len(begun):
                assert begun[case + 1].wait(PATIENCE), "the next case was not begun"
            assert encoders == [case], "one has the encoder at a time"
            encoders.remove(case)
        in_flight.remove(case)
        return 10 * case

    assert list(each_in_flight(work, range(6), ahead=1)) == [(case, 10 * case) for case in range(6)]
    assert max(most) == 2


def test_a_case_is_written_while_the_next_is_encoded() -> None:
    encoded = [threading.Event() for _ in range(3)]

    def work(case: int) -> None:
        with encoding():
            encoded[case].set()
        if case + 1 < len(encoded):
            assert encoded[case + 1].wait(PATIENCE)

    assert len(list(each_in_flight(work, range(3), ahead=1))) == 3


def test_without_looking_ahead_it_is_a_loop() -> None:
    threads, begun = set(), []

    def work(case: int) -> int:
        threads.add(threading.current_thread())
        begun.append(case)
        with encoding():
            return case

    results = each_in_flight(work, range(3), ahead=0)
    assert next(results) == (0, 0)
    assert begun == [0]
    assert [case for case, _ in results] == [1, 2]
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_end_ends_the_cases_in_flight_and_begins_no_other(error: type[BaseException]) -> None:
    both, ends, begun = threading.Barrier(2), {}, []

    def work(case: int) -> None:
        begun.append(case)
        try:
            both.wait(PATIENCE)
            if case == 0:
                with encoding():
                    raise error
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:  # as an encoder does, from batch to batch
                still_wanted()
                time.sleep(0.001)
        except BaseException as end:
            ends[case] = type(end)
            raise

    with pytest.raises(error):
        list(each_in_flight(work, range(5), ahead=1))
    assert sorted(begun) == [0, 1]
    assert ends[0] is error
    assert not issubclass(ends[1], Exception), "nobody takes it for the case's own failure"


def test_who_stops_asking_waits_for_nobody() -> None:
    def work(case: int) -> int:
        with encoding():
            for _ in range(1000 if case else 1):
                still_wanted()
                time.sleep(0.01)
        return case

    start = time.monotonic()
    results = each_in_flight(work, range(5), ahead=1)
    assert next(results) == (0, 0)
    results.close()
    assert time.monotonic() - start < PATIENCE / 2
