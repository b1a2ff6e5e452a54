"""INSIGHT learns from bags that stay on disk, alone and in two processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from monai_mil.bags import BagFile, BagInfo, collate_bags
from monai_mil.networks import INSIGHT
from tests.processes import run_together
from tests.training.run_token_distributed import GRID, WIDTH, dataset_of, make_network, train


def write_bags(folder: Path, storages: list[str], sizes: list[int]) -> None:
    """Odd bags carry a sign in a few tokens of channel 0; the last tile of each reaches beyond its slide."""
    info = BagInfo("slide", encoder="uni", tile_size_level0=300.0, level0_size=(100 * max(sizes), 300))
    for index, (storage, n) in enumerate(zip(storages, sizes, strict=True)):
        rng = np.random.default_rng(index)
        features = rng.standard_normal((n, WIDTH, *GRID))
        features[: max(1, n // 5), 0] += 4 * (index % 2)
        coords = np.stack([100 * np.arange(n), np.zeros(n, int)], axis=1)
        coords[-1] = [100 * max(sizes) - 200, 100]
        BagFile.write(folder / f"{index:02d}.h5", features, coords, info, storage=storage)


@pytest.mark.parametrize("storage", ["float16", "uint8"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_mapped_bags_train_as_loaded_ones_do_in_one_piece(tmp_path: Path, storage: str, batch_size: int) -> None:
    write_bags(tmp_path, [storage] * 4, [9, 15, 12, 3])
    states, losses = [], []
    for mapped, chunk in ((True, 4), (False, 50)):
        network = make_network()
        network.chunk_instances = chunk
        loader = DataLoader(dataset_of(tmp_path, mapped), batch_size=batch_size, collate_fn=collate_bags)
        losses.append(train(network, loader, epochs=2, rate=0.1))
        states.append(network.state_dict())
    start = make_network().state_dict()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-6)
        assert not torch.equal(value, start[name]), name
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_insight_learns_from_bytes(tmp_path: Path) -> None:
    write_bags(tmp_path, ["uint8"] * 8, [8] * 8)
    loader = DataLoader(dataset_of(tmp_path), collate_fn=collate_bags)
    losses = train(make_network(), loader, epochs=20, rate=0.2)
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])


@pytest.mark.usefixtures("fork_server")
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """One step of SGD at rate 1 leaves the gradient in the parameters."""
    write_bags(tmp_path, ["float16", "uint8"], [11, 18])
    result = run_together(Path(__file__).with_name("run_token_distributed.py"), tmp_path)
    assert result.returncode == 0, result.stderr
    gradients = []
    for rank in (0, 1):
        network = make_network()
        loader = DataLoader(torch.utils.data.Subset(dataset_of(tmp_path), [rank]), collate_fn=collate_bags)
        train(network, loader)
        gradients.append(step_of(network))
    trained = make_network()
    trained.load_state_dict(torch.load(tmp_path / "trained.pt", weights_only=True))
    for name, value in step_of(trained).items():
        torch.testing.assert_close(value, (gradients[0][name] + gradients[1][name]) / 2, rtol=1e-6, atol=1e-9)


def step_of(network: INSIGHT) -> dict[str, torch.Tensor]:
    start = make_network().state_dict()
    return {name: start[name] - value for name, value in network.state_dict().items()}
