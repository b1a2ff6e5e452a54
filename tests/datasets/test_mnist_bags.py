import numpy as np
import pytest
import torch

from monai_mil.bags import collate_bags
from monai_mil.datasets import make_mnist_bags
from tests.conftest import shared


@pytest.fixture
def tiny_mnist(tmp_path):
    labels = np.arange(100) % 10
    images = np.repeat(labels.astype(np.uint8), 28 * 28).reshape(100, 28, 28) * 20
    np.savez(tmp_path / "mnist.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return tmp_path / "mnist.npz"


def test_a_bag_is_positive_if_it_holds_the_target(tiny_mnist):
    bags = make_mnist_bags(tiny_mnist, num_bags=50)
    for bag in bags:
        digits = ((bag["image"][0, :, 0, 0] * 0.3081 + 0.1307) * 255 / 20).round().long()
        assert torch.equal(bag["instance_labels"], (digits == 9).long())
        assert bag["label"] == int((digits == 9).any())
    assert {bag["label"] for bag in bags} == {0, 1}


def test_bags_are_seeded(tiny_mnist):
    first, again, other = (make_mnist_bags(tiny_mnist, num_bags=3, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["image"], other[0]["image"])


def test_bags_of_images_collate_with_a_mask(tiny_mnist):
    bags = make_mnist_bags(tiny_mnist, num_bags=4)
    batch = collate_bags(bags)
    assert batch["image"].shape == (4, 1, max(bag["image"].shape[1] for bag in bags), 28, 28)
    assert batch["mask"].sum(dim=1).tolist() == [bag["image"].shape[1] for bag in bags]


def test_the_published_setting_on_mnist_itself():
    bags = make_mnist_bags(shared("data/mnist/mnist.npz"), num_bags=500)
    sizes = np.array([bag["image"].shape[1] for bag in bags])
    assert sizes.mean() == pytest.approx(10, abs=0.3)
    assert sizes.std() == pytest.approx(2, abs=0.3)
    assert np.mean([bag["label"] for bag in bags]) == pytest.approx(1 - 0.9**10, abs=0.06)
    pixels = torch.cat([bag["image"].flatten() for bag in bags])
    assert float(pixels.mean()) == pytest.approx(0, abs=0.02)
    assert float(pixels.std()) == pytest.approx(1, abs=0.02)
