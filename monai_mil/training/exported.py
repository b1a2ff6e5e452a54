"""An exported program in place of the network it was made of: TorchScript, traces and those of ``torch.export``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.nn.modules.module import _IncompatibleKeys

from monai_mil.errors import SettingsError
from monai_mil.networks import MILNetwork, check_bag
from monai_mil.networks.blocks import instance_mask, restore_padding

logger = logging.getLogger(__name__)

_ANSWER_ALONE = (
    "the exported program gives the network's answer alone: whatever draws attention or heatmaps will fail; export "
    "'network_def' by ckpt_export without a trace, or by torch.export with return_dict=True"
)


class ExportedNetwork(nn.Module):
    """Answers for an exported program as the network would that was exported, within an engine of MONAI.

    A program holds its weights and always answers as in evaluation. TorchScript that ``monai.bundle ckpt_export``
    writes gives the whole output, as :class:`monai_mil.networks.MILNetwork` does, and takes masks. A trace gives the
    logits alone; a program of ``torch.export`` what it was exported with, the whole output if that was
    ``return_dict=True``. One that takes no mask is asked bag by bag for the real instances. Bags are taken whole, in
    float32, under autocast too: what a network reads chunk by chunk has to fit into memory here.

    Args:
        program: from ``torch.jit.load`` or ``torch.export.load``, exported from a ``network_def``.
    """

    def __init__(self, program: torch.jit.ScriptModule | GraphModule | ExportedProgram) -> None:
        super().__init__()
        self.program: Any = program.module() if isinstance(program, ExportedProgram) else program
        if isinstance(program, torch.jit.ScriptModule):
            program.eval()
        self.place: Tensor
        self.register_buffer("place", torch.empty(0), persistent=False)
        self._ask: Callable[..., Any] = getattr(self.program, "describe", self.program)
        self._takes = _arguments(self.program)
        self._told = False

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        return_dict: bool = False,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Classify a batch of bags; see :meth:`monai_mil.networks.INSIGHT.forward`.

        Raises:
            ValueError: a bag has no instance, or a real feature is not finite.
            SettingsError: the program takes no mask, and there are tokens that are none of the bag's.
        """
        image = image.as_subclass(Tensor).to(self.place.device)
        if scale is not None and offset is not None:
            scale, offset = (each[:, :, None, None, None].to(image.device) for each in (scale, offset))
            image = offset + scale * image
        image = check_bag(image.float(), instance_mask(mask))
        output = self._answer(image, mask if mask is None else mask.to(image.device))
        if not return_dict:
            return output["logits"]
        if mask is not None:
            output["mask"] = instance_mask(mask)  # type: ignore[assignment]
            if mask.dim() == 4:
                output["token_mask"] = mask
        return output

    @torch.no_grad()
    def pool_chunks(self, chunks: Iterable[Tensor | np.ndarray], mask: Tensor | None = None) -> dict[str, Tensor]:
        """The whole output for one bag that comes in chunks ``[m, d, ...]``, which are put together first.

        See :meth:`monai_mil.networks.ChunkedNetwork.pool_chunks`, :meth:`monai_mil.networks.INSIGHT.pool_chunks`.
        """
        rows = [torch.as_tensor(chunk).to(self.place.device) for chunk in chunks]
        if not rows:
            raise ValueError("a bag without instances has no prediction")
        image = torch.cat(rows).transpose(0, 1)[None]
        output = self(image, None if mask is None else mask[None], return_dict=True)
        return {key: value for key, value in output.items() if key not in ("mask", "token_mask")}

    def descend(self, sources: Sequence[Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
        """The whole output for a slide of several levels, all of whose tiles are read, asked for or not.

        See :meth:`monai_mil.networks.HAGMIL.descend`.
        """
        return self.pool_chunks([source(torch.arange(len(source))) for source in sources])  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Stays as it was exported."""
        self.training = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The program's weights under the exported network's names; empty where the program hides them."""
        return self.program.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Hold the program to the weights that a run names; its own stay.

        Raises:
            SettingsError: it was exported from others.
        """
        own = self.state_dict()
        if not own:
            logger.warning("the exported program hides its weights: make sure it was exported from this run's model.pt")
        for name, value in own.items():
            if name not in state_dict:
                raise SettingsError(
                    f"the exported program has weights '{name}', which the run's model.pt has not: give a program that "
                    "was exported from 'network_def' (of probabilities there is nothing more to make), and the "
                    "--ckpt_path of its model"
                )
            given = state_dict[name].to(value)
            if given.shape != value.shape or not torch.equal(given, value):
                raise SettingsError(
                    f"the exported program holds other weights than the run's model.pt, first '{name}': give the "
                    "--ckpt_path of the model that it was exported from"
                )
        return _IncompatibleKeys([], [])

    def _answer(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        if "mask" in self._takes:
            return self._output(image, mask=_as_asked(mask, image, self._takes["mask"]))
        if mask is None or bool(mask.all()):
            return self._output(image)
        bags = []
        for bag, real in zip(image, _whole_instances(mask), strict=True):
            output = self._output(bag[None, :, real])
            bags.append(restore_padding(output, real, MILNetwork.listed_keys))
        return {key: torch.cat([bag[key] for bag in bags]) for key in bags[0]}

    def _output(self, image: Tensor, **arguments: Tensor | None) -> dict[str, Tensor]:
        if "return_dict" in self._takes and isinstance(self.program, GraphModule):
            arguments["return_dict"] = True  # type: ignore[assignment]
        if self._ask is not self.program:
            arguments.setdefault("mask", None)
        with torch.autocast(image.device.type, enabled=False):  # it holds no such regions of its own
            output = self._ask(image, **arguments)
        if isinstance(output, Mapping):
            return dict(output)
        if not self._told:
            logger.warning(_ANSWER_ALONE)
            self._told = True
        return {"logits": output}


def as_network(given: Any) -> Any:
    """An exported program as a network; whatever else is given as it is."""
    is_program = isinstance(given, torch.jit.ScriptModule | GraphModule | ExportedProgram)
    return ExportedNetwork(given) if is_program else given


def _arguments(program: Any) -> dict[str, int]:
    """Names of what a program takes, and of tensors of a graph how many axes they have; else 0."""
    if isinstance(program, GraphModule):
        names: Sequence[str] = program.graph._codegen.pytree_info.orig_args  # type: ignore[attr-defined]
        inputs = {node.target: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        return {name: getattr(inputs.get(name), "ndim", 0) for name in names}
    return {argument.name: 0 for argument in program.forward.schema.arguments}


def _as_asked(mask: Tensor | None, image: Tensor, axes: int) -> Tensor | None:
    """The mask as a graph takes it, which must have the one it was exported with; TorchScript takes any."""
    if axes == 0:
        return mask
    if mask is None:
        mask = torch.ones(image.shape[0], image.shape[2], dtype=torch.bool, device=image.device)
    if axes == 4 and mask.dim() == 2:
        return mask[:, :, None, None].expand(-1, -1, *image.shape[3:])
    return mask if mask.dim() == axes else _whole_instances(mask)


def _whole_instances(mask: Tensor) -> Tensor:
    """The mask ``[b, n]`` of instances that says the same as one of tokens."""
    if mask.dim() == 2:
        return mask
    tokens = mask.flatten(2)
    if bool((tokens.any(dim=2) != tokens.all(dim=2)).any()):
        raise SettingsError(
            "tiles reach beyond their slide, and the exported program takes no mask of tokens: export 'network_def' by "
            "ckpt_export without a trace, or by torch.export with such a mask"
        )
    return tokens.any(dim=2)
