import textwrap
from pathlib import Path
from zlib import crc32

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_mil.bags import BAG_FORMAT, BagFile, BagInfo, export_clam
from monai_mil.bags.storage import first_non_finite_row
from monai_mil.errors import BagError, DamagedBagError, SettingsError
from tests.embedding.scans import frame
from tests.processes import run

INFO = BagInfo(
    slide_id="slide",
    slide_path="folder/slide.svs",
    encoder="texture",
    encoder_digest="0123456789abcdef",
    tile_size=256,
    tile_size_level0=513.1,
    overlap=32,
    target_mpp=0.5,
    level0_size=(20000, 10000),
    mpp=0.2495,
    reader="cucim",
    tissue={"threshold": None, "min_tissue": 0.25},
)


def bag_arrays(n: int = 5, width: int = 8, *grid: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.standard_normal((n, width, *grid)).astype(np.float16), rng.integers(0, 20000, (n, 2))


def write_trident(path: Path, features: np.ndarray, coords: np.ndarray, encoder: str = "uni_v1") -> dict[str, object]:
    """TRIDENT 0.3: one-row chunks, attributes on the datasets, missing values as the text 'None'."""
    attributes = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "slide_7",
        "savetodir": "None",
        "level0_width": 40000,
        "level0_height": 30000,
    }
    with h5py.File(path, "w") as file:
        width = features.shape[1]
        data = file.create_dataset(
            "features", data=features, dtype=np.float32, chunks=(1, max(width, 1)), maxshape=(None, width)
        )
        data.attrs.update({"name": "slide_7", "savetodir": "None", "encoder": encoder})
        file.create_dataset("coords", data=coords.astype(np.int64), chunks=(1, 2), maxshape=(None, 2))
        file["coords"].attrs.update(attributes)
    return attributes


def test_a_bag_comes_back_as_it_was_written(tmp_path):
    features, coords = bag_arrays()
    BagFile.write(tmp_path / "bag.h5", features, coords, INFO, {"instance_labels": np.arange(5)})
    with BagFile(tmp_path / "bag.h5") as bag:
        assert (bag.n, bag.width, bag.grid) == (5, 8, None)
        assert bag.info == INFO
        assert bag.extras == ("instance_labels",)
        np.testing.assert_array_equal(bag.extra("instance_labels"), np.arange(5))
        np.testing.assert_array_equal(bag.coords, coords)
        np.testing.assert_array_equal(bag.features(), features)
    assert [path.name for path in tmp_path.iterdir()] == ["bag.h5"]


def test_a_spatial_bag_is_token_major_on_disk_and_channel_first_in_hand(tmp_path):
    features, coords = bag_arrays(3, 8, 2, 4)
    BagFile.write(tmp_path / "bag.h5", features, coords, INFO)
    with h5py.File(tmp_path / "bag.h5") as file:
        assert file["features"].shape == (3, 2, 4, 8)
    with BagFile(tmp_path / "bag.h5") as bag:
        assert (bag.width, bag.grid) == (8, (2, 4))
        np.testing.assert_array_equal(bag.features(), features)
        np.testing.assert_array_equal(bag.features([2, 0]), features[[2, 0]])


def test_official_insight_files_are_read_channel_first(tmp_path):
    features, coords = bag_arrays(3, 8, 2, 4)
    with h5py.File(tmp_path / "slide_3.h5", "w") as file:
        file["features"], file["coords"] = features.astype(np.float32), coords
    with BagFile(tmp_path / "slide_3.h5") as bag:
        assert (bag.width, bag.grid, bag.info.slide_id) == (8, (2, 4), "slide_3")
        np.testing.assert_array_equal(bag.features(), features.astype(np.float32))


def test_text_extras_come_back_as_text(tmp_path):
    features, coords = bag_arrays(2)
    names = np.array(["1.2.840.1", "1.2.840.22"])
    BagFile.write(tmp_path / "bag.h5", features, coords, INFO, {"sop_instance_uid": names})
    with BagFile(tmp_path / "bag.h5") as bag:
        assert bag.extra("sop_instance_uid").tolist() == names.tolist()


