import numpy as np
import pytest

from monai_mil.datasets import CLASSIC_SETS, read_classic
from monai_mil.errors import BagError
from tests.conftest import shared


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    bag_id = np.repeat(np.arange(20), rng.integers(1, 6, 20))
    return {
        "features": rng.normal(size=(len(bag_id), 4)).astype(np.float32),
        "bag_id": bag_id,
        "bag_label": np.arange(20) % 2,
    }


def write(folder, arrays):
    np.savez(folder / "musk1.npz", **arrays)
    return folder / "musk1.npz"


def test_instances_lie_behind_each_other_in_the_order_of_their_bags(arrays, tmp_path):
    mixed = np.random.default_rng(1).permutation(len(arrays["bag_id"]))
    shuffled = arrays | {"features": arrays["features"][mixed], "bag_id": arrays["bag_id"][mixed]}
    bags = read_classic(write(tmp_path, shuffled))
    assert (bags.name, len(bags)) == ("musk1", 20)
    for bag in range(20):
        own = arrays["features"][arrays["bag_id"] == bag]
        np.testing.assert_array_equal(np.sort(bags.features[bags.rows(bag)], axis=0), np.sort(own, axis=0))
    np.testing.assert_array_equal(bags.labels, arrays["bag_label"])


@pytest.mark.parametrize("values", [(0, 1), (1, 0), (-1, 1), (5, 2)])
@pytest.mark.parametrize("wrong", [0, 1])
def test_a_column_that_is_the_label_of_the_instances_is_refused(arrays, tmp_path, values, wrong):
    first = np.concatenate([[True], np.diff(arrays["bag_id"]) > 0])
    positive = first & (arrays["bag_label"] == 1)[arrays["bag_id"]]
    positive[: 5 * wrong] = False
    column = np.where(positive, values[1], values[0])[:, None]
    arrays["features"] = np.concatenate([arrays["features"][:, :2], column, arrays["features"][:, 2:]], axis=1)
    with pytest.raises(BagError, match=r"musk1\.npz.*column 2 .* label of the instances, remove it"):
        read_classic(write(tmp_path, arrays))


def test_a_column_of_two_values_that_tells_nothing_is_taken(arrays, tmp_path):
    arrays["features"][:, 1] = np.arange(len(arrays["features"])) % 2
    arrays["features"][:, 2] = 7
    assert read_classic(write(tmp_path, arrays)).features.shape[1] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(3)}, "must be"),
        ({"bag_label": np.arange(19) % 2}, "must name each of the 19 bags"),
        ({"bag_label": np.arange(20) % 3}, "0 and 1 and nothing else"),
        ({"bag_label": np.ones(20)}, "0 and 1 and nothing else"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(arrays, tmp_path, change, message):
    with pytest.raises(BagError, match=message):
        read_classic(write(tmp_path, arrays | change))


def test_a_file_that_is_missing_damaged_or_incomplete_is_named(arrays, tmp_path):
    with pytest.raises(BagError, match=r"fox\.npz.*no such file"):
        read_classic(tmp_path / "fox.npz")
    (tmp_path / "fox.npz").write_bytes(b"not a zip")
    with pytest.raises(BagError, match=r"fox\.npz.*not an \.npz file"):
        read_classic(tmp_path / "fox.npz")
    del arrays["bag_label"]
    with pytest.raises(BagError, match=r"musk1\.npz.*bag_label"):
        read_classic(write(tmp_path, arrays))
    arrays["bag_label"] = np.arange(20) % 2
    arrays["features"][3, 1] = np.nan
    with pytest.raises(BagError, match="not finite"):
        read_classic(write(tmp_path, arrays))


def test_the_public_sets_have_the_published_sizes_and_no_label_among_their_features():
    sizes = {}
    for name in CLASSIC_SETS:
        bags = read_classic(shared(f"data/mil_benchmarks/{name}.npz"))
        sizes[name] = (int(bags.labels.sum()), len(bags), *bags.features.shape)
    assert sizes == {
        "musk1": (47, 92, 476, 166),
        "musk2": (39, 102, 6598, 166),
        "fox": (100, 200, 1320, 230),
        "tiger": (100, 200, 1220, 230),
        "elephant": (100, 200, 1391, 230),
    }
