import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from monai_mil.errors import BagError
from monai_mil.heatmaps import Heatmap, assemble, percentile_ranks
from tests.heatmaps.examples import frame, grid_heatmap
from tests.processes import run_alone


@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=50))
def test_percentiles_equal_scipy_s_ranks(values):
    scores = np.array(values, np.float32)
    np.testing.assert_allclose(percentile_ranks(scores), 100 * rankdata(scores) / len(scores), rtol=1e-5)


def test_percentiles_keep_the_shape_of_blocks():
    scores = np.random.default_rng(0).random((5, 2, 3), dtype=np.float32)
    np.testing.assert_array_equal(percentile_ranks(scores).ravel(), percentile_ranks(scores.ravel()))


def test_a_saved_heatmap_loads_as_it_was(tmp_path):
    heatmap = assemble(
        torch.tensor([0.25, 0.5], dtype=torch.bfloat16),
        torch.tensor([[0, 0], [100, 0]]),
        frame(slide_path="a/slide.svs"),
        name="attention",
        attributes={"prediction": "tumor", "probability": 0.75},
    )
    loaded = Heatmap.load(heatmap.save(tmp_path / "new" / "slide.h5"))
    assert loaded.frame == heatmap.frame
    assert loaded.name == "attention"
    assert loaded.attributes == {"prediction": "tumor", "probability": 0.75}
    np.testing.assert_array_equal(loaded.scores, np.float32([0.25, 0.5]))
    np.testing.assert_array_equal(loaded.coords, heatmap.coords)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["slide.h5"], "no temporary file is left"


def test_blocks_of_scores_are_kept(tmp_path):
    scores = np.random.default_rng(0).random((2, 3, 4), dtype=np.float32)
    loaded = Heatmap.load(assemble(scores, [[0, 0], [100, 0]], frame()).save(tmp_path / "a.h5"))
    np.testing.assert_array_equal(loaded.scores, scores)
    np.testing.assert_array_equal(loaded.tile_scores, scores.max(axis=(1, 2)))


@pytest.mark.parametrize(
    ("scores", "coords", "message"),
    [
        ([0.1, np.nan], [[0, 0], [100, 0]], r"tile 1 at \(100, 0\) is not finite"),
        ([0.1], [[0, 0], [100, 0]], r"scores have shape \[1\] and coords \[2, 2\]"),
        ([[0.1, 0.2]], [[0, 0]], r"expected \[n\] or \[n, h, w\]"),
        ([], np.zeros((0, 2)), "there are no scores"),
        ([0.1, 0.2], [[0, 0], [1000, 0]], r"tile 1 at \(1000, 0\) lies outside the slide of 1000 x 800"),
        ([0.1], [[-100, 0]], "lies outside the slide"),
    ],
)
def test_wrong_input_is_named(scores, coords, message):
    with pytest.raises(ValueError, match=message):
        assemble(scores, coords, frame())


@pytest.mark.parametrize("change", [{"mpp": 0.0}, {"mpp": float("nan")}, {"tile_size_level0": -1.0}])
def test_a_frame_without_measure_is_refused(change):
    with pytest.raises(ValueError, match="must be a positive number"):
        frame(**change)


@pytest.mark.parametrize("fact", ["frame", "attributes"])
def test_a_file_with_damaged_facts_is_named(tmp_path, fact):
    path = grid_heatmap().save(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs[fact] = "{"
    with pytest.raises(BagError, match=r"a\.h5': cannot be read"):
        Heatmap.load(path)


def test_a_damaged_or_foreign_file_is_named(tmp_path):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(grid_heatmap().save(tmp_path / "whole.h5").read_bytes()[:500])
    for path in (damaged, tmp_path / "missing.h5"):
        with pytest.raises(BagError, match=f"{path.name}.*cannot be read"):
            Heatmap.load(path)


def test_the_room_opens_without_heavy_libraries():
    code = (
        "import sys; from monai_mil.heatmaps import Heatmap; "
        "print({'torch', 'monai', 'matplotlib', 'cv2', 'PIL', 'cucim'} & sys.modules.keys())"
    )
    done = run_alone("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"
