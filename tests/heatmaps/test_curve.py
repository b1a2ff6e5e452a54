import numpy as np
import pytest
from PIL import Image

from monai_mil.heatmaps import export_curve
from monai_mil.heatmaps.curve import bell, draw_curve, label_spans, moments_mm
from tests.heatmaps.examples import scan_frame, scan_heatmap

UNEVEN = np.r_[np.arange(6) * 4.0, 20 + np.arange(1, 6) * 7.0]


@pytest.mark.parametrize("n", [1, 2, 5, 40, 600])
@pytest.mark.parametrize("heads", [1, 3])
def test_scans_of_every_length_have_their_figure(tmp_path, n, heads):
    heatmap = scan_heatmap(scan_frame(np.arange(n) * 0.7 - 300), heads, labels=np.arange(n) % 3 - 1, threshold=0.1)
    with Image.open(export_curve(heatmap, tmp_path / "a.png")) as image:
        assert image.width == 1650
        assert image.height == (1290 if heads > 1 else 705)
        assert len(image.convert("RGB").getcolors(2**20)) > 20


def test_scores_stand_at_the_slices_own_positions_and_numbers():
    heatmap = scan_heatmap(scan_frame(UNEVEN))
    (axis,) = draw_curve(heatmap).axes
    np.testing.assert_allclose(axis.lines[0].get_xdata(), UNEVEN)
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), heatmap.scores)
    upper = axis.child_axes[0]
    numbers = [int(text.get_text()) for text in upper.get_xticklabels()]
    np.testing.assert_allclose(upper.get_xticks(), UNEVEN[np.array(numbers) - 1])
    assert (numbers[0], numbers[-1]) == (1, 11)


def test_the_legend_tells_center_width_and_the_highest_slice_in_mm():
    attention = np.zeros(11)
    attention[[4, 7]] = 0.25, 0.75
    (axis,) = draw_curve(scan_heatmap(scan_frame(UNEVEN), scores=attention, attention=attention)).axes
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert UNEVEN[[4, 7]].tolist() == [16, 34]
    assert "normal bell: 29.5 ± 7.8 mm" in texts
    assert "highest: slice 8, 34.0 mm, 0.75" in texts


def test_several_heads_have_a_bell_each_and_other_scores_a_panel_of_their_own():
    upper, lower = draw_curve(scan_heatmap(heads=3)).axes
    names = [text.get_text().split(":")[0] for text in lower.get_legend().get_texts()]
    assert names == ["head 1", "head 2", "head 3"]
    upper, lower = draw_curve(scan_heatmap(scores=np.linspace(-3, 3, 10), name="evidence")).axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("evidence", "attention")
    assert len(draw_curve(scan_heatmap(attention=None)).axes) == 1


@pytest.mark.parametrize("weights", [[1, 2, 3, 2, 1], [1, 0, 0, 0, 1], [0, 1, 0, 1e-6, 0], [0, 1, 1, 0, 0], [1] * 5])
def test_the_bell_sums_to_one_over_the_slices(weights):
    positions = np.array([0.0, 4, 8, 15, 22]) - 700
    ((mean,), (std,)) = moments_mm(np.array([weights], np.float32), scan_frame(positions))
    at, heights = bell(positions, mean, std)
    assert heights[np.isin(at, positions)].sum() == pytest.approx(1)
    assert abs(at[heights.argmax()] - mean) <= std
    share = np.array(weights) / np.sum(weights)
    assert mean == pytest.approx(share @ positions)
    assert std == pytest.approx(np.sqrt(share @ (positions - mean) ** 2))


def test_a_bell_without_width_is_a_stroke():
    at, heights = bell(UNEVEN, 12.0, 0.0)
    assert at.tolist() == [12, 12]
    assert heights.tolist() == [0, 1]


def test_true_slices_reach_half_the_way_to_their_neighbours():
    chosen = np.zeros(11, bool)
    chosen[[0, 5, 6]] = True
    assert label_spans(UNEVEN, chosen) == [(-2, 2), (18, 30.5)]
    assert label_spans(np.array([3.0]), np.array([True])) == [(2.5, 3.5)]
    assert label_spans(UNEVEN, np.zeros(11, bool)) == []


def test_true_and_unknown_slices_are_named_once():
    labels = [1, 0, 1, 0, 1, 0, -1, 0, -1, 0]
    (axis,) = draw_curve(scan_heatmap(labels=labels)).axes
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts.count("true slices") == texts.count("unknown") == 1
    assert len(axis.patches) == 5


def test_a_bell_higher_than_the_attention_is_drawn_whole():
    attention = np.full(20, 0.05)
    (axis,) = draw_curve(scan_heatmap(scan_frame(np.arange(20) * 2.0), scores=attention, attention=attention)).axes
    (curve,) = [line for line in axis.lines if line.get_label().startswith("normal bell")]
    highest = curve.get_ydata().max()
    assert highest > 0.06
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylim()[1] > highest


def test_the_highest_score_is_not_cut_off_and_tokens_are_shown_from_0_to_1():
    flat = draw_curve(scan_heatmap(scores=np.linspace(5.98, 6.0, 10), attention=None))
    assert flat.axes[0].get_ylim() == (0, pytest.approx(6.3))
    heatmap = scan_heatmap(scores=np.full((10, 2, 2), 0.04), attention=None, threshold=np.inf)
    figure = draw_curve(heatmap)
    assert figure.axes[0].get_ylim() == (0, 1.05), "a scan without a finding looks like one"
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "below the operating point: no foreground" in texts
