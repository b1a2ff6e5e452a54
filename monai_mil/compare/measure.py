"""What a network costs and what it makes of a bag: parameters, operations, memory, answers and bag vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.errors import SettingsError

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

_OF_VALIDATION = re.compile(r"\$@cohort\.datalist\('val', @([\w:]+)\)")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory:
    """The most memory that a process takes from here on, beyond what it has already."""

    def __init__(self) -> None:
        import torch

        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError):
            _RESET.write_text("5")  # the peak so far is forgotten
        self._before = _kibibytes("VmRSS")

    @property
    def mebibytes(self) -> float | None:
        """Of the GPU where there is one, else of the process; None where the system does not tell."""
        import torch

        if self._on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        peak = _kibibytes("VmHWM")
        return None if peak is None or self._before is None else max(0, peak - self._before) / 2**10


def _kibibytes(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def test_loader(workflow: ConfigWorkflow) -> Any:
    """A data loader of a training's test cases, loaded as those of its validation are.

    Raises:
        SettingsError: the bundle's validation is not of a split of its cohort.
    """
    from monai.data import DataLoader, Dataset

    parser: Any = workflow.parser  # nothing is added to its config: that would let it build everything anew
    said = str(parser["validate::dataset::data"])
    found = _OF_VALIDATION.fullmatch(said)
    if found is None:
        raise SettingsError(f"no test curve: the bundle's validation has the data {said}, which has no test split")
    cases = parser.get_parsed_content("cohort").datalist("test", parser.get_parsed_content(found[1]))
    like = parser.get_parsed_content("validate::dataloader")
    return DataLoader(Dataset(cases, like.dataset.transform), batch_size=1, collate_fn=like.collate_fn)


def outputs(workflow: ConfigWorkflow, loader: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every batch of a loader and the network's whole output for it, in evaluation; no random number is used up."""
    import torch

    from monai_mil.training import FullOutputInferer

    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    network, was_training = evaluator.network, evaluator.network.training
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for batch in loader:
                image, _, arguments, named = evaluator.prepare_batch(batch, evaluator.state.device)
                yield batch, FullOutputInferer()(image, network, *arguments, **named)
    finally:
        network.train(was_training)


def cost(workflow: ConfigWorkflow, loader: Any) -> dict[str, int]:
    """Parameters of an evaluator's network, which learns no more then, and what the first bag takes of operations.

    Counted are the floating-point operations of products of matrices, convolutions and attention.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = workflow.parser.get_parsed_content("validate::evaluator").network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    network.requires_grad_(False)  # the counter would hang hooks on whatever has a gradient
    with FlopCounterMode(display=False) as counter:
        batch, _ = next(outputs(workflow, loader))
    instances = int(batch["image"].shape[2])
    return {"parameters": parameters, "instances": instances, "flops": int(counter.get_total_flops())}


def bag_vectors(workflow: ConfigWorkflow, loader: Any) -> tuple[list[str], np.ndarray] | None:
    """Names of the cases and their bag vectors ``[cases, d]``; None of a network that has none."""
    names, vectors = [], []
    for batch, output in outputs(workflow, loader):
        if "bag" not in output:
            return None
        key = next(key for key in ("slide_id", "scan_id", "patient_id") if key in batch)
        names += [str(name) for name in batch[key]]
        vectors.append(output["bag"].flatten(1).cpu().double().numpy())
    return names, np.concatenate(vectors)


def split_auroc(workflow: ConfigWorkflow, loader: Any) -> float:
    """AUROC of the answers for a loader's cases as the network is now."""
    import torch

    from monai_mil.metrics import auroc

    parser = workflow.parser
    exclusive = not parser.get_parsed_content("multi_label", default=False)
    prob, label = [], []
    for batch, output in outputs(workflow, loader):
        logits = output["logits"].double().cpu()
        prob.append(torch.softmax(logits, dim=1) if exclusive and logits.shape[1] > 1 else torch.sigmoid(logits))
        label.append(torch.as_tensor(batch["label"]).reshape(len(logits), -1))
    truth = torch.cat(label).numpy()
    return float(auroc(torch.cat(prob).numpy(), truth[:, 0] if truth.shape[1] == 1 else truth))
