"""A start without what a prediction does not need, which is still there when somebody does."""

from __future__ import annotations

from tests.processes import environment_of, run_alone

LIGHT = """
import sys
from monai_mil.runs import import_monai_lightly
import_monai_lightly()
HEAVY = ("matplotlib", "pandas", "sklearn", "skimage", "torchvision", "cupy", "scipy.signal", "scipy.stats",
         "torch.distributed.optim", "nibabel", "onnx")
print(sorted(name for name in HEAVY if name in sys.modules))

import numpy, torch
from monai.data import CSVDataset
from monai.transforms import RandGibbsNoise, SavitzkyGolaySmooth
from monai.visualize import matshow3d
open(sys.argv[1], "w").write("name,value\\nfirst,1\\n")
print(CSVDataset(sys.argv[1])[0])
print(matshow3d(numpy.zeros((2, 4, 4)))[1].shape)
from ignite.handlers import Checkpoint
network = torch.nn.Linear(1, 1)
print(sorted(Checkpoint({"a": network}, sys.argv[2])._setup_checkpoint()["a"]))
from torch.distributed.optim import ZeroRedundancyOptimizer
import pandas, matplotlib.pyplot
print(pandas.DataFrame.__name__, ZeroRedundancyOptimizer.__name__, matplotlib.pyplot.figure.__name__)
"""


def test_what_is_not_imported_is_imported_when_it_is_used(tmp_path):
    places = (tmp_path / "table.csv", tmp_path)
    done = run_alone("-c", LIGHT, *places, environment=environment_of(MPLBACKEND="agg"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "{'name': 'first', 'value': 1}",
        "(6, 12)",
        "['bias', 'weight']",
        "DataFrame ZeroRedundancyOptimizer figure",
    ]
    assert "nvJPEG" not in done.stderr
