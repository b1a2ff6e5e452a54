"""FROC against MONAI's own program, and what its options change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_mil.metrics import FrocSlide, froc, froc_slide, non_maximum_suppression

SPACING = 7.776


def discs(*places: tuple[int, int, int], shape: tuple[int, int] = (200, 160)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.any([(rows - r) ** 2 + (columns - c) ** 2 < radius**2 for r, c, radius in places] or [rows < 0], axis=0)


def slide(false: list[float], lesions: list[float], normal: bool = False) -> FrocSlide:
    return FrocSlide(np.array(false, dtype=float), np.array(lesions, dtype=float), normal)


def test_detections_are_scores_above_the_threshold_highest_first() -> None:
    scores = np.full((4, 5), np.nan)
    scores[1, 2], scores[3, 4], scores[0, 0], scores[1, 3] = 0.9, 0.7, 0.5, 0.8
    found, places = non_maximum_suppression(scores)
    assert found.tolist() == [0.9, 0.8, 0.7]
    assert places.tolist() == [[1, 2], [1, 3], [3, 4]]
    assert non_maximum_suppression(scores, box=3)[1].tolist() == [[1, 2], [3, 4]]
    assert non_maximum_suppression(np.zeros((3, 3)))[1].shape == (0, 2)


def test_a_lesion_has_its_highest_detection_and_what_is_outside_is_false() -> None:
    truth = discs((60, 50, 25), (150, 110, 30))
    found = froc_slide([0.9, 0.6, 0.7, 0.8], [[60, 50], [62, 52], [10, 150], [199, 500]], truth, SPACING)
    assert found.lesions.tolist() == pytest.approx([0.9, 0.0])
    assert found.false.tolist() == pytest.approx([0.7, 0.8])
    assert not found.normal


def test_isolated_tumour_cells_count_neither_way() -> None:
    truth = discs((60, 50, 25), (150, 110, 5))
    found = froc_slide([0.9, 0.6], [[150, 110], [10, 10]], truth, SPACING)
    assert found.lesions.tolist() == [0.0]
    assert found.false.tolist() == [0.6]
    small_only = froc_slide([0.9], [[150, 110]], discs((150, 110, 5)), SPACING)
    assert (len(small_only.lesions), len(small_only.false), small_only.normal) == (0, 0, False)


def test_truth_grows_by_half_the_distance_and_touching_lesions_are_one() -> None:
    reach = 75 / (2 * SPACING)
    truth = discs((60, 50, 25))
    near, far = 60 + 24 + int(reach) - 1, 60 + 25 + int(reach) + 2
    assert len(froc_slide([0.9], [[near, 50]], truth, SPACING).false) == 0
    assert len(froc_slide([0.9], [[far, 50]], truth, SPACING).false) == 1
    assert len(froc_slide([], np.empty((0, 2)), discs((60, 50, 25), (60, 105, 25)), SPACING).lesions) == 1
    assert len(froc_slide([], np.empty((0, 2)), discs((60, 50, 25), (60, 118, 25)), SPACING).lesions) == 2


def test_a_slide_without_truth_has_false_detections_only() -> None:
    found = froc_slide([0.9, 0.8], [[1, 1], [2, 2]], discs(), SPACING)
    assert found.normal
    assert found.false.tolist() == [0.9, 0.8]


def test_the_curve_by_hand() -> None:
    slides = [slide([0.8], [0.9, 0.0]), slide([0.7, 0.3], [0.6]), slide([0.65], [], normal=True)]
    curve = froc(slides)
    assert curve.lesions == 3
    assert curve.slides == 3
    points = list(zip(curve.false_positives.tolist(), curve.sensitivity.tolist(), strict=True))
    assert points == [
        pytest.approx(point)
        for point in [(4 / 3, 2 / 3), (1, 2 / 3), (1, 1 / 3), (2 / 3, 1 / 3), (1 / 3, 1 / 3), (0, 1 / 3), (0, 0)]
    ]
    assert froc(slides, [2], interpolation="step").score == pytest.approx(2 / 3)
    assert froc(slides, [0.99], interpolation="step").score == pytest.approx(1 / 3)


def test_a_cohort_in_which_every_lesion_is_found_keeps_its_lowest_score() -> None:
    assert froc([slide([], [0.9]), slide([], [0.6])]).score == 1


def test_false_positives_of_normal_slides_alone() -> None:
    slides = [slide([0.9] * 20, [0.8]), slide([0.7], [], normal=True)]
    assert froc(slides, [1], interpolation="step").score == 0
    paper = froc(slides, [1], "normal", "step")
    assert (paper.score, paper.slides) == (1, 1)


def test_without_lesions_or_normal_slides_there_is_no_froc() -> None:
    with pytest.raises(ValueError, match="0 lesions"):
        froc([slide([0.9], [], normal=True)])
    with pytest.raises(ValueError, match="of 0 slides"):
        froc([slide([0.9], [0.8])], fp_denominator="normal")
    with pytest.raises(ValueError, match="unknown"):
        froc([slide([0.9], [0.8])], interpolation="cubic")


def test_the_score_is_that_of_monai_s_program(tmp_path: Path) -> None:
    from monai.apps.pathology.metrics import LesionFROC

    class ArrayFROC(LesionFROC):
        def __init__(self, truths: list[np.ndarray], data: list[dict]) -> None:
            super().__init__(data, nms_box_size=1, nms_prob_threshold=0.5)
            self.truths = iter(truths)

        def prepare_ground_truth(self, sample: dict) -> tuple:
            from monai.apps.pathology.utils import compute_isolated_tumor_cells, compute_multi_instance_mask

            mask = compute_multi_instance_mask(next(self.truths), self.grow_distance / (2 * SPACING))
            return mask, compute_isolated_tumor_cells(mask, (self.itc_diameter + self.grow_distance) / SPACING)

    rng = np.random.default_rng(0)
    truths = [discs((60, 50, 25), (150, 110, 30), (25, 125, 22)), discs((100, 60, 28), (20, 20, 4))]
    maps = []
    for truth in truths:
        scores = np.where(rng.random(truth.shape) > 0.9997, rng.uniform(0.5, 1, truth.shape), 0)
        scores[tuple(np.argwhere(truth)[rng.integers(truth.sum())])] = rng.uniform(0.6, 0.9)
        scores[:60, 90:] = 0
        maps.append(scores)
    data = []
    for index, scores in enumerate(maps):
        np.save(tmp_path / f"{index}.npy", scores)
        data.append(
            {"prob_map": str(tmp_path / f"{index}.npy"), "tumor_mask": "", "level": 0, "pixel_spacing": SPACING}
        )
    ours = [
        froc_slide(*non_maximum_suppression(scores), truth, SPACING) for scores, truth in zip(maps, truths, strict=True)
    ]
    assert any(len(each.false) for each in ours)
    assert min(lesion for each in ours for lesion in each.lesions) == 0
    assert froc(ours).score == pytest.approx(ArrayFROC(truths, data).evaluate(), abs=1e-9)
