"""Save a training run every epoch and continue it after a crash as if nothing had happened."""

from __future__ import annotations

import logging
import random
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.files import check_archive, make_folder, write_error
from monai_mil.locks import Claim
from monai_mil.training.distributed import unwrap
from monai_mil.training.fit import require_fit
from monai_mil.training.freeze import frozen_names
from monai_mil.training.state_files import save_atomically

logger = logging.getLogger(__name__)

BEGUN = ".begun"
"""A file beside the checkpoints until there is one: what else is there is of a run that may begin anew."""


class Stateful(Protocol):
    """Whatever a checkpoint can hold: networks, optimizers, schedulers, :class:`BestModel`, :class:`EarlyStop`."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Restore it."""
        ...


class Checkpointer:
    """Writes ``checkpoint_epoch=<e>.pt`` after every epoch and loads the newest one when training starts.

    It holds the state of ``objects``, the trainer's epoch and iteration, its AMP scaler and the random generators.
    Together with :class:`EpochSeeder` a resumed run is bit-identical to one that was never interrupted. Attach it
    last (in ``run``), after everything else that acts when an epoch completes, and in every process: the first
    one writes, all load. The number of processes, the batch size and the data may change between runs.

    Args:
        folder: where the checkpoints are.
        objects: what is saved, by name; DDP wrappers are taken off.
        resume: load the newest checkpoint of ``folder`` when the trainer starts; a folder without one is no error.
        n_saved: how many checkpoints are kept.
        save_interval: epochs between two of them.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, Stateful],
        resume: bool = False,
        n_saved: int = 2,
        save_interval: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.objects = dict(objects)
        self.resume = resume
        self.n_saved = n_saved
        self.save_interval = save_interval
        self._claim = Claim(self.folder)

    def attach(self, trainer: Engine) -> None:
        """Save and load the run of ``trainer``, which keeps other trainings from the folder until it ends.

        A trainer that starts while another training is at work there raises a BusyError, which names that one.
        """
        if idist.get_rank() == 0:
            trainer.add_event_handler(Events.STARTED, self._begin)
        if self.resume:
            trainer.add_event_handler(Events.STARTED, self.load)
        trainer.add_event_handler(Events.EPOCH_COMPLETED(every=self.save_interval), self.save)
        if idist.get_rank() == 0:
            trainer.add_event_handler(Events.COMPLETED, self._claim.release)

    def _begin(self) -> None:
        self._claim.take()
        if not self.checkpoints():
            make_folder(self.folder)
            begun = self.folder / BEGUN
            try:
                begun.touch()
            except OSError as error:
                raise write_error(begun, error) from error

    def save(self, trainer: Engine) -> None:
        """Write the checkpoint of the trainer's epoch, then remove those that are too many.

        Checkpoints of later epochs go too: they are of a run that this one replaces.
        """
        if idist.get_rank() != 0:
            return
        state: dict[str, Any] = {name: unwrap(value).state_dict() for name, value in self.objects.items()}
        scaler = getattr(trainer, "scaler", None)
        trainer_state = {"epoch": trainer.state.epoch, "iteration": trainer.state.iteration}
        content = {"objects": state, "trainer": trainer_state, "random": _random_state(), "frozen": self._frozen()}
        if scaler is not None:
            content["scaler"] = scaler.state_dict()
        newest = self.folder / f"checkpoint_epoch={trainer.state.epoch}.pt"
        save_atomically(content, newest)
        (self.folder / BEGUN).unlink(missing_ok=True)
        found = self.checkpoints()
        count = found.index(newest) + 1
        for path in found[: max(count - self.n_saved, 0)] + found[count:]:
            path.unlink()

    def load(self, trainer: Engine) -> None:
        """Continue from the newest checkpoint that is what was written; begin anew if there is none at all.

        Raises:
            ValueError: a checkpoint does not hold what this run needs, or none of several can be read.
            SettingsError: it is of another network, or the run froze other parameters.
        """
        found = self.checkpoints()
        for path in reversed(found):
            try:
                check_archive(path)
                content = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises whatever its unpickler meets
                warnings.warn(f"checkpoint '{path}' cannot be read ({error}); trying the one before", stacklevel=2)
                continue
            self._restore(content, path, trainer)
            if trainer.state.max_epochs is not None and trainer.state.epoch >= trainer.state.max_epochs:
                logger.warning(
                    "the plan of %d epochs is done: nothing is trained; for more raise max_epochs",
                    trainer.state.max_epochs,
                )
            return
        if found:
            raise ValueError(f"no checkpoint in '{self.folder}' can be read; remove them to train from the beginning")

    def checkpoints(self) -> list[Path]:
        """The checkpoints in the folder, oldest epoch first."""
        found = {}
        for path in self.folder.glob("checkpoint_epoch=*.pt"):
            if match := re.fullmatch(r"checkpoint_epoch=(\d+)\.pt", path.name):
                found[int(match[1])] = path
        return [found[epoch] for epoch in sorted(found)]

    def _restore(self, content: dict[str, Any], path: Path, trainer: Engine) -> None:
        saved = set(content["objects"])
        if saved != set(self.objects):
            raise ValueError(
                f"checkpoint '{path}' holds {sorted(saved)}, this run needs {sorted(self.objects)}; "
                "resume with the configuration that wrote it, or choose another folder"
            )
        if content.get("frozen", []) != self._frozen():
            raise SettingsError(
                f"checkpoint '{path}' is of a run that froze {_counted(content.get('frozen', []))}, this one freezes "
                f"{_counted(self._frozen())}; resume with the --freeze that the run began with, or begin a new run "
                "with --pretrained"
            )
        epoch = content["trainer"]["epoch"]
        length = trainer.state.epoch_length
        trainer.state.epoch = epoch
        trainer.state.iteration = content["trainer"]["iteration"] if length is None else epoch * length
        for name, value in sorted(self.objects.items(), key=lambda item: isinstance(unwrap(item[1]), nn.Module)):
            # networks last: what checks the run's settings says more than sizes that do not fit
            _warn_of_another_plan(name, value, content["objects"][name])
            _warn_of_other_steps(path, name, value, content["objects"][name])
            try:
                unwrap(value).load_state_dict(content["objects"][name])
            except (RuntimeError, ValueError) as error:
                self._require_fit(content["objects"], path)
                raise ValueError(
                    f"checkpoint '{path}': its {name} is another than this run's; resume with the configuration that "
                    f"wrote it, or choose another folder ({error})"
                ) from error
        scaler = getattr(trainer, "scaler", None)
        if "scaler" in content and scaler is not None:
            scaler.load_state_dict(content["scaler"])
        if idist.get_rank() == 0:
            _restore_random_state(content["random"])

    def _require_fit(self, states: Mapping[str, Any], path: Path) -> None:
        for name, value in self.objects.items():
            if isinstance(unwrap(value), nn.Module):
                require_fit(unwrap(value), states[name], path)

    def _frozen(self) -> list[str]:
        """Names of the frozen parameters of all networks."""
        return [name for value in self.objects.values() for name in frozen_names(unwrap(value))]


def _counted(names: list[str]) -> str:
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    return f"{len(names)} parameters ({parts})" if names else "nothing"


def _warn_of_another_plan(name: str, value: Stateful, saved: Mapping[str, Any]) -> None:
    """A learning-rate schedule keeps the length it was made for: past it, a cosine rises again."""
    for key in ("T_max", "total_steps", "t_total"):
        planned = getattr(value, key, None)
        if planned is not None and key in saved and saved[key] != planned:
            warnings.warn(
                f"'{name}' continues the schedule of the checkpoint, {key} {saved[key]}, not {planned}; "
                "for another length begin a new run",
                stacklevel=2,
            )


def _warn_of_other_steps(path: Path, name: str, value: Stateful, saved: Mapping[str, Any]) -> None:
    """An optimiser goes on with the learning rate and the like of the checkpoint, whatever the run says now.

    Raises:
        ValueError: the checkpoint is of another kind of optimiser.
    """
    if "param_groups" not in saved:
        return
    for number, (new, old) in enumerate(zip(value.state_dict()["param_groups"], saved["param_groups"], strict=False)):
        kinds = [set(group) - {"params", "initial_lr", "param_names"} for group in (new, old)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"checkpoint '{path}': its {name} is of another kind ({', '.join(sorted(kinds[0] ^ kinds[1]))}); "
                "resume with the optimiser that the run began with, or begin a new run"
            )
        planned = "initial_lr" if "initial_lr" in new and "initial_lr" in old else "lr"
        for key in sorted({planned, *kinds[0]} - ({"lr"} if planned != "lr" else set())):
            if new[key] != old[key]:
                warnings.warn(
                    f"'{name}' continues with {key.removeprefix('initial_')} {old[key]} of the checkpoint, not "
                    f"{new[key]} (group {number}); for another begin a new run",
                    stacklevel=2,
                )


def _random_state() -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    generator: Any = np.random.get_state()  # noqa: NPY002  (what MONAI's transforms use)
    name, numpy_keys, *rest = generator
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(numpy_keys.astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, *rest = state["numpy"]
    np.random.set_state((name, numpy_keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
