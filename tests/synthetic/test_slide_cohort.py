import csv
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import label
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_mil.bags import BagFile
from monai_mil.cohorts import read_cohort
from monai_mil.embedding.slide import EmbedSettings, embed_slide, tile_slide
from monai_mil.encoders import get_encoder
from monai_mil.slides import open_slide
from monai_mil.synthetic import LESION_RADII, make_bag_cohort, make_slide_cohort, tile_truth
from monai_mil.synthetic.slide import plan_slide

LABELS = ("label_0", "label_1", "label_2", "label_3")


def test_the_same_seed_gives_the_same_pixels():
    first, again, other = (np.concatenate(list(plan_slide((700, 900), 0.5, True, seed).bands())) for seed in (1, 1, 2))
    assert first.shape == (900, 700, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_slides_open_and_their_table_is_valid(slide_cohort):
    cohort = read_cohort(slide_cohort)
    assert cohort.classes == ("normal", "tumor")
    assert [slide.label for slide in cohort.slides] == [0, 1, 0, 1]
    for item in cohort.datalist():
        with open_slide(item["image"]) as slide:
            assert (slide.size, slide.mpp) == ((2048, 2048), pytest.approx(0.5))
            assert len(slide.levels) >= 2
            thumbnail = slide.thumbnail(256).astype(int)
        corner, tissue = thumbnail[:8, :8], thumbnail[thumbnail.sum(axis=2) < 600]
        assert corner.min() > 220, "background is white"
        assert len(tissue) > 0.15 * 256 * 256
        red, green, blue = tissue.mean(axis=0)
        assert red > green + 20
        assert blue > green + 10


def test_only_tumour_slides_have_tumour_and_all_of_it_is_tissue(slide_cohort):
    for slide in read_cohort(slide_cohort).slides:
        with np.load(slide_cohort.parent / "masks" / f"{slide.slide_id}.npz") as mask:
            assert mask["tumour"].any() == bool(slide.label)
    plan = plan_slide((2048, 2048), 0.5, True, 3)
    assert plan.tissue[plan.tumour].min() > 0.5


def test_patients_with_several_slides_stay_in_one_split(tmp_path):
    cohort = read_cohort(make_slide_cohort(tmp_path, num_slides=12, size=(512, 512)))
    assert len({slide.patient_id for slide in cohort.slides}) == 10
    assert {slide.split for slide in cohort.slides} == {"train", "val", "test"}


def test_tile_truth_is_the_tumour_share_of_every_tile(tmp_path):
    rng = np.random.default_rng(0)
    tumour = rng.random((40, 30)) < 0.3
    np.savez(tmp_path / "mask.npz", tumour=tumour, downsample=16)
    coords = rng.integers(0, 20, (50, 2)) * 16
    expected = [tumour[y // 16 : y // 16 + 4, x // 16 : x // 16 + 4].mean() for x, y in coords]
    np.testing.assert_allclose(tile_truth(tmp_path / "mask.npz", coords, 64.0), expected, rtol=1e-6)
    outside = tile_truth(tmp_path / "mask.npz", np.array([[30 * 16 - 32, 0]]), 64.0)
    np.testing.assert_allclose(outside, tumour[:4, -2:].sum() / 16)


def test_tumour_shows_in_texture_features_but_not_in_colour_alone(slide_cohort):
    encoder = get_encoder("texture")
    colours, textures, truths = [], [], []
    for item in read_cohort(slide_cohort).datalist():
        with open_slide(item["image"]) as slide:
            grid, _ = tile_slide(slide, EmbedSettings.for_encoder(encoder, tile_size=128))
            textures += [batch.float().numpy() for batch in embed_slide(slide, grid, encoder)]
            colours += [slide.read(x, y, (128, 128)).mean(axis=(0, 1)) for x, y in grid.coords]
        mask = slide_cohort.parent / "masks" / f"{item['slide_id']}.npz"
        truths.append(tile_truth(mask, grid.coords, grid.tile_size_level0) > 0.5)
    truth = np.concatenate(truths)
    half = len(truth) // 2  # the first two slides teach, the others are tested

    def auroc(features: np.ndarray) -> float:
        features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
        model = LogisticRegression(C=0.1, max_iter=500).fit(features[:half], truth[:half])
        return roc_auc_score(truth[half:], model.decision_function(features[half:]))

    texture, colour = auroc(np.concatenate(textures)), auroc(np.stack(colours))
    assert texture > 0.97
    assert colour < texture


def test_a_follicular_lesion_differs_from_a_follicle_only_at_the_finest_level():
    encoder, tiles, facts = get_encoder("texture"), {1: [], 4: []}, {1: [], 4: []}
    for seed in range(12):
        lesion = plan_slide((640, 640), 0.5, True, seed, radius=110.0, kind="follicular")
        benign = replace(lesion, tumour=np.zeros_like(lesion.tumour))
        for truth, plan in enumerate((benign, lesion)):
            pixels = np.concatenate(list(plan.bands()))
            for scale in tiles:
                level = pixels.reshape(640 // scale, scale, 640 // scale, scale, 3).mean(axis=(1, 3)).astype(np.uint8)
                for x, y in _tiles_within(lesion.tumour, 64 * scale)[:: 8 // scale]:
                    tiles[scale].append(level[y // scale :, x // scale :][:64, :64])
                    facts[scale].append((truth, seed))
    found = {}
    for scale, images in tiles.items():
        features = encoder(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()).float().numpy()
        found[scale] = _probe(features, *np.array(facts[scale]).T)
    assert found[1] > 0.97
    assert found[4] < 0.7


def _tiles_within(mask, side):
    """Corners of the tiles of a grid of 32 pixels that lie wholly in a mask drawn at a sixteenth."""
    corners = np.stack(np.meshgrid(*[np.arange(0, 16 * length - side + 1, 32) for length in mask.shape[::-1]]))
    cells = side // 16
    return [(x, y) for x, y in corners.reshape(2, -1).T if mask[y // 16 :, x // 16 :][:cells, :cells].all()]


def _probe(features, truth, slide):
    """AUROC of a linear model on slides it has not seen."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500))
    scores = cross_val_predict(model, features, truth, groups=slide, cv=GroupKFold(4), method="decision_function")
    return roc_auc_score(truth, scores)


def test_dense_tissue_hints_at_a_follicular_lesion_and_no_more():
    plans = [plan_slide((3072, 3072), 0.5, bool(seed % 2), seed, kind="follicular") for seed in range(120)]
    dense = [((plan.follicle > 0.5) & (plan.tissue > 0.5)).sum() / (plan.tissue > 0.5).sum() for plan in plans]
    truth = [seed % 2 for seed in range(120)]
    assert 0.7 < roc_auc_score(truth, np.array(dense) > 0) < 0.8
    assert 0.75 < roc_auc_score(truth, dense) < 0.88


def test_a_cohort_may_have_follicular_lesions_at_any_resolution(tmp_path):
    for mpp in (0.5, 4.0):
        folder = tmp_path / str(mpp)
        table = make_slide_cohort(
            folder,
            num_slides=2,
            size=(256, 256),
            mpp=mpp,
            lesions={"one": 40.0},
            kind="follicular",
            fractions=(1, 0, 0),
        )
        (_, item) = read_cohort(table).datalist()
        with open_slide(item["image"]) as slide, np.load(folder / "masks" / "slide_001.npz") as mask:
            assert mask["tumour"].any()
            assert slide.thumbnail(64).min() < 200


def test_a_tumour_slide_has_one_lesion_of_the_size_that_the_table_says(tmp_path):
    radii = {"small": 30.0, "moderate": 60.0, "large": 120.0}
    table = make_slide_cohort(tmp_path, num_slides=8, size=(1024, 1024), seed=3, lesions=radii, fractions=(1, 0, 0))
    for row in _rows(table):
        with np.load(tmp_path / "masks" / f"{row['slide_id']}.npz") as mask:
            components, area = label(mask["tumour"], structure=np.ones((3, 3)))[1], mask["tumour"].sum()
        assert (row["lesion"] == "") == (row["label"] == "normal") == (components == 0)
        if row["lesion"]:
            assert components == 1
            assert area * 8.0**2 == pytest.approx(np.pi * radii[row["lesion"]] ** 2, rel=0.1)


def test_every_split_has_lesions_of_every_size(tmp_path):
    table = make_slide_cohort(tmp_path, num_slides=36, size=(256, 256), lesions={"small": 10.0, "large": 30.0})
    for split in ("train", "val", "test"):
        lesions = [row["lesion"] for row in _rows(table) if row["split"] == split]
        assert lesions.count("small") == pytest.approx(len(lesions) / 4, abs=1.5)
        assert lesions.count("large") == pytest.approx(len(lesions) / 4, abs=1.5)
    assert read_cohort(table).classes == ("normal", "tumor")


def test_three_sizes_of_lesion_are_parted_by_their_documented_areas():
    bounds, found = (0.0, 0.03, 0.2, 4.0), []
    for radius in LESION_RADII.values():
        areas = [plan_slide((4096, 4096), 0.5, True, seed, radius).tumour.sum() * 0.008**2 for seed in range(4)]
        found.append({int(np.searchsorted(bounds, area)) for area in areas})
    assert found == [{1}, {2}, {3}]


def test_the_mask_pyramid_lies_on_the_slide_and_says_what_the_npz_says(tmp_path):
    table = make_slide_cohort(tmp_path, num_slides=2, size=(1500, 1300), mpp=0.4, fractions=(1, 0, 0))
    assert table.exists()
    with np.load(tmp_path / "masks" / "slide_001.npz") as mask:
        tumour = mask["tumour"]
    with tifffile.TiffFile(tmp_path / "masks" / "slide_001.tif") as tiff:
        level0, *reduced = [page.asarray() for page in tiff.pages]
        resolution = tiff.pages[0].tags["XResolution"].value
    assert 1e4 / (resolution[0] / resolution[1]) == pytest.approx(0.4)
    assert level0.shape == (1300, 1500)
    np.testing.assert_array_equal(level0 > 0, tumour.repeat(16, 0).repeat(16, 1)[:1300, :1500])
    assert [level.shape for level in reduced] == [(325, 375), (82, 94)]
    np.testing.assert_array_equal(reduced[1] > 0, tumour)
    assert set(np.unique(level0)) == {0, 255}


def test_planted_instances_carry_the_label_of_their_bag(tmp_path):
    table = make_bag_cohort(tmp_path, num_bags=12, width=16, classes=("none", "left", "right"), bag_size=(1, 50))
    cohort = read_cohort(table, classes=("none", "left", "right"))
    for item in cohort.datalist(bag_dir=tmp_path / "bags"):
        with BagFile(item["image"]) as bag:
            labels = bag.extra("instance_labels")
            assert set(labels) <= {0, item["label"]}
            assert labels.max() == item["label"]
            assert 1 <= bag.n <= 50
            assert len(np.unique(bag.coords, axis=0)) == bag.n
            assert bag.info.encoder == "synthetic"


def test_bag_cohorts_are_seeded_and_may_be_spatial(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_bag_cohort(tmp_path / name, num_bags=10, width=8, grid=(2, 3), seed=seed, bag_size=(3, 9))
    contents = []
    for name in "abc":
        with BagFile(tmp_path / name / "bags" / "bag_003.h5") as bag:
            assert bag.grid == (2, 3)
            contents.append(bag.features().tobytes())
    assert contents[0] == contents[1] != contents[2]


def test_labels_of_a_multi_label_cohort_are_independent_and_some_are_unknown(tmp_path):
    table = make_bag_cohort(tmp_path, num_bags=200, width=4, bag_size=(1, 3), multi_label=True, missing=0.2)
    cohort = read_cohort(table, labels=LABELS)
    labels = np.array([slide.label for slide in cohort.slides])
    assert labels.shape == (200, 4)
    assert 0.12 < np.isnan(labels).mean() < 0.28
    assert not np.isnan(labels).all(axis=1).any()
    assert (np.abs(np.nanmean(labels, axis=0) - 0.5) < 0.1).all()
    with_truth = [_token_labels(tmp_path, slide.slide_id).any(axis=(0, 2, 3)) for slide in cohort.slides]
    present = np.array(with_truth)
    np.testing.assert_array_equal(labels[~np.isnan(labels)], present[~np.isnan(labels)])
    assert (np.abs(np.corrcoef(present.T) - np.eye(4)) < 0.25).all()


def test_each_label_is_planted_on_connected_tokens_that_show_its_prototype(tmp_path):
    table = make_bag_cohort(tmp_path, num_bags=20, width=32, seed=1, grid=(6, 6), bag_size=(16, 30), multi_label=True)
    cohort = read_cohort(table, labels=LABELS)
    shown: list[list[np.ndarray]] = [[] for _ in LABELS]
    for slide in cohort.slides:
        with BagFile(tmp_path / "bags" / f"{slide.slide_id}.h5") as bag:
            features, tokens = bag.features().astype(np.float32), bag.extra("token_labels")
            np.testing.assert_array_equal(bag.extra("instance_labels"), tokens.any(axis=(1, 2, 3)))
            rows, columns = bag.coords[:, 1] // 512, bag.coords[:, 0] // 512
        canvas = np.zeros((4, (rows.max() + 1) * 6, (columns.max() + 1) * 6))
        for row, column, tile in zip(rows, columns, tokens, strict=True):
            canvas[:, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] = tile
        for planted in canvas[canvas.any(axis=(1, 2))]:
            assert label(planted)[1] == 1
            assert planted.sum() == max(1, round(0.1 * tokens[:, 0].size))
        for tile, truth in zip(
            features.reshape(len(features), 32, -1), tokens.reshape(len(tokens), 4, -1), strict=True
        ):
            alone = truth.sum(axis=0) == 1
            for k in np.flatnonzero(truth[:, alone].any(axis=1) & (truth.sum(axis=0) == 0).any()):
                difference = tile[:, alone & (truth[k] > 0)].mean(axis=1) - tile[:, truth.sum(axis=0) == 0].mean(axis=1)
                shown[k].append(difference)
    for shifts in shown:
        halves = [np.mean(shifts[start::2], axis=0) for start in (0, 1)]
        assert np.corrcoef(halves)[0, 1] > 0.9
    assert np.abs(np.corrcoef([np.mean(shifts, axis=0) for shifts in shown]) - np.eye(4)).max() < 0.6


def test_multi_label_bags_without_a_grid_are_vectors(tmp_path):
    table = make_bag_cohort(tmp_path, num_bags=10, width=8, bag_size=(5, 9), multi_label=True, classes=("a", "b"))
    assert read_cohort(table, labels=("a", "b")).classes == ("a", "b")
    with BagFile(tmp_path / "bags" / "bag_000.h5") as bag:
        assert bag.grid is None
        assert bag.extra("token_labels").shape == (bag.n, 2, 1, 1)


def _token_labels(folder, slide_id):
    with BagFile(folder / "bags" / f"{slide_id}.h5") as bag:
        return bag.extra("token_labels")


def _rows(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
