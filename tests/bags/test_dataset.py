import pytest

from monai_mil.bags import LoadBagd, ResilientDataset, make_bag_cohort, read_cohort
from monai_mil.errors import CohortError


@pytest.fixture
def items(tmp_path):
    """Four bags, of which the second is missing."""
    cohort = read_cohort(make_bag_cohort(tmp_path, num_bags=10, width=8, bag_size=(1, 9)))
    listed = cohort.datalist(bag_dir=tmp_path / "bags")[:4]
    return [item | {"image": str(tmp_path / "gone.h5")} if index == 1 else item for index, item in enumerate(listed)]


def test_an_unreadable_case_is_left_out_told_and_an_error_at_the_end(items, caplog):
    dataset = ResilientDataset(items, LoadBagd(width=8))
    for _ in range(2):  # a second pass starts its own list
        assert [item["slide_id"] for item in dataset] == [items[index]["slide_id"] for index in (0, 2, 3)]
        assert len(dataset.failures) == 1
    assert "gone.h5': no such file" in caplog.text
    with pytest.raises(CohortError, match=r"(?s)1 of 4 cases failed.*gone\.h5': no such file"):
        dataset.raise_failures()


def test_nothing_is_raised_where_nothing_failed(items):
    dataset = ResilientDataset(items[2:], LoadBagd())
    assert len(list(dataset)) == 2
    dataset.raise_failures()


def test_a_fault_of_the_program_is_no_bad_case(items):
    def broken(item):
        raise KeyError("programming error")

    with pytest.raises(KeyError, match="programming error"):
        list(ResilientDataset(items, broken))
