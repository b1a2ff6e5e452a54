"""From a bag file to a network: what loading costs, and a million tiles through ``bundle run`` in bounded memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Figure, cpu_seconds
from monai_mil.bags import BagFile, BagInfo, LoadBagd

_WIDTH, _MILLION = 1024, 1_000_000
_BUNDLE = Path(__file__).parents[2] / "bundles" / "mil_baselines"


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return [_loading(Path(folder)), _million(Path(folder))]


def _loading(folder: Path) -> Figure:
    path = _write(folder / "bag.h5", 50_000)
    load = LoadBagd("image")
    load({"image": path})  # its checksums are compared once in a process
    seconds = cpu_seconds({"load": lambda: load({"image": path})})
    return Figure("LoadBagd, 50,000 x 1024 float16", 1e3 * seconds["load"], "ms CPU", "<= 20")


def _million(folder: Path) -> Figure:
    """Private memory of one evaluation by the command line, above that of the same with a thousand tiles."""
    peaks = []
    for n in (1000, _MILLION):
        bags = folder / f"bags_{n}"
        _write(bags / "bag.h5", n)
        peaks.append(_peak_of_run(bags, folder / f"eval_{n}"))
        (bags / "bag.h5").unlink()
    return Figure("bundle run, a million tiles from disk, above base", (peaks[1] - peaks[0]) / 2**20, "MiB", "<= 1024")


def _peak_of_run(bags: Path, out: Path) -> int:
    """Highest ``RssAnon`` of ``python -m monai.bundle run`` on the bags, in bytes; mapped files do not count."""
    config = str(_BUNDLE / "configs" / "inference.json")
    settings = {
        "bundle_root": _BUNDLE,
        "bag_dir": bags,
        "output_dir": out,
        "ckpt_path": _save_network(config, bags.parent / "model.pt"),
        "in_channels": _WIDTH,
        "encoder": "benchmark",
    }
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", config]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    highest = 0
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        highest = max(highest, int(found[1]) << 10 if found else 0)
        time.sleep(0.01)
    if process.returncode or not (out / "predictions.csv").exists():
        raise RuntimeError(f"{' '.join(command)} failed")
    return highest


def _save_network(config: str, path: Path) -> Path:
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(config)
    parser.update({"bundle_root": str(_BUNDLE), "in_channels": _WIDTH})
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return path


def _write(path: Path, n: int) -> str:
    """A bag of random features; a block of them is repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = np.random.default_rng(0).standard_normal((10_000, _WIDTH), dtype=np.float32).astype(np.float16)
    features = np.lib.stride_tricks.as_strided(block, (n, _WIDTH), (0, 2)) if n > len(block) else block[:n]
    BagFile.write(path, features, np.arange(2 * n).reshape(n, 2), BagInfo("bag", encoder="benchmark"))
    return str(path)
