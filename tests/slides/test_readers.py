from __future__ import annotations

import os
import shutil
import struct
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import cucim.clara
import cv2
import numpy as np
import openslide
import pytest
import tifffile

from monai_mil.errors import SlideReadError
from monai_mil.slides import open_slide, reader_report, readers, slide_files, write_pyramid
from monai_mil.slides.pixel_size import from_ome
from tests.conftest import shared
from tests.processes import run
from tests.slides.conftest import overwrite_tile
from tests.slides.drawn import Page, write_pages
from tests.slides.scn import write_scn


def write_tiff(path: Path, image: np.ndarray, **options: Any) -> Path:
    options = {"tile": (256, 256), "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", **options}
    tifffile.imwrite(path, image, photometric="rgb", metadata=None, **options)
    return path


@pytest.mark.parametrize(
    ("options", "reader"),
    [
        ({}, "cucim"),
        ({"compression": "lzw"}, "cucim"),
        ({"compression": "lzw", "predictor": 2}, "cucim"),
        ({"compression": "adobe_deflate"}, "tifffile"),
        ({"compression": "adobe_deflate", "predictor": 2}, "tifffile"),
        ({"compression": "deflate", "predictor": 2}, "tifffile"),
        ({"compression": "packbits"}, "tifffile"),
        ({"compression": "zstd"}, "tifffile"),
        ({"compression": "aperio_jp2000_rgb"}, "tifffile"),
        ({"compression": "lerc"}, "tifffile"),
        ({"compression": "webp", "compressionargs": {"lossless": True}}, "tifffile"),
    ],
    ids=str,
)
def test_every_lossless_codec_is_read_exactly(
    tmp_path: Path, image: np.ndarray, options: dict[str, Any], reader: str
) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", image, **options)) as slide:
        assert slide.reader == reader
        assert slide.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), image)
        np.testing.assert_array_equal(slide.read(301, 77, (500, 400)), image[77:477, 301:801])


def test_cucim_never_opens_a_file_with_deflate(
    tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: str) -> None:
        pytest.fail(f"cuCIM was given {path}")

    monkeypatch.setattr(cucim.clara, "CuImage", crash)
    path = tmp_path / "label_page_is_deflate.tif"
    with tifffile.TiffWriter(path) as tiff:
        tile = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
        tiff.write(image, compression="jpeg", resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **tile)
        tiff.write(image[:100, :100], compression="adobe_deflate", predictor=2, photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert slide.reader == "tifffile"
        assert slide.read(0, 0, (64, 64)).shape == (64, 64, 3)


@pytest.mark.parametrize("compression", ["lzw", "jpeg", "deflate"])
def test_a_tile_that_was_never_stored_is_white(tmp_path: Path, image: np.ndarray, compression: str) -> None:
    flat = np.full((128, 192, 3), 90, np.uint8)
    path = write_pages(tmp_path / "a.tif", [Page(flat, options={"compression": compression})])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages[0].tags[name]
            tag.overwrite([0 if index == 1 else value for index, value in enumerate(tag.value)])
    flat[:64, 64:128] = 255
    with open_slide(path) as slide:
        assert slide.reader == "tifffile"
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), flat)


def test_a_slide_of_a_disk_that_fails_is_named(tmp_path: Path, image: np.ndarray, monkeypatch: Any) -> None:
    def fail(*arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    with open_slide(write_tiff(tmp_path / "a.tif", image[:300, :300], compression="zstd")) as slide:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(SlideReadError, match=r"a.tif': cannot be read \(Input/output error\); check the disk"):
            slide.read(0, 0, (8, 8))


def test_what_no_reader_decodes_says_how_to_convert(tmp_path: Path, image: np.ndarray) -> None:
    for name, options in {
        "strips": {"tile": None},
        "planes": {"planarconfig": "separate"},
    }.items():
        with pytest.raises(SlideReadError, match=f"{name}.tif.*vips tiffsave"):
            open_slide(write_tiff(tmp_path / f"{name}.tif", image, **options))


def test_ome_pyramid_keeps_its_levels_and_pixel_size(tmp_path: Path, image: np.ndarray) -> None:
    write_pyramid(tmp_path / "d.ome.tif", image, mpp=0.25, compression="lzw", downsamples=(1, 4), ome=True)
    with open_slide(tmp_path / "d.ome.tif") as slide:
        assert (slide.slide_id, slide.mpp, len(slide.levels)) == ("d", 0.25, 2)
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), image)


