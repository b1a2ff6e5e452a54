"""The file that says what a survival network's outputs are."""

from __future__ import annotations

from pathlib import Path

import pytest
from ignite.engine import Engine

from monai_mil.errors import SettingsError
from monai_mil.training import TimeBinsSaver, read_time_bins


def test_what_training_wrote_is_read_to_the_last_digit(tmp_path: Path) -> None:
    edges = [0.0, 1 / 3, 7.25, 1e3]
    trainer = Engine(lambda engine, batch: None)
    TimeBinsSaver(edges, tmp_path / "models" / "time_bins.json").attach(trainer)
    trainer.run([0])
    assert read_time_bins(tmp_path / "models" / "time_bins.json") == edges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"time bins '.*bins.json': cannot be read .*--time_bins_file"),
        ("[1, 2", "cannot be read"),
        ('{"bins": [0, 1, 2]}', "cannot be read"),
        ('{"edges": [0, 2]}', "no three or more rising edges"),
        ('{"edges": [0, 2, 1]}', "no three or more rising edges"),
    ],
)
def test_a_file_that_is_none_is_named_and_says_what_to_do(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "bins.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_time_bins(tmp_path / "bins.json")
