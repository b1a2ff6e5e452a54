"""Networks by architecture, and how their tokens are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_mil.encoders.card import EncoderCard, Preprocessing
from monai_mil.encoders.weights import fill, read_weights, weight_file
from monai_mil.errors import EncoderError


class TokenReader(nn.Module):
    """A timm network that gives pooled vectors ``[b, d]`` or its last map token-major, ``[b, h, w, d]``.

    Class and register tokens are left out of the map.
    """

    network: Any

    def __init__(self, network: nn.Module, *, spatial: bool, pooling: Literal["head", "class_mean"]) -> None:
        super().__init__()
        self.network = network
        self.spatial = spatial
        self.pooling = pooling
        self.num_prefix_tokens: int = getattr(network, "num_prefix_tokens", 0)
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``[b, 3, s, s]`` that are normalised already."""
        features = self.network.forward_features(images)
        if self.spatial:
            return self._map(features)
        if self.pooling == "class_mean":
            return torch.cat([features[:, 0], features[:, self.num_prefix_tokens :].mean(1)], dim=1)
        return self.network.forward_head(features, pre_logits=True)

    def _map(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            return features if self.channels_last else features.permute(0, 2, 3, 1)
        rows, columns = self.network.patch_embed.grid_size
        return features[:, self.num_prefix_tokens :].unflatten(1, (rows, columns))


class ScriptReader(nn.Module):
    """A TorchScript program whose output is ``[b, d]``, or spatial ``[b, d, h, w]``."""

    def __init__(self, program: nn.Module, spatial: bool) -> None:
        super().__init__()
        self.program = program
        self.spatial = spatial

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``[b, 3, s, s]`` that are normalised already."""
        features = self.program(images)
        return features.permute(0, 2, 3, 1) if self.spatial and features.ndim == 4 else features


def build(card: EncoderCard, spatial: bool, weights: str | Path | None) -> nn.Module:
    """The card's network with its weights.

    Raises:
        EncoderError: a package is missing, or the weights cannot be had or do not fit.
    """
    if "timm" in card.needs:
        import_timm(card.name)
    path = weight_file(card, weights)
    state = read_weights(path, card.name)
    with torch.device("meta"):
        model = architecture(card, spatial)
    if any(name not in model.state_dict() for name, _ in model.named_buffers()):
        model = architecture(card, spatial)  # buffers that no file holds must be computed
    network = model.network if isinstance(model, TokenReader) else model
    fill(network, _adapt(state, network, card), path, card.name)
    return model


def architecture(card: EncoderCard, spatial: bool) -> nn.Module:
    """The card's network without weights."""
    if card.architecture == "efficientnet_lite0":
        from monai_mil.encoders.efficientnet_lite import EfficientNetLite0

        return EfficientNetLite0(spatial)
    timm = import_timm(card.name)
    if card.architecture == "conch_v15":
        from monai_mil.encoders.conch import ConchVision

        return ConchVision(spatial)
    options = dict(card.options)
    if card.channels != 3:
        options["in_chans"] = card.channels
    if options.pop("swiglu", False):
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    network = timm.create_model(card.architecture, pretrained=False, num_classes=0, **options)
    for stage in card.without:
        setattr(network, stage, nn.Identity())
    return TokenReader(network, spatial=spatial, pooling=card.pooling)


def timm_card(model: str) -> EncoderCard:
    """A card made from timm's own configuration of ``model``.

    Raises:
        EncoderError: timm is missing or does not know the model.
    """
    timm = import_timm(f"timm:{model}")
    if not timm.is_model(model):
        raise EncoderError(f"encoder 'timm:{model}': timm {timm.__version__} has no such model; see timm.list_models()")
    config = timm.get_pretrained_cfg(model)
    side = config.input_size[-1]
    preprocessing = Preprocessing(
        input_size=side,
        mean=config.mean,
        std=config.std,
        resize=int(side / config.crop_pct),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
    )
    return EncoderCard(
        name=f"timm:{model}",
        architecture=model,
        preprocessing=preprocessing,
        tile_size=int(side / config.crop_pct),
        repo=config.hf_hub_id and config.hf_hub_id.removesuffix("/") + f"/{model}" * config.hf_hub_id.endswith("/"),
        licence=config.license or "",
        source=f"timm {timm.__version__}",
    )


def import_timm(name: str) -> ModuleType:
    """Timm, or an error that says what to install."""
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise EncoderError(
            f"encoder '{name}': timm cannot be imported ({error}); install it with pip install 'monai-mil[encoders]'"
        ) from error
    except RuntimeError as error:  # a torchvision built for another torch fails with this
        raise EncoderError(
            f"encoder '{name}': timm cannot be imported because torchvision does not fit torch {torch.__version__} "
            f"({error}); install the torchvision build that belongs to this torch"
        ) from error
    return timm


def load_script(path: Path, spatial: bool) -> nn.Module:
    """A TorchScript file as a network. It is a program and runs as one: only from trusted authors."""
    if not path.is_file():
        raise EncoderError(f"encoder '{path}': no such file; check the path")
    try:
        program = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise EncoderError(
            f"encoder '{path}': not a TorchScript file; weights of a known architecture are given as "
            "get_encoder(NAME, weights=FILE)"
        ) from error
    return ScriptReader(program, spatial)


def _adapt(state: dict[str, Tensor], network: nn.Module, card: EncoderCard) -> dict[str, Tensor]:
    """Published weights in the architecture's names, without classifier and cut stages."""
    if card.architecture == "efficientnet_lite0":
        from monai_mil.encoders.efficientnet_lite import rename_published

        return rename_published(state)
    if "embeddings.cls_token" in state:
        state = _from_transformers(state)
    if "encoder.pos_embedding" in state or "pos_embedding" in state:
        state = _from_torchvision(state)
    patches = state.get("patch_embed.proj.weight")
    if card.channels == 1 and patches is not None and patches.shape[1] == 3:
        state["patch_embed.proj.weight"] = patches.sum(dim=1, keepdim=True)
    if card.architecture == "conch_v15":
        from monai_mil.encoders.conch import resample_positions

        state["trunk.pos_embed"] = resample_positions(state["trunk.pos_embed"])
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    dropped = tuple(f"{stage}." for stage in (*classifiers, *card.without))
    return {key: value for key, value in state.items() if not (dropped and key.startswith(dropped))}


_TRANSFORMERS_NAMES = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)


