"""Feature files as other programs write them, read with the very numbers they hold."""

import h5py
import numpy as np
import pytest
import torch

from monai_mil.bags import BagFile, BagInfo, LoadBagd
from monai_mil.cohorts import bag_datalist, read_cohort
from monai_mil.errors import BagError
from monai_mil.slides import write_pyramid

FEATURES = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
COORDS = np.arange(10).reshape(5, 2) * 512


def write(path, datasets, attributes=None, **file_attributes):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file.attrs.update(file_attributes)
        if attributes:
            file["coords"].attrs.update(attributes)
    return path


def same(bag, coords=COORDS):
    np.testing.assert_array_equal(bag.features(), FEATURES)
    np.testing.assert_array_equal(bag.features([3, 1]), FEATURES[[3, 1]])
    np.testing.assert_array_equal(bag.mapped().features.numpy(), FEATURES.astype(bag.mapped().features.numpy().dtype))
    np.testing.assert_array_equal(bag.coords, coords)
    assert bag.features().dtype.isnative
    return True


@pytest.mark.parametrize("coords", [COORDS, COORDS[None]])
def test_a_leading_axis_of_one_bag_is_taken_off(tmp_path, coords):
    path = write(tmp_path / "S.h5", {"features": FEATURES[None], "coords": coords})
    with BagFile(path) as bag:
        assert (bag.n, bag.width) == (5, 8)
        assert same(bag)


@pytest.mark.parametrize("chunks", [None, (2, 8)])
def test_big_endian_files_hold_the_same_numbers(tmp_path, chunks):
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=FEATURES.astype(">f4"), chunks=chunks)
        file.create_dataset("coords", data=COORDS.astype(">i8"))
    with BagFile(path) as bag:
        assert same(bag)
        assert torch.from_numpy(bag.features()).sum() == torch.from_numpy(FEATURES).sum()
    assert LoadBagd()({"image": str(path)})["image"].shape == (8, 5)


@pytest.mark.parametrize("name", ["feats", "patch_embeddings"])
def test_stamp_s_micrometres_become_pixels_where_the_pixel_size_is_known(tmp_path, name):
    stated = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "ctranspath"}
    path = write(tmp_path / "S.h5", {name: FEATURES, "coords": COORDS * 0.2527}, **stated)
    with BagFile(path, mpp=0.2527) as bag:
        assert same(bag)
        assert (bag.info.encoder, bag.info.mpp, bag.info.tile_size) == ("ctranspath", 0.2527, 224)
        assert bag.info.tile_size_level0 == pytest.approx(256 / 0.2527)
        assert bag.extras == ()
    with BagFile(path) as bag:
        assert bag.needs_mpp
        assert (bag.info.mpp, bag.info.tile_size_level0) == (None, None), "no place on a slide can be given"
        np.testing.assert_array_equal(bag.coords, np.round(COORDS * 0.2527))


def test_the_cohort_s_slides_tell_what_foreign_bags_do_not(tmp_path):
    write_pyramid(tmp_path / "S.tif", np.full((512, 768, 3), 200, np.uint8), mpp=0.5)
    write(tmp_path / "S.h5", {"feats": FEATURES, "coords": COORDS * 0.5}, unit="um", tile_size_um=128.0)
    (tmp_path / "cohort.csv").write_text("slide_id,path,label\nS,S.tif,a\n")
    (item,) = read_cohort(tmp_path / "cohort.csv").datalist(bag_dir=tmp_path)
    loaded = LoadBagd()(item)
    np.testing.assert_array_equal(loaded["coords"], COORDS)
    meta = loaded["image"].meta
    assert (meta["slide_path"], meta["mpp"]) == (str(tmp_path / "S.tif"), pytest.approx(0.5))
    assert meta["tile_size_level0"] == pytest.approx(256)


