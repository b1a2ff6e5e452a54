import csv
import json

import numpy as np
import pytest

from monai_mil.cohorts import read_cohort, read_survival_cohort, split_cohort
from monai_mil.errors import CohortError

GOOD = """slide_id,path,patient_id,split,label
a,slides/a.svs,p1,train,normal
b,slides/b.svs,p1,train,tumor
c,slides/c.svs,p2,val,normal
d,/data/d.svs,,test,tumor
"""


@pytest.fixture
def table(tmp_path):
    def write(content: str | bytes, name: str = "cohort.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_table_is_read_with_paths_relative_to_it(table, tmp_path):
    cohort = read_cohort(table(GOOD))
    assert cohort.classes == ("normal", "tumor")
    assert [slide.label for slide in cohort.slides] == [0, 1, 0, 1]
    assert [str(slide.path) for slide in cohort.slides] == [
        *(f"{tmp_path}/slides/{n}.svs" for n in "abc"),
        "/data/d.svs",
    ]
    assert [slide.patient_id for slide in cohort.slides] == ["p1", "p1", "p2", "d"]
    assert [slide.split for slide in cohort.slides] == ["train", "train", "val", "test"]


def test_excel_s_byte_order_mark_and_blank_lines_do_no_harm(table):
    content = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n\r\n").encode()
    assert read_cohort(table(content)).slides[0].slide_id == "a"


def test_only_slide_id_is_needed_without_labels(table):
    cohort = read_cohort(table("slide_id\na\nb\n"), labels=())
    assert [(slide.slide_id, slide.path, slide.label) for slide in cohort.slides] == [
        ("a", None, None),
        ("b", None, None),
    ]


def test_classes_that_are_numbers_are_in_numerical_order(table):
    assert read_cohort(table("slide_id,label\na,10\nb,2\nc,0\n")).classes == ("0", "2", "10")


def test_given_classes_set_the_order_and_may_be_absent_from_the_table(table):
    cohort = read_cohort(table("slide_id,label\na,tumor\n"), classes=["tumor", "normal", "other"])
    assert (cohort.classes, cohort.slides[0].label) == (("tumor", "normal", "other"), 0)


def test_several_label_columns_are_a_multi_label_cohort_with_unknown_values(table):
    cohort = read_cohort(table("slide_id,er,her2\na,1,0\nb,,1\nc,nan,1.0\n"), labels=("er", "her2"))
    assert cohort.classes == ("er", "her2")
    np.testing.assert_array_equal([slide.label for slide in cohort.slides], [[1, 0], [np.nan, 1], [np.nan, 1]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no slides"),
        ("slide_id,label\n", r"no slides"),
        ("name,label\na,x\n", r"row 1: no column 'slide_id'; it has name, label"),
        ("slide_id\na\n", r"row 1: no column 'label'"),
        ("slide_id;label\na;x\n", r"row 1: columns are separated by ';'"),
        ("slide_id\tlabel\na\tx\n", r"row 1: columns are separated by '\\t'"),
        ("slide_id,label,label\na,x,y\n", r"row 1, column 'label': stands there twice"),
        ('slide_id,label\na,x\nb,"y\n', r"row 3: not CSV \(.*\); look for a quotation mark without its partner"),
        ("slide_id,label\na,x\nb\n", r"row 3, column 'slide_id': 1 cells, not 2"),
        ("slide_id,label\na,x,y\n", r"row 2, column 'label': 3 cells, not 2"),
        ("slide_id,label\na,x\nb,\n", r"row 3, column 'label': no label"),
        ("slide_id,label\na,x\n,x\n", r"row 3, column 'slide_id': empty"),
        ("slide_id,label\na,x\nb,x\na,x\n", r"row 4, column 'slide_id': 'a' stands already in row 2"),
        ("slide_id,label\nf/a,x\n", r"row 2, column 'slide_id': 'f/a' cannot name a file"),
        ("slide_id,label,split\na,x,train\nb,x,valid\n", r"row 3, column 'split': 'valid' is none of train, val, test"),
        ("slide_id,label,split\na,x,train\nb,x,\n", r"row 3, column 'split': empty"),
        (
            "slide_id,label,patient_id,split\na,x,p,train\nb,x,p,test\n",
            r"row 3, column 'split': patient 'p' is in 'test' but in 'train' in row 2",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_row_and_column(table, content, message):
    with pytest.raises(CohortError, match=r"cohort\.csv'.*" + message):
        read_cohort(table(content))


def test_an_unknown_label_is_named_with_the_classes(table):
    with pytest.raises(CohortError, match=r"row 3, column 'label': 'tumour' is none of the classes normal, tumor"):
        read_cohort(table("slide_id,label\na,tumor\nb,tumour\n"), classes=["normal", "tumor"])


def test_a_multi_label_value_is_0_1_or_empty(table):
    with pytest.raises(CohortError, match=r"row 3, column 'her2': 'positive' is none of 0, 1 and empty"):
        read_cohort(table("slide_id,er,her2\na,1,0\nb,1,positive\n"), labels=("er", "her2"))
    with pytest.raises(CohortError, match=r"row 2, column 'er': no label in any label column"):
        read_cohort(table("slide_id,er,her2\na,,\n"), labels=("er", "her2"))


def test_all_problems_are_told_at_once(table):
    with pytest.raises(CohortError, match=r"row 2, column 'label'.*row 4, column 'split'"):
        read_cohort(table("slide_id,label,split\na,,train\nb,x,train\nc,x,nowhere\n"))


def test_a_table_that_is_not_utf_8_is_named(table):
    with pytest.raises(CohortError, match=r"cohort\.csv': not UTF-8"):
        read_cohort(table("slide_id,label\nä,x\n".encode("latin-1")))
    with pytest.raises(CohortError, match=r"nowhere\.csv': no such file"):
        read_cohort("nowhere.csv")


def test_a_table_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "cohort.csv").mkdir()
    with pytest.raises(CohortError, match=r"cohort\.csv': cannot be read \(Is a directory\); check the file"):
        read_cohort(tmp_path / "cohort.csv")


def test_inference_takes_slides_without_labels(table):
    cohort = read_cohort(table("slide_id,label\na,tumor\nb,\n"), classes=["normal", "tumor"], unlabelled=True)
    assert [slide.label for slide in cohort.slides] == [1, -1]
    cohort = read_cohort(table("slide_id\na\n"), classes=["normal", "tumor"], unlabelled=True)
    assert cohort.slides[0].label == -1


def test_a_monai_data_list_is_read(table, tmp_path):
    content = {
        "training": [
            {"image": "slides/a.svs", "label": 0},
            {"image": "slides/b.ome.tif", "label": 1, "patient_id": "p"},
        ],
        "validation": [{"image": "slides/c.svs", "label": 1}],
        "testing": [],
        "description": "ignored",
    }
    cohort = read_cohort(table(json.dumps(content), "list.json"))
    assert [(slide.slide_id, slide.split, slide.label) for slide in cohort.slides] == [
        ("a", "train", 0),
        ("b", "train", 1),
        ("c", "val", 1),
    ]
    assert cohort.slides[0].path == tmp_path / "slides" / "a.svs"


def test_a_multi_label_data_list_is_read(table):
    content = [{"image": "a.svs", "label": [1, None]}, {"image": "b.svs", "label": [0, 1]}]
    cohort = read_cohort(table(json.dumps(content), "list.json"))
    np.testing.assert_array_equal([slide.label for slide in cohort.slides], [[1, np.nan], [0, 1]])
    assert len(cohort.classes) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "neither a list nor sections"),
        ('{"training": {"image": "a"}}', "'training' is not a list"),
        ('{"training": ["a"]}', r"training\[0\]: not a dictionary"),
        (
            '[{"image": "a.svs", "label": 1}, {"image": ["b.svs", "c.svs"], "label": 0}]',
            r"data\[1\], column 'image': a list; give one item for every slide or scan",
        ),
        (
            '[{"image": "a.svs", "label": [1, 0]}, {"image": "b.svs", "label": [1]}]',
            r"data\[1\], column 'label': 1 values for the 2 classes",
        ),
        (
            '[{"image": "a.svs", "label": [1, 0]}, {"image": "b.svs", "label": []}]',
            r"data\[1\], column 'label': 0 values for the 2 classes",
        ),
        (
            '[{"image": "a.svs", "label": []}, {"image": "b.svs", "label": 0}]',
            r"data\[0\], column 'label': no label in any label column",
        ),
        ('{"training": [{"label": 1}]}', r"training\[0\], column 'slide_id': empty"),
        ('{"training": [{"image": "a.svs", "label": null}]}', r"training\[0\], column 'label': no label"),
    ],
)
def test_what_is_wrong_in_a_data_list_is_named(table, content, message):
    with pytest.raises(CohortError, match=r"list\.json'.*" + message):
        read_cohort(table(content, "list.json"))


