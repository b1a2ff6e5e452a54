"""A trained model.pt small enough to ship with its bundle.

    python scripts/shrink_weights.py run/models/model.pt bundles/pathology_insight/models/model.pt

Values are rounded to bfloat16, which keeps 8 bits of each, and the archive is compressed; the type stays float32, so
the file loads as any other. Evaluate the shipped file, not the one it was made from.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import torch

from monai_mil.files import replacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("shipped", type=Path)
    arguments = parser.parse_args()
    state = torch.load(arguments.trained, map_location="cpu", weights_only=True)
    rounded = {name: value.bfloat16().to(value.dtype).contiguous() for name, value in state.items()}
    with replacing(arguments.shipped) as partial:
        plain = partial.with_suffix(".plain")
        torch.save(rounded, plain)
        _compress(plain, partial)
        plain.unlink()
    print(f"{arguments.trained.stat().st_size:,} bytes became {arguments.shipped.stat().st_size:,}")


def _compress(plain: Path, compressed: Path) -> None:
    deflate = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 9}
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(compressed, "w", **deflate) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


if __name__ == "__main__":
    main()
