"""Slice metrics of a real MONAI evaluator: the report as a file, and the key metric of supervised slices."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Transform

from monai_mil.bags import collate_bags
from monai_mil.metrics import auroc, slice_metrics
from monai_mil.networks import MILNetwork, SliceABMIL, SliceClassifier
from monai_mil.savers import InstanceAUROC, SliceReportSaver
from monai_mil.training import FullOutputInferer, UnpackOutputd, prepare_bag_batch, prepare_instance_batch
from tests.processes import run_together


def scans(count: int, labelled: bool = True) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(count):
        n = 6 + index
        label = torch.zeros(n, dtype=torch.long)
        label[index : index + 3 * (index % 3 > 0)] = 1
        item = {"image": torch.randn(4, n, generator=generator), "label": int(label.any())}
        item |= {"scan_id": f"s{index}", "patient_id": f"p{index // 2}"}
        items.append(item | {"instance_labels": label} if labelled else item)
    return items


def make_evaluator(
    items: list[dict[str, object]],
    network: MILNetwork,
    *,
    unpack: Transform | None = None,
    saver: SliceReportSaver | None = None,
    **options: object,
) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=4, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        **{"prepare_batch": prepare_bag_batch} | options,
        postprocessing=UnpackOutputd("pred") if unpack is None else unpack,
        val_handlers=[] if saver is None else [saver],
    )


def attention_of(network: MILNetwork, items: list[dict[str, object]]) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = [network(item["image"][None], return_dict=True) for item in items]
    return [output["attention"][0].mean(0).numpy() for output in outputs]


def test_the_file_tells_of_padded_scans_what_each_alone_would(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items, network = scans(10), SliceABMIL(4, 1, attention_dim=4).eval()
    saver = SliceReportSaver(tmp_path, n=50)
    with caplog.at_level(logging.INFO, "monai_mil"):
        make_evaluator(items, network, saver=saver).run()
    report = json.loads((tmp_path / "slice_metrics.json").read_text())
    labels = [item["instance_labels"].numpy() for item in items]
    names, patients = ([item[key] for item in items] for key in ("scan_id", "patient_id"))
    expected = slice_metrics(attention_of(network, items), labels, names, patients, n=50)
    assert report["scans"] == expected.scans == 6
    assert report["negative"] == 4
    for figure in ("auroc", "auprc", "attention_mass"):
        ours = getattr(expected, figure)
        assert report[figure] == pytest.approx(ours.__dict__, abs=1e-6)
    assert report["centre_gaussian"] == pytest.approx(expected.centre_gaussian)
    assert report["centre_rank"]["attention_mass"] is None
    assert f"slice auroc {expected.auroc.value:.4f} (95 % interval" in caplog.text


def test_a_cohort_without_slice_labels_has_null_figures_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_evaluator(scans(3, labelled=False), SliceABMIL(4, 1), saver=SliceReportSaver(tmp_path)).run()
    report = json.loads((tmp_path / "slice_metrics.json").read_text())
    assert report["auroc"] == {"value": None, "std": None, "low": None, "high": None}
    assert report["unlabelled"] == ["s0", "s1", "s2"]
    assert "no slice metrics of 3 scans, unlabelled: s0, s1, s2" in caplog.text


def test_a_scan_that_comes_twice_counts_once(tmp_path: Path) -> None:
    items = scans(4)
    make_evaluator(items + items[:2], SliceABMIL(4, 1), saver=SliceReportSaver(tmp_path, n=5)).run()
    report = json.loads((tmp_path / "slice_metrics.json").read_text())
    assert report["scans"] + report["negative"] == 4


def test_slide_names_will_do_and_no_name_is_an_error(tmp_path: Path) -> None:
    items = scans(3)
    for item in items:
        item["slide_id"] = item.pop("scan_id")
    make_evaluator(items, SliceABMIL(4, 1), saver=SliceReportSaver(tmp_path, n=5)).run()
    assert json.loads((tmp_path / "slice_metrics.json").read_text())["scans"] == 2
    for item in items:
        del item["slide_id"]
    with pytest.raises(ValueError, match="has no 'scan_id'"):
        make_evaluator(items, SliceABMIL(4, 1), saver=SliceReportSaver(tmp_path)).run()


@pytest.mark.parametrize("prepare_batch", [prepare_bag_batch, prepare_instance_batch])
def test_supervised_slices_are_judged_all_together(prepare_batch: object) -> None:
    items, network = scans(10), SliceClassifier(4, 1, kernel=3).eval()
    items[2]["instance_labels"][0] = -1
    metric = {"val_slice_auroc": InstanceAUROC()}
    evaluator = make_evaluator(items, network, prepare_batch=prepare_batch, key_val_metric=metric)
    evaluator.run()
    with torch.no_grad():
        outputs = [network(item["image"][None], return_dict=True) for item in items]
    logits = torch.cat([output["instance_logits"][0, 0] for output in outputs])
    labels = torch.cat([item["instance_labels"] for item in items])
    expected = auroc(logits[labels >= 0].numpy(), labels[labels >= 0].numpy())
    assert evaluator.state.metrics["val_slice_auroc"] == pytest.approx(expected)
    assert type(evaluator.state.best_metric) is float


@pytest.mark.parametrize("labelled", [True, False])
def test_slices_of_one_kind_have_no_auroc(labelled: bool) -> None:
    evaluator = make_evaluator(
        scans(1, labelled), SliceClassifier(4, 1), key_val_metric={"val_slice_auroc": InstanceAUROC()}
    )
    with pytest.warns(UserWarning, match=f"no instance AUROC: {6 * labelled} labelled instances, 0 of them positive"):
        evaluator.run()
    assert math.isnan(evaluator.state.metrics["val_slice_auroc"])


def test_an_output_that_is_not_unpacked_says_what_to_do(tmp_path: Path) -> None:
    evaluator = make_evaluator(scans(2), SliceABMIL(4, 1), unpack=lambda item: item, saver=SliceReportSaver(tmp_path))
    with pytest.raises(ValueError, match="has no 'scores'; use FullOutputInferer and UnpackOutputd"):
        evaluator.run()


def launch(folder: Path, processes: int) -> dict[str, object]:
    """Evaluate in several processes; returns the report."""
    folder.mkdir()
    done = run_together(Path(__file__).with_name("run_slice_metrics.py"), folder, processes=processes)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "slice_metrics.json").read_text())


@pytest.mark.usefixtures("fork_server")
def test_two_processes_tell_of_the_scans_of_both(tmp_path: Path) -> None:
    one, two = (launch(tmp_path / str(processes), processes) for processes in (1, 2))
    assert two["scans"] == 7
    for figure in ("auroc", "auprc", "attention_mass"):
        assert two[figure]["value"] == pytest.approx(one[figure]["value"], abs=1e-9)
    keys = [json.loads(path.read_text()) for path in tmp_path.glob("*/key_*.json")]
    assert len(keys) == 3
    assert keys == pytest.approx([keys[0]] * 3)
