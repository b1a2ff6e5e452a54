"""Benchmarks become cohorts of bags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_mil.bags import BagFile
from monai_mil.cohorts import read_cohort
from monai_mil.datasets import classic_cohort, make_mnist_bags, mnist_cohort


def test_a_classic_set_is_standardised_over_all_its_instances(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(5, 3, size=(40, 4)).astype(np.float32)
    features[:, 3] = 7.0
    np.savez(tmp_path / "fox.npz", features=features, bag_id=np.arange(40) // 2, bag_label=np.arange(20) % 2)
    cohort = read_cohort(classic_cohort(tmp_path / "fox.npz", tmp_path / "fox"))
    assert [slide.label for slide in cohort.slides] == [number % 2 for number in range(20)]
    rows = np.concatenate([BagFile(tmp_path / "fox" / "bags" / f"fox_{n:03d}.h5").features() for n in range(20)])
    assert rows[:, :3].mean(axis=0) == pytest.approx(0, abs=1e-3)
    assert rows[:, :3].std(axis=0) == pytest.approx(1, abs=1e-3)
    assert (rows[:, 3] == 0).all()


def test_a_digit_is_an_instance_and_its_pixels_are_features(tmp_path: Path) -> None:
    digits = np.random.default_rng(0).integers(0, 255, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=digits, y_train=np.arange(60) % 10)
    cohort = read_cohort(mnist_cohort(tmp_path / "mnist.npz", tmp_path / "bags", num_bags=20, seed=3))
    drawn = make_mnist_bags(tmp_path / "mnist.npz", num_bags=20, seed=3)
    assert [slide.label for slide in cohort.slides] == [bag["label"] for bag in drawn]
    bag = BagFile(tmp_path / "bags" / "bags" / "mnist_007.h5")
    assert bag.features() == pytest.approx(drawn[7]["image"][0].flatten(1).numpy(), abs=2e-3)