@pytest.mark.parametrize("chunks", [None, (1, 8), (32, 8), (1024, 8)])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(-300, 299), max_size=60), cut=st.slices(300))
def test_any_rows_in_any_order_are_those_of_the_array(tmp_path, chunks, rows, cut):
    features, coords = bag_arrays(300)
    path = tmp_path / f"{chunks}.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            maxshape = None if chunks is None else (None, 8)
            file.create_dataset("features", data=features, chunks=chunks, maxshape=maxshape)
            file["coords"] = coords
    with BagFile(path) as bag:
        np.testing.assert_array_equal(bag.features(rows), features[np.array(rows, int)])
        np.testing.assert_array_equal(bag.features(cut), features[cut])
        mask = features[:, 0] > 0
        np.testing.assert_array_equal(bag.features(mask), features[mask])
        with pytest.raises(IndexError):
            bag.features([300])


def test_chunks_cover_the_bag_in_order(tmp_path):
    features, coords = bag_arrays(10)
    BagFile.write(tmp_path / "bag.h5", features, coords, INFO)
    with BagFile(tmp_path / "bag.h5") as bag:
        parts = list(bag.chunks(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), features)


@pytest.mark.usefixtures("fork_server")
def test_a_million_instances_are_written_and_read_in_bounded_memory(tmp_path):
    script = f"""
    import resource
    import numpy as np
    from monai_mil.bags import BagFile, BagInfo
    n, width = 1_000_000, 128
    rows = np.memmap({str(tmp_path / "rows")!r}, np.float16, "w+", shape=(n, width))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = {str(tmp_path / "bag.h5")!r}
    BagFile.write(path, np.broadcast_to(np.float16(1), (n, width)), np.zeros((n, 2), np.int64), BagInfo("million"))
    with BagFile(path) as bag:
        total = sum(int(part[:, 0].sum(dtype=np.int64)) for part in bag.chunks(4096))
    assert total == n
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
    """
    done = run("-c", textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, "MiB above the start for a bag of 244 MiB"


def test_trident_files_are_read_as_they_are(tmp_path):
    features, coords = bag_arrays()
    write_trident(tmp_path / "slide_7.h5", features, coords)
    with BagFile(tmp_path / "slide_7.h5") as bag:
        assert bag.features().dtype == np.float32
        np.testing.assert_array_equal(bag.features(), features.astype(np.float32))
        np.testing.assert_array_equal(bag.coords, coords)
        assert bag.info == BagInfo(
            slide_id="slide_7",
            encoder="uni_v1",
            tile_size=256,
            tile_size_level0=512.0,
            overlap=0,
            target_mpp=0.5,
            level0_size=(40000, 30000),
            mpp=0.25,
            version=None,
        )


def test_trident_s_missing_encoder_and_empty_slide_are_read(tmp_path):
    write_trident(tmp_path / "slide_7.h5", np.empty((0, 8)), np.empty((0, 2)), encoder="None")
    with BagFile(tmp_path / "slide_7.h5") as bag:
        assert (bag.n, bag.width, bag.info.encoder) == (0, 8, None)
        assert bag.features().shape == (0, 8)
        assert list(bag.chunks(4)) == []


def test_a_trident_user_reads_our_file(tmp_path):
    features, coords = bag_arrays()
    BagFile.write(tmp_path / "slide.h5", features, coords, INFO)
    theirs = write_trident(tmp_path / "theirs.h5", features, coords)
    with h5py.File(tmp_path / "slide.h5") as file:
        loaded = torch.from_numpy(file["features"][:]).float()
        attributes = dict(file["coords"].attrs)
        assert file["features"].attrs["encoder"] == "texture"
        assert file["coords"].dtype == np.int64
    assert torch.equal(loaded, torch.from_numpy(features).float())
    assert attributes.keys() == theirs.keys()
    assert attributes["patch_size"] == 256
    assert attributes["patch_size_level0"] == 513
    assert (attributes["level0_magnification"], attributes["target_magnification"]) == (40, 20)
    assert (attributes["level0_width"], attributes["level0_height"]) == (20000, 10000)
    assert (attributes["overlap"], attributes["name"]) == (32, "slide")


def test_clam_features_are_read_and_their_tile_size_follows_from_the_grid(tmp_path):
    features, _ = bag_arrays(6)
    coords = np.array([[0, 0], [0, 512], [0, 1024], [512, 0], [512, 512], [4096, 100]], np.int32)
    with h5py.File(tmp_path / "slide_9.h5", "w") as file:
        data = features.astype(np.float32)
        file.create_dataset("features", data=data, chunks=(32, 8), maxshape=(None, 8))
        file.create_dataset("coords", data=coords, chunks=(32, 2), maxshape=(None, 2))
    with BagFile(tmp_path / "slide_9.h5") as bag:
        assert bag.coords.dtype == np.int64
        np.testing.assert_array_equal(bag.coords, coords)
        np.testing.assert_array_equal(bag.features(), data)
        assert bag.info == BagInfo(slide_id="slide_9", tile_size_level0=512.0, version=None)


def test_clam_s_patch_size_counts_pixels_of_the_patch_level(tmp_path):
    features, coords = bag_arrays()
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["features"], file["coords"] = features, coords
        file["coords"].attrs.update(
            {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0), "level_dim": (1000, 500), "name": "slide"}
        )
    with BagFile(tmp_path / "slide.h5") as bag:
        assert (bag.info.tile_size, bag.info.tile_size_level0) == (256, 1024.0)
        assert bag.info.level0_size == (4000, 2000)