@pytest.mark.parametrize(
    ("name", "mpp"), [("CMU-1-Small-Region.svs", 0.499), ("CMU-1-Small-Region_pyramid.tif", 0.499)]
)
def test_jpeg_slides_have_the_pixels_and_pixel_size_openslide_gives(name: str, mpp: float) -> None:
    path = shared(f"data/wsi/{name}")
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert (slide.reader, slide.mpp) == ("cucim", pytest.approx(mpp))
        assert [(level.width, level.height) for level in slide.levels] == list(other.level_dimensions)
        expected = np.asarray(other.read_region((0, 0), 0, other.dimensions))[..., :3]
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), expected)
        assert slide.tiff is not None
        np.testing.assert_array_equal(slide.tiff.read(0, 0, 0, *slide.size), expected)


def test_aperio_properties_have_openslide_s_names() -> None:
    path = shared("data/wsi/CMU-1-Small-Region.svs")
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        expected = {key: value for key, value in other.properties.items() if key.startswith("aperio.")}
        assert {key: value for key, value in slide.properties.items() if key.startswith("aperio.")} == expected


def test_jpeg_2000_slide_needs_mpp_and_has_openslide_s_pixels() -> None:
    path = shared("data/wsi/TCGA-CR-7395-01A-01-TS1.svs")
    with pytest.raises(SlideReadError, match=r"no pixel size \(mpp\) in the file; pass --mpp 0.25 if you know it"):
        open_slide(path)
    with open_slide(path, mpp=0.25) as slide, openslide.OpenSlide(path) as other:
        assert slide.mpp == 0.25
        expected = np.asarray(other.read_region((1111, 900), 0, (700, 600)))[..., :3]
        np.testing.assert_array_equal(slide.read(1111, 900, (700, 600)), expected)


@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [
        ("wsi_jpeg.dcm", (957, 715), 16.783),
        ("multiframe_camelyon_challenge_image.dcm", (1152, 700), 28.9685),
        ("boxes_0.dcm", (16, 16), 0.499),
        ("boxes_1.dcm", (16, 16), 0.499),
    ],
)
def test_dicom_slides_are_read(name: str, size: tuple[int, int], mpp: float) -> None:
    with open_slide(shared(f"data/wsi/{name}")) as slide:
        assert (slide.reader, slide.size, slide.mpp) == ("openslide", size, pytest.approx(mpp, rel=1e-4))
        assert slide.read(0, 0, size).std() > 0