def _in_timm(key: str, names: Sequence[tuple[str, str]]) -> str:
    """A parameter's name after all replacements, in their order."""
    for theirs, ours in names:
        key = key.replace(theirs, ours)
    return key


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 weights as ``transformers`` names them, in timm's names: query, key and value become one matrix."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "embeddings.mask_token" or ".attention.attention." in key:
            continue
        renamed[_in_timm(key, _TRANSFORMERS_NAMES)] = value
    queries = [key for key in state if ".attention.attention.query." in key]
    for query in queries:
        parts = [state[query.replace("query", part)] for part in ("query", "key", "value")]
        ours = query.replace("encoder.layer.", "blocks.").replace("attention.attention.query", "attn.qkv")
        renamed[ours] = torch.cat(parts)
    return renamed


_TORCHVISION_NAMES = (
    ("encoder.", ""),
    ("class_token", "cls_token"),
    ("pos_embedding", "pos_embed"),
    ("conv_proj.", "patch_embed.proj."),
    ("layers.encoder_layer_", "blocks."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("self_attention.in_proj_", "attn.qkv."),
    ("self_attention.out_proj.", "attn.proj."),
    ("mlp.linear_1.", "mlp.fc1."),
    ("mlp.linear_2.", "mlp.fc2."),
    ("mlp.0.", "mlp.fc1."),
    ("mlp.3.", "mlp.fc2."),
    ("heads.head.", "head."),
)


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer as torchvision names it, in timm's names."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        key = _in_timm(key, _TORCHVISION_NAMES)
        renamed["norm." + key.removeprefix("ln.") if key.startswith("ln.") else key] = value
    return renamed
