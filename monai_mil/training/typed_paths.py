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
    from fire.parser import DefaultParseValue

    for key, text in _typed(sys.argv[1:]):
        if (key.endswith(_ENDINGS) or key in _OTHERS) and not isinstance(DefaultParseValue(text), str | bool | None):
            references[key] = text


def _typed(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The keys of a command line and what stands behind them."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            yield key.replace("-", "_"), value if equals else following
