"""What MONAI's optional packages say of themselves at import is kept from those who cannot do anything about it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_TORCHVISION = "Failed to load image Python extension"
_NATIVE = re.compile(
    rb"Failed to load nv\w+ library!|\[nv\w+[-_]ext\] Failed to load|Note: If using nvImageCodec's Python distribution"
)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import within, without the remarks of torchvision and nvImageCodec on parts of theirs that are not there.

    None of these parts is used here. Native libraries write past Python, so that standard error is held back
    meanwhile; every line but the known ones follows at the end.
    """
    warnings.filterwarnings("ignore", message=_TORCHVISION, category=UserWarning)
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        own = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            held.seek(0)
            for line in held:
                if not _NATIVE.search(line):
                    os.write(own, line)
            os.close(own)