def test_screen_resolution_is_no_pixel_size(tmp_path: Path, image: np.ndarray) -> None:
    path = write_tiff(tmp_path / "a.tif", image, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(SlideReadError, match="no pixel size"):
        open_slide(path)
    with open_slide(path, mpp=0.3) as slide:
        assert slide.mpp == 0.3


@pytest.mark.parametrize("unit", ["µm", "\u03bcm", "&#181;m", "um"])
def test_micrometres_of_ome_are_read_however_they_are_spelled(unit: str) -> None:
    xml = f'<Pixels PhysicalSizeX="0.5" PhysicalSizeXUnit="{unit}" PhysicalSizeY="0.5" PhysicalSizeYUnit="{unit}"/>'
    assert from_ome(xml) == (0.5, 0.5)


def test_resolution_per_inch_and_unlike_axes(tmp_path: Path, image: np.ndarray) -> None:
    path = write_tiff(tmp_path / "a.tif", image, resolution=(50_800, 25_400), resolutionunit="INCH")
    with pytest.raises(SlideReadError, match=r"pixels are 0.5 x 1 µm, not square; pass --mpp 0.5 .*vips resize"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


def test_bad_files_give_one_clear_error_each(tmp_path: Path, jpeg_slide: Path) -> None:
    (tmp_path / "text.svs").write_text("hello")
    (tmp_path / "empty.svs").touch()
    whole = jpeg_slide.read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "stub.tif").write_bytes(whole[:100])
    for name, message in {
        "missing.svs": "no such file",
        "empty.svs": "the file is empty",
        "text.svs": "not a whole-slide image",
        "cut.tif": "truncated|damaged",
        "stub.tif": "truncated|damaged",
        "": "is a folder",
    }.items():
        with pytest.raises(SlideReadError, match=message) as caught:
            open_slide(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\x55"], ids=["cut short", "overwritten"])
@pytest.mark.parametrize("kind", ["jpeg_slide", "lossless_slide"])
def test_a_damaged_tile_is_an_error_that_names_its_position(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, content: bytes | None
) -> None:
    path = overwrite_tile(request.getfixturevalue(kind), tmp_path / "a.tif", 7, content)
    with open_slide(path) as slide:
        assert slide.reader == "cucim"
        slide.read(0, 0, (256, 256))
        with pytest.raises(SlideReadError, match=r"a.tif.*\(256, 256\)"):
            slide.read(200, 200, (256, 256))


@pytest.mark.parametrize("place", [5, 7], ids=["height", "width"])
def test_a_jpeg_larger_than_its_tile_is_damage_and_no_crash_of_cucim(
    jpeg_slide: Path, tmp_path: Path, place: int
) -> None:
    with tifffile.TiffFile(jpeg_slide) as tiff:
        tile = tiff.pages[0].dataoffsets[7]
    content = bytearray(jpeg_slide.read_bytes())
    content[content.index(b"\xff\xc0", tile) + place] += 1  # by 256
    (tmp_path / "a.tif").write_bytes(content)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.reader == "cucim"
        with pytest.raises(SlideReadError, match=r"a.tif.*\(256, 256\).*a JPEG of .* in a tile of "):
            slide.read(200, 200, (256, 256))


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_a_given_pixel_size_must_make_sense(jpeg_slide: Path, mpp: float) -> None:
    with pytest.raises(SlideReadError, match="not a positive number"):
        open_slide(jpeg_slide, mpp=mpp)


def svs(path: Path, image: np.ndarray) -> Path:
    described = "Aperio Image Library v1\\r\\n600x500 [0,0 600x500] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
    return write_pages(path, [Page(image[:500, :600], options={"compression": "jpeg", "description": described})])


def pyramid(path: Path, image: np.ndarray) -> Path:
    write_pyramid(path, image[:500, :600], mpp=0.5, downsamples=(1, 4))
    return path


def dicom(path: Path, image: np.ndarray) -> Path:
    return Path(shutil.copy(shared("data/wsi/multiframe_camelyon_challenge_image.dcm"), path))


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    ("kind", "suffix"), [(pyramid, "tif"), (svs, "svs"), (dicom, "dcm")], ids=["TIFF", "SVS", "DICOM"]
)
def test_a_damaged_header_is_an_error_and_never_ends_the_process(
    tmp_path: Path, image: np.ndarray, kind: Callable[[Path, np.ndarray], Path], suffix: str
) -> None:
    """Bytes of headers overwritten at random, in a process of its own: libraries can crash on them, or never end."""
    kind(tmp_path / f"whole.{suffix}", image)
    script = f"""
    import random
    import signal
    import tifffile
    from pathlib import Path
    from monai_mil.errors import SlideReadError
    from monai_mil.slides import open_slide
    folder = Path({str(tmp_path)!r})
    whole = (folder / "whole.{suffix}").read_bytes()
    chance, changes = random.Random(0), []
    if {suffix == "dcm"}:
        starts = [132 + 8 * place for place in range(250)]
    else:
        with tifffile.TiffFile(folder / "whole.{suffix}") as tiff:
            starts = [page.offset + place for page in tiff.pages for place in range(250)] + list(range(16))
            counts = [page.tags["TileOffsets"].offset for page in tiff.pages]
        changes = [{{offset + 6: 126}} for offset in counts]  # a count far beyond the file
    changes += [{{chance.choice(starts): chance.randrange(256)}} for _ in range(120)]
    changes += [{{chance.choice(starts): chance.randrange(256) for _ in range(8)}} for _ in range(30)]
    (folder / "damaged").mkdir()
    damaged_file = folder / "damaged" / "damaged.{suffix}"
    failed = 0
    for change in changes:
        damaged = bytearray(whole)
        for place, value in change.items():
            damaged[place % len(damaged)] = value
        damaged_file.write_bytes(damaged)
        signal.alarm(20)  # ends the process
        try:
            with open_slide(damaged_file, mpp=0.5) as slide:
                width, height = (min(side, 300) for side in slide.size)
                slide.read(0, 0, (width, height))
                slide.thumbnail(64)
        except SlideReadError as error:
            assert "damaged.{suffix}" in str(error)
            failed += 1
    signal.alarm(0)
    print(failed)
    """
    done = run("-c", textwrap.dedent(script))
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 10


def test_a_file_without_permission_is_named(jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a superuser may open everything
    with pytest.raises(SlideReadError, match=r"jpeg.tif': cannot be read \(Permission denied\)"):
        open_slide(jpeg_slide)


@pytest.mark.parametrize("compression", ["jpeg", "lzw", None])
def test_without_cucim_the_pixels_are_the_same(
    tmp_path: Path, image: np.ndarray, compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path / "a.tif", image, compression=compression)
    with open_slide(path) as slide:
        assert slide.reader == "cucim"
        there, overview = slide.read(301, 77, (500, 400)), slide.read_scaled((100, 80))
    monkeypatch.setattr(readers, "_has_cucim", lambda: False)
    with open_slide(path) as slide:
        assert slide.reader == "tifffile"
        np.testing.assert_array_equal(slide.read(301, 77, (500, 400)), there)
        np.testing.assert_array_equal(slide.read_scaled((100, 80)), overview)


@pytest.fixture
def _fresh_report() -> Iterator[None]:
    """What was found out before is asked again, and forgotten afterwards."""
    readers._report.cache_clear()
    yield
    readers._report.cache_clear()


@pytest.mark.usefixtures("_fresh_report")
def test_report_says_what_to_install_for_a_reader_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cucim", None)
    name, available, release, note = reader_report()[0]
    assert (name, available, release) == ("cucim", False, "")
    assert "tifffile and OpenSlide read the same pixels without it" in note
    assert "pip install 'monai-mil[cucim12]'" in note


@pytest.mark.usefixtures("_fresh_report")
def test_report_has_the_version_of_a_reader_that_pip_did_not_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(readers, "version", unknown)
    assert {name: release for name, _, release, _ in reader_report()} == {
        "cucim": cucim.__version__,
        "openslide": openslide.__version__,
        "tifffile": tifffile.__version__,
    }


def test_report_names_every_reader() -> None:
    assert {name: available for name, available, _, _ in reader_report()} == {
        "cucim": True,
        "openslide": True,
        "tifffile": True,
    }


@pytest.mark.parametrize("name", ["S.TIF", "S.Svs", "S.qptiff", "S.btf", "S", "S.1", "S.dat"])
def test_the_content_says_what_a_slide_is_not_its_name(tmp_path: Path, image: np.ndarray, name: str) -> None:
    write_pyramid(tmp_path / "lower.tif", image[:500, :600], mpp=0.5, downsamples=(1, 4))
    shutil.copy(tmp_path / "lower.tif", tmp_path / name)
    with open_slide(tmp_path / "lower.tif") as expected, open_slide(tmp_path / name) as slide:
        assert slide.levels == expected.levels
        assert slide.mpp == expected.mpp
        for level in range(2):
            np.testing.assert_array_equal(slide.read(0, 0, (90, 80), level), expected.read(0, 0, (90, 80), level))


def test_a_folder_of_one_dicom_slide_is_a_slide_named_by_it(tmp_path: Path) -> None:
    folder = tmp_path / "1.2.840.99.7"
    folder.mkdir()
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(shared(f"data/wsi/{name}"), folder / name.split(".")[0])
    (folder / "notes.txt").write_text("no DICOM")
    with open_slide(folder, mpp=1.0) as slide, open_slide(folder / "boxes_0", mpp=1.0) as file:
        assert (slide.slide_id, slide.path) == ("1.2.840.99.7", folder)
        assert slide.levels == file.levels
    shutil.copy(shared("data/wsi/wsi_jpeg.dcm"), folder / "other")
    with pytest.raises(SlideReadError, match="a folder of 2 DICOM series; name a file of one"):
        open_slide(folder)


def test_what_no_reader_opens_is_told_with_what_each_said(tmp_path: Path) -> None:
    (tmp_path / "S.tif").write_bytes(b"II*\0" + bytes(200))
    with pytest.raises(SlideReadError, match=r"slide '.*S\.tif': "):
        open_slide(tmp_path / "S.tif")


def test_a_file_that_is_cut_short_while_it_is_open_is_named(tmp_path: Path, image: np.ndarray) -> None:
    path = write_tiff(tmp_path / "a.tif", image[:300, :300], compression=None)
    with open_slide(path) as slide:
        assert slide.reader == "cucim"
        os.truncate(path, 1000)
        with pytest.raises(SlideReadError, match=r"a.tif': 40 x 30 px at \(260, 5\) of level 0 cannot be decoded"):
            slide.read(260, 5, (40, 30))


def write_vmu(path: Path, image: np.ndarray) -> Path:
    """An uncompressed Hamamatsu slide at 0.5 mpp: a key file, and two images of 12 bits in columns."""
    key = {"NoLayers": 1, "PhysicalWidth": 500 * image.shape[1], "PhysicalHeight": 500 * image.shape[0]}
    key |= {"BitsPerPixel": 36, "PixelOrder": "RGB"}
    for name, factor in {"ImageFile": 1, "MapFile": 8}.items():
        (height, width), column = image[::factor, ::factor].shape[:2], 64 // factor
        key[name] = f"{name}.ngr"
        with (path.parent / key[name]).open("wb") as file:
            file.write(struct.pack("<2sHiii8si", b"GN", 0, width, height, column, b"", 28))
            for x in range(0, image.shape[1], 64):
                file.write((image[::factor, x : x + 64 : factor].astype("<u2") << 4).tobytes())
    path.write_text("\n".join(["[Uncompressed Virtual Microscope Specimen]", *(f"{k}={v}" for k, v in key.items())]))
    return path


def test_a_slide_of_several_files_that_are_no_tiff_is_openslide_s(tmp_path: Path, image: np.ndarray) -> None:
    path = write_vmu(tmp_path / "a.vmu", image[:128, :256])
    assert slide_files(path) == (tmp_path / "ImageFile.ngr", tmp_path / "MapFile.ngr", path)
    with open_slide(path) as slide:
        assert (slide.reader, slide.mpp, slide.size) == ("openslide", 0.5, (256, 128))
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), image[:128, :256])


