"""Acquisitions, phases and passes in one series are never woven into one scan."""

import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import load_scan, scan_files
from tests.scans.conftest import phantom, write_series


def two_ways(folder, first, second, change=None, **attributes):
    """One series of two passes, at ``first`` and ``second`` mm; the second is 500 HU brighter."""
    z = [*first, *second]
    hu = phantom(len(z)) // 2
    hu[len(first) :] += 500

    def changed(i, dataset):
        dataset.InstanceNumber = i + 1
        if change is not None:
            change(int(i >= len(first)), i, dataset)

    return write_series(folder, hu, [[0, 0, float(value)] for value in z], change=changed, **attributes), hu


def numbered(which, i, dataset):
    dataset.AcquisitionNumber = which + 1


def test_two_passes_are_chosen_between(tmp_path):
    first, second = np.arange(-48, 2, 4.0), np.arange(-16.5, 48, 4.0)
    folder, hu = two_ways(tmp_path / "case", first, second, numbered)
    wanted = (
        r"13 of acquisition 1 \(-48 to 0 mm\), 17 of acquisition 2 \(-16.5 to 47.5 mm\); choose one with acquisition"
    )
    with pytest.raises(ScanReadError, match=wanted):
        load_scan(folder)
    for name, part, z in (("1", hu[:13], first), ("2", hu[13:], second)):
        scan = load_scan(folder, acquisition=name)
        assert np.array_equal(scan.hu, part)
        assert scan.frame.positions_mm.tolist() == z.tolist()
        assert scan.frame.acquisition == name
        assert any(f"acquisition {name} was chosen: {30 - len(part)} slices" in remark for remark in scan.remarks)
        assert len(scan_files(folder, acquisition=name)) == len(part)
    with pytest.raises(ScanReadError, match="no acquisition '3'; it has 13 of acquisition 1"):
        load_scan(folder, acquisition="3")


