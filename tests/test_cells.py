"""Free text in CSV files: never a formula, and read back as it was."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_mil.bags import FailedCase, write_failures
from monai_mil.cells import cell_text, text_cell


@given(st.text(alphabet="=+-@'a1\t\r ", max_size=6) | st.text(max_size=20))
def test_what_is_written_is_no_formula_and_reads_the_same(text):
    assert not text_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell_text(text_cell(text)) == text


@pytest.mark.parametrize("text", ["", "slices differ", "'quoted' text", "5 slices"])
def test_other_text_is_written_as_it_is(text):
    assert text_cell(text) == text


def test_the_message_of_a_failed_case_is_no_formula_and_its_name_stays(tmp_path):
    write_failures(tmp_path / "failed.csv", "slide_id", [FailedCase("-7", "unreadable", "=HYPERLINK(1)")])
    with (tmp_path / "failed.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["-7", "unreadable", "'=HYPERLINK(1)"]
