"""Stored values become Hounsfield units, whatever the file does to them."""

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from monai_mil.errors import ScanReadError
from monai_mil.scans import load_scan
from monai_mil.scans.repairs import clean_bits
from tests.scans.conftest import phantom, save, slice_dataset, write_series

SYNTAXES = {
    "JPEG Lossless": "JPEGLosslessProcess14",
    "JPEG Lossless SV1": "JPEGLosslessProcess14_1",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG 2000": "JPEG2000Lossless",
    "RLE": "RLELossless",
}


def compress(path: Path, syntax: str) -> None:
    """Rewrite a file in another transfer syntax, by GDCM."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def one_slice(folder: Path, stored: np.ndarray, **attributes) -> Path:
    return save(slice_dataset(stored, **attributes), folder / "case" / "slice.dcm")


def test_the_gantry_of_transfer_syntaxes_decodes(tmp_path):
    hu = phantom(len(SYNTAXES) + 1)
    folder = write_series(tmp_path / "case", hu, shuffle=False)
    for i, syntax in enumerate(SYNTAXES.values()):
        compress(folder / f"IM{i:04d}", syntax)
    used = {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in folder.iterdir()}
    assert len(used) == len(SYNTAXES) + 1
    assert np.array_equal(load_scan(folder).hu, hu)


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_keep_their_sign_through_compression(tmp_path, syntax, bits):
    values = np.random.default_rng(0).integers(-1024, 2000, (12, 16)).astype(np.int16)
    path = one_slice(tmp_path, values, BitsStored=bits, HighBit=bits - 1, RescaleIntercept=0)
    compress(path, syntax)
    assert np.array_equal(load_scan(path.parent).hu[0], values)


def test_rle_written_by_pydicom_decodes(tmp_path):
    hu = phantom(1)
    path = write_series(tmp_path / "case", hu) / "IM0000"
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert np.array_equal(load_scan(path.parent).hu, hu)


def test_implicit_and_big_endian_files_are_read(tmp_path):
    hu = phantom(1)
    stored = (hu[0].astype(int) + 1024).astype(np.uint16)
    dataset = slice_dataset(stored)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert np.array_equal(load_scan(save(dataset, tmp_path / "implicit" / "a")).hu, hu)

    dataset = slice_dataset(stored.astype(">u2"))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(load_scan(save(dataset, tmp_path / "big" / "a")).hu, hu)


def test_deflated_files_and_files_without_any_header_are_read(tmp_path):
    hu = phantom(2)
    stored = (hu.astype(int) + 1024).astype(np.uint16)
    deflated = slice_dataset(stored[0], ImagePositionPatient=[0, 0, 0])
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(deflated, tmp_path / "a")
    bare = slice_dataset(stored[1], ImagePositionPatient=[0, 0, 2.0])
    bare.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    save(bare, tmp_path / "b", preamble=False)
    assert np.array_equal(load_scan(tmp_path).hu, hu)


@pytest.mark.parametrize("syntax", [201, 202, 203])
@pytest.mark.parametrize("signed", [False, True])
def test_high_throughput_jpeg_2000_decodes(tmp_path, syntax, signed):
    hu = phantom(3)
    stored = hu if signed else (hu.astype(int) + 1024).astype(np.uint16)
    for index, pixels in enumerate(stored):
        dataset = slice_dataset(
            pixels, ImagePositionPatient=[0, 0, 2.0 * index], RescaleIntercept=0 if signed else -1024
        )
        dataset.PixelData = encapsulate([imagecodecs.htj2k_encode(pixels, reversible=True)])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{syntax}"
        save(dataset, tmp_path / f"{index}")
    assert np.array_equal(load_scan(tmp_path).hu, hu)


def test_a_missing_decoder_of_high_throughput_jpeg_2000_names_its_package(tmp_path, monkeypatch):
    dataset = slice_dataset(np.zeros((4, 4), np.uint16))
    dataset.PixelData = encapsulate([imagecodecs.htj2k_encode(np.zeros((4, 4), np.uint16))])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    save(dataset, tmp_path / "a")
    monkeypatch.setattr(imagecodecs.HTJ2K, "available", False)
    with pytest.raises(ScanReadError, match="pip install --upgrade imagecodecs"):
        load_scan(tmp_path)


def test_sign_bits_left_out_are_restored(tmp_path):
    true = np.arange(-1024, 1024, 8, dtype=np.int16).reshape(16, 16)
    stored = (true & 0x0FFF).astype(np.int16)
    path = one_slice(tmp_path, stored, BitsStored=12, HighBit=11, RescaleIntercept=0)
    scan = load_scan(path.parent)
    assert np.array_equal(scan.hu[0], true)
    assert any("without their sign bits" in remark for remark in scan.remarks)


def test_values_that_have_their_sign_are_left_alone(tmp_path):
    true = np.array([[-1024, 2600], [-5, 40]], np.int16)  # 2600 needs more bits than the header admits
    scan = load_scan(one_slice(tmp_path, true, BitsStored=12, HighBit=11, RescaleIntercept=0).parent)
    assert np.array_equal(scan.hu[0], true)


def test_bits_above_the_high_bit_are_no_value(tmp_path):
    stored = np.array([[1024, 1064 | 0x8000]], np.uint16)  # an overlay in the top bit
    scan = load_scan(one_slice(tmp_path, stored, BitsStored=12, HighBit=11).parent)
    assert scan.hu.tolist() == [[[0, 40]]]
    assert any("above BitsStored" in remark for remark in scan.remarks)


def test_values_stored_at_the_top_of_their_word_are_shifted_down():
    values = np.array([[5, 4095]], np.uint16)
    shifted, _, _ = clean_bits(values << 4, 12, 15, False)
    assert np.array_equal(shifted, values)


def test_wrapped_12_bit_slices_are_put_right(tmp_path):
    true = np.array([[-1000, -999, -500, -1], [0, 40, 80, 3095]])
    stored = (true % 4096).astype(np.uint16)
    scan = load_scan(one_slice(tmp_path, stored, BitsStored=12, HighBit=11, RescaleIntercept=1).parent)
    assert np.array_equal(scan.hu[0], true)
    assert any("wrapped around at 4096" in remark for remark in scan.remarks)


def test_an_ordinary_12_bit_slice_is_not_unwrapped(tmp_path):
    stored = np.array([[0, 1024, 4095]], np.uint16)
    scan = load_scan(one_slice(tmp_path, stored, BitsStored=12, HighBit=11).parent)
    assert scan.hu.tolist() == [[[-1024, 0, 3071]]]
    assert scan.remarks == ()


@pytest.mark.parametrize("lowest", [-2000, -3024, -32768])
def test_padding_below_air_becomes_air_and_is_reported(tmp_path, lowest):
    values = np.array([[lowest, -1024, -1000, 50]], np.int16)
    scan = load_scan(one_slice(tmp_path, values, RescaleIntercept=0, PixelPaddingValue=lowest).parent)
    assert scan.hu.tolist() == [[[-1024, -1024, -1000, 50]]]
    assert any(f"25 % of the pixels were padding or below -1024 HU (lowest {lowest}" in told for told in scan.remarks)


def test_padding_brighter_than_tissue_becomes_air_and_padding_like_tissue_stays(tmp_path):
    stored = np.array([[65535, 1024]], np.uint16)
    scan = load_scan(one_slice(tmp_path / "bright", stored, PixelPaddingValue=65535).parent)
    assert scan.hu.tolist() == [[[-1024, 0]]]
    assert scan.hu.dtype == np.int16
    stored = np.array([[1024, 0]], np.uint16)
    scan = load_scan(one_slice(tmp_path / "water", stored, PixelPaddingValue=1024).parent)
    assert scan.hu.tolist() == [[[0, -1024]]]
    assert any("may be tissue" in remark for remark in scan.remarks)


def test_rescaling_is_per_slice_and_float_only_where_it_must_be(tmp_path):
    def rescaled(i, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + i, -1000 * i

    folder = write_series(tmp_path / "whole", np.zeros((3, 4, 4), np.int16), change=rescaled)
    scan = load_scan(folder)
    assert scan.hu[:, 0, 0].tolist() == [1024, 1048, 1072]
    assert scan.hu.dtype == np.int16

    scan = load_scan(
        one_slice(tmp_path, np.array([[1000]], np.uint16), RescaleSlope=0.5, RescaleIntercept=-100.25).parent
    )
    assert scan.hu.dtype == np.float32
    assert scan.hu.item() == 399.75


def test_values_beyond_int16_are_float_and_exact(tmp_path):
    scan = load_scan(one_slice(tmp_path, np.array([[60000, 24]], np.uint16)).parent)
    assert scan.hu.dtype == np.float32
    assert scan.hu.tolist() == [[[58976, -1000]]]


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint32, np.int32])
def test_8_and_32_bit_files_are_read(tmp_path, kind):
    stored = np.array([[0, 100], [7, 127]], kind)
    scan = load_scan(one_slice(tmp_path, stored, RescaleIntercept=-50).parent)
    assert np.array_equal(scan.hu[0], stored.astype(int) - 50)


@pytest.mark.parametrize("syntax", ["", "JPEGLosslessProcess14_1", "JPEG2000Lossless", "RLELossless"])
def test_truncated_pixels_are_an_error_that_names_the_file(tmp_path, syntax):
    folder = write_series(tmp_path / "case", phantom(3, 64, 64))
    path = folder / "IM0001"
    if syntax:
        compress(path, syntax)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(ScanReadError, match=r"IM0001.*truncated"):
        load_scan(folder)


@pytest.mark.parametrize("syntax", ["", "RLELossless"])
def test_bytes_behind_the_pixels_do_no_harm(tmp_path, syntax):
    hu = phantom(2)
    folder = write_series(tmp_path / "case", hu)
    for path in folder.iterdir():
        if syntax:
            compress(path, syntax)
        path.write_bytes(path.read_bytes() + b"what a broken export left behind")
    assert np.array_equal(load_scan(folder).hu, hu)


def test_bits_that_no_ct_has_are_named(tmp_path):
    with pytest.raises(ScanReadError, match="BitsAllocated is 12; CT is read from 8, 16 or 32 bits"):
        load_scan(write_series(tmp_path, phantom(1), BitsAllocated=12))


def test_a_header_without_pixels_is_an_error_that_names_the_file(tmp_path):
    def strip(i, dataset):
        if i == 1:
            del dataset.PixelData

    folder = write_series(tmp_path / "case", phantom(3), shuffle=False, change=strip)
    with pytest.raises(ScanReadError, match=r"IM0001.*no pixel data"):
        load_scan(folder)


def test_a_transfer_syntax_nobody_decodes_is_named(tmp_path):
    path = write_series(tmp_path / "case", phantom(1)) / "IM0000"
    compress(path, "JPEG2000Lossless")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    dataset.save_as(path)
    with pytest.raises(ScanReadError, match=r"IM0000.*MPEG2 Main Profile"):
        load_scan(path.parent)


def test_monochrome1_is_told_and_values_are_as_stored(tmp_path):
    hu = phantom(2)
    scan = load_scan(write_series(tmp_path / "case", hu, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(scan.hu, hu)
    assert any("MONOCHROME1" in remark for remark in scan.remarks)


@pytest.mark.parametrize("change", [{"RescaleSlope": 0}, {"RescaleSlope": -1}, {"RescaleIntercept": "NaN"}])
def test_rescaling_that_gives_no_hounsfield_units_is_refused(tmp_path, change):
    with pytest.raises(ScanReadError, match=r"IM0000.*give no Hounsfield units"):
        load_scan(write_series(tmp_path, phantom(1), **change))


def test_values_without_air_are_told_to_be_no_hounsfield_units_perhaps(tmp_path):
    told, remark = load_scan(write_series(tmp_path, phantom(3), RescaleSlope=None, RescaleIntercept=None)).remarks
    assert "no slice has RescaleSlope and RescaleIntercept" in told
    assert "may be no Hounsfield units" in remark


@pytest.mark.parametrize("above", [0x8000, 0xF000, 0x1000, 0x6000])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_high_bit_never_take_part(tmp_path, above, signed):
    true = np.arange(-1000, 1048, 8, dtype=np.int16).reshape(16, 16)
    intercept = 0 if signed else -1024
    stored = ((true - intercept) & 0x0FFF).astype(np.uint16)
    stored[3:6, 2:12] |= above
    kind = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": intercept, "PixelRepresentation": int(signed)}
    scan = load_scan(one_slice(tmp_path, stored.view(np.int16) if signed else stored, **kind).parent)
    assert np.array_equal(scan.hu[0], true)
    assert any("above BitsStored were ignored" in one or "without their sign bits" in one for one in scan.remarks)


@pytest.mark.parametrize("vr", ["OB", "OW", "UN", "OL"])
def test_pixels_are_the_same_in_any_vr(tmp_path, vr):
    hu = phantom(1)[0]
    path = one_slice(tmp_path, (hu.astype(np.int32) + 1024).astype(np.uint16))
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00O")
    path.write_bytes(content[: at + 4] + vr.encode() + content[at + 6 :])
    assert np.array_equal(load_scan(path.parent).hu[0], hu)


@pytest.mark.parametrize(("signed", "vr", "value"), [(False, "SS", -2000), (True, "US", 63536)])
def test_padding_is_padding_in_either_signedness(tmp_path, signed, vr, value):
    stored = np.full((16, 16), 1024, np.int16)
    stored[:2] = -2000
    stored = stored if signed else stored.view(np.uint16)

    def pad(_, dataset):
        dataset.add_new("PixelPaddingValue", vr, value)

    dataset = slice_dataset(stored)
    pad(0, dataset)
    scan = load_scan(save(dataset, tmp_path / "case" / "IM0").parent)
    assert (scan.hu[0, :2] == -1024).all()
    assert (scan.hu[0, 2:] == 0).all()


def test_values_that_no_ct_measures_are_told(tmp_path):
    stored = np.full((16, 16), 1024, np.uint16)
    stored[:2] = 63536
    scan = load_scan(one_slice(tmp_path, stored).parent)
    assert any("up to 62512 HU, which no CT measures" in remark for remark in scan.remarks)


def test_a_slice_without_rescaling_among_others_is_an_error_that_names_it(tmp_path):
    def strip(i, dataset):
        if i == 2:
            del dataset.RescaleSlope, dataset.RescaleIntercept

    folder = write_series(tmp_path, phantom(6), change=strip, shuffle=False)
    with pytest.raises(ScanReadError, match=r"1 of 6 slices lack RescaleSlope or RescaleIntercept \(IM0002\)"):
        load_scan(folder)


@pytest.mark.parametrize("share", [1, 40])
def test_metal_is_never_taken_for_air_that_wrapped_around(tmp_path, share):
    """12 bits, unsigned, bright as wrapped air: only air itself, and much of it, proves that it wrapped."""
    stored = np.full((32, 32), 1064, np.uint16)
    stored[:share, :8] = 4095
    for change in ({"RescaleSlope": None, "RescaleIntercept": None}, {"RescaleIntercept": 0}):
        scan = load_scan(one_slice(tmp_path / str(len(change)), stored, BitsStored=12, HighBit=11, **change).parent)
        assert np.array_equal(scan.hu[0], stored)
        assert not any("wrapped" in remark for remark in scan.remarks)
