import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from monai_mil.bags import BagFile, make_bag_cohort, make_slide_cohort, read_cohort, tile_truth
from monai_mil.bags.embed import EmbedSettings, embed_slide, tile_slide
from monai_mil.bags.synthetic_slide import plan_slide
from monai_mil.encoders import get_encoder
from monai_mil.slides import open_slide


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
