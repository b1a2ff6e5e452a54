"""Bundles by name and by folder, copied and packed."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from monai_mil.errors import OutputError, SettingsError
from monai_mil.runs import Bundle, copy_bundle, describe_bundle, find_bundle, pack_bundle, shipped_bundles
from tests.bundles.common import NAMES
from tests.conftest import ROOT


def test_every_bundle_of_the_clone_is_known_by_its_name():
    assert [bundle.name for bundle in shipped_bundles()] == NAMES
    for name in NAMES:
        assert find_bundle(name) == Bundle(ROOT / "bundles" / name)
        assert find_bundle(name).is_shipped


def test_a_folder_works_where_a_name_does(tmp_path, monkeypatch):
    copy = copy_bundle(find_bundle("pathology_asmil"), tmp_path)
    assert find_bundle(copy) == find_bundle(str(copy)) == Bundle(copy)
    assert not find_bundle(copy).is_shipped
    monkeypatch.chdir(tmp_path)
    assert find_bundle("./pathology_asmil") == Bundle(copy)
    assert find_bundle("pathology_asmil").is_shipped  # a name is never a folder that happens to be here


def test_an_unknown_bundle_is_told_with_those_there_are(tmp_path):
    with pytest.raises(SettingsError, match=r"no bundle 'pathology'.*ct_insight.*pathology_insight"):
        find_bundle("pathology")
    with pytest.raises(SettingsError, match=r"configs/metadata\.json"):
        find_bundle(tmp_path)


def test_a_copy_holds_what_is_shipped_and_can_be_edited(tmp_path):
    bundle = copy_bundle(find_bundle("mil_baselines"), tmp_path / "from")
    (tmp_path / "from" / "mil_baselines" / "eval").mkdir()
    (tmp_path / "from" / "mil_baselines" / "eval" / "metrics.json").touch()
    (bundle / "configs" / "train.json").chmod(0o444)
    copy = copy_bundle(Bundle(bundle), tmp_path / "to")
    kept = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    assert Path("configs/train.json") in kept
    assert Path("models/model.json") in kept
    assert Path("LICENSE") in kept
    assert not any("eval" in path.parts for path in kept)
    assert (copy / "configs" / "train.json").stat().st_mode & 0o200
    with pytest.raises(OutputError, match="exists"):
        copy_bundle(Bundle(bundle), tmp_path / "to")


def test_an_archive_is_the_same_bytes_every_time_and_monai_downloads_it(tmp_path):
    from monai.bundle import download

    bundle = find_bundle("ct_normal_guidance")
    archive, digest = pack_bundle(bundle, tmp_path / "one")
    again, other = pack_bundle(Bundle(Path(shutil.copytree(bundle.root, tmp_path / bundle.name))), tmp_path / "two")
    assert digest == other == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert archive.name == again.name == f"ct_normal_guidance_v{bundle.metadata['version']}.zip"
    download(bundle.name, bundle_dir=tmp_path / "hub", url=archive.as_uri(), progress=False)
    got = Bundle(tmp_path / "hub" / bundle.name)
    assert got.weights.read_bytes() == bundle.weights.read_bytes()
    assert got.config("train").read_text() == bundle.config("train").read_text()
    with zipfile.ZipFile(archive) as file:
        assert all(name.startswith("ct_normal_guidance/") for name in file.namelist())


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_says_what_it_is(name):
    facts = dict(describe_bundle(find_bundle(name)).lines)
    assert {"task", "input", "encoder", "classes", "figures", "weights"} <= set(facts)
    assert "synthetic" in facts["weights"]
