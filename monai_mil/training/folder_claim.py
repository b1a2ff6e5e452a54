"""A folder of models is one run's, and one run's at a time."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist

from monai_mil.errors import SettingsError
from monai_mil.locks import claimed
from monai_mil.model_card import card_path
from monai_mil.training import anchor_file
from monai_mil.training.checkpointer import BEGUN

_WEIGHTS, _CHECKPOINTS = "model.pt", "checkpoint_epoch=*.pt"
_FOLDER = "checkpoints"
_BESIDE = ("time_bins.json", "metadata.json", anchor_file.NAME)


def claim_folder(folder: str | Path, resume: bool = False, overwrite: bool = False) -> None:
    """Make sure that a training replaces no other run's model unless it is told to; call it before training.

    Args:
        folder: where the run will write ``model.pt`` and its checkpoints.
        resume: the run goes on with the checkpoints that are there, or begins anew where it ended before the first.
        overwrite: the run takes the place of another, whose weights, card, checkpoints and time bins are removed.

    Raises:
        BusyError: another training is at work there, which is named; :class:`Checkpointer` keeps others away meanwhile.
        SettingsError: there is another run's model, or one without the checkpoints to resume from.
    """
    if idist.get_rank() == 0:
        with claimed(Path(folder) / _FOLDER):
            _claim(Path(folder), resume, overwrite)
    else:
        _claim(Path(folder), resume, overwrite)


def _claim(folder: Path, resume: bool, overwrite: bool) -> None:
    weights, checkpoints = folder / _WEIGHTS, sorted((folder / _FOLDER).glob(_CHECKPOINTS))
    if resume and (checkpoints or (folder / _FOLDER / BEGUN).exists()):
        return
    if overwrite:
        if idist.get_rank() == 0:
            for path in (*checkpoints, weights, card_path(weights), *(folder / name for name in _BESIDE)):
                path.unlink(missing_ok=True)
        return
    if weights.exists() or checkpoints:
        found = weights if weights.exists() else checkpoints[-1]
        way = "and no checkpoint to go on from" if resume else "go on with it by --resume True"
        raise SettingsError(
            f"ckpt_dir '{folder}' holds the model of another run ('{found.name}'), {way}: give another --ckpt_dir, or "
            "replace it by --overwrite True"
        )
