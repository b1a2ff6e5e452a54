"""Which bags of an earlier run stay: those of this very slide or scan, made with these very settings."""

import errno
import fcntl
import json
import os
import shutil

import h5py
import nibabel
import numpy as np
import pydicom
import pytest

from monai_mil.bags import BagFile, LoadBagd
from monai_mil.cohorts import bag_datalist, read_cohort
from monai_mil.embedding import embed_cohort, embed_scans
from monai_mil.errors import BagError, OutputError
from monai_mil.slides import slide_files, write_pyramid
from tests.embedding.conftest import slide_of
from tests.embedding.counting import CountingEncoder, encoded
from tests.scans.conftest import phantom, write_series


def embed(slides, out, **settings):
    encoder = CountingEncoder(out.parent / "log")
    return embed_cohort(slides, out, encoder, progress=False, **settings)


@pytest.fixture
def batches(tmp_path):
    """Two slides of one name and one size."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
    return [slide_of(tmp_path / folder / "HE_1.tif", 700, side) for folder, side in (("a", 900), ("b", 930))]


def test_a_bag_of_another_slide_of_the_same_name_is_an_error_that_names_both(batches, tmp_path):
    first, second = batches
    out = tmp_path / "bags"
    assert embed([first], out).results[0].status == "embedded"
    before = (out / "HE_1.h5").read_bytes()
    (error,) = (result.error for result in embed([second], out).results)
    assert f"made of another slide of the same name, '{first}', not of '{second}'" in error
    assert "HE_1.h5" in error
    assert "overwrite" in error
    assert (out / "HE_1.h5").read_bytes() == before
    assert embed([second], out, overwrite=True).results[0].status == "embedded"
    assert embed([second], out).results[0].status == "kept"
    with BagFile(out / "HE_1.h5") as bag:
        assert bag.info.slide_path == str(second)


def test_a_slide_replaced_at_its_path_is_noticed(batches, tmp_path):
    first, second = batches
    out = tmp_path / "bags"
    embed([first], out)
    second.replace(first)
    (error,) = (result.error for result in embed([first], out).results)
    assert "was replaced since its bag was made" in error
    assert str(first) in error
    assert embed([first], out, overwrite=True).results[0].status == "embedded"


def test_a_moved_or_copied_cohort_keeps_its_bags_and_finds_its_slides(batches, tmp_path):
    study = tmp_path / "study"
    (study / "slides").mkdir(parents=True)
    shutil.move(batches[0], study / "slides" / "HE_1.tif")
    embed([study / "slides" / "HE_1.tif"], study / "bags")
    tiles = encoded(study / "log")
    copied, moved = tmp_path / "copied", tmp_path / "elsewhere" / "moved"
    shutil.copytree(study, copied)
    shutil.move(study, moved)
    for place in (copied, moved):
        os.utime(place / "slides" / "HE_1.tif", (1, 1))
        assert embed([place / "slides" / "HE_1.tif"], place / "bags").results[0].status == "kept"
        assert encoded(place / "log") == tiles
        with BagFile(place / "bags" / "HE_1.h5") as bag:
            assert bag.info.slide_path == str(place / "slides" / "HE_1.tif")


def test_no_absolute_path_stands_in_a_bag(batches, tmp_path):
    embed([batches[0]], tmp_path / "bags")
    assert os.fsencode(tmp_path) not in (tmp_path / "bags" / "HE_1.h5").read_bytes()


def test_a_bag_whose_slide_is_gone_is_kept_and_says_so(batches, tmp_path):
    out = tmp_path / "bags"
    embed([batches[0]], out)
    batches[0].unlink()
    (result,) = embed([batches[0]], out).results
    assert result.status == "kept"
    assert result.remarks == ("the slide is not there: its bag is kept, unchecked",)


def test_an_unfinished_slide_that_was_replaced_begins_anew(batches, tmp_path):
    class Stops(CountingEncoder):
        def __call__(self, tiles):
            if encoded(self.log) >= 2:
                raise MemoryError
            return super().__call__(tiles)

    first, second = batches
    out, log = tmp_path / "bags", tmp_path / "log"
    embed_cohort([first], out, Stops(log), batch_size=2, progress=False)
    second.replace(first)
    (result,) = embed([first], out, batch_size=2).results
    assert (result.status, encoded(log)) == ("embedded", 2 + result.instances)


def as_format_1(path):
    """The bag as versions before the format wrote it."""
    with h5py.File(path, "r+") as file:
        for name in set(file.attrs):
            if name.split(".")[1] in ("format", "source", "source_stamp", "encoder_dtype", "decoder", "digests"):
                del file.attrs[name]
        tissue = json.loads(file.attrs["monai_mil.tissue"])
        file.attrs["monai_mil.tissue"] = json.dumps({"min_tissue": tissue["min_tissue"]})


def test_bags_of_the_first_format_are_kept_with_one_remark_a_run(batches, tmp_path, capfd):
    slides = [batches[0], batches[1].rename(tmp_path / "b" / "HE_2.tif")]
    out = tmp_path / "bags"
    embed(slides, out)
    for path in out.glob("*.h5"):
        as_format_1(path)
    report = embed_cohort(slides, out, CountingEncoder(tmp_path / "log"))
    assert [result.status for result in report.results] == ["kept", "kept"]
    assert capfd.readouterr().err.count("does not say of which slide it was made") == 1
    assert "made with other settings" in embed(slides, out, min_tissue=0.5).failed[0].error


def test_a_bag_of_another_decoder_is_refused_where_it_is_made_and_where_bags_meet(batches, tmp_path):
    out = tmp_path / "bags"
    for decoder, name in (("exact", "a"), ("scaled", "b")):
        embed([batches[0]], out / name, decoder=decoder, target_mpp=1.0)
        with BagFile(out / name / "HE_1.h5") as bag:
            assert bag.info.decoding == (None if decoder == "exact" else decoder)
    (error,) = (result.error for result in embed([batches[0]], out / "a", decoder="scaled", target_mpp=1.0).results)
    assert "decoder exact instead of scaled" in error
    assert embed([batches[0]], out / "b", decoder="scaled", target_mpp=1.0).results[0].status == "kept"
    load = LoadBagd("image", width=6)
    load({"image": out / "a" / "HE_1.h5"})
    with pytest.raises(BagError, match=r"decoded by 'scaled', those of bag 'HE_1' in this run by 'exact'"):
        load({"image": out / "b" / "HE_1.h5"})


def test_a_bag_that_cucim_made_on_a_gpu_before_there_was_a_choice_is_no_exact_one(batches, tmp_path):
    out = tmp_path / "bags"
    embed([batches[0]], out)
    with h5py.File(out / "HE_1.h5", "r+") as file:
        file.attrs["monai_mil.decoder"] = "cucim 26.6.0 for cuda"
    (error,) = (result.error for result in embed([batches[0]], out).results)
    assert "decoder cucim-device instead of exact" in error


def test_the_files_of_a_slide_are_all_that_its_formats_spread_it_over(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        return tuple(tmp_path / name for name in sorted(names))

    assert slide_files(*touch("alone.svs")) == (tmp_path / "alone.svs",)
    touch("mirax/other.txt")
    mirax = touch("case.mrxs", "case/Data0000.dat", "case/Slidedat.ini")
    assert set(slide_files(tmp_path / "case.mrxs")) == set(mirax)
    touch("case-0.jpg", "case-1.jpg", "case-map.jpg", "unrelated.jpg")
    (tmp_path / "case.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=case-0.jpg\nImageFile(1,0)=case-1.jpg\nMapFile=case-map.jpg\n"
    )
    names = {path.name for path in slide_files(tmp_path / "case.vms")}
    assert names == {"case.vms", "case-0.jpg", "case-1.jpg", "case-map.jpg"}
    (tmp_path / "damaged.vms").write_text("[Virtual Microscope Specimen]\ncase-0.jpg\n")
    assert slide_files(tmp_path / "damaged.vms") == (tmp_path / "damaged.vms",)


def test_the_files_of_a_dicom_slide_are_the_instances_of_its_series(tmp_path):
    for name, series in (("a.dcm", "1.2.3"), ("b", "1.2.3"), ("c.dcm", "1.2.4")):
        header = pydicom.Dataset()
        header.SeriesInstanceUID, header.SOPInstanceUID, header.SOPClassUID = series, f"1.2.9.{ord(name[0])}", "1.2"
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.save_as(tmp_path / name, enforce_file_format=True, implicit_vr=False, little_endian=True)
    (tmp_path / "notes.txt").write_text("no DICOM")
    assert slide_files(tmp_path / "a.dcm") == (tmp_path / "a.dcm", tmp_path / "b")
    assert slide_files(tmp_path / "c.dcm") == (tmp_path / "c.dcm",)
    (tmp_path / "damaged.dcm").write_bytes(bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\xff")
    assert slide_files(tmp_path / "damaged.dcm") == (tmp_path / "damaged.dcm",)
    assert slide_files(tmp_path) == tuple(tmp_path / name for name in ("a.dcm", "b", "c.dcm", "damaged.dcm"))


def test_scans_are_told_apart_by_their_slices(tmp_path):
    folder, out = tmp_path / "scan", tmp_path / "bags"
    write_series(folder, phantom(4))
    for status in ("embedded", "kept"):
        report = embed_scans([folder], out, progress=False)
        assert [result.status for result in report.results] == [status]
    with BagFile(out / "scan.h5") as bag:
        assert bag.info.orientation == "LPS"
    (folder / "notes.txt").write_text("not of the scan")
    assert embed_scans([folder], out, progress=False).results[0].status == "kept"
    write_series(folder, phantom(4, seed=1))
    assert "was replaced" in embed_scans([folder], out, progress=False).failed[0].error


def test_a_volume_of_the_same_name_is_another_scan(tmp_path):
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        voxels = np.full((40, 40, 4), number - 1000, np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 2, 1])), tmp_path / folder / "scan.nii.gz")
    out = tmp_path / "bags"
    assert embed_scans([tmp_path / "a" / "scan.nii.gz"], out, progress=False).results[0].status == "embedded"
    (result,) = embed_scans([tmp_path / "b" / "scan.nii.gz"], out, progress=False).results
    assert "made of another scan of the same name" in result.error


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_worked_on_under_a_file_that_is_taken_over_when_its_holder_is_gone(
    batches, tmp_path, monkeypatch, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    out = tmp_path / "bags"
    assert embed([batches[0]], out).results[0].status == "embedded"
    assert not list((out / ".partial").glob("*.held"))
    pid = os.fork()
    if pid == 0:
        os.chdir("/")
        from filelock import SoftFileLock

        held = SoftFileLock(out / ".partial" / "HE_1.lock.held")
        held.acquire()
        os._exit(0)  # as a killed process: nothing is released
    os.waitpid(pid, 0)
    assert (out / ".partial" / "HE_1.lock.held").exists()
    assert embed([batches[0]], out).results[0].status == "kept"


@pytest.mark.parametrize("letter", ["x", "\u00e4"])
def test_a_name_as_long_as_a_disk_allows_is_shortened_in_file_names_and_whole_inside(batches, tmp_path, letter):
    name = letter * (251 // len(letter.encode()))
    other = name[:-1] + "y"
    slides = [batches[0].rename(tmp_path / f"{name}.tif"), batches[1].rename(tmp_path / f"{other}.tif")]
    out = tmp_path / "bags"
    for status in ("embedded", "kept"):
        assert [result.status for result in embed(slides, out).results] == [status] * 2
    assert {item["slide_id"] for item in bag_datalist(out)} == {name, other}
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide_id,label\n{name},a\n{other},b\n", encoding="utf-8")
    for item in read_cohort(table).datalist(bag_dir=out):
        with BagFile(item["image"]) as bag:
            assert bag.info.slide_id == item["slide_id"]


def test_slides_of_one_name_in_two_folders_have_a_bag_each(batches, tmp_path):
    report = embed([tmp_path / "a", tmp_path / "b"], tmp_path / "bags")
    assert report.failed == ()
    assert sorted(path.name for path in (tmp_path / "bags").glob("*.h5")) == ["a_HE_1.h5", "b_HE_1.h5"]


def test_a_broken_link_is_a_slide_that_failed(batches, tmp_path):
    (tmp_path / "a" / "lost").symlink_to(tmp_path / "nowhere")
    report = embed([tmp_path / "a"], tmp_path / "bags")
    assert [result.status for result in report.results] == ["embedded", "failed"]
    assert f"a link to '{tmp_path / 'nowhere'}', which is not there" in report.failed[0].error


def test_a_run_of_other_settings_in_one_folder_stops_and_names_the_first(tmp_path):
    """Both overwrite: without the stop their bags would stand side by side."""
    path = tmp_path / "slide.tif"
    write_pyramid(path, np.full((512, 512, 3), (180, 60, 140), np.uint8), mpp=0.5)
    out, told = tmp_path / "bags", []

    class Interrupted(CountingEncoder):
        def __call__(self, tiles):
            if not told:
                with pytest.raises(
                    OutputError, match=rf"bags' is being written by another run.*{os.getpid()} on"
                ) as caught:
                    embed_cohort([path], out, second, overwrite=True, overlap=64, progress=False)
                told.append(caught.value)
            return super().__call__(tiles)

    second = CountingEncoder(tmp_path / "log")
    (result,) = embed_cohort([path], out, Interrupted(tmp_path / "log"), overwrite=True, progress=False).results
    assert (result.status, len(told)) == ("embedded", 1)
    with BagFile(out / "slide.h5") as bag:
        assert bag.info.overlap == 0
    assert embed_cohort([path], out, second, overwrite=True, overlap=64, progress=False).results[0].status == "embedded"
