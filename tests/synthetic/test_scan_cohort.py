import csv

import numpy as np
import pydicom
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from monai_mil.cohorts import read_cohort
from monai_mil.encoders import get_encoder
from monai_mil.errors import SettingsError
from monai_mil.scans import load_scan, prepare_slices, slice_preset
from monai_mil.synthetic import lesion_truth, make_scan_cohort
from monai_mil.synthetic.thorax import plan_thorax

_SIZE = 96


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Six scans in both formats, 96 px wide."""
    folder = tmp_path_factory.mktemp("scans")
    formats = ("dicom", "nifti")
    return make_scan_cohort(folder, num_scans=10, slices=(18, 24), size=_SIZE, slice_mm=5, formats=formats)


def test_the_same_seed_gives_the_same_pixels():
    first, again, other = (
        plan_thorax(seed, slices=12, size=64, spacing=5.6, slice_mm=6, lesions=1).paint(6)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_scans_load_and_their_table_is_valid(mixed):
    cohort = read_cohort(mixed)
    assert cohort.classes == ("negative", "positive")
    assert {slide.path.suffix for slide in cohort.slides} == {"", ".gz"}
    for case in cohort.slides:
        scan = load_scan(case.path)
        assert scan.hu.shape[1:] == (_SIZE, _SIZE)
        assert 18 <= len(scan) <= 24
        assert scan.frame.spacings() == ((len(scan) - 1, 5.0),)
        assert scan.frame.spacing == pytest.approx((360 / _SIZE, 360 / _SIZE))


def test_hounsfield_units_are_those_of_a_chest(mixed):
    for case in read_cohort(mixed).slides[:2]:
        hu = load_scan(case.path).hu
        middle = hu[len(hu) // 2]
        assert (middle < -950).mean() > 0.2, "air around the patient"
        assert ((middle > -920) & (middle < -700)).mean() > 0.05, "lung"
        assert ((middle > -10) & (middle < 110)).mean() > 0.08, "soft tissue"
        assert ((middle > -140) & (middle < -60)).mean() > 0.01, "fat"
        assert (middle > 250).mean() > 0.003, "bone"


def test_slice_labels_are_where_the_mask_is(mixed):
    with (mixed.parent / "slice_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for case in read_cohort(mixed).slides:
        own = [row for row in rows if row["scan_id"] == case.slide_id]
        labels = np.array([int(row["label"]) for row in own])
        truth = lesion_truth(mixed.parent / "masks" / f"{case.slide_id}.npz")
        scan = load_scan(case.path)
        assert truth.shape == scan.hu.shape
        np.testing.assert_array_equal(labels, truth.any(axis=(1, 2)))
        assert labels.any() == bool(case.label)
        np.testing.assert_allclose([float(row["position_mm"]) for row in own], scan.frame.positions_mm, atol=1e-4)
        if case.label:
            planted = np.flatnonzero(labels)
            assert len(planted) == planted[-1] - planted[0] + 1
            core = scan.hu[truth].mean()
            assert -450 < core < 150, "solid, on coarse voxels"


def test_dicom_labels_name_their_slices(tmp_path):
    table = make_scan_cohort(tmp_path, num_scans=10, slices=(6, 8), size=32, slice_mm=12)
    with (tmp_path / "slice_labels.csv").open() as file:
        uids = {row["scan_id"]: [] for row in csv.DictReader(file)}
        file.seek(0)
        for row in csv.DictReader(file):
            uids[row["scan_id"]].append(row["sop_uid"])
    orders = set()
    for case in read_cohort(table).slides:
        assert list(load_scan(case.path).frame.sop_uids) == uids[case.slide_id]
        numbers = {d.SOPInstanceUID: d.InstanceNumber for d in map(pydicom.dcmread, case.path.glob("*.dcm"))}
        steps = {numbers[b] - numbers[a] for a, b in zip(uids[case.slide_id], uids[case.slide_id][1:], strict=False)}
        orders.add({(1,): "up", (-1,): "down"}.get(tuple(steps), "scrambled"))
    assert orders == {"up", "down", "scrambled"}
    again = make_scan_cohort(tmp_path / "again", num_scans=10, slices=(6, 8), size=32, slice_mm=12)
    assert (again.parent / "slice_labels.csv").read_text() == (tmp_path / "slice_labels.csv").read_text()


def test_another_reader_agrees_on_the_geometry(mixed):
    highdicom = pytest.importorskip("highdicom", exc_type=ImportError, reason="highdicom needs pydicom 3")
    case = next(case for case in read_cohort(mixed).slides if case.path.is_dir())
    scan = load_scan(case.path)
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in case.path.glob("*.dcm")])
    expected = volume.to_patient_orientation("HPL")  # slices to the head, rows to the back, columns to the left
    np.testing.assert_allclose(expected.position, scan.frame.origins[0], atol=1e-4)
    np.testing.assert_allclose(expected.spacing, (5.0, *scan.frame.spacing), rtol=1e-5)
    np.testing.assert_array_equal(np.maximum(expected.array, -1024), scan.hu)


def test_patients_with_two_scans_stay_in_one_split(tmp_path):
    cohort = read_cohort(make_scan_cohort(tmp_path, num_scans=12, slices=(3, 4), size=16, slice_mm=25))
    assert len({case.patient_id for case in cohort.slides}) == 10


def test_long_scans_are_planned_without_their_pixels():
    plan = plan_thorax(3, slices=1000, size=512, spacing=0.7, slice_mm=0.6, lesions=2)
    held = plan.vessels.nbytes + plan.layers.nbytes + plan.heights.nbytes
    assert len(plan) == 1000
    assert held < 4e6, "less than eight slices"


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="name at least one of dicom, nifti"):
        make_scan_cohort(tmp_path, formats=("mha",))


def test_lesions_show_in_slice_features_but_not_in_brightness_alone():
    """Sixteen patients teach, eight are tested; half as many pixels as the default, five slices around the middle."""
    encoder, preset = get_encoder("ct_texture"), slice_preset("chest_rsna")
    textures, means, truths = [], [], []
    for seed in range(24):
        plan = plan_thorax(seed, slices=36, size=192, spacing=1.9, slice_mm=3, lesions=1)
        middle = int(np.abs(plan.heights - plan.lesions[0].centre[2]).argmin())
        chosen = [middle, *np.random.default_rng(seed).permutation(36)[:5].tolist()]
        painted = [plan.paint(index) for index in chosen]
        slices = prepare_slices(np.stack([hu for hu, _ in painted]), preset, 224)
        textures.append(encoder.encode(slices).float())
        means.append(slices.mean(dim=(2, 3)))
        truths.append(np.array([lesion.any() for _, lesion in painted]))
    train, test = slice(0, 16), slice(16, 24)

    def auroc(features: list[torch.Tensor]) -> float:
        model = LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced")
        model.fit(torch.cat(features[train]).numpy(), np.concatenate(truths[train]))
        return roc_auc_score(np.concatenate(truths[test]), model.decision_function(torch.cat(features[test]).numpy()))

    texture, brightness = auroc(textures), auroc(means)
    assert texture > 0.85
    assert brightness < texture - 0.1
