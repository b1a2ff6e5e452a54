"""What a bundle is, in a few lines for a person."""

from __future__ import annotations

from dataclasses import dataclass

from monai_mil.model_card import read_model
from monai_mil.runs.bundles import Bundle


@dataclass(frozen=True)
class Description:
    """A bundle in words.

    Attributes:
        title: its full name.
        lines: pairs of what is told and the text.
        reads: what it takes: a bag of what, or which pixels.
        encoder: whose features its weights take; None without weights.
        width: how many values a tile, a slice or one of their tokens has; likewise.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    reads: str
    encoder: str | None = None
    width: int | None = None


def describe_bundle(bundle: Bundle) -> Description:
    """Task, input, encoder, classes and figures of a bundle, and what its weights were trained on.

    Examples:
        >>> from monai_mil.runs import describe_bundle, find_bundle
        >>> dict(describe_bundle(find_bundle("ct_insight")).lines)["encoder"]
        'ct_texture_518, 42 values each'
    """
    metadata, encoder, width = bundle.metadata, None, None
    lines = [("task", metadata["task"]), ("input", metadata["data_type"])]
    if bundle.weights.is_file():
        card = read_model(bundle.weights)
        encoder, width = card.get("encoder"), card.get("in_channels")
        lines.append(("encoder", f"{encoder}, {width} values each"))
        lines.append(("classes", ", ".join(card.get("class_names", ()))))
        figures = ", ".join(f"{name} {value:g}" for name, value in metadata.get("eval_metrics", {}).items())
        lines.append(("figures", figures))
        if card.note:
            lines.append(("weights", card.note))
    else:
        lines.append(("weights", "none; train it first"))
    return Description(metadata["name"], tuple(lines), metadata["data_type"], encoder, width)
