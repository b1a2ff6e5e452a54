"""Tissue masks of the user's own, and pictures of what was taken for tissue."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from monai_mil.bags import BagFile
from monai_mil.embedding import embed_cohort
from tests.embedding.conftest import slide_of
from tests.embedding.counting import CountingEncoder


@pytest.fixture
def slides(tmp_path):
    (tmp_path / "slides").mkdir()
    return [slide_of(tmp_path / "slides" / f"{name}.tif", 1024, 1280) for name in "ab"]


def embed(slides, out, **settings):
    return embed_cohort(slides, out, CountingEncoder(out.parent / "log"), progress=False, **settings)


def write_mask(path, left_columns, size=(128, 160)):
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, :left_columns] = 255
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), mask)


def test_a_mask_of_the_user_s_takes_the_place_of_the_tissue(slides, tmp_path):
    masks, out = tmp_path / "masks", tmp_path / "bags"
    write_mask(masks / "a.png", 64)  # the left half, 512 px
    first, second = embed(slides, out, masks=masks).results
    assert first.status == "embedded"
    assert f"no tissue mask in '{masks}'" in second.error
    with BagFile(out / "a.h5") as bag:
        assert sorted({x for x, _ in bag.coords.tolist()}) == [0, 256]
        assert bag.n == 10
        assert bag.info.tissue_version is None
    assert embed(slides[:1], out, masks=masks).results[0].status == "kept"
    write_mask(masks / "a.png", 32)
    assert "made with other settings (tissue" in embed(slides[:1], out, masks=masks).failed[0].error
    assert embed(slides[:1], out, masks=masks, overwrite=True).results[0].instances == 5


def test_outlines_are_masks_too_and_say_where_they_count_from(slides, tmp_path):
    masks, out = tmp_path / "masks", tmp_path / "bags"
    masks.mkdir()
    ring = [[512, 0], [1024, 0], [1024, 1280], [512, 1280], [512, 0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (masks / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert embed(slides[:1], out, masks=masks).failed == ()
    with BagFile(out / "a.h5") as bag:
        assert sorted({x for x, _ in bag.coords.tolist()}) == [512, 768]


@pytest.mark.parametrize("size", [(160, 128), (128, 128), (128, 200)])
def test_a_mask_of_another_shape_is_refused(slides, tmp_path, size):
    write_mask(tmp_path / "masks" / "a.png", 64, size)
    (result,) = embed(slides[:1], tmp_path / "bags", masks=tmp_path / "masks").results
    assert "have not the shape of the slide, 1024 x 1280" in result.error


def test_every_slide_has_a_picture_and_all_stand_on_one_page(slides, tmp_path):
    out = tmp_path / "bags"
    embed(slides[:1], out, pictures=True)
    assert embed(slides, out).failed == ()
    embed(slides, out, pictures=True)  # of kept bags too
    page = (out / "pictures" / "index.html").read_text()
    for name in "ab":
        with Image.open(out / "pictures" / f"{name}.jpg") as picture:
            assert max(picture.size) == 1024
            facts = json.loads(picture.info["comment"])
        with BagFile(out / f"{name}.h5") as bag:
            assert facts["tiles"] == bag.n
        assert f"<b>{name}</b>" in page
    assert "http" not in page
    assert not list((out / "pictures").glob(".*"))
