"""The user's error as the last word of a failed run."""

from __future__ import annotations

import sys
from types import TracebackType

from monai_mil.errors import MonaiMILError


def tell_errors_last() -> None:
    """Let the run end with the user's error alone, where it is one; a config's first act.

    ``monai.bundle run`` wraps what goes wrong in errors of its own and ends with pages of their tracebacks. What is
    about the user's files and settings (:class:`monai_mil.errors.MonaiMILError`) is then told in its own words, once;
    any other error keeps its traceback.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = users_error(error)
    if own is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"\nerror: {own}", file=sys.stderr)


def users_error(error: BaseException | None) -> MonaiMILError | None:
    """The user's error that another one was raised from, the first that was raised; None where there is none."""
    own = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # one raised again, alone, has what wrapped it as its context
        seen.add(id(error))
        own = error if isinstance(error, MonaiMILError) else own
        error = error.__cause__ or error.__context__
    return own
