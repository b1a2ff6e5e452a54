"""The Integrated Attention Transformer of HAG-MIL (Xiong et al., IJCAI 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import (
    RESIDUAL_SCALE,
    IATBlock,
    InstanceBranch,
    TokenSequence,
    most_and_least_attended,
    real_rows,
    restore_padding,
)
from monai_mil.networks.contract import MILNetwork, exact_matmul
from monai_mil.networks.graph import is_recorded
from monai_mil.networks.reference import check_tensors, load_reference, size_of

LONG_BAG = {"cpu": 40_000, "cuda": 600_000}
"""Instances from which on evaluation keeps no tokens: so many take 1 GB of main memory, or 15 GB of a GPU's."""

STEP_TOKENS = 4096
"""Tokens of a block of them."""

REFERENCE_NAMES = {
    r"layers\.(\d+)\.fc\.0\.": r"blocks.\1.project.",
    r"layers\.(\d+)\.fc\.1\.": r"blocks.\1.norm_project.",
    r"layers\.(\d+)\.layer\.norm\.": r"blocks.\1.norm_attention.",
    r"layers\.(\d+)\.layer\.attn\.to_qkv\.": r"blocks.\1.attention.project.",
    r"layers\.(\d+)\.layer\.attn\.to_out\.0\.": r"blocks.\1.attention.output.",
    r"layers\.(\d+)\.layer\.attn\.res_conv\.": r"blocks.\1.attention.mix.",
    r"layers\.(\d+)\.norm\.": r"blocks.\1.norm.",
    r"layers\.(\d+)\.attention_net\.0\.": r"blocks.\1.instance.",
    r"layers\.(\d+)\.attention_net\.3\.attention_([ab])\.0\.": r"blocks.\1.gates_\2.",
    r"layers\.(\d+)\.attention_net\.3\.attention_c\.": r"blocks.\1.score.",
    r"layers\.(\d+)\.layer_map_to_final\.0\.": r"blocks.\1.bag.",
    r"layers\.(\d+)\.layer_map_to_final\.1\.": r"blocks.\1.norm_bag.",
    r"weights\.": "fusion.",
    r"fc5\.": "classifier.",
    r"instance_classifiers\.(\d+)\.": r"branch.\1.",
}
_OMEGA = r"layers\.\d+\.layer\.residual_attn\.omega"
_IGNORED = r"instance_loss_fn\..*"


