"""Bags loaded whole or left in their files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch

from monai_mil.bags import BagFile, BagInfo, LoadBagd, SampleInstancesd, collate_bags
from monai_mil.errors import BagError
from monai_mil.networks import ABMIL, ASMIL, CLAM_MB, DSMIL, MeanPooling, TransMIL
from monai_mil.scans import Depth, LungField
from monai_mil.training import prepare_bag_batch, prepare_token_batch
from tests.heatmaps.examples import scan_frame
from tests.memory import peak_of

INFO = BagInfo("slide", encoder="uni", mpp=0.25, tile_size_level0=512.0, level0_size=(1536, 600))
COORDS = np.array([[0, 0], [512, 0], [1024, 0], [512, 512], [1024, 512]])  # the last two reach 424 px below the slide


def write(path: Path, storage: str = "float16", n: int = 5, info: BagInfo = INFO) -> str:
    features = np.random.default_rng(n).standard_normal((n, 6, 4, 3)).astype(np.float16)
    BagFile.write(path, features, COORDS[:n], info, {"instance_labels": np.arange(n)}, storage)
    return str(path)


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_a_mapped_bag_is_the_file_itself(tmp_path: Path, storage: str) -> None:
    path = write(tmp_path / "bag.h5", storage)
    loaded, whole = (LoadBagd(grid=(4, 3), mapped=mapped)({"image": path}) for mapped in (True, False))
    image = loaded["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == getattr(torch, storage)
    assert image.meta["slide_id"] == "slide"
    assert image.movedim(0, -1).is_contiguous(), "nothing was copied or turned"
    assert path in Path("/proc/self/maps").read_text()
    features = image.as_tensor().float()
    if storage == "uint8":
        shape = (6, 1, 1, 1)
        features = loaded["feature_offset"].reshape(shape) + loaded["feature_scale"].reshape(shape) * features
    torch.testing.assert_close(features, whole["image"].as_tensor().float())
    assert {"feature_scale", "feature_offset"} & set(whole) == set(), "what is loaded whole is decoded"
    for key in ("coords", "instance_labels", "token_mask"):
        torch.testing.assert_close(loaded[key], whole[key])


def test_a_batch_of_one_mapped_bag_stays_in_its_file(tmp_path: Path) -> None:
    loaded = LoadBagd(mapped=True)({"image": write(tmp_path / "bag.h5", "uint8"), "label": [1.0, 0.0]})
    batch = collate_bags([loaded])
    image, label, positional, keywords = prepare_token_batch(batch, "cpu")
    assert image.data_ptr() == loaded["image"].data_ptr()
    assert label.shape == (1, 2)
    assert positional == ()
    assert {name: list(value.shape) for name, value in keywords.items()} == {
        "mask": [1, 5, 4, 3],
        "scale": [1, 6],
        "offset": [1, 6],
    }
    (back,) = decollate_batch(batch)
    assert back["image"].data_ptr() == loaded["image"].data_ptr()


def test_tokens_beyond_the_slide_are_masked(tmp_path: Path) -> None:
    mask = LoadBagd()({"image": write(tmp_path / "bag.h5")})["token_mask"]
    assert mask[:3].all()
    assert mask[3:].any(dim=2).tolist() == [[True, False, False, False]] * 2, "rows at 576, 704, 832 and 960 of 600 px"
    inside = write(tmp_path / "inside.h5", n=3)
    assert "token_mask" not in LoadBagd()({"image": inside})


def test_token_masks_are_padded_and_completed_in_a_batch(tmp_path: Path) -> None:
    load = LoadBagd()
    items = [load({"image": write(tmp_path / f"{n}.h5", n=n)}) for n in (3, 5)]
    batch = collate_bags(items)
    assert batch["token_mask"].shape == (2, 5, 4, 3)
    assert batch["token_mask"].flatten(2).any(2).tolist() == batch["mask"].tolist()
    assert batch["token_mask"][0, :3].all()
    torch.testing.assert_close(batch["token_mask"][1], items[1]["token_mask"])


def test_sampling_keeps_tokens_and_their_mask_together(tmp_path: Path) -> None:
    loaded = LoadBagd(mapped=True)({"image": write(tmp_path / "bag.h5", "uint8")})
    sample = SampleInstancesd(num_instances=3).set_random_state(1)(loaded)
    kept = sample["instance_labels"]
    torch.testing.assert_close(sample["token_mask"], loaded["token_mask"][kept])
    torch.testing.assert_close(sample["image"].as_tensor(), loaded["image"].as_tensor()[:, kept])
    assert sample["image"].dtype == torch.uint8


def test_bags_of_two_storages_make_no_batch(tmp_path: Path) -> None:
    load = LoadBagd(mapped=True)
    items = [load({"image": write(tmp_path / f"{storage}.h5", storage)}) for storage in ("float16", "uint8")]
    with pytest.raises(ValueError, match="features of different types"):
        collate_bags(items)


@pytest.mark.parametrize("shape", [(6, 3, 1, 1), (1, 3, 4, 3), (5, 3, 4, 3)])
def test_bags_of_two_encoders_make_no_batch(shape: tuple[int, ...]) -> None:
    """Without a word a map of one token, or a bag of one channel, would be spread over the other's."""
    with pytest.raises(ValueError, match=r"shapes .*\[6, 4, 3\].*: embed all bags with one encoder"):
        collate_bags([{"image": torch.zeros(6, 2, 4, 3)}, {"image": torch.zeros(shape)}])


