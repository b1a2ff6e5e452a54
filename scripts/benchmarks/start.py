"""Cold start: CPU time of ``monai-mil --help``, and of everything ``monai-mil embed`` needs before its first tile.

Each is measured in a fresh process, the children's CPU time taken from the operating system. That ``embed`` does not
import MONAI is read from ``sys.modules`` of such a process after its first tile was encoded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Figure

_HELP = "import sys; sys.argv = ['monai-mil', '--help']; from monai_mil.cli import main; main()"
_READY = """
import sys
import monai_mil.cli
from monai_mil.embedding import embed_cohort
from monai_mil.encoders import get_encoder
from monai_mil.slides import TileGrid, open_slide, stream_tiles
encoder = get_encoder("texture")
with open_slide(sys.argv[1]) as slide:
    grid = TileGrid.cover(slide, None, tile_size=encoder.tile_size, target_mpp=encoder.target_mpp)
    assert "monai" not in sys.modules, "embed must not import MONAI before its first tile"
    if sys.argv[2] == "encode":
        encoder(next(iter(stream_tiles(slide, grid, batch_size=1))))
        print("monai" in sys.modules)
"""
_ROUNDS = 3


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder, "slide.tif")
        _make_slide(slide)
        loads_monai = _python(_READY, str(slide), "encode").split()[-1] == "True"
        seconds = {
            "help": _cpu_seconds(_HELP),
            "embed": _cpu_seconds(_READY, str(slide), "open"),
            "monai": _cpu_seconds("import monai.bundle"),
            "torch": _cpu_seconds("import torch"),
        }
    return [
        Figure("monai-mil --help", seconds["help"], "s CPU", "<= 0.3"),
        Figure("monai-mil embed ready for its first tile, texture encoder", seconds["embed"], "s CPU", "<= 2"),
        Figure("  MONAI imported by embed, first tile encoded (0: no)", float(loads_monai), "", "<= 0"),
        Figure("  import torch alone (the limit)", seconds["torch"], "s CPU"),
        Figure("  import monai.bundle alone", seconds["monai"], "s CPU"),
    ]


def _make_slide(path: Path) -> None:
    import numpy as np

    from monai_mil.slides import write_pyramid

    write_pyramid(path, np.full((1024, 1024, 3), 200, np.uint8), mpp=0.5)


def _cpu_seconds(code: str, *arguments: str) -> float:
    """Least CPU time of a fresh interpreter running ``code``, user and system, of three."""
    return min(_children_cpu(code, *arguments) for _ in range(_ROUNDS))


def _children_cpu(code: str, *arguments: str) -> float:
    before = os.times()
    _python(code, *arguments)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return done.stdout
