import struct

import imagecodecs
import numpy as np
import openslide

from monai_mil.slides import open_slide
from monai_mil.slides.focal_planes import hidden_planes


def write_ndpi(path, offsets, sides):
    """A Hamamatsu slide: a TIFF whose places are numbers of 64 bits, every page one strip of JPEG."""
    pages = [(side, offset) for side in sides for offset in offsets]
    with path.open("wb") as file:
        file.write(struct.pack("<2sHQ", b"II", 42, 12))
        for index, (side, offset) in enumerate(pages):
            image = np.full((side, side, 3), 60 + 40 * abs(offset), np.uint8)
            jpeg = imagecodecs.jpeg_encode(image, level=95)
            magnification = struct.unpack("<I", struct.pack("<f", 20 * side / max(sides)))[0]
            tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6)]
            tags += [
                (271, 2, 10, "make"),
                (273, 4, 1, "jpeg"),
                (277, 3, 1, 3),
                (278, 4, 1, side),
                (279, 4, 1, len(jpeg)),
            ]
            tags += [(282, 5, 1, "per cm"), (283, 5, 1, "per cm"), (296, 3, 1, 3)]
            tags += [(65420, 4, 1, 1), (65421, 11, 1, magnification), (65424, 9, 1, offset)]
            after = file.tell() + 2 + 12 * len(tags) + 8 + 4 * len(tags)
            places = {"make": after, "per cm": after + 10, "jpeg": after + 18}
            following = after + 18 + len(jpeg) if index + 1 < len(pages) else 0
            file.write(struct.pack("<H", len(tags)))
            for tag, kind, count, value in tags:
                file.write(struct.pack("<HHIi" if kind == 9 else "<HHII", tag, kind, count, places.get(value, value)))
            file.write(struct.pack("<Q", following) + bytes(4 * len(tags)))
            file.write(b"Hamamatsu\0" + struct.pack("<II", 20_000 * side // max(sides), 1) + jpeg)


def test_planes_of_a_hamamatsu_slide_are_told_and_the_one_in_focus_is_read(tmp_path):
    write_ndpi(tmp_path / "stack.ndpi", (0, 1, -1), (512, 256))
    write_ndpi(tmp_path / "flat.ndpi", (0,), (512, 256))
    assert openslide.OpenSlide.detect_format(tmp_path / "stack.ndpi") == "hamamatsu"
    with open_slide(tmp_path / "stack.ndpi") as slide:
        assert slide.reader == "openslide"
        assert abs(int(slide.read(0, 0, (64, 64)).mean()) - 60) <= 2
        assert ["3 focal planes" in remark for remark in slide.remarks] == [True]
    with open_slide(tmp_path / "flat.ndpi") as slide:
        assert slide.remarks == ()


def test_planes_of_a_mirax_slide_are_told(tmp_path):
    named = {"openslide.vendor": "mirax", "mirax.HIERARCHICAL.HIER_1_NAME": "Microscope focus level"}
    for count, told in (("9", ["9 focal planes"]), ("1", []), ("", []), ("many", [])):
        remarks = hidden_planes(tmp_path / "slide.mrxs", named | {"mirax.HIERARCHICAL.HIER_1_COUNT": count})
        assert [words for remark in remarks for words in told if words in remark] == told
        assert len(remarks) == len(told)
    assert hidden_planes(tmp_path / "slide.mrxs", {"openslide.vendor": "mirax"}) == ()
