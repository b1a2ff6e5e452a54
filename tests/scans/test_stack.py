"""Series that are no plain stack of slices: what is refused, what is repaired, and what is told."""

import shutil

import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import list_series, load_scan
from monai_mil.scans.stack import missing_slices
from tests.scans.conftest import phantom, write_series

SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def positions(*distances: float) -> np.ndarray:
    return np.cumsum([0, *distances])


@pytest.mark.parametrize(
    ("distances", "gaps"),
    [
        ([1] * 9, []),
        ([4] * 13 + [1.08] + [7] * 13, []),  # the GE head series
        ([2.5] * 8 + [5] * 10, []),
        ([5] * 8 + [1] * 20 + [5] * 8, []),
        ([5, 5, 1, 5, 5, 1, 5, 5], []),  # blocks that overlap
        ([1, 1, 2, 1, 1], [2]),
        ([1, 2, 1, 1, 1], [1]),
        ([2, 1, 1, 1, 1], [0]),
        ([1, 1, 1, 3], [3]),
        ([1, 2, 1, 1, 2, 1, 1, 1], [1, 4]),
        ([1, 1, 2, 3, 1, 1, 1, 1], [2, 3]),
        ([0.7, 0.6, 0.6, 0.7, 0.6, 1.3, 0.6, 0.6], [5]),
        ([4] * 6 + [8] + [4] * 6 + [7] * 8, [6]),
        ([2], []),
        ([], []),
    ],
)
def test_gaps_are_told_from_zones_of_another_spacing(distances, gaps):
    assert missing_slices(positions(*distances)) == gaps


def test_missing_slices_are_an_error_that_says_where_or_a_remark(tmp_path):
    z = [0, 2, 4, 8, 10, 12, 14, 20, 22, 24]
    folder = write_series(tmp_path / "case", phantom(len(z)), [[0, 0, value] for value in z])
    with pytest.raises(ScanReadError, match=r"2 places: 4 to 8 mm, 14 to 20 mm.*allow_gaps=True"):
        load_scan(folder)
    scan = load_scan(folder, allow_gaps=True)
    assert scan.frame.positions_mm.tolist() == z
    assert any("missing at 2 places" in remark for remark in scan.remarks)


def test_every_fifth_slice_is_a_series_that_tells_what_it_leaves_out(tmp_path):
    folder = write_series(tmp_path / "case", phantom(5), [[0, 0, 5 * i] for i in range(5)], SliceThickness=1.0)
    assert "slices of 1 mm lie 5 mm apart: the tissue between them is not in the scan" in load_scan(folder).remarks


def test_two_series_must_be_chosen_from(tmp_path):
    write_series(tmp_path / "case" / "a", phantom(3), SeriesInstanceUID="1.2.3", SliceThickness=5.0)
    write_series(tmp_path / "case" / "b", phantom(6, seed=1), SeriesInstanceUID="1.2.4", SliceThickness=1.25)
    with pytest.raises(ScanReadError, match=r"2 CT series.*series_uid.*1\.2\.4: CT, 6 slices of 1\.25 mm; 1\.2\.3"):
        load_scan(tmp_path / "case")
    scan = load_scan(tmp_path / "case", series_uid="1.2.3")
    assert np.array_equal(scan.hu, phantom(3))
    assert scan.scan_id == "case_1.2.3"
    with pytest.raises(ScanReadError, match=r"no CT series 9\.9; it has 1\.2\.4"):
        load_scan(tmp_path / "case", series_uid="9.9")


def test_series_are_listed_with_facts_and_no_text(tmp_path):
    write_series(tmp_path / "0", phantom(3), SeriesDescription="Jane's head")
    write_series(tmp_path / "1", phantom(1), SeriesInstanceUID="1.2.9", ImageType=SCOUT)
    write_series(
        tmp_path / "2", phantom(2), SeriesInstanceUID="1.2.8", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"
    )
    first, scout, mr = list_series(tmp_path)
    assert (first.modality, first.slices, first.thickness, first.is_localizer) == ("CT", 3, (2.0,), False)
    assert scout.is_localizer
    assert (mr.modality, mr.slices) == ("MR", 2)
    assert "Jane" not in repr([first, scout, mr])


