"""Files are whole or absent, and what the disk did not take is told in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_mil.errors import OutputError
from monai_mil.files import (
    _ErrorKeepingFile,
    make_folder,
    parse_json,
    replacing,
    replacing_hdf5,
    write_error,
    write_json,
)
from monai_mil.training.state_files import save_atomically
from tests.full_disk import full_after


def test_a_file_is_replaced_as_a_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("first")
    with full_after(4), pytest.raises(OutputError) as caught, replacing(path) as partial:
        partial.write_text("second")
    assert str(caught.value) == f"'{path}' cannot be written (File too large); free some space and run again"
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("third \udc80", encoding="utf-8")
    assert {found.name: found.read_text() for found in path.parent.iterdir()} == {"a.txt": "first"}


def test_what_a_full_disk_did_not_take_reads_back_as_hdf5_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(bytes(1 << 14))  # as on a memory disk, whose files are longer than what fits
    with full_after(1 << 10), _ErrorKeepingFile(path, "r+") as file:
        file.write(b"fits")
        file.seek(9000)
        assert file.write(b"does not fit") == 12
        file.seek(9005)
        file.write(b"NOT")
        file.seek(8998)
        read = bytearray(16)
        assert file.readinto(read) == 16
        assert bytes(read) == b"\0\0does NOT fit\0\0"
        assert file.truncate(1 << 15) == 1 << 15
        assert file.error is not None
        assert file.error.strerror == "File too large"


def test_the_reason_is_the_system_s_wherever_a_library_put_it(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "no more")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  (as torch does)
    except RuntimeError as error:
        told = str(write_error(tmp_path / "a", error))
    assert told == f"'{tmp_path / 'a'}' cannot be written (No space left on device); free some space and run again"
    told = str(write_error(tmp_path / "a", RuntimeError("no reason")))
    assert told == f"'{tmp_path / 'a'}' cannot be written (no reason); check the folder and run again"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OutputError, match=r"a/b' cannot be written \(Not a directory\); check the folder"):
        make_folder(tmp_path / "a" / "b")


def test_json_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    write_json({"a": [float("nan"), 1.5], "b": {"c": float("nan")}, "d": "é"}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "a": [None, 1.5],
        "b": {"c": None},
        "d": "é",
    }


def written_as_text(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("a")


def written_as_hdf5(path: Path) -> None:
    with replacing_hdf5(path) as file:
        file["a"] = [1]


@pytest.mark.parametrize("write", [written_as_text, written_as_hdf5, lambda path: save_atomically(torch.ones(1), path)])
def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    calls: list[tuple[str, str, int]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        calls.append(("flush", str(path.relative_to(tmp_path)), path.stat().st_size if path.is_file() else 0))
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("name", str(target.relative_to(tmp_path)), source.stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = tmp_path / "new" / "runs" / "a"
    write(path)
    size = path.stat().st_size
    order = [("flush", "new/runs", 0), ("name", "new/runs/a", size)]
    assert calls[:2] == [("flush", ".", 0), ("flush", "new", 0)]  # the folders that were made
    assert calls[2][0] == "flush"
    assert calls[2][1].startswith("new/runs/.a.")
    assert calls[2][2] == size
    assert calls[3:] == order[::-1]


def test_a_file_system_that_cannot_flush_is_no_error_and_one_that_fails_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> Any:
        def fsync(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    path = tmp_path / "a"
    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    written_as_text(path)
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    with pytest.raises(OutputError, match="cannot be written"), replacing(path) as new:
        new.write_text("b")
    assert [found.read_text() for found in tmp_path.iterdir()] == ["a"]


def test_two_runs_of_one_process_number_write_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replacing(tmp_path / "a") as first:
        first.write_text("first")
        monkeypatch.setattr("monai_mil.files.RUN", "another")
        with replacing(tmp_path / "a") as second:
            second.write_text("second")
        assert first.read_text() == "first"


def test_json_that_nobody_can_follow_is_damaged_json() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "{", ""):
        with pytest.raises(ValueError, match=r"nested too deep|Expecting"):
            parse_json(text)
