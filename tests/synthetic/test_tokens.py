import numpy as np
import pytest

from monai_mil.bags import BagFile
from monai_mil.cohorts import read_cohort
from monai_mil.scans import Depth
from monai_mil.synthetic import make_token_scan_cohort


@pytest.mark.parametrize("depth", [None, 8])
def test_planted_tokens_are_shifted_and_known(tmp_path, depth):
    table = make_token_scan_cohort(tmp_path, scans=(4, 2, 2), width=6, grid=(9, 7), slices=(10, 14), depth=depth)
    for item in read_cohort(table).datalist(bag_dir=tmp_path / "bags"):
        with BagFile(item["image"]) as bag:
            planted = bag.extra("token_labels").astype(bool)
            assert planted.any() == bool(item["label"])
            assert (planted.any(axis=(1, 2)) == bag.extra("instance_labels")).all()
            assert bag.grid == (9, 7)
            assert 10 <= len(bag.info.scan) <= 14
            assert bag.info.depth == (None if depth is None else Depth(8))
            assert bag.n == (len(bag.info.scan) if depth is None else 8)
            shifted = bag.features()[:, 0].astype(float)
            assert abs(shifted[~planted].mean()) < 0.3
            assert not planted.any() or shifted[planted].mean() > 2


def test_the_same_seed_gives_the_same_bags(tmp_path):
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_token_scan_cohort(tmp_path / name, scans=(2, 0, 0), width=3, grid=(4, 4), seed=seed)
        with BagFile(tmp_path / name / "bags" / "train_001.h5") as bag:
            contents.append(np.ascontiguousarray(bag.features()).tobytes())
    assert contents[0] == contents[1] != contents[2]
