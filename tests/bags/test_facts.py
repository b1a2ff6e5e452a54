"""What the bags of a data list have in common is read from the first that can be read."""

from pathlib import Path

import numpy as np
import pytest

from monai_mil.bags import BagFacts, BagFile, BagInfo, bag_facts
from monai_mil.errors import BagError


def items(folder: Path, *names: str) -> list[dict[str, str]]:
    return [{"image": str(folder / f"{name}.h5")} for name in names]


def test_a_bag_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "damaged.h5").write_text("no bag")
    coords = np.zeros((2, 2), int)
    BagFile.write(tmp_path / "spatial.h5", np.ones((2, 8, 3, 4)), coords, BagInfo("spatial", encoder="mine"))
    BagFile.write(tmp_path / "flat.h5", np.ones((2, 6)), coords, BagInfo("flat"))
    assert bag_facts(items(tmp_path, "damaged", "spatial", "flat")) == BagFacts("mine", 8, [3, 4])
    assert bag_facts(items(tmp_path, "missing", "flat", "spatial")) == BagFacts(None, 6, None)


def test_where_no_bag_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "damaged.h5").write_text("no bag")
    with pytest.raises(BagError, match=r"bag '.*missing\.h5': no such file; embed the slide or scan first"):
        bag_facts(items(tmp_path, "missing", "damaged"))
    with pytest.raises(BagError, match="no bag in the data list; embed the cohort first"):
        bag_facts([])
