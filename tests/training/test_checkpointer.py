"""What a checkpoint holds besides networks: the scale of mixed precision, and the random generators."""

from __future__ import annotations

import logging
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from monai_mil.training import Checkpointer


def trainer(folder: Path, scale: float, resume: bool) -> tuple[Engine, torch.amp.GradScaler]:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    engine = Engine(lambda engine, batch: None)
    engine.scaler = scaler
    Checkpointer(folder, {"network": nn.Linear(2, 1)}, resume=resume).attach(engine)
    return engine, scaler


def test_the_scale_of_mixed_precision_is_continued(tmp_path: Path) -> None:
    trainer(tmp_path, 8.0, resume=False)[0].run([0], max_epochs=1)
    engine, scaler = trainer(tmp_path, 65536.0, resume=True)
    engine.run([0], max_epochs=2)
    assert (scaler.get_scale(), engine.state.epoch) == (8.0, 2)


def damaged(content: bytes, seed: int) -> bytes:
    """Cut, overwritten, or with bytes exchanged."""
    rng = np.random.default_rng(seed)
    mutated = bytearray(content)
    first, last = sorted(rng.integers(0, len(content), 2).tolist())
    if seed % 3 == 0:
        return bytes(mutated[:last])
    if seed % 3 == 1:
        mutated[first:last] = bytes(last - first)
    else:
        for place in rng.integers(0, len(content), 8):
            mutated[place] ^= int(rng.integers(1, 256))
    return bytes(mutated)


def test_whatever_befell_the_newest_checkpoint_the_one_before_is_taken(tmp_path: Path) -> None:
    trainer(tmp_path, 8.0, resume=False)[0].run([0], max_epochs=2)
    newest = tmp_path / "checkpoint_epoch=2.pt"
    whole = newest.read_bytes()
    expected = torch.load(newest, weights_only=True)["objects"]["network"]
    for seed in range(60):
        newest.write_bytes(damaged(whole, seed))
        network = nn.Linear(2, 1)
        engine = Engine(lambda engine, batch: None)
        engine.state.max_epochs = 3
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            Checkpointer(tmp_path, {"network": network}, resume=True).load(engine)
        if engine.state.epoch == 1:
            assert [str(each.message).partition("(")[0] for each in told] == [f"checkpoint '{newest}' cannot be read "]
        else:  # the damage is beside the content
            assert all(torch.equal(network.state_dict()[name], expected[name]) for name in expected), seed
            assert engine.state.epoch == 2


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    trainer(tmp_path, 8.0, resume=False)[0].run([0], max_epochs=1)
    expected = draw()
    engine = trainer(tmp_path, 8.0, resume=True)[0]
    engine.run([0], max_epochs=1)
    assert draw() == expected


def resumed(folder: Path, kind: type[torch.optim.Optimizer], schedule: bool = False, **settings: float) -> None:
    """Train an epoch with lr 0.1, or go on with these settings."""
    network = nn.Linear(2, 1)
    optimizer = kind(network.parameters(), **({"lr": 0.1} | settings))
    objects = {"network": network, "optimizer": optimizer}
    if schedule:
        objects["scheduler"] = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def step(engine: Engine, batch: int) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        if schedule:
            objects["scheduler"].step()

    engine = Engine(step)
    checkpointer = Checkpointer(folder, objects, resume=True)
    checkpointer.attach(engine)
    engine.run([0], max_epochs=1 + len(checkpointer.checkpoints()))


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    ("settings", "words"),
    [({"lr": 0.01}, "lr 0.1 of the checkpoint, not 0.01"), ({"weight_decay": 0.5}, "weight_decay 0 of the checkpoint")],
)
def test_settings_of_the_optimiser_that_do_not_take_effect_are_told(tmp_path, schedule, settings, words) -> None:
    resumed(tmp_path, torch.optim.SGD, schedule)
    with pytest.warns(UserWarning, match=f"'optimizer' continues with {words}"):
        resumed(tmp_path, torch.optim.SGD, schedule, **settings)


@pytest.mark.parametrize("schedule", [False, True])
def test_the_same_settings_are_not_told(tmp_path, schedule, recwarn) -> None:
    for _ in range(3):
        resumed(tmp_path, torch.optim.SGD, schedule)
    assert not [each for each in recwarn if "continues" in str(each.message)]


def test_another_kind_of_optimiser_is_refused(tmp_path) -> None:
    resumed(tmp_path, torch.optim.SGD)
    with pytest.raises(ValueError, match=r"checkpoint '.*': its optimizer is of another kind \(.*betas"):
        resumed(tmp_path, torch.optim.Adam)


def test_a_run_whose_plan_is_done_says_so(tmp_path, caplog) -> None:
    trainer(tmp_path, 8.0, resume=False)[0].run([0], max_epochs=2)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 8.0, resume=True)[0].run([0], max_epochs=2)
    assert "the plan of 2 epochs is done: nothing is trained" in caplog.text
