"""What an item of a data list says of its own slide counts wherever the slide is embedded in memory."""

import cv2
import numpy as np
import pytest

from monai_mil.cohorts import read_cohort
from monai_mil.embedding import DescendSlided, EmbedSlided, StreamSlided, embed_cohort
from monai_mil.errors import AnnotationError, TooCoarseError
from monai_mil.networks import ABMIL, HAGMIL
from monai_mil.slides import write_pyramid

SMALL = {"hidden_dims": (16, 24, 16), "instance_channels": 8, "attention_dim": 8}
WAYS = {
    "embed": lambda **settings: EmbedSlided(encoder="texture", **settings),
    "stream": lambda **settings: StreamSlided(encoder="texture", network=ABMIL(76, 2), **settings),
    "descend": lambda **settings: DescendSlided(
        encoder="texture", network=HAGMIL(76, 2, levels=2, **SMALL), levels=2, **settings
    ),
}


@pytest.fixture
def slide(tmp_path):
    write_pyramid(tmp_path / "scan_17.tif", np.full((1024, 1024, 3), (180, 60, 140), np.uint8), mpp=0.5)
    return tmp_path / "scan_17.tif"


@pytest.mark.parametrize("way", WAYS)
def test_the_item_names_the_mask_and_the_bag(way, slide, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[:32, :32] = 255
    cv2.imwrite(str(masks / "P-1.png"), mask)
    item = WAYS[way](masks=str(masks))({"image": str(slide), "slide_id": "P-1"})
    assert item["coords"].max() == 256, "tiles of the masked quarter alone"
    assert item["image"].meta["slide_id"] == "P-1"
    with pytest.raises(AnnotationError, match="slide 'scan_17': no tissue mask"):
        WAYS[way](masks=str(masks))({"image": str(slide)})


@pytest.mark.parametrize("way", WAYS)
def test_a_cohort_s_pixel_size_wins_over_the_setting_and_the_file(way, slide, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide_id,path,mpp,label\nP-1,{slide.name},0.25,a\nP-2,{slide.name},,b\n")
    items = read_cohort(table).datalist()
    embed = WAYS[way]()
    one, other = (embed(item)["image"].meta for item in items)
    assert (one["mpp"], other["mpp"]) == (0.25, 0.5)
    assert WAYS[way](mpp=1.0)(items[0])["image"].meta["mpp"] == 0.25
    embed_cohort(read_cohort(table), tmp_path / "bags", "texture", progress=False)
    assert "mpp" not in read_cohort(table).datalist(bag_dir=tmp_path / "bags")[0]
    again = read_cohort(read_cohort(table).write(tmp_path / "again.csv"))
    assert [case.mpp for case in again.slides] == [0.25, None]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_assumed_of_a_slide_stands_in_its_meta(way, slide, tmp_path):
    assert WAYS[way]()({"image": str(slide)})["image"].meta["remarks"] == ""
    given = WAYS[way](mpp=1.25)({"image": str(slide)})["image"].meta["remarks"]
    assert given == (
        "the file says 0.5 µm a pixel; the given 1.25 is taken; "
        "its finest level has 1.25 µm per pixel; tiles at 0.5 are enlarged from it"
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_slide_four_times_as_coarse_as_its_tiles_is_read_and_a_coarser_one_refused(way, slide):
    assert "enlarged" in WAYS[way](mpp=2.0)({"image": str(slide)})["image"].meta["remarks"]
    with pytest.raises(TooCoarseError) as refused:
        WAYS[way](mpp=2.01)({"image": str(slide)})
    assert str(refused.value) == (
        f"slide '{slide}': its finest level has 2.01 µm per pixel, too coarse for tiles at 0.5 (a thumbnail?); give "
        "the whole slide, --mpp if the file's pixel size is wrong, or --target-mpp 0.51 or more"
    )