def test_atlaspatch_s_groups_hold_the_features_of_an_encoder_each(tmp_path):
    coords = np.concatenate([COORDS, np.full((5, 3), 7)], axis=1).astype(np.int32)
    stated = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    stated |= {"level0_width": 9000, "level0_height": 8000, "mpp": 0.2516}
    path = write(tmp_path / "S.h5", {"features/uni": FEATURES, "coords": coords}, **stated)
    with BagFile(path) as bag:
        assert same(bag)
        assert (bag.info.encoder, bag.info.tile_size_level0, bag.info.mpp) == ("uni", 512.0, 0.2516)
        assert bag.info.level0_size == (9000, 8000)
    path = write(tmp_path / "two.h5", {"features/uni": FEATURES, "features/conch": FEATURES + 1, "coords": coords})
    with pytest.raises(BagError, match=r"two\.h5': features of several encoders \(conch, uni\); name one"):
        BagFile(path)
    with BagFile(path, encoder="uni") as bag:
        assert same(bag)
    deeper = write(tmp_path / "deeper.h5", {"features/uni/layer_9": FEATURES, "coords": coords})
    with pytest.raises(BagError, match=r"deeper\.h5': 'features/uni' is no dataset; not a feature file"):
        BagFile(deeper)
    assert LoadBagd(encoder="uni")({"image": str(path)})["image"].meta["encoder"] == "uni"


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_coordinates_that_are_no_whole_pixels_are_an_error_that_names_the_first(tmp_path, wrong):
    coords = COORDS.astype(float)
    path = write(tmp_path / "whole.h5", {"features": FEATURES, "coords": coords})
    assert same(BagFile(path))
    coords[3, 1] = wrong
    path = write(tmp_path / "S.h5", {"features": FEATURES, "coords": coords})
    with pytest.raises(BagError, match=r"S\.h5': the coordinates of instance 3 are .* no whole level-0 pixels"):
        BagFile(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_clam_s_tensor_alone_is_a_bag_without_places(tmp_path, dtype):
    torch.save(torch.from_numpy(FEATURES).to(dtype), tmp_path / "S.pt")
    (tmp_path / "cohort.csv").write_text("slide_id,label\nS,a\n")
    (item,) = read_cohort(tmp_path / "cohort.csv").datalist(bag_dir=tmp_path)
    assert (
        bag_datalist(tmp_path)
        == [{"image": str(tmp_path / "S.pt"), "slide_id": "S"}]
        == [{key: item[key] for key in ("image", "slide_id")}]
    )
    loaded = LoadBagd()(item)["image"]
    assert loaded.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    assert torch.equal(loaded.as_tensor().T.float(), torch.from_numpy(FEATURES).to(dtype).float())
    assert np.isnan(loaded.meta["tile_size_level0"])
    with BagFile(tmp_path / "S.pt") as bag:
        assert bag.mapped().features.shape == (5, 8)


def test_clam_s_tensor_finds_its_coordinates_where_clam_keeps_them(tmp_path):
    (tmp_path / "features" / "pt_files").mkdir(parents=True)
    (tmp_path / "patches").mkdir()
    path = tmp_path / "features" / "pt_files" / "S.pt"
    torch.save(torch.from_numpy(FEATURES), path)
    stated = {"patch_size": 256, "patch_level": 0, "name": "S"}
    write(tmp_path / "patches" / "S.h5", {"coords": COORDS}, stated)
    with BagFile(path) as bag:
        assert same(bag)
        assert bag.info.tile_size_level0 == 256.0


def test_a_file_of_torch_that_holds_no_features_is_named(tmp_path):
    with pytest.raises(BagError, match=r"missing\.pt': no such file; embed the slide or scan first"):
        BagFile(tmp_path / "missing.pt")
    for content in ([torch.ones(2)], {"features": torch.ones(2, 3), "epoch": 3}, 1.5):
        torch.save(content, tmp_path / "S.pt")
        with pytest.raises(BagError, match=r"S\.pt': holds neither a tensor of features nor a dictionary of tensors"):
            BagFile(tmp_path / "S.pt")


def test_a_pickle_of_a_stranger_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(Evil(), tmp_path / "S.pt")
    with pytest.raises(BagError, match=r"S\.pt': no tensor of features can be read from it safely"):
        BagFile(tmp_path / "S.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(4, 28, 28, 3), (4, 16, 16, 384), (4, 14, 12, 384), (4, 28, 28, 1)])
def test_instances_with_their_channels_last_are_refused_when_written(tmp_path, shape):
    coords = np.zeros((4, 2), int)
    with pytest.raises(BagError, match=r"look like \[n, h, w, d\]; give \[n, d, h, w\]"):
        BagFile.write(tmp_path / "S.h5", np.zeros(shape, np.float16), coords, BagInfo("S"))
    right = np.moveaxis(np.zeros(shape, np.float16), -1, 1)
    BagFile.write(tmp_path / "S.h5", right, coords, BagInfo("S"))
    with BagFile(tmp_path / "S.h5") as bag:
        assert (bag.width, *bag.grid) == right.shape[1:]
