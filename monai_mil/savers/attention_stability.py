"""The stability of attention inside a MONAI evaluator, as a curve over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_mil.files import write_json
from monai_mil.metrics import Array, EpochStability, effective_tiles, jensen_shannon, pack_attention, unpack_attention
from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case
from monai_mil.savers.slice_cases import SliceCase
from monai_mil.savers.stability_chart import draw_stability


class AttentionStability(CaseSaver[tuple[float, float, float]]):
    """Writes ``attention_stability.json`` and ``.png`` after every epoch of a validation.

    Attach it to the evaluator that a trainer runs each epoch. It reads ``attention`` (its mean over heads) as
    :class:`monai_mil.training.UnpackOutputd` leaves it, keeps one float16 vector a case, and puts ``attention_jsd`` and
    ``effective_tiles`` into the engine's metrics, where handlers that stand behind it find them. The curve begins with
    the second epoch. Give it to the :class:`monai_mil.training.Checkpointer`, so that a resumed run goes on with it; of
    several processes the first one's cases are then compared at once, those of the others from the next epoch on.

    Args:
        output_dir: the run's folder.
        chart: draw the curve as ``.png`` too.
    """

    begins = Events.EPOCH_STARTED
    ends = Events.EPOCH_COMPLETED

    def __init__(self, output_dir: str | Path, chart: bool = True) -> None:
        super().__init__()
        self.chart = chart
        self.path = Path(output_dir, "attention_stability.json")
        self.history: list[EpochStability] = []
        self._last: dict[str, Array] = {}

    def state_dict(self) -> dict[str, Any]:
        """The curve so far and every case's attention in the latest epoch."""
        attention = {name: torch.from_numpy(values) for name, values in self._last.items()}
        return {"history": [asdict(epoch) for epoch in self.history], "attention": attention}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.history = [EpochStability(**epoch) for epoch in state["history"]]
        self._last = {name: values.numpy() for name, values in state["attention"].items()}

    def _collect(self, case: Case) -> tuple[float, float, float] | None:
        attention = SliceCase.of(case, ("attention",)).attention
        assert attention is not None
        if case.name in self._kept:  # a sampler of several processes may repeat cases
            return None
        before = self._last.get(case.name)
        if before is not None and len(before) != len(attention):
            raise ValueError(
                f"case '{case.name}' had {len(before)} instances and now has {len(attention)}: attention "
                "can be followed only over the same ones; do not sample instances in validation"
            )
        moved = math.nan if before is None else jensen_shannon(unpack_attention(before), attention)
        effective = effective_tiles(attention)
        self._last[case.name] = pack_attention(attention)
        return moved, effective, effective / len(attention)

    def _finish(self, engine: Engine) -> None:
        """Every process knows the figures of all cases; the first one writes them."""
        found = self.gathered(self._kept)
        figures = np.array([found[name] for name in sorted(found)], dtype=float).reshape(-1, 3)
        jsd, effective, share = (_mean_known(column) for column in figures.T)
        epoch = EpochStability(engine.state.epoch, jsd, effective, share, len(figures))
        # A resumed run may repeat an epoch.
        self.history = [past for past in self.history if past.epoch < epoch.epoch] + [epoch]
        engine.state.metrics["effective_tiles"] = epoch.effective_tiles
        if not math.isnan(epoch.jsd):
            engine.state.metrics["attention_jsd"] = epoch.jsd
        super()._finish(engine)

    def _write(self, kept: Mapping[str, tuple[float, float, float]], engine: Engine) -> None:
        write_json({"epochs": [asdict(past) for past in self.history]}, self.path)
        if self.chart:
            draw_stability({"attention": self.history}, self.path.with_suffix(".png"))


def _mean_known(column: Array) -> float:
    return math.nan if np.isnan(column).all() else float(np.nanmean(column))
