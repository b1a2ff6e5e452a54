"""Slice metrics of one evaluation over several gloo processes: ``torchrun run_slice_metrics.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from monai_mil.bags import collate_bags
from monai_mil.networks import SliceABMIL
from monai_mil.savers import InstanceAUROC, SliceReportSaver
from monai_mil.training import FullOutputInferer, UnpackOutputd, finish_distributed, prepare_bag_batch


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    network = SliceABMIL(4, 1)
    items = []
    for index in range(7):
        labels = torch.zeros(5 + index, dtype=torch.long)
        labels[:2] = 1
        image = torch.randn(4, 5 + index)
        items.append({"image": image, "instance_labels": labels, "scan_id": f"s{index}", "label": 1})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items[rank::processes]), batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        postprocessing=UnpackOutputd("pred"),
        key_val_metric={"slice_auroc": InstanceAUROC()},
        val_handlers=[SliceReportSaver(folder, n=0)],
    )
    evaluator.run()
    (folder / f"key_{rank}.json").write_text(json.dumps(evaluator.state.metrics["slice_auroc"]))
    finish_distributed()


if __name__ == "__main__":
    main()