def test_jpeg_2000_in_aperio_s_ycbcr_is_openslide_s(tmp_path: Path, image: np.ndarray) -> None:
    ycbcr = cv2.cvtColor(image[:300, :300], cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    options = {"compression": "aperio_jp2000_ycbc", "description": "Aperio Image Library v1|AppMag = 20|MPP = 0.5"}
    with open_slide(write_pages(tmp_path / "a.svs", [Page(np.ascontiguousarray(ycbcr), options=options)])) as slide:
        assert (slide.reader, slide.mpp) == ("openslide", 0.5)
        assert np.abs(slide.read(0, 0, slide.size).astype(int) - image[:300, :300]).max() <= 2


@pytest.mark.parametrize(
    ("kind", "choice", "message"),
    [
        (write_scn, {"series": 1}, "OpenSlide, which reads it, shows one series and one focal plane only"),
        (write_scn, {"plane": 1}, "OpenSlide, which reads it, shows one series and one focal plane only"),
        (dicom, {"series": 1}, "a DICOM slide is one series; name a file of another"),
        (dicom, {"plane": 1}, "no focal plane 1; it has one"),
    ],
)
def test_a_series_or_plane_that_is_not_there_is_refused(
    tmp_path: Path, image: np.ndarray, kind: Callable[[Path, np.ndarray], Path], choice: dict[str, int], message: str
) -> None:
    path = kind(tmp_path / "slide", image[:300, :300])
    with open_slide(path, mpp=0.5) as slide:
        assert slide.reader == "openslide"
    with pytest.raises(SlideReadError, match=f"slide': {message}"):
        open_slide(path, mpp=0.5, **choice)
