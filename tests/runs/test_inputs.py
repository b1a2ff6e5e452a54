"""What somebody points at becomes the keys of a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_mil.errors import CohortError
from monai_mil.runs import class_names, cohort_settings, input_settings


def places(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_slides_are_raw_whether_one_or_several(tmp_path):
    one, two = places(tmp_path, "slides/a.svs", "more/b.tif")
    assert input_settings([one]) == ({"dataset_dir": str(one)}, True)
    assert input_settings([one.parent]) == ({"dataset_dir": str(one.parent)}, True)
    assert input_settings([one, two.parent]) == ({"inputs": [str(one), str(two.parent)]}, True)


def test_a_folder_of_bags_is_no_raw_input(tmp_path):
    bag, _ = places(tmp_path, "bags/a.h5", "trees/level_2/a.h5")
    assert input_settings([bag.parent]) == ({"bag_dir": str(bag.parent)}, False)
    assert input_settings([tmp_path / "trees"]) == ({"bag_dir": str(tmp_path / "trees")}, False)


def test_a_table_is_of_bags_where_they_lie_beside_it(tmp_path):
    table, _ = places(tmp_path, "raw/cohort.csv", "raw/slides/a.svs")
    settings = {"dataset_dir": str(table.parent), "cohort_file": str(table)}
    assert input_settings([table]) == (settings, True)
    places(tmp_path, "raw/bags/a.h5")
    assert input_settings([table]) == (settings, False)
    assert input_settings([table], raw=True) == (settings, True)


def test_what_is_not_there_or_not_alone_is_told(tmp_path):
    table, slide, _ = places(tmp_path, "cohort.csv", "a.svs", "bags/a.h5")
    with pytest.raises(CohortError, match=r"b\.svs' is not there"):
        input_settings([tmp_path / "b.svs"])
    for alone in (table, tmp_path / "bags"):
        with pytest.raises(CohortError, match="name it alone"):
            input_settings([slide, alone])


def test_relative_places_stay_right_wherever_the_run_happens(tmp_path, monkeypatch):
    places(tmp_path, "a.svs", "cohort/cohort.csv")
    monkeypatch.chdir(tmp_path)
    assert input_settings([Path("a.svs")])[0] == {"dataset_dir": str(tmp_path / "a.svs")}
    settings = cohort_settings(Path("cohort"))
    assert settings == {
        "dataset_dir": str(tmp_path / "cohort"),
        "cohort_file": str(tmp_path / "cohort" / "cohort.csv"),
    }
    assert cohort_settings(Path("cohort/cohort.csv")) == settings
    with pytest.raises(CohortError, match=r"no cohort\.csv"):
        cohort_settings(Path())
    with pytest.raises(CohortError, match="no cohort table"):
        cohort_settings(Path("a.svs"))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("tumor", "normal"), ["normal", "tumor"]),
        (("carcinoma", "Normal"), ["Normal", "carcinoma"]),
        (("positive", "negative"), ["negative", "positive"]),
        (("b", "a", "c"), ["a", "b", "c"]),
        (("10", "9"), ["9", "10"]),
    ],
)
def test_the_class_that_says_nothing_is_there_comes_first(labels, names, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,label\n" + "".join(f"S-{n},{label}\n" for n, label in enumerate(labels)) + "S-9,\n")
    assert class_names(table, ["label"]) == names


def test_labels_under_another_name_and_several_of_them(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,er,pr\nS-1,1,0\nS-2,0,1\n")
    assert class_names(table, ["er", "pr"]) == ["er", "pr"]
    with pytest.raises(CohortError, match="no labels in column label; name it with --label"):
        class_names(table, ["label"])
