"""Splits and folds: patients whole, classes in proportion; a fold that is chosen becomes the splits."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monai_mil.cohorts import (
    Cohort,
    CohortSlide,
    read_cohort,
    read_survival_cohort,
    split_cohort,
    split_survival_cohort,
)
from monai_mil.errors import CohortError
from monai_mil.model_card import ModelCard

FOLDS = """slide_id,patient_id,split,fold,label
a,p1,train,0,normal
b,p1,train,0,tumor
c,p2,val,1,normal
d,p3,test,2,tumor
e,p4,test,3,tumor
"""


def many(patients: int, slides_each: int, positive: float) -> Cohort:
    rng = np.random.default_rng(patients)
    slides = tuple(
        CohortSlide(f"s{patient}_{slide}", f"p{patient}", label=int(rng.random() < positive))
        for patient in range(patients)
        for slide in range(slides_each)
    )
    return Cohort("cohort.csv", slides, ("label",), ("normal", "tumor"))


@settings(max_examples=25, deadline=None)
@given(
    patients=st.integers(20, 60),
    slides_each=st.integers(1, 3),
    fractions=st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.5, 0.0), (0.8, 0.0, 0.2), (0.2, 0.2, 0.6), (1.0, 0.0, 0.0)]),
    seed=st.integers(0, 5),
)
@example(patients=22, slides_each=3, fractions=(0.2, 0.2, 0.6), seed=0)
def test_a_split_never_divides_a_patient_and_keeps_the_shares(patients, slides_each, fractions, seed):
    cohort = split_cohort(many(patients, slides_each, 0.4), fractions, seed)
    homes: dict[str, set[str]] = {}
    for slide in cohort.slides:
        homes.setdefault(slide.patient_id, set()).add(slide.split)
    assert all(len(splits) == 1 for splits in homes.values())
    counts = Counter(slide.split for slide in cohort.slides)
    for name, share in zip(("train", "val", "test"), fractions, strict=True):
        assert counts[name] / len(cohort) == pytest.approx(share, abs=0.13)
    assert cohort == split_cohort(cohort, fractions, seed)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.4, 0.45, 0.6, 0.7, 0.85])
def test_any_share_of_a_large_cohort_is_met(share):
    cohort = split_cohort(many(200, 1, 0.3), (1 - share, share, 0.0))
    for label in (0, 1):
        splits = [slide.split for slide in cohort.slides if slide.label == label]
        assert splits.count("val") / len(splits) == pytest.approx(share, abs=0.05)


def test_a_rare_class_is_in_every_split_however_the_shares_lie():
    slides = tuple(CohortSlide(f"s{index}", f"p{index}", label=int(index < 2)) for index in range(40))
    for seed in range(10):
        cohort = split_cohort(Cohort("cohort.csv", slides, ("label",), ("normal", "tumor")), (0.6, 0.4, 0.0), seed)
        assert {slide.split for slide in cohort.slides if slide.label} == {"train", "val"}


def test_a_split_keeps_the_classes_in_proportion():
    cohort = split_cohort(many(200, 1, 0.25), seed=3)
    for split in ("train", "val", "test"):
        labels = [slide.label for slide in cohort.slides if slide.split == split]
        assert np.mean(labels) == pytest.approx(np.mean([slide.label for slide in cohort.slides]), abs=0.03)


def test_too_few_patients_for_a_split_is_an_error():
    with pytest.raises(CohortError, match="2 patients cannot be split"):
        split_cohort(many(2, 3, 0.5))
    with pytest.raises(CohortError, match="not three shares that sum to 1"):
        split_cohort(many(10, 1, 0.5), (0.5, 0.5, 0.5))


@settings(max_examples=15, deadline=None)
@given(patients=st.integers(15, 40), slides_each=st.integers(1, 3), folds=st.integers(3, 6), seed=st.integers(0, 3))
def test_folds_never_divide_a_patient_and_are_of_one_size(patients, slides_each, folds, seed):
    before = many(patients, slides_each, 0.4)
    cohort = split_cohort(before, folds=folds, seed=seed)
    homes: dict[str, set[int]] = {}
    for slide in cohort.slides:
        homes.setdefault(slide.patient_id, set()).add(slide.fold)
    assert all(len(found) == 1 for found in homes.values())
    counts = Counter(found.pop() for found in homes.values())
    assert set(counts) == set(range(folds)), "numbered from 0"
    assert max(counts.values()) - min(counts.values()) <= 3
    assert cohort == split_cohort(before, folds=folds, seed=seed)
    assert all(slide.split is None for slide in cohort.slides)


def test_folds_keep_the_classes_in_proportion_and_the_splits_as_they_are():
    cohort = split_cohort(split_cohort(many(200, 1, 0.25)), folds=5, seed=3)
    for fold in range(5):
        labels = [slide.label for slide in cohort.slides if slide.fold == fold]
        assert np.mean(labels) == pytest.approx(np.mean([slide.label for slide in cohort.slides]), abs=0.03)
    assert cohort == split_cohort(cohort, folds=5, seed=3)
    assert Counter(slide.split for slide in cohort.slides)["train"] == 120


def test_what_cannot_be_folded_is_told(caplog):
    for folds in (2, 9):
        with pytest.raises(CohortError, match=f"8 patients cannot be divided into {folds} folds"):
            split_cohort(many(8, 2, 0.5), folds=folds)
    slides = tuple(CohortSlide(f"s{index}", f"p{index}", label=int(index < 2)) for index in range(20))
    split_cohort(Cohort("cohort.csv", slides, ("label",), ("normal", "tumor")), folds=5)
    assert "only 2 of 5 folds hold the label tumor" in caplog.text


def test_folds_are_written_and_read_and_one_becomes_the_splits(tmp_path, caplog):
    (tmp_path / "cohort.csv").write_text(FOLDS)
    cohort = read_cohort(tmp_path / "cohort.csv")
    assert [slide.fold for slide in cohort.slides] == [0, 0, 1, 2, 3]
    again = cohort.write(tmp_path / "again.csv")
    assert repr(read_cohort(again).slides) == repr(cohort.slides)
    assert not caplog.text
    chosen = read_cohort(again, fold=3)
    assert [slide.split for slide in chosen.slides] == ["val", "val", "train", "train", "test"]
    assert [item["slide_id"] for item in chosen.datalist("val", tmp_path, check=False)] == ["a", "b"]
    assert caplog.text.count("fold 3 is taken, its column 'split' does not count") == 1
    assert [slide.split for slide in read_cohort(again, fold=1).slides] == ["train", "train", "test", "val", "train"]


def test_folds_may_be_numbered_from_1(tmp_path):
    (tmp_path / "cohort.csv").write_text("slide_id,fold,label\na,1,x\nb,2.0,x\nc,3,y\n")
    assert [slide.split for slide in read_cohort(tmp_path / "cohort.csv", fold=3).slides] == ["val", "train", "test"]


@pytest.mark.parametrize(
    ("table", "fold", "message"),
    [
        (FOLDS, 7, r"column 'fold': no fold 7; there are folds 0, 1, 2, 3"),
        (FOLDS.replace("fold", "group"), 0, r"no column 'fold', .*split_cohort\(read_cohort\(TABLE\), folds=5\)"),
        (FOLDS.replace("b,p1,train,0", "b,p1,train,1"), 0, r"row 3, .*patient 'p1' is in fold 1 but in 0 in row 2"),
        (FOLDS.replace(",3,", ",,"), None, r"row 6, column 'fold': empty, but other rows have one"),
        (FOLDS.replace(",3,", ",last,"), None, r"row 6, column 'fold': 'last' is no whole number from 0 up"),
        (FOLDS.replace(",2,", ",1,").replace(",3,", ",1,"), 0, r"only folds 0, 1; one fold tests"),
    ],
)
def test_folds_that_do_not_serve_are_told(tmp_path, table, fold, message):
    (tmp_path / "cohort.csv").write_text(table)
    with pytest.raises(CohortError, match=message):
        read_cohort(tmp_path / "cohort.csv", fold=fold)


def test_a_table_of_folds_alone_says_how_to_choose_one(tmp_path):
    (tmp_path / "cohort.csv").write_text("slide_id,fold,label\na,0,x\n")
    with pytest.raises(CohortError, match="use split_cohort, or give one of its folds, --fold 0"):
        read_cohort(tmp_path / "cohort.csv").datalist("train")


def test_the_fold_of_a_model_is_that_of_the_cohort_it_was_trained_on(tmp_path, caplog):
    (tmp_path / "cohort.csv").write_text(FOLDS.replace("split", "site"))
    trained = ModelCard({"fold": 1}, training_data=read_cohort(tmp_path / "cohort.csv", fold=1).digest("train"))
    read_cohort(tmp_path / "cohort.csv", fold=1, trained=trained)
    assert not caplog.text
    (tmp_path / "drawn_anew.csv").write_text(FOLDS.replace("split", "site").replace("p4,test,3", "p4,test,1"))
    read_cohort(tmp_path / "drawn_anew.csv", fold=1, trained=trained)
    assert "outside fold 1 are not those the model was trained on" in caplog.text
    (tmp_path / "other.csv").write_text(FOLDS.replace("fold", "site"))
    assert [slide.split for slide in read_cohort(tmp_path / "other.csv", fold=1, trained=trained).slides][-1] == "test"
    assert "has no column 'fold', and the model was trained with fold 1 of its cohort" in caplog.text
    with pytest.raises(CohortError, match="no column 'fold'"):
        read_cohort(tmp_path / "other.csv", fold=1, trained=ModelCard())


def test_events_are_kept_in_proportion_among_folds(tmp_path):
    rows = [f"s{i},p{i // 2},{5 + i // 2},{int(i // 2 % 3 == 0)}" for i in range(120)]
    (tmp_path / "c.csv").write_text("slide_id,patient_id,time,event\n" + "\n".join(rows) + "\n")
    cohort = split_survival_cohort(read_survival_cohort(tmp_path / "c.csv"), folds=5)
    for fold in range(5):
        events = [slide.label[1] for slide in cohort.slides if slide.fold == fold]
        assert (len(events), sum(events)) == (24, 8)
    written = cohort.write(tmp_path / "c.csv")
    assert Counter(slide.split for slide in read_survival_cohort(written, fold=0).slides)["train"] == 72
