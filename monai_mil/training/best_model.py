"""Write the weights of the epoch with the best validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_mil.files import write_json
from monai_mil.model_card import ModelCard, weights_digest
from monai_mil.training.anchor_file import save_anchor
from monai_mil.training.distributed import unwrap
from monai_mil.training.model_metadata import own_metadata
from monai_mil.training.scores import Mode, key_score
from monai_mil.training.state_files import save_atomically

if TYPE_CHECKING:
    from monai_mil.training.anchor import Anchor

logger = logging.getLogger(__name__)


class BestModel:
    """Writes a network's bare state dict whenever the evaluator's key metric is the best so far.

    Of equally good epochs the latest is kept: an AUROC of 1 is soon reached on a small validation split, long before
    the probabilities mean anything.

    Until a validation has given a finite metric the latest weights are kept, so that the file always exists. Pass the
    object to :class:`Checkpointer` too: a resumed run then never overwrites a better model.

    Args:
        network: what is saved; a DDP wrapper is taken off.
        path: the file, such as ``models/model.pt``.
        mode: ``"max"`` if a high metric is good, ``"min"`` if a low one is.
        settings: the run's settings that a later use of the weights must share; they are written beside the weights as
            ``model.json`` (:class:`monai_mil.model_card.ModelCard`). None writes no such file.
        training_data: digest of the training split, for the same file.
        fine_tuned_from: digest of the weights that the training began with, for the same file.
        anchor: an anchor of the network, saved beside the weights as ``anchor.pt``, see :func:`read_anchor`.
        metadata_file: the bundle's ``metadata.json``; beside the weights is written what of it is true of them, for
            exports. None, or a file that is not there, writes none.
        paper_rule_trainer: a trainer whose key metric, of the same epoch, must be better than the validation's for an
            epoch to be chosen, the first of equally good ones: the selection of Normal Guidance. As long as no epoch
            qualifies the best validation is kept all the same, and a warning is logged when training ends so.

    Attributes:
        best: the best score so far (negated for ``"min"``), None before the first.
        best_epoch: its epoch.
        qualified: whether that epoch was chosen by the rule; always true without one.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        mode: Mode = "max",
        paper_rule_trainer: Engine | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        training_data: str | None = None,
        fine_tuned_from: str | None = None,
        anchor: Anchor | None = None,
        metadata_file: str | Path | None = None,
    ) -> None:
        self.network = network
        self.path = Path(path)
        self.mode = mode
        self.paper_rule_trainer = paper_rule_trainer
        self.settings = settings
        self.training_data = training_data
        self.fine_tuned_from = fine_tuned_from
        self.anchor = anchor
        self.metadata_file = None if metadata_file is None else Path(metadata_file)
        self.best: float | None = None
        self.best_epoch = -1
        self.qualified = paper_rule_trainer is None
        self._evaluator: Engine | None = None
        self._digest: str | None = None

    def attach(self, evaluator: Engine) -> None:
        """Watch a MONAI evaluator; its epoch is the trainer's, as ``ValidationHandler`` sets it."""
        self._evaluator = evaluator
        evaluator.add_event_handler(Events.COMPLETED, self)
        if self.paper_rule_trainer is not None:
            self.paper_rule_trainer.add_event_handler(Events.COMPLETED, self._tell)

    def __call__(self, evaluator: Engine) -> None:
        """Save if the validation that has just completed is the best one."""
        score = key_score(evaluator, self.mode)
        qualified = self._qualifies(score)
        if self.best is not None and (score is None or not self._improves(score, qualified)):
            return
        if score is not None:
            self.best, self.best_epoch, self.qualified = score, evaluator.state.epoch, qualified
        if idist.get_rank() == 0:
            self._save(unwrap(self.network).state_dict())

    def _save(self, weights: Mapping[str, Any]) -> None:
        digest = weights_digest(weights)
        if self.settings is not None:
            ModelCard(
                self.settings,
                digest,
                self._digest,
                self.training_data,
                path=self.path,
                fine_tuned_from=self.fine_tuned_from,
            ).write()
            self._digest = digest
            self._write_metadata(self.settings)
        save_atomically(weights, self.path)
        if self.anchor is not None:
            save_anchor(self.anchor, self.path, digest)

    def _write_metadata(self, settings: Mapping[str, Any]) -> None:
        if self.metadata_file is not None and self.metadata_file.is_file():
            metadata = json.loads(self.metadata_file.read_text(encoding="utf-8"))
            write_json(own_metadata(metadata, settings), self.path.with_name("metadata.json"))

    def _qualifies(self, score: float | None) -> bool:
        if self.paper_rule_trainer is None:
            return True
        trained = key_score(self.paper_rule_trainer, self.mode, "train")
        return score is not None and trained is not None and trained > score

    def _improves(self, score: float, qualified: bool) -> bool:
        if self.best is None or qualified != self.qualified:
            return qualified
        return score > self.best if self.paper_rule_trainer is not None else score >= self.best

    def _tell(self) -> None:
        if not self.qualified and self.best is not None:
            logger.warning(
                "in no epoch was the training metric better than the validation's; kept the best validation, epoch %d",
                self.best_epoch,
            )

    def state_dict(self) -> dict[str, Any]:
        """The bookkeeping, without the weights."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "qualified": self.qualified,
            "digest": self._digest,
            "fine_tuned_from": self.fine_tuned_from,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bookkeeping, also what the evaluator itself reports as best."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.qualified = state.get("qualified", True)
        self._digest = state.get("digest")
        self.fine_tuned_from = state.get("fine_tuned_from")
        if self._evaluator is not None and self.best is not None:
            reported: Any = self._evaluator.state
            reported.best_metric = self.best if self.mode == "max" else -self.best
            reported.best_metric_epoch = self.best_epoch
