import pytest

from monai_mil.errors import SettingsError
from monai_mil.training import claim_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("model.pt", "model.json", "time_bins.json", "checkpoints/checkpoint_epoch=3.pt", "notes.txt"):
        (tmp_path / name).write_text("another run's")
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_new_folder_is_anybody_s(tmp_path):
    claim_folder(tmp_path / "new")
    claim_folder(tmp_path, resume=True)
    (tmp_path / "time_bins.json").touch()
    claim_folder(tmp_path)


def test_another_run_s_model_is_not_replaced_unasked(folder):
    before = names(folder)
    with pytest.raises(SettingsError, match=r"of another run \('model.pt'\), go on with it by --resume"):
        claim_folder(folder)
    (folder / "model.pt").unlink()
    with pytest.raises(SettingsError, match=r"\('checkpoint_epoch=3.pt'\)"):
        claim_folder(folder)
    assert names(folder) == [name for name in before if name != "model.pt"]


def test_a_resumed_run_goes_on_and_one_without_checkpoints_does_not_begin_anew(folder):
    claim_folder(folder, resume=True)
    claim_folder(folder, resume=True, overwrite=True)
    assert len(names(folder)) == 5
    (folder / "checkpoints" / "checkpoint_epoch=3.pt").unlink()
    with pytest.raises(SettingsError, match="and no checkpoint to go on from: give another --ckpt_dir"):
        claim_folder(folder, resume=True)


def test_an_overwriting_run_removes_what_was_the_other_s(folder):
    claim_folder(folder, overwrite=True)
    assert names(folder) == ["notes.txt"]
