"""MNIST-bags, the benchmark of Ilse et al. 2018 (Attention-based Deep Multiple Instance Learning, section 4.2)."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch

_MEAN, _STD = 0.1307, 0.3081


def make_mnist_bags(
    path: str | os.PathLike[str],
    *,
    split: Literal["train", "test"] = "train",
    num_bags: int = 200,
    mean_size: float = 10.0,
    std_size: float = 2.0,
    target: int = 9,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Draw bags of digits; a bag is positive if at least one digit is the target.

    Bag sizes are Gaussian, digits are drawn at random with the pixel normalisation the authors use.

    Args:
        path: MNIST as ``.npz`` with ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, or with
            the names Keras gives them (``x_train``, ``y_train``, ...).
        split: which of MNIST's own parts to draw from.
        num_bags: how many bags.
        mean_size: mean number of digits in a bag.
        std_size: its standard deviation.
        target: the digit that makes a bag positive.
        seed: of the draw.

    Returns:
        A MONAI data list: ``image`` float32 ``[1, n, 28, 28]``, ``label`` 0 or 1, ``instance_labels`` int64 ``[n]``
        (1 where the digit is the target) and ``slide_id``.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.datasets import make_mnist_bags
        >>> digits = {"x_train": np.zeros((20, 28, 28), np.uint8), "y_train": np.arange(20) % 10}
        >>> digits |= {"x_test": digits["x_train"], "y_test": digits["y_train"]}
        >>> np.savez(folder / "mnist.npz", **digits)
        >>> bags = make_mnist_bags(folder / "mnist.npz", num_bags=5)
        >>> all(bag["label"] == bag["instance_labels"].max() for bag in bags)
        True
    """
    with np.load(path) as stored:
        names = (f"x_{split}", f"y_{split}") if f"x_{split}" in stored else (f"{split}_images", f"{split}_labels")
        digits, labels = (stored[name] for name in names)
    rng = np.random.default_rng(seed)
    bags = []
    for index in range(num_bags):
        size = max(1, round(rng.normal(mean_size, std_size)))
        chosen = rng.integers(len(digits), size=size)
        pixels = torch.from_numpy(digits[chosen]).float().div(255).sub(_MEAN).div(_STD)
        positive = torch.from_numpy(labels[chosen] == target)
        bags.append(
            {
                "image": pixels[None],
                "label": int(positive.any()),
                "instance_labels": positive.long(),
                "slide_id": f"{split}_{index:04d}",
            }
        )
    return bags