class IAT(MILNetwork):
    """Blocks of Nystroem attention, each with a gated attention pooling of its own; a weighted sum of bag vectors.

    Tokens pass from block to block (:class:`IATBlock`); every block gives a vector of the bag; ``z = sum_i w_i bag_i +
    beta`` with learned ``w_i`` and one scalar ``beta``; ``logits = C z + c``. There is no position code, yet
    the order of the instances matters: landmarks are means of consecutive tokens, and a convolution runs along them.
    A two-way classifier of every class looks at ``g`` of the last block, as in CLAM.

    The output holds ``logits``, ``bag`` ``[b, F]``, ``attention`` and ``attention_logits`` of the last block (one
    head), ``instance_logits`` ``[b, c, n]`` (``-inf`` on padding), and unless ``sampled`` is 0 those of the most and
    the least attended instances, ``top_instance_logits`` and ``bottom_instance_logits`` ``[b, c, sampled]``.

    A bag is worked on whole; time and memory grow with the number of instances. In evaluation the tokens of a very long
    bag (:data:`LONG_BAG`) are made anew, part by part, whenever a block needs them, for some five times the work; not
    with ``mask_padding``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dims: widths of the blocks' tokens, multiples of 8; the last is ``F`` too.
        instance_channels: width of ``g``.
        attention_dim: width of the gated attention.
        sampled: how many of the most and of the least attended instances the instance loss sees.
        dropout: of ``g`` and of the gates.
        attention_dropout: of the Nystroem attention's result.
        residual_scale: ``omega``, see :data:`monai_mil.networks.blocks.iat_block.RESIDUAL_SCALE`.
        checkpoint: keep what comes out of the blocks' steps only while training, and do each step a second time.
        mask_padding: see :class:`monai_mil.networks.blocks.nystrom.NystromAttention`; a deviation from the paper.
        gated: False for the paper's ablation, plain attention in place of gated attention.
        class_token: True for the paper's ablation, a learned token in front of the instances that goes through all
            blocks; ``z`` is the last block's vector of it, in place of the sum. The paper does not say how such a
            network weighs its tiles; here every block's attention pooling is added to the token
            (:class:`IATBlock`). The bag is worked on whole.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import IAT
        >>> network = IAT(16, 2, hidden_dims=(16, 24, 16), instance_channels=8, attention_dim=8).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["bag"].shape), list(output["instance_logits"].shape)
        ([1, 16], [1, 2, 100])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dims: Sequence[int] = (1024, 1536, 512, 1024),
        instance_channels: int = 512,
        attention_dim: int = 256,
        sampled: int = 8,
        dropout: float = 0.25,
        attention_dropout: float = 0.3,
        residual_scale: float = RESIDUAL_SCALE,
        checkpoint: bool = False,
        mask_padding: bool = False,
        gated: bool = True,
        class_token: bool = False,
    ) -> None:
        super().__init__(num_classes)
        self.sampled = sampled
        self.streams = not (mask_padding or class_token)
        self.class_token = class_token
        widths = [in_channels, *hidden_dims]
        self.blocks = nn.ModuleList(
            IATBlock(
                width,
                channels,
                widths[-1],
                instance_channels,
                attention_dim,
                residual_scale,
                dropout,
                attention_dropout,
                mask_padding,
                checkpoint,
                gated,
                class_token,
            )
            for width, channels in zip(widths, hidden_dims, strict=False)
        )
        self.token = nn.Parameter(torch.randn(1, 1, in_channels) / in_channels**0.5) if class_token else None
        self.fusion = None if class_token else nn.Linear(len(hidden_dims), 1)
        self.classifier = nn.Linear(widths[-1], num_classes)
        self.branch = InstanceBranch(instance_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        rows = image.transpose(1, 2)
        if mask is None:
            return self.describe_unpadded(rows)
        bags: list[dict[str, Tensor]] = []
        for index in range(image.shape[0]):  # a bag's length decides what its landmarks are
            output = self.describe_unpadded(real_rows(rows[index], mask[index])[None])
            bags.append(restore_padding(output, mask[index], self.listed_keys))
        return {key: torch.cat([bag[key] for bag in bags]) for key in bags[0].keys()}  # noqa: SIM118  TorchScript

    def describe_unpadded(self, rows: Tensor) -> dict[str, Tensor]:
        """The output for bags without padding, ``[b, n, d]`` of any floating type."""
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled():
            return self._held(rows)
        return self._streamed(rows) if self._is_long(rows) else self._held(rows)

    @torch.jit.unused
    def _is_long(self, rows: Tensor) -> bool:
        return rows.shape[1] > LONG_BAG.get(rows.device.type, LONG_BAG["cpu"]) and self.streams

    @torch.jit.unused
    def _streamed(self, rows: Tensor) -> dict[str, Tensor]:
        """The same without gradients, bag by bag, holding some blocks of tokens of every layer."""
        answers: list[tuple[Tensor, Tensor, Tensor]] = []
        for bag in rows.split(1):
            tokens = TokenSequence(partial(_widened, bag, self.classifier.weight.dtype), bag.shape[1], STEP_TOKENS)
            vectors = []
            for block in self.blocks:
                assert isinstance(block, IATBlock)
                tokens = block.stream(tokens, STEP_TOKENS)
                vector, scores, evidence = block.read(tokens, STEP_TOKENS, self.branch)
                vectors.append(vector)
            answers.append((torch.stack(vectors, dim=2), scores, evidence))
        return self._answer(*(torch.cat(parts) for parts in zip(*answers, strict=True)))

    def _held(self, rows: Tensor) -> dict[str, Tensor]:
        tokens = rows
        token = self.token
        if token is not None:
            tokens = torch.cat([token.expand(rows.shape[0], -1, -1).to(rows.dtype), rows], dim=1)
        scores, instances = tokens, tokens
        bags: list[Tensor] = []
        for block in self.blocks:
            tokens, bag, scores, instances = block(tokens.to(self.classifier.weight.dtype))
            bags.append(bag)
        return self._answer(torch.stack(bags, dim=2), scores, self.branch(instances[:, None]))

    def _answer(self, bags: Tensor, scores: Tensor, evidence: Tensor) -> dict[str, Tensor]:
        """From the blocks' vectors ``[b, F, L]`` and the last one's scores ``[b, n]`` and evidence ``[b, c, n]``."""
        fusion = self.fusion
        bag = bags[:, :, -1]
        if fusion is not None:
            bag = (exact_matmul(bags, fusion.weight.T) + fusion.bias).squeeze(2)
        output = {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=1)[:, None],
            "attention_logits": scores[:, None],
            "bag": bag,
            "instance_logits": evidence,
        }
        return self._with_extremes(output)

    def _with_extremes(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.sampled == 0:
            return output
        evidence = output["instance_logits"]
        top, top_real, bottom, bottom_real = most_and_least_attended(output["attention_logits"], None, self.sampled)
        for key, index, real in (("top", top, top_real), ("bottom", bottom, bottom_real)):
            logits = evidence.gather(2, index.expand(-1, evidence.shape[1], -1))
            output[key + "_instance_logits"] = logits.masked_fill(~real, -float("inf"))
        return output

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return IAT(12, 3, (16, 24), instance_channels=12, attention_dim=8, sampled=2), (12,)

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], dropout: float = 0.25, attention_dropout: float = 0.3, sampled: int = 8
    ) -> IAT:
        """A checkpoint of one IAT.

        Args:
            state_dict: parameters under the reference's names; ``omega`` is read from its buffers where it has them.
            dropout: as in the constructor; a checkpoint does not tell.
            attention_dropout: likewise.
            sampled: likewise.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = rename_reference(state_dict)
        omegas = {float(value) for name, value in state_dict.items() if re.fullmatch(_OMEGA, name)}
        if len(omegas) > 1:
            raise ValueError(f"not this network's state dict: its blocks have different omegas {sorted(omegas)}")
        count = len({name.split(".")[1] for name in parameters if name.startswith("blocks.")})
        network = cls(
            size_of(parameters, "blocks.0.project.weight", 1),
            size_of(parameters, "classifier.weight", 0),
            [size_of(parameters, f"blocks.{block}.project.weight", 0) for block in range(count)],
            size_of(parameters, "blocks.0.instance.weight", 0),
            size_of(parameters, "blocks.0.score.weight", 1),
            sampled,
            dropout,
            attention_dropout,
            omegas.pop() if omegas else RESIDUAL_SCALE,
        )
        load_reference(network, parameters)
        return network


