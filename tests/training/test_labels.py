import pytest

from monai_mil.errors import SettingsError
from monai_mil.training import check_labels


@pytest.mark.parametrize("names", [["a", "b"], [0, 1], [False, True], ["0", 1]])
def test_names_of_any_kind_are_taken(names):
    check_labels(names, ["label"])
    check_labels(names, ["x", "y"], multi_label=True)


@pytest.mark.parametrize("names", [["a", "b", "a"], [1, "1"], [True, "True"]])
def test_a_name_that_stands_twice_is_refused(names):
    with pytest.raises(SettingsError, match=f"{names[0]} stands there twice"):
        check_labels(names, ["label"])


def test_several_labels_need_their_setting():
    with pytest.raises(SettingsError, match="3 labels of a case need --multi_label True"):
        check_labels(["a", "b", "c"], ["a", "b", "c"])