def test_a_data_list_names_bags_or_slides(table, tmp_path):
    cohort = read_cohort(table(GOOD))
    (tmp_path / "a.h5").touch()
    (tmp_path / "b.h5").touch()
    assert cohort.datalist("train", tmp_path) == [
        {"image": f"{tmp_path}/a.h5", "label": 0, "slide_id": "a", "patient_id": "p1"},
        {"image": f"{tmp_path}/b.h5", "label": 1, "slide_id": "b", "patient_id": "p1"},
    ]
    assert cohort.datalist("val", check=False)[0]["image"] == f"{tmp_path}/slides/c.svs"
    assert len(cohort.datalist(check=False)) == 4


def test_missing_files_and_splits_are_named(table, tmp_path):
    cohort = read_cohort(table(GOOD))
    with pytest.raises(CohortError, match=r"row 2, column 'slide_id': no file '.*a\.h5'; run monai-mil embed"):
        cohort.datalist("train", tmp_path)
    with pytest.raises(CohortError, match=r"row 4, column 'path': no file '.*c\.svs'"):
        cohort.datalist("val")
    with pytest.raises(CohortError, match="split 'valid' is none of"):
        cohort.datalist("valid")
    with pytest.raises(CohortError, match="no slide has split 'test'"):
        read_cohort(table("slide_id,label\na,x\n")).datalist("test")


