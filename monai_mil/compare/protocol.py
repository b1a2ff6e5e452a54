"""What all methods of a comparison share: the budget, and which epoch is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_mil.compare.competitor import Competitor
from monai_mil.errors import SettingsError

_SAME = {
    *("seed", "fold", "cohort_file", "dataset_dir", "ckpt_dir", "output_dir", "resume", "overwrite", "split"),
    *("class_names", "label_columns", "multi_label", "train::trainer::max_epochs", "early_stop::patience"),
    *("strict_paper_selection", "validate::key_metric", "best_model::mode"),
}
"""What the comparison sets for all methods, and none of them by itself."""
_SMALL = 2**26
"""Bytes of all bags together that a training keeps in memory."""
_AUROC = {"val_auroc": {"_target_": "monai_mil.metrics.AUROC", "classes": "@class_names"}}


def refuse_own_terms(competitors: Sequence[Competitor], shared: Mapping[str, Any]) -> None:
    """Make sure that no method sets what the comparison sets for all.

    Args:
        competitors: the methods.
        shared: further settings that all methods share, such as the classes.

    Raises:
        SettingsError: one does, so that seeds would be equal, or budgets and cases unequal.
    """
    for one in competitors:
        own = sorted(_SAME & {key.replace("#", "::") for key in (*one.settings, *one.grid)})
        if own:
            raise SettingsError(f"method '{one.name}': {', '.join(own)} is the same for all methods; leave it out")
    own = sorted(_SAME & {key.replace("#", "::") for key in shared})
    if own:
        raise SettingsError(f"{', '.join(own)} is what the comparison sets; use --folds, --seeds, --epochs, --label")


def same_for_all(competitor: Competitor, epochs: int, survival: bool) -> dict[str, Any]:
    """Settings that give a bundle's training so many epochs, all of them, and keep the one with the best validation.

    Validation is judged by AUROC, or by the concordance of survival; where a bundle's own rule is another, as the
    validation's loss, it gives way. Test cases have no part in it.

    Args:
        competitor: whose training it is.
        epochs: of the training.
        survival: bags are labelled with follow-up.
    """
    config = competitor.config("train")
    settings: dict[str, Any] = {"train::trainer::max_epochs": epochs}
    stops = "early_stop" in config
    if stops:
        settings["early_stop::patience"] = epochs
    if "strict_paper_selection" in config:
        settings["strict_paper_selection"] = False
    judged = [config["validate"]["key_metric"]]
    judged += [
        metric for name in competitor.overlays if (metric := competitor.config(name).get("validate::key_metric"))
    ]
    if survival or set(judged[-1]) == set(_AUROC):
        return settings
    settings |= {
        "validate::key_metric": _AUROC,
        "validate::additional_metrics": {},
        "validate::evaluator::metric_cmp_fn": "$lambda current, best: current > best",
        "best_model::mode": "max",
    }
    return settings | ({"early_stop::mode": "max"} if stops else {})


def followed(competitor: Competitor, survival: bool) -> dict[str, Any]:
    """Settings that let an evaluator hand out a network's whole output, so that its attention can be followed.

    They change nothing of the training; where the evaluator hands it out anyway, as with follow-up, there are none.
    """
    validate = competitor.config("train")["validate"]
    if validate["inferer"]["_target_"] != "SimpleInferer" or competitor.overlays or survival:
        return {}
    unpack = {"_target_": "monai_mil.training.UnpackOutputd", "keys": "pred"}
    return {
        "validate::inferer": {"_target_": "monai_mil.training.FullOutputInferer"},
        "validate::postprocessing::transforms": [unpack, *validate["postprocessing"]["transforms"]],
    }


def kept_in_memory(competitor: Competitor, bags: Path) -> dict[str, Any]:
    """Settings that let a training open every bag once, not once an epoch; none where the bags are large or streamed.

    Opening a file costs as much as a step on a small bag. Nothing else changes, not even the layout of the features.

    Args:
        competitor: whose training it is.
        bags: the folder of the bag files.
    """
    config = competitor.config("train")
    streams = any(
        isinstance(part, dict) and part.get("mapped") for part in config["train"]["preprocessing"]["transforms"]
    )
    if streams or not bags.is_dir() or sum(file.stat().st_size for file in bags.rglob("*")) > _SMALL:
        return {}
    cached = {"_target_": "CacheDataset", "runtime_cache": True, "as_contiguous": False, "progress": False}
    return {
        f"{part}::dataset::{name}": value
        for part in ("train", "validate")
        if config[part]["dataset"]["_target_"] == "Dataset"
        for name, value in cached.items()
    }
