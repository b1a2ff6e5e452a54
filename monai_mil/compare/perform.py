"""Do one job of a comparison in this process: train, choose on validation, evaluate, seal."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.compare.job import Job
from monai_mil.compare.measure import Memory, bag_vectors, cost, outputs, split_auroc, test_loader
from monai_mil.compare.protocol import followed, kept_in_memory
from monai_mil.compare.results import refuse_no_numbers
from monai_mil.compare.watching import History
from monai_mil.errors import SettingsError
from monai_mil.files import make_folder, parse_json, replacing, write_json
from monai_mil.locks import claimed

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

logger = logging.getLogger(__name__)

_alone = threading.Lock()
"""Seeds are the process's: of the threads of a Dask worker one trains at a time."""


def perform(job: Job) -> None:
    """Do a job unless it is done; afterwards ``result.json`` is there, or ``failed.json`` says why not.

    A job that was killed goes on behind the last epoch that it finished.

    Raises:
        BusyError: another process is at it.
        OutputError: its folder cannot be written.
    """
    import torch

    if job.finished() is not None:
        return
    make_folder(job.folder)
    torch.set_num_threads(1)  # sums do not depend on how many processes share the machine
    with _alone, claimed(job.folder / "run"):
        write_json({"digest": job.digest}, job.begun)
        try:
            points = [_trained(job, point) for point in range(len(job.competitor.points))]
            best = max(range(len(points)), key=lambda point: _score(points[point]))
            own = {"digest": job.digest, "method": job.competitor.name, "bundle": str(job.competitor.bundle.root)}
            result = {**own, "point": best, **points[best], **_evaluated(job, best)}
        except Exception as error:
            logger.exception("%s", job.words)
            write_json({"reason": reason_of(error, job)}, job.failure)
            return
        write_json(result, job.result)
        job.failure.unlink(missing_ok=True)
        for point in range(len(points)):
            shutil.rmtree(job.point_folder(point) / "models" / "checkpoints", ignore_errors=True)


def reason_of(error: BaseException, job: Job) -> str:
    """What went wrong in one line that names no place of this comparison."""
    from monai_mil.training import users_error

    own = users_error(error)
    last = error
    while last.__cause__ is not None:
        last = last.__cause__
    text = str(own) if own is not None else "".join(traceback.format_exception_only(last)).strip()
    return " ".join(text.replace(f"{job.out}/", "").split())[:500]


def _score(trained: Mapping[str, Any]) -> float:
    return -np.inf if trained["score"] is None else float(trained["score"])


def _trained(job: Job, point: int) -> dict[str, Any]:
    """Train a point of the grid unless that is done; what its ``trained.json`` says."""
    folder = job.point_folder(point)
    sealed = folder / "trained.json"
    if sealed.is_file():
        return dict(parse_json(sealed.read_text(encoding="utf-8")))
    plain = job.training(point)
    is_new = not (folder / "models" / "checkpoints").exists()
    memory, started = Memory(), [0.0]

    def prepared(workflow: ConfigWorkflow) -> None:
        _watch(job, folder, workflow)
        started[0] = time.perf_counter()

    aside = {**followed(job.competitor, job.survival), **kept_in_memory(job.competitor, job.data / "bags")}
    measured = replace(plain, settings={**aside, **plain.settings, "resume": True})
    workflow = measured.start(prepared)
    seconds = time.perf_counter() - started[0]
    best = workflow.parser.get_parsed_content("best_model")
    if best.best is None:
        raise SettingsError(
            "validation has no figure in any epoch (its fold has one class, or training diverged): nothing "
            "chooses the model; see log.txt in its folder"
        )
    said = {
        "score": best.best,
        "epoch": best.best_epoch,
        "seconds": seconds if is_new else None,
        "memory_mib": memory.mebibytes,
    }
    write_json(said, sealed)
    return said


def _watch(job: Job, folder: Path, workflow: ConfigWorkflow) -> None:
    """Note every epoch, and follow attention where the network has any."""
    parser = workflow.parser
    trainer, evaluator = (parser.get_parsed_content(name) for name in ("train::trainer", "validate::evaluator"))

    def further() -> dict[str, float]:
        return {"test_auroc": split_auroc(workflow, test_loader(workflow))} if job.test_curve else {}

    if "attention_stability" not in parser and _has_attention(workflow):
        from monai_mil.savers import AttentionStability

        stability = AttentionStability(folder, chart=False)
        stability.attach(evaluator)
        parser.get_parsed_content("checkpointer").objects["attention_stability"] = stability
    History(folder / "history.json", further).attach(trainer, evaluator)


def _has_attention(workflow: ConfigWorkflow) -> bool:
    """Whether the evaluator sees attention over the instances of a bag."""
    from monai_mil.training import FullOutputInferer

    parser = workflow.parser
    if not isinstance(parser.get_parsed_content("validate::inferer"), FullOutputInferer):
        return False
    batch, output = next(outputs(workflow, parser.get_parsed_content("validate::dataloader")))
    return "attention" in output and output["attention"].shape[-1] == batch["image"].shape[2]


def _evaluated(job: Job, point: int) -> dict[str, Any]:
    """Evaluate the chosen point on the test cases; what the network costs."""
    folder = job.point_folder(point)
    workflow = job.evaluation(point).start()
    refuse_no_numbers(folder / "eval")
    loader = workflow.parser.get_parsed_content("validate::dataloader")
    vectors = bag_vectors(workflow, loader) if job.seed == 0 else None
    if vectors is not None:
        names, values = vectors
        with replacing(job.folder / "bag_vectors.npz") as partial, partial.open("wb") as file:
            np.savez_compressed(file, names=np.array(names), vectors=values)
    if job.sweep is not None:
        key, tried = job.sweep
        if key in job.competitor.config("train"):
            for value in tried:
                job.evaluation(point, f"sweep/{key}={value}", {key: value}).start()
    return {"folder": str(folder.relative_to(job.out)), **cost(workflow, loader)}
