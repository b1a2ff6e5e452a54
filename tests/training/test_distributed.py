"""Two processes on one machine: same stop, one writer, clean end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.processes import run_together


@pytest.mark.usefixtures("fork_server")
def test_two_processes_stop_together_and_one_of_them_writes(tmp_path: Path) -> None:
    result = run_together(Path(__file__).with_name("run_distributed.py"), tmp_path)
    assert result.returncode == 0, result.stderr
    found = re.findall(r"rank (\d) epoch (\d+) auroc (\S+) draw (\S+)", result.stdout)
    ranks, epochs, scores, draws = zip(*sorted(found), strict=True)
    assert ranks == ("0", "1")
    assert epochs == ("4", "4"), "with a learning rate of 0 the first validation stays the best"
    assert scores[0] == scores[1]
    assert draws[0] != draws[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_epoch=3.pt",
        "checkpoint_epoch=4.pt",
        "metrics.json",
        "model.pt",
    ]
    assert json.loads((tmp_path / "metrics.json").read_text())["cases"] == 8, "the cases of both processes"
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in state)