def test_bags_of_an_encoder_whose_weights_changed_make_no_run(tmp_path: Path) -> None:
    for name, digest in (("a", "one"), ("b", "one"), ("c", None), ("d", "two")):
        info = BagInfo(name, encoder="uni", encoder_digest=digest)
        BagFile.write(tmp_path / f"{name}.h5", np.ones((2, 6)), np.zeros((2, 2), int), info)
    load = LoadBagd(encoder="uni")
    for name in "abca":
        load({"image": tmp_path / f"{name}.h5"})
    with pytest.raises(BagError, match=r"d\.h5': encoder 'uni' had other weights .* of bag 'a' in this run"):
        load({"image": tmp_path / "d.h5"})
    LoadBagd(encoder="uni")({"image": tmp_path / "d.h5"})


@pytest.mark.parametrize("mapped", [True, False])
def test_another_width_or_grid_is_an_error_that_names_the_file(tmp_path: Path, mapped: bool) -> None:
    item = {"image": write(tmp_path / "bag.h5")}
    with pytest.raises(BagError, match=r"bag\.h5': tokens on a grid 4 x 3 \(encoder uni\), .* a grid 14 x 14"):
        LoadBagd(grid=(14, 14), mapped=mapped)(item)
    with pytest.raises(BagError, match=r"bag\.h5': 6 feature channels .* takes 1024"):
        LoadBagd(width=1024, mapped=mapped)(item)
    with pytest.raises(BagError, match=r"bag\.h5': made by encoder 'uni', .* 'virchow2'"):
        LoadBagd(encoder="virchow2", mapped=mapped)(item)
    vectors = tmp_path / "vectors.h5"
    BagFile.write(vectors, np.ones((3, 6)), COORDS[:3], INFO)
    with pytest.raises(BagError, match=r"vectors\.h5': vectors \(encoder uni\), .* a grid 4 x 3; embed .* spatial"):
        LoadBagd(grid=(4, 3), mapped=mapped)({"image": str(vectors)})


LUNGS = LungField.pack(np.ones((4, 24, 32), bool), "threshold")


def write_scan(path: Path, depth: Depth | None, lungs: LungField | None) -> str:
    info = BagInfo("scan", scan=scan_frame(range(4)), depth=depth, lungs=lungs)
    n = 4 if depth is None else depth.count(4)
    BagFile.write(path, np.ones((n, 6)), np.stack([np.arange(n), np.zeros(n, int)], axis=1), info)
    return str(path)


def test_scans_cut_otherwise_than_the_network_s_are_refused(tmp_path: Path) -> None:
    """Blanked lungs and resized slices are other features, and p is pooled over the number of instances."""
    whole = {"image": write_scan(tmp_path / "whole.h5", None, None)}
    cut = {"image": write_scan(tmp_path / "cut.h5", Depth(3), LUNGS)}
    fits = LoadBagd(depth=3, lungs="threshold")
    assert fits(cut)["image"].shape == (6, 3)
    with pytest.raises(BagError, match=r"whole\.h5': every slice as it is, whole scans; .* a depth of 3 \(resize\)"):
        fits(whole)
    LoadBagd(depth=None, lungs=None)(whole)
    with pytest.raises(BagError, match=r"cut\.h5': a depth of 3 .*, the lungs only \(.*; .* whole scans"):
        LoadBagd(depth=3, lungs=None)(cut)
    for other in ({"depth": 4}, {"depth": 3, "depth_mode": "middle"}, {"lungs": "lungmask"}, {"depth": None}):
        with pytest.raises(BagError, match="the network was trained on"):
            LoadBagd(**other)(cut)
    LoadBagd()(whole)
    LoadBagd()(cut)
    fits({"image": write(tmp_path / "slide.h5")})


@pytest.mark.parametrize(
    ("bad", "options"), [(np.nan, {}), (-np.inf, {"chunks": (1, 3, 2, 2)}), (1e6, {"chunks": True})]
)
def test_a_foreign_file_s_nan_is_found_and_its_tile_named(
    tmp_path: Path, bad: float, options: dict[str, object]
) -> None:
    features = np.ones((200, 3, 2, 2), np.float32)
    features[150, 1, 0, 1] = bad
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.create_dataset("features", data=features, **options)
        file["coords"] = np.zeros((200, 2), int)
    with pytest.raises(BagError, match=r"foreign\.h5': the features of instance 150 are NaN, infinite or beyond"):
        LoadBagd(mapped=True)({"image": str(tmp_path / "foreign.h5")})


NETWORKS = {
    "ABMIL": lambda: ABMIL(512, 2, hidden_dim=32, attention_dim=16),
    "ASMIL": lambda: ASMIL(512, 2, hidden_dim=32),
    "CLAM_MB": lambda: CLAM_MB(512, 2, hidden_dim=32, attention_dim=16),
    "DSMIL": lambda: DSMIL(512, 2, query_dim=16),
    "MeanPooling": lambda: MeanPooling(512, 2, hidden_dim=32),
    "TransMIL": lambda: TransMIL(512, 2, hidden_dim=16, heads=2),
}


@pytest.fixture(scope="module")
def long_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "bag.h5"
    n = 110_000  # 113 MB
    block = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float16)
    BagFile.write(path, np.broadcast_to(block, (n, 512)), np.zeros((n, 2), int), BagInfo("long"))
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bag_file_is_evaluated_in_less_memory_than_it_takes(long_bag: Path, name: str) -> None:
    network = NETWORKS[name]().eval()

    def evaluate() -> None:
        batch = collate_bags([LoadBagd()({"image": str(long_bag)})])
        image, _, _, keywords = prepare_bag_batch(batch, "cpu")
        with torch.no_grad():
            assert network(image, **keywords).isfinite().all()

    assert peak_of(evaluate) < 100 * 2**20
