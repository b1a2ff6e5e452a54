"""Whatever way a scan is stored, columns run to the patient's left, rows to the back, slices to the head."""

import dataclasses
import itertools

import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import Scan, ScanFrame, Turn, load_scan, lung_mask, oriented
from tests.scans.chest import LESION, hu, slice_origins, write_dicom, write_volume

TILT = np.deg2rad(15)
TURNS = {  # each shows the voxels of the plain series: 24 slices of 64 x 64
    "mirrored": {"iop": (-1, 0, 0, 0, 1, 0)},
    "prone": {"iop": (-1, 0, 0, 0, -1, 0)},
    "upside down": {"iop": (1, 0, 0, 0, -1, 0)},
    "transposed": {"iop": (0, 1, 0, 1, 0, 0)},
    "on the side": {"iop": (0, 1, 0, -1, 0, 0)},
    "sagittal": {"iop": (0, 1, 0, 0, 0, -1), "size": (24, 64)},
    "coronal": {"iop": (1, 0, 0, 0, 0, -1), "size": (24, 64)},
}
VOLUMES = {"as MONAI writes": {}, "to the right": {"flips": (0, 1)}, "sagittal": {"axes": (1, 2, 0), "flips": (0, 2)}}


def points(frame: ScanFrame) -> np.ndarray:
    """Where the voxels lie, LPS, ``[n, rows, columns, 3]``."""
    rows, columns = np.mgrid[: frame.size[0], : frame.size[1]][..., None]
    in_plane = columns * frame.spacing[1] * frame.orientation[0] + rows * frame.spacing[0] * frame.orientation[1]
    return frame.origins[:, None, None] + in_plane


def turned_series(folder, name):
    facts = TURNS[name]
    if name in ("sagittal", "coronal"):  # their slices lie 3 mm apart, their rows 4 mm: the same voxels
        iop, size = np.array(facts["iop"], float), facts["size"]
        along, down = iop.reshape(2, 3)
        places = (np.arange(64) - 31.5) * 3.0
        origins = places[:, None] * np.cross(along, down) - along * 3.0 * 31.5 - down * 4.0 * 11.5
        return write_tall(folder, iop, size, origins)
    return write_dicom(folder, **facts)


