"""The file that says what a survival network's outputs are."""

from __future__ import annotations

from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.training import BestModel, Checkpointer, TimeBinsSaver, read_time_bins

EDGES = [0.0, 1 / 3, 7.25, 1e3]


def run(folder: Path, edges: list[float], *, resume: bool = False, dies: bool = False) -> None:
    """An epoch of training and its validation, or a training that dies in its first step."""
    trainer, evaluator = Engine(lambda engine, batch: 1 / int(not dies)), Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name, evaluator.state.metrics = "concordance", {"concordance": 0.5}
    network, saver = nn.Linear(1, len(edges) - 1), TimeBinsSaver(edges, folder / "time_bins.json")
    saver.attach(evaluator)
    BestModel(network, folder / "model.pt").attach(evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    Checkpointer(folder, {"network": network, "time_bins": saver}, resume=resume).attach(trainer)
    trainer.run([0], max_epochs=2 if resume else 1)


def test_what_training_wrote_is_read_to_the_last_digit(tmp_path: Path) -> None:
    run(tmp_path / "models", EDGES)
    assert read_time_bins(tmp_path / "models" / "time_bins.json") == EDGES


def test_a_run_that_dies_before_its_model_leaves_an_older_one_its_bins(tmp_path: Path) -> None:
    run(tmp_path, EDGES)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, [0.0, 5.0, 9.0], dies=True)
    assert read_time_bins(tmp_path / "time_bins.json") == EDGES


@pytest.mark.parametrize("others", [[0.0, 1.0, 7.25, 1e3], [0.0, 7.25, 1e3]])
def test_a_run_is_resumed_with_its_own_bins_only(tmp_path: Path, others: list[float]) -> None:
    run(tmp_path, EDGES)
    run(tmp_path, EDGES, resume=True)
    with pytest.raises(SettingsError, match=r"--time_edges '\[0.0, 0.33.*'\) or begin anew"):
        run(tmp_path, others, resume=True)
    assert read_time_bins(tmp_path / "time_bins.json") == EDGES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"time bins '.*bins.json': cannot be read .*--time_bins_file"),
        ("[1, 2", "cannot be read"),
        ("[0, 1, 2]", "cannot be read"),
        ('{"bins": [0, 1, 2]}', "cannot be read"),
        ('{"edges": [0, 2]}', "no three or more rising edges"),
        ('{"edges": [0, 2, 1]}', "no three or more rising edges"),
        ('{"edges": [0, NaN, 1]}', "no three or more rising edges"),
        ('{"edges": [0, 1, Infinity]}', "no three or more rising edges"),
        ('{"edges": "123"}', "no three or more rising edges"),
        ('{"edges": ["0", "1", "2"]}', "no three or more rising edges"),
        ('{"edges": 3}', "no three or more rising edges"),
    ],
)
def test_a_file_that_is_none_is_named_and_says_what_to_do(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "bins.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_time_bins(tmp_path / "bins.json")
