"""Pixel sizes as vendors write them, and who is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_mil.errors import SlideReadError
from monai_mil.slides import open_slide
from monai_mil.slides.pixel_size import from_ome, from_properties, from_resolution, micrometres
from monai_mil.slides.tiff import first_description
from tests.slides.drawn import Page, write_pages

GLASS = np.full((64, 64, 3), 240, np.uint8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("0,25", 0.25),
        (" 0.25 um", 0.25),
        ("0.25µm", 0.25),
        ("0.25 \u03bcm", 0.25),
        ("2.5e-1", 0.25),
        (".25", 0.25),
        ("250 nm", 0.25),
        ("0.00025 mm", 0.25),
        ("0", None),
        ("-0.25", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("unknown", None),
        ("1 pixel", None),
    ],
)
def test_a_length_is_read_however_it_is_spelled(text: str, value: float | None) -> None:
    assert micrometres(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("unit", "micrometre"),
    [
        *(("Ym", 1e-30), ("km", 1e-9), ("hm", 1e-8), ("dam", 1e-7), ("m", 1e-6), ("dm", 1e-5), ("cm", 1e-4)),
        *(("mm", 1e-3), ("µm", 1), ("\u03bcm", 1), ("nm", 1e3), ("pm", 1e6), ("fm", 1e9), ("am", 1e12), ("zm", 1e15)),
        *(("ym", 1e18), ("Å", 1e4), ("thou", 1 / 25.4), ("li", 12 / 25400), ("in", 1 / 25400), ("ft", 1 / 304800)),
        *(("yd", 1 / 914400), ("mi", 1 / 1609344e3), ("pt", 72 / 25400), ("ua", 1 / 1.495978707e17)),
        *(("ly", 1 / 9.4607304725808e21), ("pc", 1 / 3.0856775814913673e22)),
    ],
)
def test_every_unit_of_ome_is_known(unit: str, micrometre: float) -> None:
    sizes = " ".join(f'PhysicalSize{a}="{0.25 * micrometre!r}" PhysicalSize{a}Unit="{unit}"' for a in "XY")
    assert from_ome(f"<OME><Image><Pixels SizeX='9' {sizes}/></Image></OME>") == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "cubit"])
def test_a_unit_that_is_no_length_is_no_pixel_size(unit: str) -> None:
    sizes = " ".join(f'PhysicalSize{a}="0.25" PhysicalSize{a}Unit="{unit}"' for a in "XY")
    assert from_ome(f"<Pixels {sizes}/>") is None


def test_each_image_of_ome_has_its_own_pixel_size() -> None:
    first, second = (f'<Image><Pixels PhysicalSizeX="{s}" PhysicalSizeY="{s}"/></Image>' for s in (0.5, 0.25))
    assert from_ome(f"<OME>{first}{second}</OME>", 1) == (0.25, 0.25)
    assert from_ome(f"<OME>{first}{second}</OME>", 2) is None


@pytest.mark.parametrize(("mpp", "found"), [(5.0, 5.0), (5.1, None), (25.4, None), (0.05, 0.05), (0.04, None)])
def test_resolution_tags_count_where_a_scanner_could_have_written_them(mpp: float, found: float | None) -> None:
    assert from_resolution(1e4 / mpp, 1e4 / mpp, 3) == (None if found is None else pytest.approx((found, found)))
    assert from_resolution(25400 / mpp, 25400 / mpp, 2) == (None if found is None else pytest.approx((found, found)))
    assert from_resolution(1e4 / mpp, 1e4 / mpp, 1) is None


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}, (0.25, 0.26)),
        ({"openslide.mpp-x": "17", "openslide.mpp-y": "17"}, (17, 17)),
        ({"aperio.MPP": "0,2527"}, (0.2527, 0.2527)),
        (
            {
                "aperio.MPP": "0",
                "tiff.XResolution": "40000",
                "tiff.YResolution": "40000",
                "tiff.ResolutionUnit": "centimeter",
            },
            (0.25, 0.25),
        ),
        ({"tiff.XResolution": "96", "tiff.YResolution": "96", "tiff.ResolutionUnit": "inch"}, None),
        ({"ventana.ScanRes": "0.25"}, (0.25, 0.25)),
        ({}, None),
    ],
    ids=str,
)
def test_vendors_properties(properties: dict[str, str], found: tuple[float, float] | None) -> None:
    assert from_properties(properties) == (None if found is None else pytest.approx(found))


def aperio(text: str) -> dict[str, Any]:
    return {"description": f"Aperio Image Library v12\n64x64 (64x64) LZW|AppMag = 40|MPP = {text}"}


@pytest.mark.parametrize("text", ["0", "", "unknown", "0.0000"])
def test_resolution_tags_stand_in_for_a_pixel_size_that_is_none(tmp_path: Path, text: str) -> None:
    with open_slide(write_pages(tmp_path / "a.svs", [Page(GLASS, 0.25, aperio(text))])) as slide:
        assert slide.mpp == pytest.approx(0.25)
    metadata = {
        "metadata": {"axes": "YXS", "PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1}
        | {"PhysicalSizeYUnit": "pixel"}
    }
    with open_slide(write_pages(tmp_path / "a.ome.tif", [Page(GLASS, 0.25, metadata)], ome=True)) as slide:
        assert slide.mpp == pytest.approx(0.25)


def test_the_vendor_s_word_counts_more_than_resolution_tags(tmp_path: Path) -> None:
    with open_slide(write_pages(tmp_path / "a.svs", [Page(GLASS, 0.5, aperio("0,25 um"))])) as slide:
        assert slide.mpp == pytest.approx(0.25)


@pytest.mark.parametrize("dpi", [72, 96, 300, 600, 1000, 2400])
def test_a_printer_s_resolution_is_no_pixel_size(tmp_path: Path, dpi: int) -> None:
    path = write_pages(tmp_path / "a.tif", [Page(GLASS, 25400 / dpi)])
    with pytest.raises(SlideReadError, match=r"no pixel size \(mpp\) in the file; pass --mpp"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.mpp, slide.remarks) == (0.5, (f"slide '{path}': the file says no pixel size; 0.5 µm is taken",))


def test_a_given_pixel_size_wins_and_a_remark_says_so(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif", [Page(GLASS, 0.5)])
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25
        (remark,) = slide.remarks
        assert "a.tif': the file says 0.5 µm a pixel; the given 0.25 is taken" in remark
    with open_slide(path, mpp=0.501) as slide:
        assert (slide.mpp, slide.remarks) == (0.501, ())


def test_pixels_that_are_not_square_are_refused_and_never_averaged(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif", [Page(GLASS, (0.25, 0.5))])
    with pytest.raises(SlideReadError, match=r"0.25 x 0.5 µm, not square; pass --mpp 0.25 .* 1 --vscale 2`"):
        open_slide(path)
    with pytest.raises(SlideReadError, match="not square"):
        open_slide(path, default_mpp=0.25)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25
        assert "0.25 x 0.5" in slide.remarks[0]
    with open_slide(write_pages(tmp_path / "b.tif", [Page(GLASS, (0.2500, 0.2504))])) as slide:
        assert slide.mpp == pytest.approx(0.2502)


def test_a_description_that_cannot_be_read_says_no_pixel_size(tmp_path: Path) -> None:
    page = Page(GLASS, options={"description": "of the first page"})
    assert first_description(write_pages(tmp_path / "a.tif", [page])) == "of the first page"
    (tmp_path / "b.scn").write_bytes(b"II*\0" + bytes(60))
    assert first_description(tmp_path / "b.scn") == ""
