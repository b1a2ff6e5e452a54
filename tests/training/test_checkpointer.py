"""What a checkpoint holds besides networks: the scale of mixed precision, and the random generators."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
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


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    trainer(tmp_path, 8.0, resume=False)[0].run([0], max_epochs=1)
    expected = draw()
    engine = trainer(tmp_path, 8.0, resume=True)[0]
    engine.run([0], max_epochs=1)
    assert draw() == expected
