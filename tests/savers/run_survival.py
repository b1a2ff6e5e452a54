"""Survival and attention of one evaluation over several gloo processes: ``torchrun run_survival.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

from monai_mil.bags import collate_bags
from monai_mil.networks import ABMIL
from monai_mil.savers import AttentionStability, ConcordanceIndex, SurvivalSaver
from monai_mil.training import FullOutputInferer, SurvivalRiskd, UnpackOutputd, finish_distributed, prepare_bag_batch


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    network = ABMIL(4, 3, hidden_dim=8, attention_dim=4).eval()
    items = []
    for index in range(14):
        names = {"slide_id": f"s{index}", "patient_id": f"p{index // 2}"}
        label = [5.0 + index // 2, float(index // 2 % 3 > 0)]
        items.append({"image": torch.randn(4, 5 + index), "label": label, **names})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items[rank::processes]), batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        postprocessing=Compose([UnpackOutputd("pred"), SurvivalRiskd("pred")]),
        key_val_metric={"concordance": ConcordanceIndex()},
        val_handlers=[SurvivalSaver(folder, n=20), AttentionStability(folder)],
    )
    evaluator.run(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1.5
    evaluator.run(2)
    (folder / f"key_{rank}.json").write_text(json.dumps(evaluator.state.metrics))
    finish_distributed()


if __name__ == "__main__":
    main()