@pytest.mark.parametrize("labels", [("label",), ("er", "her2")])
def test_what_is_written_is_read_again(table, tmp_path, labels):
    content = GOOD if labels == ("label",) else "slide_id,er,her2\na,1,\nb,0,1\n"
    cohort = read_cohort(table(content), labels=labels)
    again = read_cohort(cohort.write(tmp_path / "again.csv"), labels=labels)
    assert repr(again.slides) == repr(cohort.slides)
    assert again.classes == cohort.classes


SCANS = """scan_id,patient_id,path,series_uid,split,label
head,p1,head,1.2.3,train,bleeding
chest,p2,chest.nii.gz,,test,none
"""


def test_scans_are_named_by_their_own_column(table, tmp_path):
    cohort = read_cohort(table(SCANS))
    assert (cohort.id_column, cohort.case) == ("scan_id", "scan")
    (tmp_path / "head").mkdir()
    (tmp_path / "chest.nii.gz").touch()
    head, chest = cohort.datalist()
    assert head == {
        "image": f"{tmp_path}/head",
        "label": 0,
        "series_uid": "1.2.3",
        "scan_id": "head",
        "patient_id": "p1",
    }
    assert chest["series_uid"] == "", "every item has the same keys, so that batches collate"
    assert split_cohort(cohort, (1, 0, 0)).id_column == "scan_id"
    again = read_cohort(cohort.write(tmp_path / "again.csv"))
    assert repr(again.slides) == repr(cohort.slides)
    assert again.id_column == "scan_id"


def test_bags_of_scans_are_asked_for_by_scan_id(table, tmp_path):
    cohort = read_cohort(table(SCANS))
    with pytest.raises(CohortError, match=r"row 2, column 'scan_id': no file '.*head\.h5'; run monai-mil embed-scans"):
        cohort.datalist(bag_dir=tmp_path)
    assert "series_uid" not in cohort.datalist(bag_dir=tmp_path, check=False)[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("scan_id,slide_id,label\na,b,x\n", r"row 1: both 'slide_id' and 'scan_id'"),
        ("scan_id,label\na,x\na,x\n", r"row 3, column 'scan_id': 'a' stands already in row 2"),
        ("scan_id,label\n../a,x\n", r"row 2, column 'scan_id': '\.\./a' cannot name a file"),
    ],
)
def test_problems_of_scan_tables_name_their_column(table, content, problem):
    with pytest.raises(CohortError, match=problem):
        read_cohort(table(content))


def test_a_data_list_of_scans_is_read_as_one(tmp_path):
    path = tmp_path / "scans.json"
    path.write_text('[{"image": "a.nii.gz", "scan_id": "a", "label": 1}, {"image": "b", "scan_id": "b", "label": 0}]')
    cohort = read_cohort(path)
    assert cohort.id_column == "scan_id"
    assert [scan.slide_id for scan in cohort.slides] == ["a", "b"]
    assert [scan.path for scan in cohort.slides] == [tmp_path / "a.nii.gz", tmp_path / "b"]