def _widened(bag: Tensor, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    return bag[:, start:stop].to(dtype)


def rename_reference(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the reference's IAT, float32 or better, under this network's names."""
    parameters: dict[str, Tensor] = {}
    for name, tensor in check_tensors(state_dict).items():
        if re.fullmatch(f"{_OMEGA}|{_IGNORED}", name):
            continue
        for theirs, ours in REFERENCE_NAMES.items():
            name = re.sub(rf"^{theirs}", ours, name)
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        parameters[name] = tensor.squeeze(3) if name.endswith("mix.weight") else tensor
    blocks = {name.rsplit(".gates_", 1)[0] for name in parameters if ".gates_" in name}
    heads = sorted({int(name.split(".")[1]) for name in parameters if name.startswith("branch.")})
    for key in ("weight", "bias"):
        for block in blocks:
            gates = [parameters.pop(f"{block}.gates_{branch}.{key}", None) for branch in "ab"]
            if gates[0] is not None and gates[1] is not None:
                parameters[f"{block}.gates.{key}"] = torch.cat([gates[0], gates[1]])
        classifiers = [parameters.pop(f"branch.{head}.{key}", None) for head in heads]
        found = [part for part in classifiers if part is not None]
        if found and len(found) == len(classifiers):
            parameters[f"branch.classifiers.{key}"] = torch.cat(found)
    return parameters