def test_clam_s_tiles_are_as_large_as_their_distance_where_the_level_s_downsample_is_missing(tmp_path):
    coords = np.array([[0, 0], [0, 1024], [0, 2048], [1024, 0], [1024, 5000]])
    for name, places, edge in (("many", coords, 1024.0), ("one", coords[:1], None), ("a_row", coords[::3], None)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"], file["coords"] = np.ones((len(places), 8)), places
            file["coords"].attrs.update({"patch_size": 256, "patch_level": 1})
        with BagFile(tmp_path / f"{name}.h5") as bag:
            assert (bag.info.slide_id, bag.info.tile_size, bag.info.tile_size_level0) == (name, 256, edge)


def test_a_clam_user_reads_our_export(tmp_path):
    features, coords = bag_arrays()
    BagFile.write(tmp_path / "slide.h5", features, coords, INFO)
    h5_path, pt_path = export_clam(tmp_path / "slide.h5", tmp_path / "clam")
    assert (h5_path, pt_path) == (
        tmp_path / "clam" / "h5_files" / "slide.h5",
        tmp_path / "clam" / "pt_files" / "slide.pt",
    )
    loaded = torch.load(pt_path, weights_only=True)
    assert loaded.dtype == torch.float32
    np.testing.assert_array_equal(loaded.numpy(), features.astype(np.float32))
    with h5py.File(h5_path) as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(file["coords"][:], coords)
    with BagFile(h5_path) as bag:
        np.testing.assert_array_equal(bag.features(), features)


def test_clam_takes_no_spatial_bags(tmp_path):
    features, coords = bag_arrays(3, 8, 2, 2)
    BagFile.write(tmp_path / "slide.h5", features, coords, INFO)
    with pytest.raises(BagError, match=r"slide\.h5.*CLAM reads vectors"):
        export_clam(tmp_path / "slide.h5", tmp_path)


@pytest.mark.parametrize("grid", [(), (3, 2)])
def test_bytes_are_within_half_a_step_of_the_features(tmp_path, grid):
    features, coords = bag_arrays(40, 8, *grid)
    features[:, 5] *= 100  # an outlier channel has steps of its own
    features[:, 6] = 0.1  # and a channel of one value has it exactly
    path = tmp_path / "bag.h5"
    BagFile.write(path, features, coords, INFO, storage="uint8")
    with h5py.File(path) as file:
        assert file["features"].dtype == np.uint8
        assert file["features"].shape == (40, *grid, 8)
        assert file["feature_scale"].dtype == file["feature_offset"].dtype == np.float32
    with BagFile(path) as bag:
        assert (bag.storage, bag.grid, bag.width, bag.extras) == ("uint8", grid or None, 8, ())
        decoded = bag.features()
        assert decoded.dtype == np.float32
        error = np.abs(decoded - features.astype(np.float32))
        step = np.ptp(features.astype(np.float32).swapaxes(0, 1).reshape(8, -1), axis=1) / 255
        assert (error.swapaxes(0, 1).reshape(8, -1).max(axis=1) <= 0.501 * step).all()
        np.testing.assert_array_equal(bag.features([7, 3, 3]), decoded[[7, 3, 3]])
        np.testing.assert_array_equal(np.concatenate(list(bag.chunks(17))), decoded)


@pytest.mark.parametrize("storage", ["float16", "uint8"])
@pytest.mark.parametrize("grid", [(), (3, 2)])
def test_a_mapped_bag_holds_what_reading_gives_and_reads_nothing(tmp_path, storage, grid):
    features, coords = bag_arrays(20, 8, *grid)
    path = tmp_path / "bag.h5"
    BagFile.write(path, features, coords, INFO, storage=storage)
    with BagFile(path) as bag:
        mapped, expected = bag.mapped(), bag.features()
    found = mapped.features.float()
    if storage == "uint8":
        assert mapped.features.dtype == torch.uint8
        shape = (-1, *(1 for _ in grid))
        found = mapped.offset.reshape(shape) + mapped.scale.reshape(shape) * found
    else:
        assert mapped.features.dtype == torch.float16
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert mapped.features.movedim(1, -1).is_contiguous()
    assert str(path) in Path("/proc/self/maps").read_text()
    mapped.features[0] = 0
    with BagFile(path) as bag:
        np.testing.assert_array_equal(bag.features(), expected, "the file is nobody's to change")


@pytest.mark.parametrize("options", [{"chunks": (1, 8, 3, 2)}, {"compression": "gzip"}, {}])
def test_files_that_cannot_be_mapped_are_read_in_half_precision(tmp_path, options):
    features, coords = bag_arrays(70, 8, 3, 2)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.create_dataset("features", data=features.astype(np.float32), **options)
        file["coords"] = coords
    with BagFile(tmp_path / "foreign.h5") as bag:
        mapped = bag.mapped()
    assert mapped.features.dtype == torch.float16
    assert mapped.features.movedim(1, -1).is_contiguous()
    np.testing.assert_array_equal(mapped.features.numpy(), features)


def test_bytes_without_their_scale_are_no_features(tmp_path):
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["features"], file["coords"] = np.zeros((5, 8), np.uint8), np.zeros((5, 2), int)
    with pytest.raises(BagError, match=r"odd\.h5.*'features' is uint8 \[5, 8\], not floating point"):
        BagFile(tmp_path / "odd.h5")
    with h5py.File(tmp_path / "odd.h5", "a") as file:
        file["feature_scale"] = file["feature_offset"] = np.zeros(7)
    with pytest.raises(BagError, match=r"odd\.h5.*scale and offset do not fit 8 channels"):
        BagFile(tmp_path / "odd.h5")
    with h5py.File(tmp_path / "odd.h5", "a") as file:
        del file["feature_scale"], file["feature_offset"]
        file["feature_scale"], file["feature_offset"] = np.ones(8), np.full(8, np.nan)
    with pytest.raises(BagError, match=r"odd\.h5.*scale or offset of a channel is NaN"):
        BagFile(tmp_path / "odd.h5")


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_a_bag_without_instances_can_be_written_and_mapped(tmp_path, storage):
    BagFile.write(tmp_path / "none.h5", *bag_arrays(0, 8, 3, 2), INFO, storage=storage)
    with BagFile(tmp_path / "none.h5") as bag:
        assert (bag.n, bag.grid) == (0, (3, 2))
        assert bag.mapped().features.shape == bag.features().shape == (0, 8, 3, 2)


def test_the_whole_range_of_float16_goes_into_bytes(tmp_path):
    features = np.array([[-65504, 1], [65504, 1], [0, 1]], np.float32)
    BagFile.write(tmp_path / "b.h5", features, np.zeros((3, 2), int), INFO, storage="uint8")
    with BagFile(tmp_path / "b.h5") as bag:
        decoded = bag.features()
    np.testing.assert_allclose(decoded, features, rtol=0, atol=131_008 / 255 / 2)
    np.testing.assert_array_equal(decoded[:, 1], 1)


def test_an_unknown_storage_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="storage 'int4': must be one of float16, uint8"):
        BagFile.write(tmp_path / "b.h5", *bag_arrays(), INFO, storage="int4")