@pytest.mark.parametrize(("found", "typed"), [("luad,lusc", "['luad', 'lusc']"), ("0,1,2", "['0', '1', '2']")])
def test_a_cohort_of_other_classes_says_in_one_line_what_to_type(tmp_path, found, typed):
    names = found.split(",")
    rows = "".join(f"S{number},{names[number % len(names)]}\n" for number in range(40))
    (tmp_path / "cohort.csv").write_text(f"slide_id,label\n{rows}")
    with pytest.raises(CohortError) as raised:
        read_cohort(tmp_path / "cohort.csv", classes=["normal", "tumor"])
    message = str(raised.value)
    assert message.endswith(f'set up for normal, tumor; add --class_names "{typed}"')
    assert "\n" not in message
    assert len(message) < 300


def test_one_wrong_label_among_right_ones_is_named_by_its_row(tmp_path):
    (tmp_path / "cohort.csv").write_text("slide_id,label\nA,normal\nB,tumour\n")
    with pytest.raises(CohortError, match="row 3, column 'label': 'tumour' is none of the classes normal, tumor"):
        read_cohort(tmp_path / "cohort.csv", classes=["normal", "tumor"])


def test_bags_that_are_missing_are_named_together(tmp_path):
    names = [f"s{index:02}" for index in range(14)]
    (tmp_path / "c.csv").write_text(
        "slide_id,label\n" + "".join(f"{name},{index % 2}\n" for index, name in enumerate(names))
    )
    (tmp_path / "s03.h5").touch()
    with pytest.raises(CohortError) as raised:
        read_cohort(tmp_path / "c.csv").datalist(bag_dir=tmp_path)
    said = str(raised.value)
    assert "row 2, column 'slide_id'" in said
    assert "12 more are missing: 's01', 's02', 's04'" in said
    assert said.endswith("'s10', ...")


def test_columns_that_mean_nothing_here_survive_a_split(tmp_path):
    path = tmp_path / "cohort.csv"
    lines = [f"{50 + n},S-{n},{'HE' if n % 3 else ''},{'ab'[n % 2]},{n % 2 or ''}" for n in range(12)]
    path.write_text("\n".join(["age,slide_id,stain,label,er", *lines]) + "\n")
    names = ("age", "slide_id", "stain", "label", "er")
    split_cohort(read_cohort(path), folds=3).write(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [",".join(row[name] for name in names) for row in rows] == lines
    assert {row["fold"] for row in rows} == {"0", "1", "2"}
    read_cohort(path, labels=("er",), unlabelled=True).write(path)  # whichever column is the label this time
    with path.open(newline="") as file:
        assert [",".join(row[name] for name in names) for row in csv.DictReader(file)] == lines


def test_times_of_a_follow_up_are_written_as_they_were(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_text("slide_id,time,event\nS-1,1234567.5,1\nS-2,0.1234567891,0\nS-3,12,1\n")
    read_survival_cohort(path).write(path)
    assert [row["time"] for row in csv.DictReader(path.open(newline=""))] == ["1234567.5", "0.1234567891", "12"]


def test_a_data_list_is_not_overwritten_by_a_table(tmp_path):
    path = tmp_path / "cohort.json"
    path.write_text('[{"image": "S-1.svs", "label": "a"}]')
    with pytest.raises(CohortError, match=r"give it the ending \.csv"):
        read_cohort(path).write(path)
    assert path.read_text().startswith("[{")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"training":' * 50_000, "[" + "9" * 5000 + "]"])
def test_json_that_no_program_writes_is_one_error_that_names_the_file(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(CohortError, match=r"odd\.json': not valid JSON"):
        read_cohort(tmp_path / "odd.json")


def test_a_path_that_is_too_long_is_a_file_that_is_not_there(tmp_path):
    (tmp_path / "c.csv").write_text(f"slide_id,label,path\nS-1,a,{'x' * 5000}\nS-2,b,b.svs\n")
    cohort = read_cohort(tmp_path / "c.csv")
    with pytest.raises(CohortError, match=r"row 2, column 'path': no file"):
        cohort.datalist(None)
    (tmp_path / "c.json").write_text(json.dumps([{"image": "x" * 5000, "label": "a"}]))
    assert read_cohort(tmp_path / "c.json").slides[0].path is not None


def test_a_path_that_no_file_can_have_is_of_a_slide_that_is_not_there(table):
    cohort = read_cohort(table('slide_id,path,label\nS-1,"a\0b/c.svs",x\nS-2,d.svs,y\n'))
    assert [slide.path.exists() if slide.slide_id == "S-2" else slide.path.name for slide in cohort.slides] == [
        "c.svs",
        False,
    ]
