"""One bag a level of the quadtree: what it holds, and runs that are killed, repeated or changed."""

import json
import time

import h5py
import numpy as np
import pytest
import torch

from monai_mil.bags import BagFile, LoadBagd
from monai_mil.embedding import EmbedSettings, embed_cohort, embed_slide, tree_slide
from monai_mil.embedding.job import run_job
from monai_mil.embedding.slide_job import SlideJob
from monai_mil.encoders import get_encoder
from monai_mil.errors import SettingsError
from monai_mil.slides import open_slide, stream_tiles
from tests.embedding.counting import CountingEncoder, encoded, start_counting

SETTINGS = {"levels": 3, "tile_size": 64, "min_tissue": 0.2}
LEVELS = ("level_2", "level_1", "level_0")


@pytest.fixture(scope="module")
def embedded(border_slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("bags")
    report = embed_cohort([border_slide], out, CountingEncoder(out / "log"), batch_size=8, progress=False, **SETTINGS)
    assert report.failed == ()
    return out


def tree_of(path, encoder):
    slide = open_slide(path)
    return slide, tree_slide(slide, EmbedSettings.for_encoder(encoder, **SETTINGS))[0]


def bags(folder):
    """Contents of every level's bags."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("level_*/*.h5"))}


def test_every_level_is_a_bag_in_the_tree_s_order(border_slide, embedded):
    encoder = CountingEncoder(embedded / "unused")
    slide, tree = tree_of(border_slide, encoder)
    assert sorted(path.name for path in embedded.iterdir() if path.is_dir()) == [
        ".partial", "level_0", "level_1", "level_2", "runs", "tissue",
    ]  # fmt: skip
    assert [path.name for path in (embedded / "tissue").iterdir()] == ["tissue.png"]
    for level, grid in zip((2, 1, 0), tree.grids, strict=True):
        with BagFile(embedded / f"level_{level}" / "tissue.h5") as bag:
            assert (bag.info.level, bag.info.levels) == (level, 3)
            assert (bag.info.target_mpp, bag.info.tile_size) == (0.5 * 2**level, 64)
            assert bag.info.tile_size_level0 == 64 * 2**level
            assert bag.info.slide_id == "tissue"
            np.testing.assert_array_equal(bag.coords, grid.coords)
            np.testing.assert_array_equal(bag.extra("inside"), grid.inside)
            np.testing.assert_array_equal(bag.extra("tissue_fraction"), grid.tissue_fraction)
            assert bag.extra("inside").dtype == bool
            expected = torch.cat([encoder(tiles) for tiles in stream_tiles(slide, grid, batch_size=8)])
            np.testing.assert_array_equal(bag.features(), expected.numpy())
        with h5py.File(bag.path) as file:
            assert file["features"].chunks is None, "it can be mapped"
    slide.close()


def test_a_level_alone_is_an_ordinary_bag(embedded):
    loaded = LoadBagd(width=6, encoder="counting")({"image": str(embedded / "level_0" / "tissue.h5")})
    assert loaded["image"].shape == (6, len(loaded["coords"]))
    assert loaded["image"].meta["target_mpp"] == 0.5


def test_the_encoder_sees_one_of_a_batch_s_tiles_beyond_the_slide(border_slide, embedded):
    slide, tree = tree_of(border_slide, CountingEncoder(embedded / "unused"))
    seen = 0
    for grid in tree.grids:
        for start in range(0, len(grid), 8):
            inside = grid.inside[start : start + 8]
            seen += inside.sum() + (not inside.all())
    assert encoded(embedded / "log") == seen < len(tree)
    slide.close()


@pytest.mark.parametrize("spatial", [False, True])
def test_what_the_encoder_is_spared_changes_nothing(border_slide, spatial):
    encoder = get_encoder("texture", spatial=spatial)
    slide, tree = tree_of(border_slide, encoder)
    grid = tree.grids[-1].take(np.argsort(tree.grids[-1].inside, kind="stable"))
    assert not grid.inside[:9].any()
    batches = list(embed_slide(slide, grid, encoder, batch_size=5))
    assert [len(batch) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    for batch, tiles in zip(batches, stream_tiles(slide, grid, batch_size=5), strict=True):
        assert torch.equal(batch, encoder(tiles))
    slide.close()


def test_a_second_run_encodes_nothing_and_the_manifest_counts_all_levels(border_slide, embedded):
    before = encoded(embedded / "log")
    report = embed_cohort([border_slide], embedded, CountingEncoder(embedded / "log"), progress=False, **SETTINGS)
    slide, tree = tree_of(border_slide, CountingEncoder(embedded / "unused"))
    slide.close()
    assert [(result.status, result.instances) for result in report.results] == [("kept", len(tree))]
    assert encoded(embedded / "log") == before
    record = json.loads(report.manifest.read_text())
    assert record["settings"]["levels"] == 3
    assert record["slides"][0]["tiles"] == len(tree)


@pytest.mark.usefixtures("fork_server")
def test_a_run_killed_in_any_level_resumes_and_keeps_finished_levels(slide_cohort, tmp_path):
    settings = {**SETTINGS, "tile_size": 128}
    whole, log = tmp_path / "whole", tmp_path / "log"
    embed_cohort(slide_cohort, whole, CountingEncoder(tmp_path / "all"), batch_size=8, progress=False, **settings)
    tiles, kills, finished = encoded(tmp_path / "all"), 0, {}
    for _ in range(5):
        process = start_counting(slide_cohort, tmp_path / "bags", log, seconds=0.05, **settings)
        target, deadline = encoded(log) + tiles // 8, time.monotonic() + 60
        while process.poll() is None and encoded(log) < target and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        now = {path: path.stat().st_mtime_ns for path in (tmp_path / "bags").glob("level_*/*.h5")}
        assert finished.items() <= now.items(), "a finished level is never made again"
        finished = now
    assert kills >= 3
    assert any(len(list((tmp_path / "bags").glob(f"*/slide_00{slide}.h5"))) in (1, 2) for slide in range(4))
    report = embed_cohort(
        slide_cohort, tmp_path / "bags", CountingEncoder(log), batch_size=8, progress=False, **settings
    )
    assert report.failed == ()
    assert encoded(log) <= tiles + 8 * kills, "at most the batch in work is encoded again"
    ours, expected = bags(tmp_path / "bags"), bags(whole)
    assert ours.keys() == expected.keys()
    assert len(expected) == 12
    for name in expected:
        with BagFile(tmp_path / "bags" / name) as bag, BagFile(whole / name) as other:
            np.testing.assert_array_equal(bag.features(), other.features())
    assert not list((tmp_path / "bags" / ".partial").rglob("*.rows"))


def test_a_level_of_other_settings_is_neither_mixed_nor_lost(border_slide, tmp_path):
    encoder = CountingEncoder(tmp_path / "log")
    embed_cohort([border_slide], tmp_path, encoder, progress=False, **SETTINGS)
    (tmp_path / "level_0" / "tissue.h5").unlink()
    before, tiles = bags(tmp_path), encoded(tmp_path / "log")
    for changed in ({"min_tissue": 0.5}, {"levels": 2}, {"target_mpp": 0.25}):
        report = embed_cohort([border_slide], tmp_path, encoder, progress=False, **{**SETTINGS, **changed})
        assert "made with other settings" in report.failed[0].error
    assert bags(tmp_path) == before
    assert encoded(tmp_path / "log") == tiles
    report = embed_cohort([border_slide], tmp_path, encoder, progress=False, **SETTINGS)
    assert report.results[0].status == "embedded"
    assert bags(tmp_path).items() >= before.items(), "the two that were there stay"


def test_only_the_level_that_cannot_be_read_is_made_anew(border_slide, tmp_path):
    encoder = CountingEncoder(tmp_path / "log")
    embed_cohort([border_slide], tmp_path, encoder, progress=False, **SETTINGS)
    good = bags(tmp_path)
    damaged = tmp_path / "level_1" / "tissue.h5"
    damaged.write_bytes(b"damaged")
    tiles = encoded(tmp_path / "log")
    report = embed_cohort([border_slide], tmp_path, encoder, progress=False, **SETTINGS)
    assert "its bag 'tissue.h5' could not be read and was made anew" in report.results[0].remarks
    with BagFile(damaged) as bag:
        assert 0 < encoded(tmp_path / "log") - tiles <= bag.n
    assert report.results[0].status == "embedded"
    assert {name for name, content in bags(tmp_path).items() if content == good[name]} >= {
        "level_0/tissue.h5",
        "level_2/tissue.h5",
    }


def test_a_tree_and_plain_bags_may_share_a_folder(border_slide, tmp_path):
    encoder = CountingEncoder(tmp_path / "log")
    for settings in ({"tile_size": 64}, SETTINGS):
        assert embed_cohort([border_slide], tmp_path, encoder, progress=False, **settings).failed == ()
    with BagFile(tmp_path / "tissue.h5") as bag:
        assert (bag.info.level, bag.info.levels, bag.extras) == (None, None, ())


def test_progress_counts_the_tiles_of_all_levels(border_slide, tmp_path):
    encoder, told = CountingEncoder(tmp_path / "log"), []
    settings = EmbedSettings.for_encoder(encoder, **SETTINGS)
    job = SlideJob("tissue", border_slide, tmp_path, "cpu", False, settings, 8)
    result = run_job(job, encoder, lambda *counts: told.append(counts), wait=True)
    assert {total for _, total in told} == {result.instances}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, result.instances)
    (tmp_path / "level_1" / "tissue.h5").unlink()
    told.clear()
    assert run_job(job, encoder, lambda *counts: told.append(counts), wait=True).status == "embedded"
    with BagFile(tmp_path / "level_2" / "tissue.h5") as coarse, BagFile(tmp_path / "level_1" / "tissue.h5") as made:
        assert (told[0][0], told[-1][0]) == (coarse.n, coarse.n + made.n), "kept levels count as done"


def test_a_bad_slide_stops_nothing(border_slide, tmp_path, capfd):
    (tmp_path / "text.svs").write_text("this is no slide")
    report = embed_cohort(
        [tmp_path / "text.svs", border_slide], tmp_path, CountingEncoder(tmp_path / "log"), batch_size=8, **SETTINGS
    )
    assert [result.status for result in report.results] == ["failed", "embedded"]
    assert "1 of 2 slides failed" in capfd.readouterr().err


def test_tiles_that_overlap_make_no_tree(border_slide, tmp_path):
    with pytest.raises(SettingsError, match="overlap 8: must be 0 px where there are levels"):
        embed_cohort([border_slide], tmp_path, "texture", levels=2, overlap=8)
    with pytest.raises(SettingsError, match="levels 0: must be at least 1"):
        embed_cohort([border_slide], tmp_path, "texture", levels=0)


def test_a_slide_without_a_coarse_tile_of_tissue_is_named(border_slide, tmp_path):
    report = embed_cohort([border_slide], tmp_path, CountingEncoder(tmp_path / "log"), levels=4, progress=False)
    assert "no tile of 256 px at 4 mpp has 25% of it" in report.failed[0].error
    assert not list(tmp_path.glob("level_*"))
