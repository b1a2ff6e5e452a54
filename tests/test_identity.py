import os
import shutil

import numpy as np
import pytest

from monai_mil.identity import BLOCK, change_stamp, content_identity

LARGE = 40 * BLOCK


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(np.random.default_rng(0).bytes(LARGE))
    return path


def test_content_is_the_same_under_any_name_in_any_folder_at_any_time(large, tmp_path):
    before = content_identity([large])
    copy = tmp_path / "sub" / "other.svs"
    copy.parent.mkdir()
    shutil.copy(large, copy)
    os.utime(copy, (1, 1))
    assert content_identity([copy]) == before
    assert before.startswith(f"{LARGE}:")


@pytest.mark.parametrize("place", [0, BLOCK - 1, LARGE - BLOCK, LARGE - 1, (LARGE - BLOCK) * 3 // 7 + 5])
def test_a_changed_byte_at_the_ends_or_in_a_sampled_block_is_other_content(large, place):
    before = content_identity([large])
    with large.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1]))
    assert content_identity([large]) != before


@pytest.mark.parametrize("size", [0, 1, 1000, 8 * BLOCK])
def test_small_files_are_told_apart_by_every_byte(tmp_path, size):
    path = tmp_path / "small"
    path.write_bytes(bytes(size))
    seen = {content_identity([path])}
    for place in {0, size // 3, size - 1} & set(range(size)):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        seen.add(content_identity([path]))
    path.write_bytes(bytes(size + 1))
    seen.add(content_identity([path]))
    assert len(seen) == 2 + len({0, size // 3, size - 1} & set(range(size)))


def test_of_several_files_each_counts_and_their_order_does_not(tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    for number, path in enumerate((first, second, third)):
        path.write_bytes(bytes([number]) * 100)
    assert content_identity([first, second]) == content_identity([second, first])
    assert len({content_identity(files) for files in ([first], [first, second], [first, third], [second, third])}) == 4


def test_a_stamp_holds_until_a_file_is_touched_even_if_its_times_are_set_back(tmp_path):
    path = tmp_path / "slide"
    path.write_bytes(b"one")
    before, times = change_stamp([path]), path.stat()
    assert change_stamp([path]) == before
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert change_stamp([path]) != before
