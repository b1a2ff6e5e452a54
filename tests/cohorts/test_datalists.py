import pytest

from monai_mil.cohorts import bag_datalist, find_slides, slide_datalist
from monai_mil.errors import CohortError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.svs", "a.ome.tif", "inner/c.NDPI", ".hidden.svs", "notes.txt", "x.y.h5", "inner/z.h5"):
        (tmp_path / name).touch()
    return tmp_path


def test_slides_are_found_at_any_depth_in_order(folder):
    assert find_slides(folder) == [folder / "a.ome.tif", folder / "b.svs", folder / "inner" / "c.NDPI"]
    assert [item["slide_id"] for item in slide_datalist(folder)] == ["a", "b", "c"]
    assert slide_datalist(folder / "b.svs") == [{"image": str(folder / "b.svs"), "slide_id": "b"}]


def test_two_slides_of_one_name_are_refused_since_their_results_would_overwrite_each_other(folder):
    (folder / "inner" / "b.tif").touch()
    with pytest.raises(CohortError, match=r"b\.svs' and '.*inner/b\.tif' have one name, 'b'"):
        slide_datalist(folder)


def test_bags_are_those_of_the_folder_itself(folder):
    assert bag_datalist(folder) == [{"image": str(folder / "x.y.h5"), "slide_id": "x.y"}]
    assert bag_datalist(folder, "scan_id") == [{"image": str(folder / "x.y.h5"), "scan_id": "x.y"}]


def test_folders_without_slides_or_bags_are_named(tmp_path):
    with pytest.raises(CohortError, match=r"no slides \(files ending with \.svs"):
        find_slides(tmp_path)
    with pytest.raises(CohortError, match="nowhere' is no folder"):
        bag_datalist(tmp_path / "nowhere")
