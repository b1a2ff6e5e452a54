"""The shifted-mean benchmark: the authors' own scans come out, and its best scores are those of an exhaustive sum."""

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_mil.bags import BagFile
from monai_mil.synthetic import ShiftedMean, make_shifted_mean_cohort

SMALL = ShiftedMean(window=3, slices=(5, 9), width=8, delta=1.0)


def test_the_small_draw_is_the_authors():
    drawn = SMALL.draw(4, seed=7)
    assert drawn.lengths.tolist() == [5, 7, 6, 6]
    assert drawn.starts == ((1,), (3,), (3,), (0,))
    assert drawn.labels.tolist() == [0, 0, 1, 1]
    assert drawn.features.sum().item() == pytest.approx(-0.31929, abs=1e-5)
    assert drawn.features[0, :3].tolist() == pytest.approx([-0.166996, 0.285150, -0.641092], abs=1e-6)
    posterior = [0.063007, 0.160985, 0.289197, 0.936993, 0.839015, 0.710803]
    assert drawn.bayes_slice_scores()[2].tolist() == pytest.approx(posterior, abs=1e-6)
    assert 1 / (1 + np.exp(-drawn.bayes_scan_log_odds()[2])) == pytest.approx(0.481701, abs=1e-6)


def test_the_papers_test_set_and_its_ceilings_come_out():
    drawn = ShiftedMean().draw(1000, seed=1003)
    assert drawn.lengths[:5].tolist() == [35, 23, 35, 40, 35]
    assert [start for (start,) in drawn.starts[:5]] == [8, 6, 9, 9, 11]
    assert drawn.features[0, :3].tolist() == pytest.approx([-0.44589, 0.87978, 0.11367], abs=1e-5)
    assert (int(drawn.labels.sum()), len(drawn.features)) == (507, 39738)
    scored = zip(drawn.bayes_slice_scores(), drawn.slices(), drawn.labels.tolist(), strict=True)
    positive = [(drawn.slice_labels[rows].numpy(), scores) for scores, rows, label in scored if label]
    assert np.mean([roc_auc_score(*scan) for scan in positive]) == pytest.approx(0.88212, abs=5e-6)
    assert np.mean([average_precision_score(*scan) for scan in positive]) == pytest.approx(0.81913, abs=5e-6)
    assert roc_auc_score(drawn.labels, drawn.bayes_scan_log_odds()) == pytest.approx(0.80088, abs=5e-6)
    assert average_precision_score(drawn.labels, drawn.bayes_scan_log_odds()) == pytest.approx(0.81243, abs=5e-6)


@pytest.mark.parametrize("recipe", [SMALL, ShiftedMean(window=2, windows=2, gap=3, slices=(7, 11), width=4, delta=0.8)])
def test_best_scores_are_the_ratio_of_densities_summed_over_every_placement(recipe):
    drawn = recipe.draw(6, seed=3)
    log_odds, slice_scores = drawn.bayes_scan_log_odds(), drawn.bayes_slice_scores()
    for index, rows in enumerate(drawn.slices()):
        x = drawn.features[rows, 0].double().numpy()
        joint, covered = [], []
        for placement in recipe.placements(len(x)):
            inside = np.zeros(len(x), bool)
            for start in placement:
                inside[start : start + recipe.window] = True
            shifted = np.exp(-((x - recipe.delta * inside) ** 2) / 2).prod() / np.exp(-(x**2) / 2).prod()
            joint.append(shifted)
            covered.append(inside)
        assert np.exp(log_odds[index]) == pytest.approx(np.mean(joint), rel=1e-9)
        expected = np.average(covered, axis=0, weights=joint)
        np.testing.assert_allclose(slice_scores[index], expected, rtol=1e-9)


def test_long_scans_do_not_underflow():
    drawn = ShiftedMean(slices=(2000, 2000), width=2, delta=3.0).draw(2, seed=0)
    assert all(np.isfinite(scores).all() for scores in drawn.bayes_slice_scores())
    assert np.isfinite(drawn.bayes_scan_log_odds()).all()


def test_two_windows_lie_apart_and_are_what_the_labels_say():
    recipe = ShiftedMean(window=6, windows=2, gap=8, width=4, delta=50.0)
    drawn = recipe.draw(200, seed=5)
    for rows, (first, second), label in zip(drawn.slices(), drawn.starts, drawn.labels.tolist(), strict=True):
        assert second - (first + 6) >= 8
        assert second + 6 <= rows.stop - rows.start
        shifted = drawn.features[rows, 0] > 25
        assert torch.equal(shifted.long(), drawn.slice_labels[rows])
        assert int(shifted.sum()) == 12 * label


@pytest.mark.parametrize("bad", [{"windows": 3}, {"window": 21}, {"windows": 2, "window": 7}])
def test_a_recipe_without_room_is_refused(bad):
    with pytest.raises(ValueError, match="windows"):
        ShiftedMean(**bad)


def test_the_cohort_holds_the_drawn_scans(tmp_path):
    table = make_shifted_mean_cohort(tmp_path, SMALL, scans=(3, 2, 4), seeds=(1, 2, 7))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 3 + ["val"] * 2 + ["test"] * 4
    assert [row["label"] for row in rows[5:]] == ["negative", "negative", "positive", "positive"]
    drawn = SMALL.draw(4, seed=7)
    for index, rows_of_scan in enumerate(drawn.slices()):
        with BagFile(tmp_path / "bags" / f"test_{index:05d}.h5") as bag:
            np.testing.assert_allclose(bag.features(), drawn.features[rows_of_scan], rtol=1e-3, atol=1e-3)
            assert bag.extra("instance_labels").tolist() == drawn.slice_labels[rows_of_scan].tolist()
            assert np.allclose(np.diff(bag.info.scan.positions_mm), 5.0)
