"""What is no source of DICOM objects is told in one line."""

import shutil
import warnings
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from monai_mil.dicom import scan_source, slide_source
from monai_mil.errors import DicomError
from monai_mil.heatmaps import SlideFrame
from monai_mil.scans import load_scan
from monai_mil.slides import write_pyramid
from tests.dicom.examples import plain_series, slide_map


def test_a_nifti_file_has_no_dicom_objects(tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 4), np.int16), np.diag([1, 1, 2, 1])), path)
    with pytest.raises(DicomError, match=r"^scan 'a': no DICOM objects, for it is no DICOM; give the DICOM series$"):
        scan_source(load_scan(path).frame)


def test_a_series_that_is_gone_or_another_is_told(tmp_path):
    frame = load_scan(plain_series(tmp_path / "series")).frame
    next((tmp_path / "series").iterdir()).unlink()
    with pytest.raises(DicomError, match="1 of its 9 slices are not at"):
        scan_source(frame)
    shutil.rmtree(tmp_path / "series")
    with pytest.raises(DicomError, match=r"is not at .* any more"):
        scan_source(frame)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID"])
def test_results_must_be_able_to_name_their_source(tmp_path, keyword):
    def change(index, dataset):
        import pydicom

        with pydicom.config.disable_value_validation():
            setattr(dataset, keyword, f"Doe^Jane {index}" if keyword.startswith("SOP") else "Doe^Jane")
            dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"

    frame = load_scan(plain_series(tmp_path / "series", change=change)).frame
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom's quote the value
        with pytest.raises(DicomError, match=f"no valid {keyword}") as told:
            scan_source(frame)
    assert "Doe" not in str(told.value)


def test_only_the_series_of_the_scan_is_its_source(tmp_path):
    path = plain_series(tmp_path / "series")
    plain_series(tmp_path / "others", SeriesInstanceUID="1.2.826.0.1.3680043.8.498.77")
    for file in (tmp_path / "others").iterdir():
        file.rename(path / f"other_{file.name}")
    frame = load_scan(path, series_uid="1.2.826.0.1.3680043.8.498.1").frame
    source = scan_source(frame)
    assert [header.SOPInstanceUID for header in source.headers] == list(frame.sop_uids)


def test_a_tiff_has_no_dicom_objects_and_neither_has_a_slide_that_is_another_now(tmp_path):
    write_pyramid(tmp_path / "a.tif", np.full((300, 400, 3), 255, np.uint8), mpp=0.5)
    frame = SlideFrame("a", str(tmp_path / "a.tif"), (400, 300), 0.5, 64.0)
    with pytest.raises(DicomError, match=r"^slide 'a': no DICOM objects, for it is no DICOM; give the DICOM slide$"):
        slide_source(frame)
    with pytest.raises(DicomError, match="not at"):
        slide_source(replace(frame, slide_path=str(tmp_path / "b.dcm")))
    heatmap = slide_map(tmp_path / "c.dcm")
    with pytest.raises(DicomError, match="is another slide now"):
        slide_source(replace(heatmap.frame, level0_size=(999, 192)))
