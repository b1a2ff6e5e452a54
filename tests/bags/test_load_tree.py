"""The levels of a slide loaded as one bag."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor

from monai_mil.bags import BagFile, LoadBagd, LoadTreed, collate_bags
from monai_mil.embedding import EmbedSettings, embed_cohort, tree_slide
from monai_mil.errors import BagError, NoTissueError, SettingsError
from monai_mil.slides import open_slide
from tests.embedding.counting import CountingEncoder
from tests.memory import peak_of

SETTINGS = {"levels": 3, "tile_size": 64, "min_tissue": 0.2}


@pytest.fixture(scope="module")
def embedded(border_slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("bags")
    embed_cohort([border_slide], out, CountingEncoder(out / "log"), progress=False, **SETTINGS)
    return out


@pytest.fixture
def bags(embedded, tmp_path):
    """The bags' folder, to be spoilt."""
    for level in range(3):
        shutil.copytree(embedded / f"level_{level}", tmp_path / f"level_{level}")
    return tmp_path


def item(folder: Path, level: int = 2) -> dict[str, str]:
    return {"image": str(folder / f"level_{level}" / "tissue.h5")}


def rewrite(path: Path, keep=slice(None), storage="float16", **changes):
    """Write a bag anew with some of its rows, or other fields."""
    with BagFile(path) as bag:
        features, coords, info = bag.features()[keep], bag.coords[keep], replace(bag.info, **changes)
        extras = {name: bag.extra(name)[keep] for name in bag.extras}
    BagFile.write(path, features, coords, info, extras, storage)


