"""Objects of slides: on the slide's own coordinates, tile by tile."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest
import tifffile

from monai_mil.dicom import (
    Finding,
    slide_source,
    write_annotations,
    write_overlay,
    write_parametric_map,
    write_report,
    write_segmentation,
)
from monai_mil.errors import DicomError
from monai_mil.heatmaps import export_mask
from tests.dicom.examples import ALGORITHM, CALLED, read, slide_map


@pytest.fixture
def heatmap(tmp_path):
    return slide_map(tmp_path / "slide.dcm")


def whole(path):
    """The total pixel matrix of a map or segmentation, and level-0 pixels a pixel, by highdicom."""
    import highdicom

    image = highdicom.imread(path)
    spacing = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return np.asarray(image.get_total_pixel_matrix(dtype=np.float32)), float(spacing[0]) / 0.0005


def test_the_map_has_the_tiles_scores_where_they_lie(tmp_path, heatmap):
    path = write_parametric_map(tmp_path / "pm.dcm", slide_source(heatmap.frame), heatmap, ALGORITHM)
    values, step = whole(path)
    made = read(path)
    assert made.DimensionOrganizationType == "TILED_SPARSE"
    origins = [each.TotalPixelMatrixOriginSequence[0] for each in (made, pydicom.dcmread(tmp_path / "slide.dcm"))]
    assert len({(each.XOffsetInSlideCoordinateSystem, each.YOffsetInSlideCoordinateSystem) for each in origins}) == 1
    missing = made.FloatPixelPaddingValue
    assert (values[round(128 / step) + 1 :, round(192 / step) + 1 :] == missing).all()
    row, column = np.nonzero(values > 0.8)
    centre = (np.array([column.mean(), row.mean()]) + 0.5) * step
    np.testing.assert_allclose(centre, heatmap.coords[5] + 32, atol=step / 2)


def test_the_segmentation_is_the_mask_file(tmp_path, heatmap):
    path = write_segmentation(tmp_path / "seg.dcm", slide_source(heatmap.frame), heatmap, ALGORITHM)
    made = read(path)
    assert made.PatientOrientation is None or len(made.PatientOrientation) == 0
    assert made.DimensionOrganizationType == "TILED_SPARSE"
    import highdicom

    pixels = highdicom.seg.segread(path).get_total_pixel_matrix(combine_segments=True)
    mask = tifffile.imread(export_mask(heatmap, tmp_path / "mask.tif"))[..., 0] > 0
    np.testing.assert_array_equal(pixels.reshape(mask.shape) > 0, mask)


def test_annotations_are_the_tiles_with_their_scores_and_the_regions(tmp_path, heatmap):
    import highdicom

    path = write_annotations(tmp_path / "ann.dcm", slide_source(heatmap.frame), heatmap, ALGORITHM)
    tiles, regions = highdicom.ann.annread(path).get_annotation_groups()
    assert tiles.graphic_type.value == regions.graphic_type.value == "POLYGON"
    corners = np.stack(tiles.get_graphic_data("2D"))
    np.testing.assert_allclose(corners[:, 0], heatmap.coords)
    np.testing.assert_allclose(corners[:, 2], np.minimum(heatmap.coords + 64, heatmap.frame.level0_size))
    _, scores, _ = tiles.get_measurements()
    np.testing.assert_allclose(scores[:, 0], heatmap.tile_scores, rtol=1e-6)
    (shape,) = regions.get_graphic_data("2D")
    assert shape.min(axis=0).tolist() == heatmap.coords[5].tolist()
    assert shape.max(axis=0).tolist() == (heatmap.coords[5] + 64).tolist()


def test_a_negative_slide_has_no_segmentation_and_no_regions(tmp_path, heatmap):
    import highdicom

    source = slide_source(heatmap.frame)
    negative = replace(heatmap, threshold=np.inf, attributes={**CALLED, "called": False})
    for fractional in (False, True):
        made = write_segmentation(tmp_path / "a.dcm", source, negative, ALGORITHM, fractional=fractional)
        assert made is None
    path = write_annotations(tmp_path / "ann.dcm", source, negative, ALGORITHM)
    assert len(highdicom.ann.annread(path).get_annotation_groups()) == 1


def test_report_and_picture_refer_to_the_slide(tmp_path, heatmap):
    source = slide_source(heatmap.frame)
    report = read(write_report(tmp_path / "sr.dcm", source, [Finding("tumor", 0.3, False, 0.4)], ALGORITHM))
    picture = read(write_overlay(tmp_path / "sc.dcm", source, heatmap, ALGORITHM, canvas_max=200))
    assert picture.pixel_array.shape[2] == 3
    for made in (report, picture):
        assert source.first.SOPInstanceUID in str(made)
        assert made.StudyInstanceUID == source.first.StudyInstanceUID
    assert "Negative" in str(report)


def test_a_slide_that_does_not_say_where_it_lies_gets_no_map_but_a_report(tmp_path, heatmap):
    path = tmp_path / "slide.dcm"
    header = pydicom.dcmread(path)
    del header.TotalPixelMatrixOriginSequence
    header.save_as(path)
    source = slide_source(heatmap.frame)
    with pytest.raises(DicomError, match="lacks TotalPixelMatrixOriginSequence"):
        write_parametric_map(tmp_path / "pm.dcm", source, heatmap, ALGORITHM)
    write_report(tmp_path / "sr.dcm", source, [Finding("tumor", 0.3, False)], ALGORITHM)
