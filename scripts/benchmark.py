"""Speed and memory of monai-mil beside the physical limit and the alternatives, all measured in this one run.

    python scripts/benchmark.py                  # every benchmark
    python scripts/benchmark.py tiles network    # some of them
    python scripts/benchmark.py gpu              # on a GPU, in four minutes; --device cpu for a few tiles without one
    python scripts/benchmark.py --json out.json  # the same figures for a program

Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

NAMES = (
    "tiles",
    "tissue",
    "scans",
    "embed",
    "overlap",
    "gpu",
    "store",
    "bags",
    "network",
    "insight",
    "asmil",
    "hagmil",
    "heatmap",
    "start",
    "deploy",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"any of: {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--device", default=None, help="of gpu: the GPU where there is one, else a few tiles on the cpu"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    results = {}
    for name in arguments.names or NAMES:
        print(f"\n{name}", flush=True)
        where = {"device": arguments.device} if name == "gpu" and arguments.device else {}
        figures = importlib.import_module(f"benchmarks.{name}").run(**where)
        for figure in figures:
            print(_line(figure), flush=True)
        results[name] = [vars(figure) | {"met": figure.met} for figure in figures]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=4) + "\n")
    return int(any(figure["met"] is False for figures in results.values() for figure in figures))


def _line(figure) -> str:
    verdict = {True: "ok", False: "MISSED", None: ""}[figure.met]
    return f"  {figure.name:<58} {figure.value:>11.4g} {figure.unit:<14} {figure.target or '':<10} {verdict}"


if __name__ == "__main__":
    sys.exit(main())