def test_the_levels_are_packed_coarsest_first(border_slide, embedded):
    loaded = LoadTreed(levels=3, width=6, encoder="counting")(item(embedded))
    with open_slide(border_slide) as opened:
        settings = EmbedSettings.for_encoder(CountingEncoder(embedded / "unused"), **SETTINGS)
        tree, _ = tree_slide(opened, settings)
    n = len(tree.grids[0])
    assert len(tree) == n * (4**3 - 1) // 3
    image = loaded["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float16
    start = 0
    for level, grid in zip((2, 1, 0), tree.grids, strict=True):
        rows = slice(start, start + len(grid))
        with BagFile(embedded / f"level_{level}" / "tissue.h5") as bag:
            np.testing.assert_array_equal(image.as_tensor()[:, rows].T.numpy(), bag.features())
        np.testing.assert_array_equal(loaded["coords"][rows].numpy(), grid.coords)
        np.testing.assert_array_equal(loaded["inside"][rows].numpy(), grid.inside)
        np.testing.assert_array_equal(loaded["tissue_fraction"][rows].numpy(), grid.tissue_fraction)
        start = rows.stop
    assert image.shape == (6, start)
    assert [loaded[name].dtype for name in ("coords", "inside", "tissue_fraction")] == [
        torch.int64,
        torch.bool,
        torch.float32,
    ]
    assert not loaded["inside"].all()


def test_the_frame_is_the_finest_level_s(embedded):
    loaded, finest = LoadTreed()(item(embedded)), LoadBagd()(item(embedded, level=0))
    frames = [{name: str(value) for name, value in found["image"].meta.items()} for found in (loaded, finest)]
    assert frames[0] == frames[1]
    assert loaded["image"].meta["target_mpp"] == 0.5


def test_instances_are_contiguous_and_kept_once_in_memory(embedded, bags):
    image = LoadTreed()(item(embedded))["image"]
    assert image.as_tensor().T.is_contiguous()
    rng = np.random.default_rng(0)
    for level in range(3):
        path = bags / f"level_{level}" / "tissue.h5"
        with BagFile(path) as bag:
            wide = rng.standard_normal((bag.n, 60_000)).astype(np.float16)
            coords, info = bag.coords, bag.info
        BagFile.write(path, wide, coords, info)
    del wide
    load, size = LoadTreed(), image.shape[1] * 60_000 * 2
    load(item(bags))
    assert size > 25e6
    assert peak_of(lambda: load(item(bags))) < 1.2 * size


def test_two_levels_of_three_are_a_tree_and_one_is_any_bag(embedded, bags):
    whole = LoadTreed(levels=3)(item(embedded))
    with BagFile(embedded / "level_2" / "tissue.h5") as bag:
        n = bag.n
    two = LoadTreed(levels=2)(item(embedded, level=1))
    assert torch.equal(two["image"].as_tensor(), whole["image"].as_tensor()[:, n:])
    one = LoadTreed(levels=1)(item(embedded, level=0))
    assert torch.equal(one["coords"], whole["coords"][5 * n :])
    with h5py.File(bags / "level_0" / "tissue.h5", "a") as file:
        del file["inside"], file["tissue_fraction"]
    plain = LoadTreed(levels=1)({"image": shutil.move(bags / "level_0" / "tissue.h5", bags / "plain.h5")})
    assert torch.equal(plain["image"].as_tensor(), one["image"].as_tensor())
    assert plain["inside"].all()
    assert (plain["tissue_fraction"] == 1).all()


def test_codes_and_other_programs_types_become_half_precision(embedded, bags):
    expected = LoadTreed()(item(embedded))["image"].as_tensor().float()
    rewrite(bags / "level_0" / "tissue.h5", storage="uint8")
    with h5py.File(bags / "level_1" / "tissue.h5", "a") as file:
        features = file["features"][:].astype(np.float32)
        del file["features"]
        file.create_dataset("features", data=features, chunks=(3, 2))
    loaded = LoadTreed()(item(bags))["image"].as_tensor()
    assert loaded.dtype == torch.float16
    spread = expected.amax(dim=1) - expected.amin(dim=1)
    assert ((loaded.float() - expected).abs() <= spread[:, None] / 255 + 0.1).all()


def test_labels_of_instances_are_packed_where_all_levels_have_them(bags):
    for level in (2, 1):
        path = bags / f"level_{level}" / "tissue.h5"
        with h5py.File(path, "a") as file:
            file["instance_labels"] = np.full(len(file["coords"]), level)
    assert "instance_labels" not in LoadTreed(levels=3)(item(bags))
    with h5py.File(bags / "level_0" / "tissue.h5", "a") as file:
        file["instance_labels"] = np.full(len(file["coords"]), 0)
    labels = LoadTreed(levels=3)(item(bags))["instance_labels"]
    counts = torch.bincount(labels)
    assert counts.tolist() == [16 * counts[2], 4 * counts[2], counts[2]]
    assert (labels.diff() <= 0).all()


def test_padding_is_neither_inside_nor_tissue(embedded):
    loaded = LoadTreed()(item(embedded))
    short = {name: value[:, :7] if name == "image" else value[:7] for name, value in loaded.items()}
    batch = collate_bags([short, loaded])
    assert batch["image"].dtype == torch.float16
    assert not batch["inside"][0, 7:].any()
    assert (batch["tissue_fraction"][0, 7:] == 0).all()
    assert torch.equal(batch["inside"][1], loaded["inside"])
    assert batch["mask"].sum(dim=1).tolist() == [7, loaded["image"].shape[1]]


def test_workers_load_the_same(embedded):
    data = Dataset([{**item(embedded), "label": 1.0}] * 2, LoadTreed())
    batches = list(DataLoader(data, batch_size=1, num_workers=1, collate_fn=collate_bags))
    expected = LoadTreed()(item(embedded))
    assert torch.equal(batches[1]["image"][0].as_tensor(), expected["image"].as_tensor())


SPOILT = {
    "another slide": (lambda path: rewrite(path, slide_id="other"), "slides 'tissue' and 'other'"),
    "another tile size": (lambda path: rewrite(path, tile_size=128), "tile size 64 and 128"),
    "another mpp": (lambda path: rewrite(path, target_mpp=0.51), "target mpp 1.0 and 0.51 instead of half"),
    "other weights": (lambda path: rewrite(path, encoder_digest="c1"), "encoder digest c0 and c1"),
    "another level": (lambda path: rewrite(path, level=1), "they are levels 1 and 1"),
    "another order": (lambda path: rewrite(path, keep=slice(None, None, -1)), r"tile 0 of the finer at .* is no child"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_files_that_are_no_tree_are_refused_by_name(bags, name):
    spoil, message = SPOILT[name]
    spoil(bags / "level_0" / "tissue.h5")
    with pytest.raises(BagError, match=rf"slide 'tissue'.*level_1/tissue\.h5' and '.*level_0/tissue\.h5'.*{message}"):
        LoadTreed()(item(bags))


def test_counts_are_told_exactly(bags):
    with BagFile(bags / "level_1" / "tissue.h5") as bag:
        n = bag.n
    rewrite(bags / "level_0" / "tissue.h5", keep=slice(0, -1))
    with pytest.raises(BagError, match=f"{n} and {4 * n - 1} tiles instead of 4 below each"):
        LoadTreed()(item(bags))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tile_that_is_no_number_is_named(bags, value):
    path = bags / "level_1" / "tissue.h5"
    with h5py.File(path, "a") as file:
        del file["feature_checksums"]  # as other programs write it
        file["features"][5, 2] = value
        x, y = file["coords"][5]
    with pytest.raises(BagError, match=rf"level_1/tissue\.h5': the features of tile 5 at \({x}, {y}\) are NaN"):
        LoadTreed()(item(bags))


def test_facts_of_more_or_fewer_tiles_than_there_are_features_are_refused(bags):
    with h5py.File(bags / "level_1" / "tissue.h5", "a") as file:
        del file["tissue_fraction"]
        file["tissue_fraction"] = np.zeros(3, np.float32)
    with pytest.raises(BagError, match=r"level_1/tissue\.h5': 'tissue_fraction' is \[3\] for"):
        LoadTreed()(item(bags))


def test_files_that_do_not_fit_the_network_are_refused_as_single_bags_are(embedded, bags, tmp_path):
    with pytest.raises(BagError, match="6 feature channels"):
        LoadTreed(width=7)(item(embedded))
    with pytest.raises(BagError, match="the network was trained with 'uni'"):
        LoadTreed(encoder="uni")(item(embedded))
    with pytest.raises(BagError, match="its tiles are of 64 px, the network's of 128"):
        LoadTreed(tile_size=128)(item(embedded))
    load = LoadTreed(tile_size=64)
    load(item(embedded))
    for level in range(3):
        rewrite(bags / f"level_{level}" / "tissue.h5", encoder_digest="c1")
    with pytest.raises(BagError, match="had other weights"):
        load(item(bags))
    (bags / "level_1" / "tissue.h5").unlink()
    with pytest.raises(BagError, match=r"level_1/tissue\.h5': no such file"):
        LoadTreed()(item(bags))
    for level in range(3):
        path = bags / f"level_{level}" / "empty.h5"
        BagFile.write(path, np.zeros((0, 6)), np.zeros((0, 2), int), BagFile(embedded / "level_2/tissue.h5").info)
    with pytest.raises(NoTissueError, match="empty"):
        LoadTreed()({"image": str(bags / "level_2" / "empty.h5")})


def test_a_path_that_is_not_the_coarsest_level_s_is_told(embedded):
    with pytest.raises(BagError, match=r"must lie in a folder 'level_2', the coarsest of 3 levels"):
        LoadTreed(levels=3)(item(embedded, level=0))
    with pytest.raises(SettingsError, match="levels 0"):
        LoadTreed(levels=0)
