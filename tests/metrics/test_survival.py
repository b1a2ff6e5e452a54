"""Concordance, Kaplan-Meier and the log-rank test against brute force, SciPy and, where it is installed, lifelines."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from monai_mil.metrics import concordance_index, kaplan_meier, log_rank, risk_groups, survival_report


def patients(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risks, times and events with many ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, n) / 2, rng.integers(1, 12, n).astype(float), rng.integers(0, 2, n)


def brute_force(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    agreed = pairs = 0.0
    for i, j in itertools.permutations(range(len(risk)), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += 1
            agreed += 0.5 if risk[i] == risk[j] else float(risk[i] > risk[j])
    return agreed / pairs


@pytest.mark.parametrize("seed", range(5))
def test_concordance_equals_the_count_over_all_pairs(seed: int) -> None:
    risk, time, event = patients(60, seed)
    assert concordance_index(risk, time, event) == pytest.approx(brute_force(risk, time, event), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_concordance_equals_that_of_lifelines(seed: int) -> None:
    lifelines = pytest.importorskip("lifelines.utils", reason="lifelines is not installed")
    risk, time, event = patients(80, seed)
    assert concordance_index(risk, time, event) == pytest.approx(lifelines.concordance_index(time, -risk, event))


def test_the_paper_s_formula_counts_ties_as_nothing() -> None:
    risk, time, event = [1, 1, 0], [1, 2, 3], [1, 1, 1]
    assert concordance_index(risk, time, event) == pytest.approx(2.5 / 3)
    assert concordance_index(risk, time, event, tied=0) == pytest.approx(2 / 3)


def test_perfect_and_reversed_risks() -> None:
    time = np.arange(1, 9)
    assert concordance_index(-time, time, np.ones(8)) == 1
    assert concordance_index(time, time, np.ones(8)) == 0


def test_weights_count_patients_as_often_as_they_say() -> None:
    risk, time, event = patients(30)
    times_drawn = np.random.default_rng(1).integers(0, 3, (2, 30))
    weighted = concordance_index(risk, time, event, times_drawn)
    for weights, value in zip(times_drawn, weighted, strict=True):
        rows = np.repeat(np.arange(30), weights)
        assert value == pytest.approx(brute_force(risk[rows], time[rows], event[rows]), abs=1e-12)


def test_a_long_cohort_is_counted_in_blocks() -> None:
    risk, time, event = patients(2500)
    part = np.sort(np.random.default_rng(0).permutation(2500)[:100])
    weights = np.zeros((1, 2500))
    weights[0, part] = 1
    expected = brute_force(risk[part], time[part], event[part])
    assert concordance_index(risk, time, event, weights)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("time", "event"), [([1, 2, 3], [0, 0, 0]), ([2, 2], [1, 1]), ([5], [1]), ([], [])])
def test_without_a_comparable_pair_there_is_no_concordance(time: list[float], event: list[int]) -> None:
    with pytest.raises(ValueError, match="no comparable pair"):
        concordance_index(np.zeros(len(time)), time, event)
    assert math.isnan(concordance_index(np.zeros(len(time)), time, event, np.ones(len(time))))


@pytest.mark.parametrize(
    ("risk", "time", "event", "what"),
    [
        ([0, np.nan], [1, 2], [1, 1], "the risk of patient 1"),
        ([0, 1], [1, -2], [1, 1], "the time of patient 1"),
        ([0, 1], [1, 2], [2, 1], "the event of patient 0"),
        ([0, 1, 2], [1, 2], [1, 1], "must all be"),
    ],
)
def test_what_is_no_follow_up_is_named(risk: list, time: list, event: list, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        concordance_index(risk, time, event)


def censored_data(time: np.ndarray, event: np.ndarray) -> stats.CensoredData:
    return stats.CensoredData(uncensored=time[event == 1], right=time[event == 0])


@pytest.mark.parametrize("seed", range(3))
def test_kaplan_meier_and_its_interval_are_scipy_s(seed: int) -> None:
    _, time, event = patients(50, seed)
    curve = kaplan_meier(time, event)
    reference = stats.ecdf(censored_data(time, event)).sf
    np.testing.assert_allclose(curve.survival, reference.evaluate(curve.time), atol=1e-12)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the interval is not defined
        interval = reference.confidence_interval(method="log-log")
    inner = (curve.survival > 0) & (curve.survival < 1)
    np.testing.assert_allclose(curve.low[inner], interval.low.evaluate(curve.time)[inner], atol=1e-12)
    np.testing.assert_allclose(curve.high[inner], interval.high.evaluate(curve.time)[inner], atol=1e-12)
    assert (curve.low <= curve.survival).all()
    assert (curve.high >= curve.survival).all()


def test_kaplan_meier_by_hand() -> None:
    curve = kaplan_meier([3, 5, 5, 8, 9], [1, 1, 0, 0, 1])
    assert curve.time.tolist() == [0, 3, 5, 8, 9]
    assert curve.at_risk.tolist() == [5, 5, 4, 2, 1]
    assert curve.censored.tolist() == [0, 0, 1, 1, 0]
    assert curve.survival.tolist() == pytest.approx([1, 0.8, 0.6, 0.6, 0])
    assert curve.median == 9
    assert math.isnan(kaplan_meier([3, 5, 6], [1, 0, 0]).median)
    assert np.isfinite(curve.high).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_log_rank_test_of_two_groups_is_scipy_s(seed: int) -> None:
    risk, time, event = patients(60, seed)
    high = risk > 1
    ours = log_rank(time, event, high)
    reference = stats.logrank(censored_data(time[high], event[high]), censored_data(time[~high], event[~high]))
    assert ours.statistic == pytest.approx(reference.statistic**2, rel=1e-9)
    assert ours.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert ours.degrees == 1


def test_three_groups_have_two_degrees_and_their_names_do_not_matter() -> None:
    risk, time, event = patients(90, 7)
    group = risk_groups(risk, [0.5, 1.5])
    ours = log_rank(time, event, group)
    assert ours.degrees == 2
    renamed = log_rank(time, event, np.array(["b", "a", "c"])[group])
    assert renamed.statistic == pytest.approx(ours.statistic, rel=1e-9)
    # Under no difference the statistic is chi-square: its mean is the degrees of freedom.
    rng = np.random.default_rng(0)
    shuffled = [log_rank(time, event, rng.permutation(group)).statistic for _ in range(300)]
    assert np.mean(shuffled) == pytest.approx(2, abs=0.4)


def test_the_log_rank_test_needs_groups_and_events() -> None:
    assert math.isnan(log_rank([1, 2, 3], [1, 1, 1], [0, 0, 0]).p_value)
    assert math.isnan(log_rank([1, 2, 3], [0, 0, 0], [0, 1, 1]).p_value)


def test_risks_at_a_cut_off_are_in_the_lower_group() -> None:
    assert risk_groups([0.1, 0.5, 0.6, 2], [0.5, 1]).tolist() == [0, 0, 1, 2]


def test_the_report_has_plain_numbers_that_json_takes() -> None:
    risk, time, event = patients(40)
    report = survival_report(risk, time, event, n=50)
    again = json.loads(json.dumps(report))
    assert again["concordance"]["value"] == pytest.approx(brute_force(risk, time, event))
    assert again["concordance"]["low"] < again["concordance"]["value"] < again["concordance"]["high"]
    assert again["cutoffs"] == [float(np.median(risk))]
    assert again["cutoffs_from"] == "median of these patients"
    assert [group["name"] for group in again["groups"]] == ["low", "high"]
    assert sum(group["patients"] for group in again["groups"]) == again["patients"] == 40
    given = survival_report(risk, time, event, [0.5, 1.5], n=0)
    assert [group["name"] for group in given["groups"]] == ["low", "intermediate", "high"]
    assert given["cutoffs_from"] == "given"


def test_a_group_without_patients_is_reported_empty() -> None:
    risk, time, event = patients(20)
    report = survival_report(risk, time, event, [100.0], n=0)
    assert report["groups"][1]["patients"] == 0
    assert report["groups"][1]["curve"]["survival"] == [1.0]
    assert math.isnan(report["log_rank"]["p_value"])