def test_acquisitions_that_alternate_are_chosen_between_and_those_that_follow_one_another_are_one_scan(tmp_path):
    def load(name, number):
        def change(i, dataset):
            dataset.AcquisitionNumber = number(i)

        return load_scan(write_series(tmp_path / name, phantom(6), change=change))

    with pytest.raises(ScanReadError, match=r"3 of acquisition 1 .*, 3 of acquisition 2"):
        load("phases", lambda i: 1 + i % 2)
    assert load("rotations", lambda i: 1 + i // 2).remarks == ()
    assert len(load_scan(tmp_path / "rotations", acquisition="2")) == 2


def test_passes_of_many_rotations_are_told_apart(tmp_path):
    z = np.arange(0, 24, 2.0)

    def rotation(which, i, dataset):
        dataset.AcquisitionNumber = 1 + i // 4

    folder, hu = two_ways(tmp_path / "case", z, z + 1, rotation)
    with pytest.raises(ScanReadError, match=r"12 of acquisition 1-3 \(0 to 22 mm\), 12 of acquisition 4-6"):
        load_scan(folder)
    assert np.array_equal(load_scan(folder, acquisition="4-6").hu, hu[12:])


def phase(which, i, dataset):
    dataset.TemporalPositionIdentifier = which + 1


def one_time_each(which, i, dataset):
    dataset.AcquisitionTime = "101500.5" if which == 0 else "101620"


def times_of_slices(which, i, dataset):
    dataset.AcquisitionDateTime = f"2024021310{15 + which}{i:02d}.25"


@pytest.mark.parametrize(
    ("change", "name"),
    [(phase, "2"), (one_time_each, "pass-2"), (times_of_slices, "pass-2"), (None, "pass-2")],
    ids=["phases", "a time each", "a time a slice", "order of instances"],
)
def test_without_acquisition_numbers_phases_times_and_order_tell_passes_apart(tmp_path, change, name):
    z = np.arange(0, 20, 2.0)
    folder, hu = two_ways(tmp_path / "case", z, z + 0.7, change)
    with pytest.raises(ScanReadError, match=f"10 of acquisition {name}"):
        load_scan(folder)
    assert np.array_equal(load_scan(folder, acquisition=name).hu, hu[10:])


def test_places_alone_tell_two_combs_apart(tmp_path):
    first, second = np.arange(-48, 2, 4.0), np.arange(-16.5, 48, 4.0)

    def unnumbered(which, i, dataset):
        del dataset.InstanceNumber

    folder, hu = two_ways(tmp_path / "case", first, second, unnumbered)
    with pytest.raises(ScanReadError, match=r"13 of acquisition pass-1 \(-48 to 0 mm\), 17 of acquisition pass-2"):
        load_scan(folder)
    assert np.array_equal(load_scan(folder, acquisition="pass-2").hu, hu[13:])


@pytest.mark.parametrize(
    "z",
    [
        np.round(0.625 * np.arange(40), 1),
        np.round(0.75 * np.arange(40), 1),
        [*range(0, 56, 4), 53.08, *np.arange(60.08, 110, 7)],
        [0, 5, 10, 11, 16, 21, 22, 27, 32],
        [*range(0, 40, 5), *range(40, 60), *range(60, 100, 5)],
    ],
)
def test_places_that_are_rounded_or_lie_in_zones_and_blocks_are_one_scan(tmp_path, z):
    def unnumbered(i, dataset):
        del dataset.InstanceNumber

    hu = phantom(len(z), 4, 4)
    folder = write_series(tmp_path, hu, [[0, 0, float(value)] for value in z], change=unnumbered)
    assert len(load_scan(folder, allow_gaps=True)) == len(z)


def test_a_pass_on_the_way_back_begins_where_it_turns(tmp_path):
    z = np.arange(0, 20, 2.0)
    folder, hu = two_ways(tmp_path / "case", z, (z + 0.7)[::-1])
    assert np.array_equal(load_scan(folder, acquisition="pass-2").hu, hu[10:][::-1])


def test_two_phases_at_the_same_places_can_be_chosen_between(tmp_path):
    z = np.arange(0, 12, 2.0)
    folder, hu = two_ways(tmp_path / "case", z, z, numbered)
    with pytest.raises(ScanReadError, match="different images at the same place"):
        load_scan(folder)
    assert np.array_equal(load_scan(folder, acquisition="2").hu, hu[6:])


@pytest.mark.parametrize("number", [lambda i: i + 1, lambda i: 1 + i // 4, lambda i: (i * 7) % 11])
def test_numbers_of_slices_that_lie_evenly_and_once_part_no_scan(tmp_path, number):
    def change(i, dataset):
        dataset.AcquisitionNumber = number(i)
        dataset.AcquisitionTime = f"1015{(i * 5) % 12:02d}"

    assert len(load_scan(write_series(tmp_path, phantom(12), change=change))) == 12


def test_blocks_that_share_a_seam_are_one_scan(tmp_path):
    def change(i, dataset):
        dataset.AcquisitionNumber = 1 + i // 4

    z = [0, 5, 10, 15, 14, 19, 24, 29, 28, 33, 38, 43]
    assert len(load_scan(write_series(tmp_path, phantom(12), [[0, 0, value] for value in z], change=change))) == 12


def test_a_single_slice_of_another_acquisition_amid_the_others_is_not_woven_in(tmp_path):
    z = [*np.arange(0, 20, 2.0), 9.3]

    def change(i, dataset):
        dataset.AcquisitionNumber = 1 + (i == 10)

    folder = write_series(tmp_path, phantom(11), [[0, 0, value] for value in z], change=change)
    with pytest.raises(ScanReadError, match=r"10 of acquisition 1 .*, 1 of acquisition 2"):
        load_scan(folder)
    assert np.array_equal(load_scan(folder, acquisition="1").hu, phantom(11)[:10])
