"""Whatever way a scan is stored or given, the network sees the same, and its answer goes back to where it came from."""

import csv
import dataclasses
import json

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from monai_mil.bags import BagFile, LoadBagd
from monai_mil.cohorts import SliceLabelsd
from monai_mil.embedding import EmbedScand, embed_scans
from monai_mil.errors import BagError, CohortError, ScanReadError
from monai_mil.savers import ScanLabelMapd, SliceSaver
from monai_mil.scans import Turn, load_scan
from monai_mil.training import UnpackOutputd
from tests.conftest import ROOT
from tests.embedding.scans import SliceStatistics
from tests.scans.chest import LESION, write_dicom, write_volume
from tests.scans.test_orientation import turned_series

STORED = {
    "mirrored": lambda folder: turned_series(folder / "scan", "mirrored"),
    "prone": lambda folder: turned_series(folder / "scan", "prone"),
    "sagittal": lambda folder: turned_series(folder / "scan", "sagittal"),
    "volume": lambda folder: write_volume(folder / "scan.nii.gz"),
    "volume of sagittal slices": lambda folder: write_volume(folder / "scan.nii.gz", (1, 2, 0), (0, 2)),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_dicom(tmp_path_factory.mktemp("plain") / "scan")


def bundle(name):
    """The preprocessing of raw scans and the network with the weights a bundle ships."""
    parser = ConfigParser()
    folder = ROOT / "bundles" / name
    parser.read_config([folder / "configs" / f"{one}.json" for one in ("inference", "inference_scans")])
    parser["bundle_root"] = str(folder)
    parser["device"] = torch.device("cpu")
    if "depth" in parser.config:
        parser["depth"] = 6  # of 32: what differs, differs in any layer
    parser["operating_points"] = None
    network = parser.get_parsed_content("network").eval()
    stored = torch.load(folder / "models" / "model.pt", weights_only=True)
    network.load_state_dict(stored.get("model", stored))
    return parser.get_parsed_content("preprocessing"), network


@pytest.mark.parametrize("name", ["ct_insight", "ct_normal_guidance"])
def test_a_bundle_sees_the_same_however_the_scan_is_stored(plain, tmp_path, name):
    embed, network = bundle(name)
    expected = embed({"image": plain})
    with torch.no_grad():
        answer = network(expected["image"][None])
    assert torch.isfinite(answer).all()
    for label, store in STORED.items():
        found = embed({"image": store(tmp_path / label)})
        assert torch.equal(found["image"].as_tensor(), expected["image"].as_tensor()), label
        with torch.no_grad():
            assert torch.equal(network(found["image"][None]), answer), label


def test_a_bag_says_how_its_slices_lie_and_where_its_source_is(tmp_path):
    path = write_volume(tmp_path / "scan.nii.gz", (1, 2, 0), (0, 2))
    embed_scans([path], tmp_path / "bags", SliceStatistics(tmp_path / "log"), progress=False)
    with BagFile(tmp_path / "bags" / "scan.h5") as bag:
        assert bag.n == 24
        assert bag.info.orientation == "LPS"
        assert bag.info.scan.source.path is None
    meta = LoadBagd("image")({"image": tmp_path / "bags" / "scan.h5"})["image"].meta
    assert meta["spatial_shape"].tolist() == [64, 24, 64]
    assert np.array_equal(meta["original_affine"], nibabel.load(path).affine)


def test_an_old_bag_of_slices_that_now_turn_is_refused_and_another_one_kept(tmp_path):
    encoder = SliceStatistics(tmp_path / "log")
    for name, turn in (("prone", Turn(flips=(False, True, True))), ("plain", None)):
        folder = write_dicom(tmp_path / name, iop=(1, 0, 0, 0, 1, 0) if turn is None else (-1, 0, 0, 0, -1, 0))
        embed_scans([folder], tmp_path / "bags", encoder, progress=False)
        with BagFile(tmp_path / "bags" / f"{name}.h5") as bag:
            features, coords, info = bag.features(), bag.coords, bag.info
        old = dataclasses.replace(info, orientation=None, scan=dataclasses.replace(info.scan.source, path=None))
        BagFile.write(tmp_path / "bags" / f"{name}.h5", features, coords, old)
    with pytest.raises(BagError, match=r"prone\.h5': made by an earlier version of slices that run RAS; scans are now"):
        LoadBagd("image")({"image": tmp_path / "bags" / "prone.h5"})
    assert LoadBagd("image")({"image": tmp_path / "bags" / "plain.h5"})["image"].shape[1] == 24
    results = embed_scans([tmp_path / "prone", tmp_path / "plain"], tmp_path / "bags", encoder, progress=False).results
    assert [result.status for result in results] == ["failed", "kept"]
    assert "orientation RAS instead of LPS" in results[0].error
    report = embed_scans([tmp_path / "prone"], tmp_path / "bags", encoder, progress=False, overwrite=True)
    assert report.results[0].status == "embedded"


class Brightness(SliceStatistics):
    """A token a pixel: its HU, so that the map of these features is the scan."""

    def __init__(self, log):
        super().__init__(log, channels=1, grid=(64, 64))
        self.card.preprocessing.input_size = 64


@pytest.fixture
def embed(tmp_path):
    return EmbedScand("image", Brightness(tmp_path / "log"), preset_of_one_channel(tmp_path))


def preset_of_one_channel(folder):
    record = {"name": "hu", "windows": [], "clip": [-1024, 3071], "mean": [0.0], "std": [2048.0]}
    (folder / "preset.json").write_text(json.dumps(record))
    return str(folder / "preset.json")


def answered(item):
    """As an evaluator leaves a case whose network says how bright each token is."""
    return UnpackOutputd("pred")(
        item | {"pred": {"prob": torch.tensor([0.9]), "heatmap": item["image"].as_tensor().clone()}}
    )


@pytest.mark.parametrize("cut", [{}, {"axes": (1, 2, 0), "flips": (0, 2)}, {"axes": (0, 2, 1), "flips": (1,)}])
def test_a_label_map_lies_on_the_image_that_was_given(tmp_path, embed, cut):
    path = write_volume(tmp_path / "scan.nii.gz", **cut)
    image = LoadImaged("image", image_only=True, ensure_channel_first=True)({"image": path})["image"]
    item = ScanLabelMapd("pred", levels=2, threshold=500 / 2048)(answered(embed({"image": image})))
    stored = nibabel.load(path)
    assert item["pred"].shape == (1, *stored.shape)
    assert item["pred"].dtype == torch.uint8
    assert np.array_equal(item["pred"].affine, stored.affine)
    values = np.float16(stored.get_fdata().clip(-1024) / 2048).astype(float)
    middle = (500 / 2048 + values.max()) / 2
    assert np.array_equal(item["pred"][0], (values > 500 / 2048).astype(int) + (values > middle))
    assert json.loads(json.dumps(item["result"])) == item["result"]
    assert item["result"]["probabilities"] == pytest.approx({"negative": 0.1, "positive": 0.9})
    assert item["result"]["highest"]["position_mm"] == pytest.approx(LESION[2], abs=2)


def test_a_scan_in_memory_gives_the_bag_of_its_file(tmp_path, plain, embed):
    path = write_volume(tmp_path / "scan.nii.gz")
    expected = embed({"image": path})["image"]
    image = LoadImaged("image", image_only=True)({"image": path})
    turned = Compose([EnsureChannelFirstd("image"), Orientationd("image", "PSR", labels=None)])(dict(image))
    plane = load_scan(plain)
    for given in (image["image"], turned["image"], load_scan(path), plane):
        found = embed({"image": given})["image"]
        assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert embed({"image": turned["image"]})["image"].meta["spatial_shape"].tolist() == [64, 24, 64]
    assert embed({"image": image["image"]})["image"].meta["slide_id"] == "scan"
    lps = MetaTensor(image["image"].as_tensor(), affine=np.diag([-1, -1, 1, 1]) @ image["image"].affine.numpy())
    lps.meta["space"] = "LPS"
    assert torch.equal(embed({"image": lps})["image"].as_tensor(), expected.as_tensor())
    with pytest.raises(ScanReadError, match="without its affine"):
        embed({"image": image["image"].as_tensor()})


def table(folder, rows):
    (folder / "labels.csv").write_text("sop_uid,label\n" + "".join(f"{row['sop_uid']},0\n" for row in rows))
    return folder / "labels.csv"


def test_a_sagittal_series_has_the_scores_of_its_own_instances(tmp_path, embed):
    folder = turned_series(tmp_path / "scan", "sagittal")
    scan = load_scan(folder)
    saver = SliceSaver(str(tmp_path), formats=("nifti",), classes=("negative", "positive"), key="heatmap")
    engine = Engine(lambda engine, item: [item])
    saver.attach(engine)
    engine.run([answered(embed({"image": folder}) | {"scan_id": "scan"})])
    saver.raise_failures()
    with (tmp_path / "slices" / "scan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sop_uid"] for row in rows] == list(scan.frame.source.sop_uids)
    assert [float(row["position_mm"]) for row in rows] == pytest.approx(scan.frame.source.positions_mm, abs=1e-3)
    highest = np.float16(scan.frame.to_source(scan.hu).max(axis=(1, 2)) / 2048)
    assert [float(row["score"]) for row in rows] == pytest.approx(highest, abs=1e-5)
    with (tmp_path / "scans.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["highest_sop_uid"] == scan.frame.source.sop_uids[int(highest.argmax())]
    with pytest.raises(CohortError, match="cut into 24 axial ones: label these by columns scan_id, slice_index"):
        SliceLabelsd("image", table(tmp_path, rows))(embed({"image": folder}))
    written = nibabel.load(tmp_path / "heatmaps" / "scan.nii.gz")
    assert written.shape == (64, 24, 64)
    assert np.array_equal(written.get_fdata().max(axis=(0, 1)).astype(np.float16), highest)
