"""What MONAI's command line reads as Python is a path where a path is meant."""

from __future__ import annotations

import sys

import pytest
from fire.parser import DefaultParseValue

from monai_mil.training import keep_paths_as_typed

COMMAND = "/somewhere/site-packages/monai/bundle/__main__.py"


def kept(monkeypatch: pytest.MonkeyPatch, *words: str, program: str = COMMAND) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", [program, "run", *words])
    references: dict[str, object] = {}
    keep_paths_as_typed(references)
    return references


@pytest.mark.parametrize("text", ["2024", "2024_01", "1e3", "[run,1]", "a,b", "{a:1}", "(1)", "0x10"])
def test_what_python_reads_otherwise_is_the_text(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert DefaultParseValue(text) != text
    assert kept(monkeypatch, "--dataset_dir", text) == {"dataset_dir": text}
    assert kept(monkeypatch, f"--output_dir={text}") == {"output_dir": text}


@pytest.mark.parametrize(
    "text", ["data", "007", "/2024/run", "None", "True", "False", "$@bundle_root + '/x'", "'2024'"]
)
def test_what_is_text_already_or_no_name_stays(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert kept(monkeypatch, "--cohort_file", text) == {}


def test_the_last_word_counts_and_dashes_are_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--ckpt-dir", "1", "--ckpt_dir", "2", "--seed", "3", "--train::trainer::max_epochs", "4", "--ckpt_path"]
    assert kept(monkeypatch, *words) == {"ckpt_dir": "2"}


def test_a_program_that_calls_monai_says_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(monkeypatch, "--output_dir", "7", program="predict.py") == {}