@pytest.mark.parametrize("storage", ["float16", "uint8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520.0, -1e30])
def test_features_beyond_float16_are_an_error_that_names_file_and_instance(tmp_path, bad, storage):
    features = np.ones((5, 8), np.float32)
    features[3, 2] = bad
    with pytest.raises(BagError, match=r"bag\.h5.*instance 3"):
        BagFile.write(tmp_path / "bag.h5", features, np.zeros((5, 2), int), INFO, storage=storage)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(features=hnp.arrays(np.float32, (3, 4), elements=st.floats(-65504, 65504, width=32)))
def test_what_fits_float16_is_written_and_rounded_to_it(tmp_path, features):
    BagFile.write(tmp_path / "bag.h5", features, np.zeros((3, 2), int), INFO)
    with BagFile(tmp_path / "bag.h5") as bag:
        np.testing.assert_array_equal(bag.features(), features.astype(np.float16))


@pytest.mark.parametrize(
    ("features", "coords", "message"),
    [
        (np.ones((5, 8)), np.zeros((4, 2), int), r"coords are int64 \[4, 2\], not integer \[5, 2\]"),
        (np.ones((5, 8)), np.zeros((5, 2)), "coords are float64"),
        (np.ones(5), np.zeros((5, 2), int), r"shape \[5\]"),
    ],
)
def test_what_is_no_bag_is_not_written(tmp_path, features, coords, message):
    with pytest.raises(BagError, match=message):
        BagFile.write(tmp_path / "bag.h5", features, coords, INFO)


def test_extras_need_a_row_for_every_instance(tmp_path):
    with pytest.raises(BagError, match="'instance_labels' has 4 rows for 5 instances"):
        BagFile.write(tmp_path / "b.h5", *bag_arrays(), INFO, {"instance_labels": np.zeros(4)})


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"coords": np.zeros((5, 2))}, "no dataset 'features'"),
        ({"features": np.zeros((5, 8))}, "no dataset 'coords'"),
        ({"features": np.zeros((5, 8)), "coords": np.zeros((4, 2), int)}, "5 features but 4 coords"),
        ({"features": np.zeros(8), "coords": np.zeros((4, 2), int)}, r"not floating point \[n, d\]"),
        ({"features": np.zeros((5, 8), int), "coords": np.zeros((5, 2), int)}, "not floating point"),
        ({"features": np.zeros((5, 8)), "coords": np.zeros((5, 5), int)}, r"shape \[5, 5\]"),
    ],
)
def test_files_that_are_no_bags_are_named_with_their_fault(tmp_path, datasets, message):
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        for name, data in datasets.items():
            file[name] = data
    with pytest.raises(BagError, match=rf"odd\.h5.*{message}"):
        BagFile(tmp_path / "odd.h5")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, share):
    BagFile.write(tmp_path / "bag.h5", *bag_arrays(500), INFO)
    whole = (tmp_path / "bag.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BagError, match=r"cut\.h5"), BagFile(tmp_path / "cut.h5") as bag:
        bag.features()


def test_a_bag_that_was_compressed_and_damaged_since_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "bag.h5"
    BagFile.write(path, *bag_arrays(500), INFO)
    with h5py.File(path, "r+") as file:
        features, attributes = file["features"][:], dict(file["features"].attrs)
        del file["features"]
        stored = file.create_dataset("features", data=features, chunks=(250, 8), compression="gzip")
        stored.attrs.update(attributes)
        place = stored.id.get_chunk_info(1).byte_offset
    with BagFile(path) as bag:
        bag.verify()
        np.testing.assert_array_equal(bag.features(), features)
    content = bytearray(path.read_bytes())
    content[place : place + 100] = bytes(100)
    path.write_bytes(content)
    with BagFile(path) as bag:
        np.testing.assert_array_equal(bag.features(slice(0, 250)), features[:250])
        for rows in (None, slice(200, 300), [499, 3]):
            with pytest.raises(BagError, match=r"bag\.h5': features cannot be read \(.*\); embed it again"):
                bag.features(rows)
        with pytest.raises(BagError, match=r"bag\.h5': 'features' cannot be read \(.*\); embed it again"):
            bag.verify()


def test_an_extra_that_is_not_there_is_told_with_those_that_are(tmp_path):
    BagFile.write(tmp_path / "bag.h5", *bag_arrays(), INFO, {"instance_labels": np.zeros(5)})
    with (
        BagFile(tmp_path / "bag.h5") as bag,
        pytest.raises(BagError, match=r"no dataset 'labels' \(it has \['coords', 'features', 'instance_labels'\]\)"),
    ):
        bag.extra("labels")


def test_missing_and_foreign_files_are_errors_that_name_them(tmp_path):
    with pytest.raises(BagError, match=r"nothing\.h5.*no such file"):
        BagFile(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("slide_id,label\n")
    with pytest.raises(BagError, match=r"text\.h5.*not an HDF5 file"):
        BagFile(tmp_path / "text.h5")


@pytest.mark.usefixtures("fork_server")
def test_a_full_disk_is_one_clear_error_and_leaves_the_old_bag(tmp_path):
    BagFile.write(tmp_path / "bag.h5", *bag_arrays(2), INFO)
    script = f"""
    import resource
    import numpy as np
    from monai_mil.bags import BagFile, BagInfo
    from monai_mil.errors import OutputError
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        BagFile.write({str(tmp_path / "bag.h5")!r}, np.ones((4096, 1024)), np.zeros((4096, 2), int), BagInfo("big"))
    except OutputError as error:
        print(error)
    """
    done = run("-c", textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    assert "bag.h5' cannot be written (File too large); free some space" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bag.h5"]
    with BagFile(tmp_path / "bag.h5") as bag:
        assert bag.n == 2


def test_every_float16_that_is_not_finite_is_found_and_no_other():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for value in every:
        assert (first_non_finite_row(np.full((1, 1), value)) is None) == bool(np.isfinite(value)), value
    features = np.zeros((5, 3), np.float16)
    for row, value in ((4, np.nan), (2, -np.inf)):
        features[row, 1] = value
        assert first_non_finite_row(features) == row


@pytest.mark.parametrize("n", [1, 1000])
def test_the_frame_of_a_scan_comes_back_to_the_last_bit(tmp_path, n):
    scan, preset = frame(n), {"name": "lung", "windows": [[-600.0, 1500.0]], "mean": [0.1], "std": None}
    path = tmp_path / "scan.h5"
    extras = {"positions_mm": scan.positions_mm, "sop_uids": np.array(scan.sop_uids)}
    coords = np.stack([np.arange(n), np.zeros(n, int)], axis=1)
    BagFile.write(path, np.ones((n, 3)), coords, BagInfo("scan", scan=scan, preset=preset), extras)
    with BagFile(path) as bag:
        found = bag.info.scan
        assert bag.info.preset == preset
        assert bag.extras == ("positions_mm", "sop_uids")
        assert bag.extra("sop_uids").tolist() == list(scan.sop_uids)
        np.testing.assert_array_equal(bag.extra("positions_mm"), found.positions_mm)
    for name in ("origins", "orientation"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scan, name))
    for name in ("scan_id", "path", "size", "spacing", "sop_uids", "frame_numbers", "series_uid"):
        assert getattr(found, name) == getattr(scan, name), name


def test_a_frame_of_another_scan_is_refused(tmp_path):
    with pytest.raises(BagError, match=r"scan\.h5': 2 instances for the 3 slices of its scan"):
        BagFile.write(tmp_path / "scan.h5", np.ones((2, 3)), np.zeros((2, 2), int), BagInfo("scan", scan=frame(3)))


def test_a_damaged_frame_is_an_error_that_names_the_bag(tmp_path):
    path = tmp_path / "scan.h5"
    BagFile.write(path, np.ones((2, 3)), np.zeros((2, 2), int), BagInfo("scan", scan=frame(2)))
    for damaged in ("{", "{}", "[1]"):
        with h5py.File(path, "a") as file:
            file.attrs["monai_mil.scan"] = damaged
        with pytest.raises(BagError, match=r"scan\.h5': damaged"):
            BagFile(path)


def test_a_slide_s_file_says_nothing_of_scans(tmp_path):
    BagFile.write(tmp_path / "slide.h5", np.ones((2, 3)), np.zeros((2, 2), int), INFO)
    with h5py.File(tmp_path / "slide.h5") as file:
        assert not {"monai_mil.scan", "monai_mil.preset"} & set(file.attrs)
        assert set(file) == {"features", "coords", "feature_checksums"}


def test_a_flipped_bit_is_found_by_verify(tmp_path):
    features, coords = bag_arrays()
    for storage in ("float16", "uint8"):
        path = tmp_path / f"{storage}.h5"
        BagFile.write(path, features, coords, INFO, storage=storage)
        with BagFile(path) as bag:
            bag.verify()
            place = bag._features.id.get_offset() + 3
        content = bytearray(path.read_bytes())
        content[place] ^= 4
        path.write_bytes(content)
        with BagFile(path) as bag, pytest.raises(BagError, match=r"features.* not what was written"):
            bag.verify()


def test_a_bag_of_a_later_format_is_refused_and_says_what_to_do(tmp_path):
    features, coords = bag_arrays()
    BagFile.write(tmp_path / "bag.h5", features, coords, INFO)
    with h5py.File(tmp_path / "bag.h5", "r+") as file:
        file.attrs["monai_mil.format"] = BAG_FORMAT + 1
    with pytest.raises(BagError, match=rf"in format {BAG_FORMAT + 1}, this one reads up to {BAG_FORMAT}; update"):
        BagFile(tmp_path / "bag.h5")


def test_every_field_of_the_format_comes_back(tmp_path):
    features, coords = bag_arrays()
    info = BagInfo(
        "slide",
        source="12:ab",
        source_stamp="cd",
        tissue_version=2,
        decoder="imagecodecs 1",
        encoder_dtype="bfloat16",
        icc="apply",
        icc_profile=bytes(range(256)) * 1000,
        series=1,
        plane=3,
        given_mpp=0.25,
        orientation="LPS",
    )
    BagFile.write(tmp_path / "bag.h5", features, coords, info)
    with BagFile(tmp_path / "bag.h5") as bag:
        assert bag.info == info
        assert bag.info.format == BAG_FORMAT
        assert set(bag.info.digests) == {"feature_checksums", "coords"}


def damage(path, place, count=1):
    content = bytearray(path.read_bytes())
    for at in range(place, place + count):
        content[at] ^= 4
    path.write_bytes(content)


def checked_bag(path, storage="float16", tiles=10):
    """A bag of 4 tiles a block; where its features begin in the file, and bytes a tile."""
    features = np.random.default_rng(0).normal(size=(tiles, 1 << 19)).astype(np.float16)
    coords = np.arange(2 * tiles).reshape(tiles, 2)
    BagFile.write(path, features, coords, INFO, {"instance_labels": np.arange(tiles)}, storage)
    with BagFile(path) as bag:
        return bag._features.id.get_offset(), bag._features.dtype.itemsize << 19


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_features_that_are_not_what_was_written_are_refused_however_they_are_read(tmp_path, storage):
    path = tmp_path / "bag.h5"
    offset, row = checked_bag(path, storage)
    with BagFile(path) as bag:
        before = bag.features()
    damage(path, offset + 5 * row + 17)
    told = r"bag\.h5': the features of instances 4 to 7 are not what was written; remove the bag and embed again"
    for read in (
        lambda bag: bag.features(),
        lambda bag: bag.features(slice(4, 5)),
        lambda bag: bag.features([9, 6]),
        lambda bag: bag.mapped(),
        lambda bag: list(bag.chunks(3)),
    ):
        with BagFile(path) as bag, pytest.raises(DamagedBagError, match=told):
            read(bag)
    with BagFile(path) as bag, pytest.raises(DamagedBagError, match=r"features.* not what was written"):
        bag.verify()
    with BagFile(path) as bag:  # other blocks are read
        np.testing.assert_array_equal(bag.features(slice(0, 4)), before[:4])
        np.testing.assert_array_equal(bag.features([9, 8, 0]), before[[9, 8, 0]])


def test_a_block_is_checked_once_until_the_bag_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "bag.h5"
    checked_bag(path)
    read = []
    for module in ("checksums", "storage"):
        monkeypatch.setattr(
            f"monai_mil.bags.{module}.crc32", lambda data: read.append(memoryview(data).nbytes) or crc32(data)
        )
    with BagFile(path) as bag:
        bag.features([5])
        assert read == [4 << 20]
        bag.features(), bag.mapped()
        assert read == [4 << 20, 4 << 20, 2 << 20]
    with BagFile(path) as bag:
        bag.features()
    assert len(read) == 3
    BagFile.write(path, *bag_arrays(), INFO)
    with BagFile(path) as bag:
        bag.features()
    assert len(read) == 5  # written and read


@pytest.mark.parametrize("name", ["coords", "feature_scale", "feature_offset"])
def test_what_stands_beside_the_features_is_checked_too(tmp_path, name):
    path = tmp_path / "bag.h5"
    BagFile.write(path, *bag_arrays(), INFO, storage="uint8")
    with h5py.File(path, "r+") as file:  # which takes the seal off, under which they are too
        place = file[name].id.get_offset()
    damage(path, place + 2)
    with pytest.raises(DamagedBagError, match=rf"'{name}' is not what was written"):
        BagFile(path)


def test_a_bag_without_checksums_is_read_as_ever(tmp_path):
    path = tmp_path / "bag.h5"
    BagFile.write(path, *bag_arrays(), INFO)
    with h5py.File(path, "r+") as file:
        del file["feature_checksums"], file.attrs["monai_mil.digests"]
    with BagFile(path) as bag:
        np.testing.assert_array_equal(bag.features(), bag_arrays()[0])
        assert bag.mapped().features.shape == bag.features().shape
        bag.verify()


@pytest.mark.parametrize(
    "checksums", [np.zeros(3, np.uint32), np.zeros(1, np.int64), np.zeros((1, 1), np.uint32)], ids=str
)
def test_checksums_of_another_shape_are_damage(tmp_path, checksums):
    path = tmp_path / "bag.h5"
    BagFile.write(path, *bag_arrays(), INFO)
    with h5py.File(path, "r+") as file:
        rows = file["feature_checksums"].attrs["rows"]
        del file["feature_checksums"]
        file["feature_checksums"] = checksums
        file["feature_checksums"].attrs["rows"] = rows
    with pytest.raises(DamagedBagError, match=r"bag\.h5': its checksums do not fit its features"):
        BagFile(path)


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 1024)}, {"chunks": (1 << 20, 1024), "compression": "gzip"}])
@pytest.mark.parametrize("name", ["features", "coords"])
def test_a_shape_that_the_file_cannot_hold_is_refused_before_anything_is_allocated(tmp_path, options, name):
    path = tmp_path / "bag.h5"
    with h5py.File(path, "w") as file:
        for each, width in (("features", 1024), ("coords", 1024)):
            if each == name:
                file.create_dataset(each, (1 << 32, width), "f2", **options)
            else:
                file[each] = np.zeros((2, width), np.float16)
    assert path.stat().st_size < 1 << 14
    with pytest.raises(DamagedBagError, match=rf"bag\.h5': '{name}' of shape \[4294967296, 1024\] takes \d+ bytes"):
        BagFile(path)


def test_data_of_another_file_are_never_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.ones((2, 8), np.float16)
    virtual = h5py.VirtualLayout((2, 8), np.float16)
    virtual[:] = h5py.VirtualSource(tmp_path / "other.h5", "features", (2, 8))
    for number, point in enumerate(
        (
            lambda file: file.create_dataset("features", (2, 8), "f2", external=[(secret, 0, 32)]),
            lambda file: file.create_virtual_dataset("features", virtual),
            lambda file: file.__setitem__("features", h5py.ExternalLink("other.h5", "features")),
            lambda file: (
                file.__setitem__("there", h5py.ExternalLink("other.h5", "/")),
                file.__setitem__("features", h5py.SoftLink("/there/features")),
            ),
        )
    ):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["coords"] = np.zeros((2, 2), np.int64)
            point(file)
        with pytest.raises(BagError, match=rf"{number}\.h5': 'features' only points at data elsewhere"):
            BagFile(path)
