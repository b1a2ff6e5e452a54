import json
import random
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import read_cohort
from monai_mil.embedding import EmbedSettings, embed_cohort, embed_slide, tile_slide
from monai_mil.encoders import get_encoder
from monai_mil.errors import SettingsError
from monai_mil.identity import change_stamp, content_identity
from monai_mil.slides import TISSUE_VERSION, decoder_of, open_slide, write_pyramid
from tests.embedding.counting import CountingEncoder, encoded, start_counting

pytestmark = pytest.mark.usefixtures("fork_server")


def bags(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.h5")):
        with BagFile(path) as bag:
            found[path.stem] = bag.features()
    return found


def assert_same_bags(folder: Path, other: Path) -> None:
    ours, theirs = bags(folder), bags(other)
    assert ours.keys() == theirs.keys()
    for name, features in ours.items():
        np.testing.assert_array_equal(features, theirs[name])


@pytest.fixture(scope="module")
def reference(slide_cohort, tmp_path_factory):
    """The cohort embedded in one go, and the number of its tiles."""
    out = tmp_path_factory.mktemp("reference")
    report = embed_cohort(slide_cohort, out, CountingEncoder(out / "log"), batch_size=8, progress=False)
    assert [result.status for result in report.results] == ["embedded"] * 4
    tiles = sum(result.instances for result in report.results)
    assert encoded(out / "log") == tiles
    return out, tiles


def test_a_bag_knows_its_slide_tiles_and_encoder(slide_cohort, reference):
    with BagFile(reference[0] / "slide_001.h5") as bag, open_slide(bag.info.slide_path) as slide:
        settings = EmbedSettings.for_encoder(CountingEncoder(reference[0] / "unused"))
        grid, tissue = tile_slide(slide, settings)
        np.testing.assert_array_equal(bag.coords, grid.coords)
        assert bag.info == BagInfo(
            slide_id="slide_001",
            slide_path=str(slide_cohort.parent / "slides" / "slide_001.tif"),
            encoder="counting",
            encoder_digest="c0",
            tile_size=256,
            tile_size_level0=256.0,
            overlap=0,
            target_mpp=0.5,
            level0_size=(2048, 2048),
            mpp=0.5,
            reader=slide.reader,
            tissue=settings.tissue_record(),
            tissue_version=TISSUE_VERSION,
            bounds=(0, 0, 2048, 2048),
            source=content_identity([slide.path]),
            source_stamp=change_stamp([slide.path]),
            decoder=decoder_of(slide),
            icc="none",
            encoder_dtype="float32",
        )
        expected = torch.cat(list(embed_slide(slide, grid, CountingEncoder(reference[0] / "unused"), batch_size=8)))
        np.testing.assert_array_equal(bag.features(), expected.numpy())
    mask = cv2.imread(str(reference[0] / "tissue" / "slide_001.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, tissue.mask)


def test_the_spatial_map_of_an_encoder_reaches_the_bag(slide_cohort, tmp_path):
    encoder = get_encoder("texture", spatial=True)
    path = slide_cohort.parent / "slides" / "slide_000.tif"
    report = embed_cohort([path], tmp_path, encoder, progress=False)
    assert report.failed == ()
    with BagFile(tmp_path / "slide_000.h5") as bag, open_slide(path) as slide:
        assert (bag.grid, bag.width) == (encoder.grid, encoder.width)
        grid, _ = tile_slide(slide, EmbedSettings.for_encoder(encoder))
        expected = torch.cat(list(embed_slide(slide, grid, encoder)))
        np.testing.assert_array_equal(bag.features(), expected.numpy())


def test_a_second_run_encodes_nothing(slide_cohort, reference):
    out, tiles = reference
    report = embed_cohort(slide_cohort, out, CountingEncoder(out / "log"), batch_size=8, progress=False)
    assert [result.status for result in report.results] == ["kept"] * 4
    assert sum(result.instances for result in report.results) == tiles
    assert encoded(out / "log") == tiles


def test_a_run_killed_at_random_moments_resumes_without_reencoding(slide_cohort, reference, tmp_path):
    moments = random.Random(0)
    log, kills = tmp_path / "log", 0
    for _ in range(6):
        process = start_counting(slide_cohort, tmp_path / "bags", log, seconds=0.1)
        before, deadline = encoded(log), time.monotonic() + 60
        target = before + 8 * moments.randint(1, 5)
        while process.poll() is None and encoded(log) < target and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        for path in (tmp_path / "bags").glob("*.h5"):
            BagFile(path).close()
    assert start_counting(slide_cohort, tmp_path / "bags", log, seconds=0.0).wait() == 0
    assert kills >= 3
    assert_same_bags(tmp_path / "bags", reference[0])
    assert reference[1] <= encoded(log) <= reference[1] + 8 * kills, "at most the batch in work is encoded again"
    assert not list((tmp_path / "bags" / ".partial").glob("*.rows"))


def test_two_processes_share_a_cohort_and_do_no_slide_twice(slide_cohort, reference, tmp_path):
    runs = [start_counting(slide_cohort, tmp_path / "bags", tmp_path / "log", seconds=0.05) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert encoded(tmp_path / "log") == reference[1]
    assert_same_bags(tmp_path / "bags", reference[0])
    done = [json.loads(path.read_text())["slides"] for path in (tmp_path / "bags" / "runs").iterdir()]
    assert sorted(slide["slide_id"] for run in done for slide in run if slide["status"] == "embedded") == [
        f"slide_00{index}" for index in range(4)
    ]


def test_a_full_disk_fails_the_slide_and_a_later_run_goes_on(slide_cohort, reference, tmp_path):
    assert start_counting(slide_cohort, tmp_path / "bags", tmp_path / "log", seconds=0.0, limit=4096).wait() == 4
    record = json.loads(next((tmp_path / "bags" / "runs").iterdir()).read_text())
    assert "cannot be written (File too large); free some space" in record["slides"][0]["error"]
    assert not list((tmp_path / "bags").glob("*.h5"))
    before = encoded(tmp_path / "log")
    assert start_counting(slide_cohort, tmp_path / "bags", tmp_path / "log", seconds=0.0).wait() == 0
    assert_same_bags(tmp_path / "bags", reference[0])
    assert encoded(tmp_path / "log") < before + reference[1], "finished batches are kept"


@pytest.fixture(scope="module")
def bad_slides(slide_cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    good = (slide_cohort.parent / "slides" / "slide_001.tif").read_bytes()
    (folder / "truncated.tif").write_bytes(good[: len(good) // 2])
    (folder / "text.svs").write_text("this is no slide")
    write_pyramid(folder / "blank.tif", np.full((1024, 1024, 3), 245, np.uint8), mpp=0.5)
    with tifffile.TiffWriter(folder / "no_mpp.tif") as tiff:
        tiff.write(np.zeros((512, 512, 3), np.uint8), tile=(256, 256), photometric="rgb", metadata=None)
    return folder


def test_failing_slides_are_reported_and_the_rest_is_finished(slide_cohort, bad_slides, tmp_path, capfd):
    slides = slide_cohort.parent / "slides"
    cohort = [
        slides / "slide_000.tif",
        bad_slides / "missing.svs",
        bad_slides / "text.svs",
        bad_slides / "truncated.tif",
        bad_slides / "blank.tif",
        bad_slides / "no_mpp.tif",
        bad_slides.parent / "elsewhere" / "slide_000.tif",
        slides / "slide_001.tif",
    ]
    report = embed_cohort(cohort, tmp_path, CountingEncoder(tmp_path / "log"))
    status = [result.status for result in report.results]
    assert status == ["embedded", *["failed"] * 6, "embedded"]
    assert len(report.failed) == 6
    for result in report.failed:
        assert result.path in result.error, "the error names the file"
    errors = {Path(result.path).name: result.error for result in report.failed}
    assert "no tissue" in errors["blank.tif"]
    assert "no pixel size (mpp)" in errors["no_mpp.tif"]
    assert "is taken by" in errors["slide_000.tif"]
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["slide_000.h5", "slide_001.h5"]
    shown = capfd.readouterr().err
    assert "6 of 8 slides failed" in shown
    assert "blank.tif" in shown
    record = json.loads(report.manifest.read_text())
    assert [slide["status"] for slide in record["slides"]] == status
    assert (record["encoder"], record["settings"]["tile_size"]) == ("counting", 256)


def test_a_thumbnail_among_slides_is_refused_and_the_rest_is_finished(slide_cohort, tmp_path):
    thumbnail, whole = tmp_path / "thumbnail.tif", slide_cohort.parent / "slides" / "slide_000.tif"
    write_pyramid(thumbnail, np.full((64, 64, 3), (180, 60, 140), np.uint8), mpp=4.0)
    encoder = CountingEncoder(tmp_path / "log")
    report = embed_cohort([thumbnail, whole], tmp_path / "bags", encoder, progress=False)
    refused, embedded = report.results
    assert (refused.status, refused.cause, embedded.status) == ("failed", "too coarse", "embedded")
    assert "4 µm per pixel, too coarse for tiles at 0.5" in refused.error


def test_a_given_pixel_size_makes_slides_without_one_readable(bad_slides, tmp_path):
    encoder = CountingEncoder(tmp_path / "log")
    report = embed_cohort([bad_slides / "no_mpp.tif"], tmp_path, encoder, mpp=0.5, min_tissue=0.0, progress=False)
    assert "no pixel size" not in (report.results[0].error or "")


def test_a_bag_of_other_settings_is_neither_reused_nor_lost(slide_cohort, tmp_path):
    path = slide_cohort.parent / "slides" / "slide_000.tif"
    encoder = CountingEncoder(tmp_path / "log")
    embed_cohort([path], tmp_path, encoder, progress=False)
    before = (tmp_path / "slide_000.h5").read_bytes()
    for changed, settings in ((encoder, {"overlap": 64}), (CountingEncoder(tmp_path / "log"), {"tile_size": 224})):
        report = embed_cohort([path], tmp_path, changed, progress=False, **settings)
        assert "made with other settings" in report.failed[0].error
    encoder.digest = "c1"
    report = embed_cohort([path], tmp_path, encoder, progress=False)
    assert "encoder_digest c0 instead of c1" in report.failed[0].error
    assert (tmp_path / "slide_000.h5").read_bytes() == before
    report = embed_cohort([path], tmp_path, encoder, overwrite=True, progress=False)
    assert report.results[0].status == "embedded"
    with BagFile(tmp_path / "slide_000.h5") as bag:
        assert bag.info.encoder_digest == "c1"


def test_a_bag_of_another_pixel_size_series_plane_or_colour_is_not_kept(slide_cohort, tmp_path):
    path = slide_cohort.parent / "slides" / "slide_000.tif"
    encoder = CountingEncoder(tmp_path / "log")

    def embed(**settings):
        (result,) = embed_cohort([path], tmp_path, encoder, progress=False, **settings).results
        return result

    assert embed(mpp=0.4, overwrite=True).status == "embedded"
    with BagFile(tmp_path / "slide_000.h5") as bag:
        assert (bag.info.mpp, bag.info.given_mpp) == (0.4, 0.4)
    assert embed(mpp=0.4).status == "kept"
    assert "given_mpp 0.4 instead of None" in embed().error
    remade = embed(overwrite=True)
    assert (remade.status, remade.remarks) == ("embedded", ())
    assert embed(mpp=0.5).status == "kept"
    for setting, value, told in (
        ("mpp", 0.4, "mpp 0.5 instead of 0.4"),
        ("series", 0, "series None instead of 0"),
        ("plane", 0, "plane None instead of 0"),
        ("icc", "apply", "icc none instead of apply"),
    ):
        assert told in embed(**{setting: value}).error
    (remark, *_) = embed(mpp=0.4, overwrite=True).remarks
    assert "the file says 0.5 µm a pixel; the given 0.4 is taken" in remark


def test_bags_of_one_byte_a_feature_are_made_kept_and_not_mixed_with_others(slide_cohort, tmp_path):
    path = slide_cohort.parent / "slides" / "slide_000.tif"
    encoder = get_encoder("texture", spatial=True)
    for status in ("embedded", "kept"):
        report = embed_cohort([path], tmp_path, encoder, storage="uint8", progress=False)
        assert report.results[0].status == status
    with BagFile(tmp_path / "slide_000.h5") as bag:
        assert bag.storage == "uint8"
    report = embed_cohort([path], tmp_path, encoder, progress=False)
    assert "storage uint8 instead of float16" in report.failed[0].error
    with pytest.raises(SettingsError, match="storage 'int4'"):
        embed_cohort([path], tmp_path, encoder, storage="int4", progress=False)


class _StopAfter(CountingEncoder):
    """Raises at the third batch, as a machine out of memory would."""

    def __call__(self, tiles):
        if encoded(self.log) >= 16:
            raise MemoryError("out of memory")
        return super().__call__(tiles)


@pytest.mark.parametrize(("digest", "again"), [("c0", 0), ("c1", 16)])
def test_an_unfinished_slide_goes_on_only_under_the_same_encoder(slide_cohort, tmp_path, digest, again):
    path, log = slide_cohort.parent / "slides" / "slide_000.tif", tmp_path / "log"
    report = embed_cohort([path], tmp_path, _StopAfter(log), batch_size=8, progress=False)
    assert "MemoryError" in report.failed[0].error
    assert encoded(log) == 16
    encoder = CountingEncoder(log)
    encoder.digest = digest
    report = embed_cohort([path], tmp_path, encoder, batch_size=8, progress=False)
    assert report.results[0].status == "embedded"
    assert encoded(log) == report.results[0].instances + again


class _NotANumber(CountingEncoder):
    def __call__(self, tiles):
        return super().__call__(tiles) * float("nan")


def test_an_encoder_that_gives_nan_fails_the_slide(slide_cohort, tmp_path):
    path = slide_cohort.parent / "slides" / "slide_000.tif"
    report = embed_cohort([path], tmp_path, _NotANumber(tmp_path / "log"), progress=False)
    assert "NaN" in report.failed[0].error
    assert not (tmp_path / "slide_000.h5").exists()


def test_the_table_names_the_bags(slide_cohort, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"slide_id,path\nfirst,{slide_cohort.parent / 'slides' / 'slide_000.tif'}\nsecond,\n")
    report = embed_cohort(table, tmp_path / "bags", CountingEncoder(tmp_path / "log"), progress=False)
    assert [result.status for result in report.results] == ["embedded", "failed"]
    assert "'second': the table has no path" in report.failed[0].error
    with BagFile(tmp_path / "bags" / "first.h5") as bag:
        assert bag.info.slide_id == "first"


def test_dask_workers_embed_the_same_bags(slide_cohort, reference, bad_slides, tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    slides = [slide.path for slide in read_cohort(slide_cohort).slides]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        report = embed_cohort(
            [*slides, bad_slides / "text.svs"],
            tmp_path,
            CountingEncoder(tmp_path / "log"),
            batch_size=8,
            progress=False,
            scheduler=cluster.scheduler_address,
        )
    assert [result.status for result in report.results] == [*["embedded"] * 4, "failed"]
    assert_same_bags(tmp_path, reference[0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"overlap": 256}, "overlap 256: must be from 0 to 255 px"),
        ({"tile_size": 0}, "tile size 0: must be at least 1 px"),
        ({"target_mpp": -0.5}, "target mpp -0.5: must be above 0"),
        ({"min_tissue": 25}, "min tissue 25: must be a fraction"),
        ({"mpp": 0.0}, "mpp 0.0: must be above 0"),
    ],
)
def test_settings_that_fit_no_slide_are_refused_before_any_is_opened(tmp_path, setting, message):
    with pytest.raises(SettingsError, match=message):
        embed_cohort([tmp_path / "not_there.svs"], tmp_path / "bags", "texture", **setting)
    assert not (tmp_path / "bags").exists()
