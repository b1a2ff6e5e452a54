import math

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, assemble, otsu
from monai_mil.savers.case import Case
from monai_mil.savers.threshold import ThresholdRule
from tests.heatmaps.examples import frame


def tokens(n=6, seed=0):
    """Tiles of 4 x 4 tokens, some of them bright."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(1, 9, (n, 4, 4)).astype(np.float32)
    scores[0] = rng.beta(9, 2, (4, 4))
    return assemble(scores, [[100 * i, 0] for i in range(n)], frame())


def threshold(source, heatmap=None, class_index=None, multi_label=False, item=None, **rule):
    item = {"slide_id": "a", "pred": [0.3]} | (item or {})
    return ThresholdRule(source, **rule).threshold(heatmap or tokens(), Case.of(item), class_index, multi_label)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_scikit_image_s_over_all_tokens_of_the_slide(seed):
    heatmap = tokens(seed=seed)
    assert otsu(heatmap) == pytest.approx(threshold_otsu(heatmap.scores.ravel()), rel=1e-6)
    assert otsu(assemble(heatmap.tile_scores, heatmap.coords, heatmap.frame)) == pytest.approx(
        threshold_otsu(heatmap.tile_scores), rel=1e-6
    )


def test_tokens_outside_the_slide_do_not_count_for_otsu():
    heatmap = tokens()
    border = np.zeros((1, 4, 4), np.float32)
    border[0, :, :2] = heatmap.scores[1, :, :2]
    scores = np.concatenate([heatmap.scores, border])
    coords = np.concatenate([heatmap.coords, [[950, 0]]])
    inside = np.concatenate([heatmap.scores.ravel(), border[0, :, :2].ravel()])
    assert otsu(assemble(scores, coords, frame())) == pytest.approx(threshold_otsu(inside), rel=1e-6)


def test_a_map_that_is_the_same_everywhere_is_not_split():
    heatmap = assemble(np.full((2, 3, 3), 0.4), [[0, 0], [100, 0]], frame())
    assert (heatmap.scores > threshold("otsu", heatmap)).all()


def test_the_threshold_is_otsu_s_the_network_s_or_a_number_and_never_below_the_floor():
    own = {"threshold": torch.tensor([0.2, 0.7])}
    assert threshold(None) is None
    assert threshold("otsu") == otsu(tokens())
    assert threshold(0.25) == 0.25
    assert threshold("network", item=own, class_index=1) == pytest.approx(0.7)
    assert threshold("network", item=own | {"pred": [0.8, 0.2]}) == pytest.approx(0.7), "the second of two is drawn"
    assert threshold("network", item=own | {"pred": [0.8, 0.2]}, multi_label=True) == pytest.approx(0.2)
    assert threshold("network", item={"threshold": torch.tensor([-1.0])}) == 0, "a flat map keeps all that is not 0"
    assert threshold(0.25, minimum=0.4) == 0.4


@pytest.mark.parametrize(
    ("pred", "points", "class_index", "multi_label", "gated"),
    [
        ([0.3], [0.2], None, False, False),
        ([0.3], [0.4], None, False, True),
        ([0.8, 0.2], [0.1], None, False, False),
        ([0.8, 0.2], [0.9, 0.1], None, False, False),
        ([0.8, 0.2], [0.3], None, False, True),
        ([0.8, 0.2], [0.3], 0, False, False),
        ([0.5, 0.1], [0.4, 0.05], None, True, False),
        ([0.5, 0.1], [0.6, 0.05], None, True, True),
        ([0.5, 0.1], [0.6, 0.05], 1, True, False),
        ({"prob": torch.tensor([0.3])}, [0.4], None, False, True),
        ({"logits": torch.tensor([0.0])}, [0.4], None, False, False),
    ],
)
def test_a_slide_below_its_operating_point_has_no_foreground(pred, points, class_index, multi_label, gated):
    found = threshold(
        0.5, item={"pred": pred}, class_index=class_index, multi_label=multi_label, operating_points=points
    )
    assert found == (math.inf if gated else 0.5)


def test_what_the_network_does_not_give_is_named():
    with pytest.raises(CohortError, match="slide 'a': the network gives no 'threshold'"):
        threshold("network")
    with pytest.raises(CohortError, match="slide 'a': 3 operating points for 1 predictions"):
        threshold("otsu", operating_points=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="unknown threshold 'triangle'"):
        ThresholdRule("triangle")
    with pytest.raises(ValueError, match="is that of its 'heatmap', not of 'grad_cam'"):
        ThresholdRule("network", key="grad_cam")


@pytest.mark.parametrize("value", [0.25, math.inf, None])
def test_a_heatmap_keeps_its_threshold(tmp_path, value):
    heatmap = assemble([0.1, 0.9], [[0, 0], [100, 0]], frame(), threshold=value)
    assert Heatmap.load(heatmap.save(tmp_path / "a.h5")).threshold == value


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="heatmap of 'slide': the threshold is not a number"):
        assemble([0.1], [[0, 0]], frame(), threshold=math.nan)