def write_tall(folder, iop, size, origins):
    from tests.scans.conftest import write_series

    along, down = iop.reshape(2, 3)
    rows, columns = np.mgrid[: size[0], : size[1]][..., None]
    slices = np.stack([hu(origin + columns * 3.0 * along + rows * 4.0 * down) for origin in origins])
    return write_series(folder, slices, origins, ImageOrientationPatient=iop.tolist(), PixelSpacing=[4.0, 3.0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_scan(write_dicom(tmp_path_factory.mktemp("plain") / "scan"))


def test_a_plain_scan_is_left_as_it_is(plain):
    assert plain.frame.turn is None
    assert plain.frame.source is plain.frame
    assert oriented(plain) is plain
    assert np.array_equal(plain.hu, hu(points(plain.frame)))
    assert "turn" not in plain.frame.to_json()


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_series_is_the_plain_one(plain, tmp_path, name):
    scan = load_scan(turned_series(tmp_path / "scan", name))
    assert np.array_equal(scan.hu, plain.hu)
    assert scan.frame.axis_codes == "LPS"
    np.testing.assert_allclose(scan.frame.origins, plain.frame.origins, atol=1e-9)
    np.testing.assert_allclose(scan.frame.spacing, plain.frame.spacing)
    again = type(scan.frame).from_json(scan.frame.to_json())
    assert again.to_json() == scan.frame.to_json()
    assert np.array_equal(again.to_source(scan.hu), hu(points(again.source)))
    told = [remark for remark in scan.remarks if f"comes in {name} slices" in remark]
    assert bool(told) == (name in ("sagittal", "coronal"))


@pytest.mark.parametrize("name", VOLUMES)
def test_a_turned_volume_is_the_plain_series(plain, tmp_path, name):
    scan = load_scan(write_volume(tmp_path / "scan.nii", **VOLUMES[name]))
    assert np.array_equal(scan.hu, plain.hu)
    np.testing.assert_allclose(scan.affine, plain.affine, atol=1e-5)


def test_an_instance_keeps_its_slice_where_it_still_is_one(plain, tmp_path):
    assert len(set(plain.frame.sop_uids)) == 24
    scan = load_scan(write_dicom(tmp_path / "scan", **TURNS["mirrored"]))
    assert scan.frame.sop_uids == scan.frame.source.sop_uids[::-1]
    assert np.all(np.diff(scan.frame.positions_mm) > 0)
    across = load_scan(turned_series(tmp_path / "coronal", "coronal"))
    assert set(across.frame.sop_uids) == {""}
    assert len(set(across.frame.source.sop_uids)) == 64


def test_lungs_are_found_alike_in_every_orientation(plain, tmp_path):
    expected = lung_mask(plain)
    assert expected.sum() > 10_000
    for name in ("prone", "sagittal"):
        assert np.array_equal(lung_mask(load_scan(turned_series(tmp_path / name, name))), expected)


@pytest.mark.parametrize("angle", [10.0, 44.9, 45.0, 80.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_order_of_oblique_axes_is_turned_to_one(angle, axis):
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    rotation = np.roll(np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]), (axis, axis), (0, 1))
    directions, volume = rotation[::-1], np.arange(24).reshape(2, 3, 4)
    expected = Turn.to_patient(directions).apply(volume)
    signs = np.array(Turn.to_patient(directions).flips) * -2 + 1
    chosen = directions[list(Turn.to_patient(directions).axes)] * signs[:, None]
    assert (np.diagonal(chosen[:, ::-1]) > 0).all()
    assert np.linalg.det(chosen[::-1]) == pytest.approx(1), "no mirror image"
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            mirrored = np.flip(volume.transpose(axes), [a for a in range(3) if flips[a] < 0])
            found = Turn.to_patient(directions[list(axes)] * np.array(flips)[:, None]).apply(mirrored)
            assert np.array_equal(found, expected)


def test_indices_of_a_turn_are_those_of_its_volume():
    turn, volume = Turn((1, 2, 0), (True, False, True)), np.arange(24).reshape(2, 3, 4)
    found = turn.apply(volume)
    matrix = turn.indices(found.shape)
    for index in np.ndindex(*volume.shape):
        column, row, layer, _ = (matrix @ [*index[::-1], 1]).astype(int)
        assert found[layer, row, column] == volume[index]
    assert np.array_equal(turn.undo(found), volume)


def test_oblique_scans_and_pixels_that_are_not_square_are_told(tmp_path):
    cos, sin = np.cos(np.deg2rad(40)), np.sin(np.deg2rad(40))
    oblique = load_scan(write_dicom(tmp_path / "oblique", iop=(cos, sin, 0, -sin, cos, 0)))
    assert any("strongly oblique: its axes lie up to 40 degrees" in remark for remark in oblique.remarks)
    volume = load_scan(write_volume(tmp_path / "scan.nii", axes=(1, 0, 2), flips=(0, 2)))
    assert volume.remarks == (), "still axial slices"
    across = load_scan(write_volume(tmp_path / "scan.nii", axes=(2, 1, 0)))
    assert across.remarks == ("comes in sagittal slices: cut into 24 axial ones, without resampling",)
    tall = turned_series(tmp_path / "coronal", "coronal")
    scan = load_scan(tall)
    assert not any("not square" in remark for remark in scan.remarks), "3 x 3 mm once they are axial"
    wide = dataclasses.replace(scan.frame, spacing=(3.0, 1.5))
    from monai_mil.scans.orientation import orientation_remarks

    assert any("3 mm between rows, 1.5 mm between columns" in remark for remark in orientation_remarks(wide))


def test_a_tilted_gantry_is_turned_with_its_shear(tmp_path):
    iop = (-1, 0, 0, 0, -np.cos(TILT), np.sin(TILT))
    normal = np.cross(iop[:3], iop[3:])
    scan = load_scan(write_dicom(tmp_path / "scan", iop=iop, drift=np.array([0, 0, 1 / normal[2]]) - normal))
    assert np.array_equal(scan.hu, hu(points(scan.frame)))
    assert scan.frame.tilt_degrees == pytest.approx(15, abs=1e-3)
    assert scan.frame.turn.flips == (False, True, True)


def test_slices_sheared_within_what_would_be_axial_ones_are_refused(tmp_path):
    origins = slice_origins((1, 0, 0, 0, 0, -1), drift=(0.1, 0, 0))
    with pytest.raises(ScanReadError, match="sheared within the slices; resample"):
        load_scan(write_dicom(tmp_path / "scan", (1, 0, 0, 0, 0, -1), origins=origins))


def test_uneven_coronal_slices_keep_their_own_places(tmp_path):
    iop = (1, 0, 0, 0, 0, -1)
    origins = slice_origins(iop)[[*range(12), *range(12, 24, 2)]]
    scan = load_scan(write_dicom(tmp_path / "scan", iop, origins=origins))
    assert np.array_equal(scan.frame.to_source(scan.hu), hu(points(scan.frame.source)))
    assert any("slice distances differ" in remark for remark in scan.remarks)


def test_a_scan_made_by_hand_is_turned_too():
    frame = ScanFrame(
        "scan", None, (24, 64), (4.0, 3.0), np.array([[1.0, 0, 0], [0, 0, -1]]),
        np.array([[0.0, 3.0 * k, 0] for k in range(5)]), ("",) * 5, (1,) * 5,
    )  # fmt: skip
    scan = oriented(Scan(frame, np.arange(5 * 24 * 64).reshape(5, 24, 64).astype(np.int16)))
    assert scan.hu.shape == (24, 5, 64)
    assert scan.hu.flags.c_contiguous
    assert scan.frame.origins[0] == pytest.approx([0, 0, -4.0 * 23])


def test_the_lesion_is_where_it_is(plain):
    column, row, index = np.unravel_index(plain.hu.T.argmax(), plain.hu.T.shape)
    assert points(plain.frame)[index, row, column] == pytest.approx(LESION, abs=2)