def test_scouts_segmentations_and_reports_beside_a_series_are_left_out_with_a_remark(tmp_path):
    folder = write_series(tmp_path / "case", phantom(4))
    extras = {
        "seg": {"Modality": "SEG", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
        "sr": {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Rows": None},
        "scout": {"ImageType": SCOUT, "Rows": 99, "PixelData": bytes(99 * 16 * 2)},
        "capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        "DICOMDIR": {"SOPClassUID": "1.2.840.10008.1.3.10", "Modality": None, "Rows": None},
    }
    for name, attributes in extras.items():
        made = write_series(tmp_path / "made" / name, phantom(1), **attributes)
        shutil.copy(next(made.iterdir()), folder / name)
    scan = load_scan(folder)
    assert np.array_equal(scan.hu, phantom(4))
    told = "\n".join(scan.remarks)
    for kind in ("1 x SEG", "1 x SR", "1 x CT localizer", "1 x Secondary Capture Image Storage", "1 x Media Storage"):
        assert kind in told


def test_pictures_in_colour_are_no_slices(tmp_path):
    folder = write_series(tmp_path / "case", phantom(4))
    for number, kind in enumerate(("PALETTE COLOR", "RGB")):
        made = write_series(tmp_path / "made" / kind, phantom(1), PhotometricInterpretation=kind)
        shutil.copy(next(made.iterdir()), folder / f"colour{number}")
    scan = load_scan(folder)
    assert np.array_equal(scan.hu, phantom(4))
    assert "2 x colour picture beside the slices ignored" in scan.remarks


def test_a_number_of_frames_that_is_none_and_losses_do_no_harm(tmp_path):
    folder = write_series(tmp_path, phantom(3), NumberOfFrames="1", LossyImageCompression="01")
    for path in folder.iterdir():
        content = path.read_bytes()
        at = content.index(b"\x28\x00\x08\x00IS")
        path.write_bytes(content[: at + 8] + b"- " + content[at + 10 :])
    scan = load_scan(folder)
    assert np.array_equal(scan.hu, phantom(3))
    assert scan.remarks == ("compressed with losses (LossyImageCompression): Hounsfield units are approximate",)


def test_a_disc_with_a_dicomdir_is_read_from_its_folders(tmp_path):
    directory = write_series(
        tmp_path / "made", phantom(1), SOPClassUID="1.2.840.10008.1.3.10", Modality=None, Rows=None, Columns=None
    )
    write_series(tmp_path / "disc" / "DICOM" / "S1", phantom(3))
    shutil.copy(next(directory.iterdir()), tmp_path / "disc" / "DICOMDIR")
    assert len(load_scan(tmp_path / "disc")) == 3


def test_no_ct_is_an_error_that_names_what_there_is(tmp_path):
    folder = write_series(tmp_path / "mr", phantom(2), Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    (folder / "readme.txt").write_text("x" * 200)
    with pytest.raises(ScanReadError, match="no CT slices; found 2 x MR, 1 x not DICOM"):
        load_scan(folder)
    with pytest.raises(ScanReadError, match="a DICOM file, but MR, not CT"):
        load_scan(folder / "IM0000")
    with pytest.raises(ScanReadError, match="not a DICOM"):
        load_scan(folder / "readme.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanReadError, match="the folder is empty"):
        load_scan(tmp_path / "empty")
    with pytest.raises(ScanReadError, match="no such file or folder"):
        load_scan(tmp_path / "absent")


def test_mixed_orientations_are_listed(tmp_path):
    def turn(i, dataset):
        if i == 2:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    with pytest.raises(ScanReadError, match=r"2 orientations.*5 of axial.*1 of coronal.*the rarest: IM"):
        load_scan(write_series(tmp_path / "case", phantom(6), change=turn))


def test_mixed_sizes_and_pixel_spacings_are_listed(tmp_path):
    write_series(tmp_path / "case", phantom(3))
    write_series(tmp_path / "case" / "more", phantom(2, rows=20), [[0, 0, 90], [0, 0, 92]])
    for path in (tmp_path / "case" / "more").iterdir():
        path.rename(tmp_path / "case" / f"B{path.name}")
    with pytest.raises(ScanReadError, match="several sizes: 3 of 12 x 16, 2 of 20 x 16"):
        load_scan(tmp_path / "case")

    def zoom(i, dataset):
        if i == 0:
            dataset.PixelSpacing = [0.7, 0.7]

    with pytest.raises(ScanReadError, match=r"several PixelSpacing.*3 of 0\.5 x 0\.5 mm, 1 of 0\.7 x 0\.7 mm"):
        load_scan(write_series(tmp_path / "zoom", phantom(4), change=zoom))


def test_copies_of_slices_are_dropped_and_different_phases_are_not(tmp_path):
    folder = write_series(tmp_path / "case", phantom(4))
    shutil.copy(folder / "IM0001", folder / "copy")
    scan = load_scan(folder)
    assert np.array_equal(scan.hu, phantom(4))
    assert any(remark.startswith("1 slices stored twice") for remark in scan.remarks)

    write_series(tmp_path / "second", phantom(4, seed=1), AcquisitionNumber=2)
    for path in (tmp_path / "second").iterdir():
        path.rename(folder / f"second{path.name}")
    with pytest.raises(ScanReadError, match=r"different images at the same place.*acquisition 2"):
        load_scan(folder)


def test_without_positions_slice_location_then_instance_number_give_the_order(tmp_path):
    def located(i, dataset):
        del dataset.ImagePositionPatient
        dataset.SliceLocation = -3.0 * i

    scan = load_scan(write_series(tmp_path / "located", phantom(4), change=located))
    assert np.array_equal(scan.hu, phantom(4)[::-1])
    assert any("ordered by SliceLocation" in remark for remark in scan.remarks)
    assert scan.frame.spacings() == ((3, 3.0),)

    def numbered(i, dataset):
        del dataset.ImagePositionPatient

    scan = load_scan(write_series(tmp_path / "numbered", phantom(4), change=numbered))
    assert np.array_equal(scan.hu, phantom(4)[::-1])  # the writer numbers from the top
    assert any("ordered by InstanceNumber, taken as 2 mm apart" in remark for remark in scan.remarks)

    with pytest.raises(ScanReadError, match="cannot be ordered"):
        load_scan(write_series(tmp_path / "none", phantom(4), change=numbered, InstanceNumber=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ImagePositionPatient": [0, 0, "nan"]}, "ImagePositionPatient is not finite in IM"),
        ({"ImagePositionPatient": None}, "1 of 4 slices have no ImagePositionPatient, IM"),
        ({"ImageOrientationPatient": None}, "1 of 4 slices have no ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.3, 0.954, 0]}, "not perpendicular"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no pair of unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0]}, r"ImageOrientationPatient is '1.0.0.0.0.0', not 6 numbers"),
        ({"PatientID": "OTHER-4"}, "slices of 2 patients"),
    ],
)
def test_broken_geometry_is_refused(tmp_path, change, message):
    def spoil(i, dataset):
        if i == 1:
            for keyword, value in change.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)

    with pytest.raises(ScanReadError, match=message) as caught:
        load_scan(write_series(tmp_path / "case", phantom(4), change=spoil))
    assert "OTHER" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_zero_pixel_spacing_is_refused(tmp_path):
    with pytest.raises(ScanReadError, match="not a pair of positive numbers"):
        load_scan(write_series(tmp_path / "case", phantom(4), PixelSpacing=[0, 0.5]))


def test_a_series_of_the_rsna_challenge_lacks_most_attributes_and_loads(tmp_path):
    folder = write_series(
        tmp_path / "case",
        phantom(4),
        SOPClassUID=None,
        InstanceNumber=None,
        SliceThickness=None,
        ImageType=None,
        WindowCenter=[30, 30],
        WindowWidth=[80, 80],
    )
    assert np.array_equal(load_scan(folder).hu, phantom(4))


def test_a_file_cut_off_anywhere_after_its_modality_is_named_and_not_left_out(tmp_path):
    folder = write_series(tmp_path / "case", phantom(4))
    path = folder / "IM0002"
    whole = path.read_bytes()
    modality = whole.index(b"\x08\x00\x60\x00CS")
    for end in range(modality + 10, len(whole) - 1, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(ScanReadError, match="IM0002"):
            load_scan(folder)


def test_a_header_full_of_noise_is_an_error_that_quotes_nothing(tmp_path, recwarn, caplog):
    folder = write_series(tmp_path / "case", phantom(2))
    path = folder / "IM0001"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    told = []
    for _ in range(150):
        spoiled = bytearray(whole)
        for position in random.integers(132, 900, 4):
            spoiled[position] = random.integers(256)
        path.write_bytes(spoiled)
        try:
            load_scan(folder)
        except ScanReadError as error:
            told.append(str(error))
    assert len(told) > 20
    said = [*told, *(str(warning.message) for warning in recwarn), *(record.getMessage() for record in caplog.records)]
    assert not any("SECRET" in message or "Doe" in message for message in said)


def test_slices_of_two_frames_of_reference_are_no_stack(tmp_path):
    def moved(i, dataset):
        dataset.FrameOfReferenceUID = f"1.2.3.{i % 2}"

    with pytest.raises(ScanReadError, match=r"2 frames of reference.*2 of 1\.2\.3\.0"):
        load_scan(write_series(tmp_path / "two", phantom(4), change=moved))

    def anonymous(i, dataset):
        dataset.FrameOfReferenceUID = f"1.2.3.{i}"

    assert len(load_scan(write_series(tmp_path / "each", phantom(4), change=anonymous))) == 4


def test_slices_shifted_within_their_plane_are_no_gantry_tilt(tmp_path):
    origins = [[0, 5.0 * (i % 2), 2.0 * i] for i in range(8)]
    scan = load_scan(write_series(tmp_path, phantom(8), origins))
    (remark,) = scan.remarks
    assert "beside one straight line" in remark
    with pytest.raises(ScanReadError, match="beside one straight line"):
        _ = scan.affine


def test_a_shared_sop_instance_uid_is_told(tmp_path):
    (remark,) = load_scan(write_series(tmp_path, phantom(4), SOPInstanceUID="1.2.3")).remarks
    assert remark.startswith("3 slices have the SOPInstanceUID of another one")


def test_pixel_spacings_that_differ_by_rounding_are_one(tmp_path):
    def rounded(i, dataset):
        dataset.PixelSpacing = ["0.78125", "0.78125"] if i else ["0.781251", "0.78124"]

    assert load_scan(write_series(tmp_path, phantom(4), change=rounded)).frame.spacing == pytest.approx(
        (0.78125,) * 2, abs=1e-4
    )
