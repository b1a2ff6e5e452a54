"""Synthetic bags of several magnifications: levels that belong together, and where the class is planted."""

import torch

from monai_mil.bags import LoadTreed
from monai_mil.cohorts import read_cohort
from monai_mil.networks.blocks.tree import tree_sizes
from monai_mil.synthetic import make_tree_cohort


def test_levels_belong_together_and_planted_tiles_lie_below_each_other(tmp_path):
    cohort = read_cohort(make_tree_cohort(tmp_path, num_bags=8, width=6, seed=1, bag_size=(4, 9)))
    load = LoadTreed(levels=3, width=6, encoder="synthetic")
    for slide in cohort.slides:
        case = load({"image": str(tmp_path / "bags" / "level_2" / f"{slide.slide_id}.h5")})
        sizes = tree_sizes(case["image"].shape[1], 3)
        coarse, middle, fine = case["instance_labels"].split(sizes)
        assert coarse.any() == (slide.label == 1)
        assert torch.equal(middle, coarse.repeat_interleave(4))
        assert torch.equal(fine, middle.repeat_interleave(4))
        assert case["inside"].all()


def test_a_seed_gives_the_same_bags_and_another_others(tmp_path):
    made = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        make_tree_cohort(tmp_path / name, num_bags=6, width=4, seed=seed, levels=2, bag_size=(3, 5))
        made.append(LoadTreed(levels=2)({"image": str(tmp_path / name / "bags" / "level_1" / "bag_001.h5")})["image"])
    assert torch.equal(made[0].as_tensor(), made[1].as_tensor())
    assert not torch.equal(made[0].as_tensor(), made[2].as_tensor())
