"""Every class is drawn equally often, the same in every run, by all processes together."""

from collections import Counter

import ignite.distributed as idist
import pytest

from monai_mil.training import BalancedSampler

RARE, FREQUENT = [2, 7], [0, 1, 3, 4, 5, 6, 8, 9, 10]


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


def test_an_epoch_is_as_long_as_the_data_and_holds_every_class_as_often():
    for number in range(1, 20):
        drawn = Counter(epoch(BalancedSampler([RARE, FREQUENT], 11), number))
        rare = sum(drawn[case] for case in RARE)
        assert (sum(drawn.values()), rare) in ((11, 5), (11, 6))
        assert max(drawn[case] for case in FREQUENT) == 1, "no case twice before all were drawn once"
        assert {drawn[case] for case in RARE} <= {2, 3}


def test_draws_depend_on_seed_and_epoch_alone():
    one, other = (BalancedSampler([RARE, FREQUENT], 11, seed=3) for _ in range(2))
    first = epoch(one, 1)
    assert epoch(other, 2) == epoch(one, 2) != first
    assert epoch(BalancedSampler([RARE, FREQUENT], 11, seed=4), 2) != epoch(one, 2)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_one_draw(processes, monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        sampler = BalancedSampler([RARE, FREQUENT], 11)
        parts.append(epoch(sampler, 1))
        assert len(sampler) == len(parts[-1]) == 12 // processes
    drawn = Counter(case for part in parts for case in part)
    assert (sum(drawn[case] for case in RARE), {drawn[case] for case in RARE}) == (6, {3})
    assert sum(drawn[case] for case in FREQUENT) == 6
    assert max(drawn[case] for case in FREQUENT) == 1
