"""Bags that a shipped bundle can predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from monai_mil.bags import BagFile, BagInfo
from monai_mil.model_card import read_model
from monai_mil.runs import find_bundle


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    """Four bags of the features that `pathology_asmil` was trained on, S-0 to S-3."""
    card = read_model(find_bundle("pathology_asmil").weights)
    for number in range(4):
        write_bag(tmp_path / "bags" / f"S-{number}.h5", number, card)
    return tmp_path / "bags"


def write_bag(path: Path, seed: int, card=None) -> None:
    card = card or read_model(find_bundle("pathology_asmil").weights)
    rng = np.random.default_rng(seed)
    coords = np.stack(np.meshgrid(np.arange(3) * 256, np.arange(2) * 256), axis=-1).reshape(-1, 2)
    info = BagInfo(
        path.stem,
        encoder=card.get("encoder"),
        encoder_digest=card.get("encoder_digest"),
        mpp=0.5,
        tile_size_level0=256.0,
        level0_size=(768, 512),
    )
    path.parent.mkdir(exist_ok=True)
    BagFile.write(path, rng.standard_normal((6, card.get("in_channels"))).astype(np.float32), coords, info)


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)
