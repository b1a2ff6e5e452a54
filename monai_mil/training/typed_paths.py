"""Folders and files by the names that were typed, whatever else these could mean."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

_ENDINGS = ("_dir", "_file", "_path", "_root")
_OTHERS = ("masks", "mnist", "pretrained", "slice_labels", "weights")


def keep_paths_as_typed(references: MutableMapping[str, Any]) -> None:
    """Take the paths of the command line literally; a config's second act, before anything refers to them.

    ``monai.bundle`` reads its arguments as Python where they could be some: ``--dataset_dir 2024`` is a number then,
    ``--output_dir "[run,1]"`` a list and ``--ckpt_dir 2024_01`` the number 202401. Keys that name a path (those that
    end in ``_dir``, ``_file``, ``_path`` or ``_root``, and a few others) get their text back. None, True and False stay
    what they are. Nothing is done in a program that calls MONAI itself and says what it means.

    Args:
        references: what MONAI's expressions refer to, by its id: ``__local_refs`` within one.
    """
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return
    for key, text in _typed(sys.argv[1:]):
        if _is_path(key, text):
            references[key] = text


def value_of(key: str, text: str) -> Any:
    """What a typed text means for a key: what ``monai.bundle`` reads in it, but the text itself where it is a path.

    Examples:
        >>> from monai_mil.training import value_of
        >>> value_of("seed", "2024"), value_of("output_dir", "2024")
        (2024, '2024')
    """
    from fire.parser import DefaultParseValue

    return text if _is_path(key, text) else DefaultParseValue(text)


def _is_path(key: str, text: str) -> bool:
    """Whether a text is a path that would be read as something else."""
    from fire.parser import DefaultParseValue

    named = key.endswith(_ENDINGS) or key in _OTHERS
    return named and not isinstance(DefaultParseValue(text), str | bool | None)


def _typed(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The keys of a command line and what stands behind them."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            yield key.replace("-", "_"), value if equals else following
