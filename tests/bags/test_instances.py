"""What is known of every instance is sampled and padded as the table of keys says; what it does not list is refused."""

import pytest
import torch

from monai_mil.bags import SampleInstancesd, collate_bags
from monai_mil.networks import KEYS, instance_axis

PER_INSTANCE = sorted(key for key in KEYS if instance_axis(key) is not None and key not in {"image", "mask"})


def item(n, key, instances=None):
    """A bag of ``n`` instances, and under ``key`` the numbers from 0 along the axis that the table names."""
    axis = instance_axis(key) if key in KEYS else 0
    numbers = torch.arange(n if instances is None else instances)
    value = numbers.reshape(*[1] * axis, -1).expand(*[2] * axis, -1) if axis else numbers
    return {"image": torch.ones(3, n), key: value.bool() if key == "token_mask" else value.float()}


@pytest.mark.parametrize("key", PER_INSTANCE)
def test_every_listed_key_follows_the_sampled_instances(key):
    given = item(20, key)
    given["image"] = torch.arange(20).expand(3, 20)
    sampled = SampleInstancesd(num_instances=6).set_random_state(seed=0)(given)
    chosen = sampled["image"][0]
    assert torch.equal(sampled[key], given[key].index_select(instance_axis(key), chosen))


@pytest.mark.parametrize("key", [key for key in PER_INSTANCE if key != "token_mask"])
def test_every_listed_key_is_padded_with_its_own_value(key):
    batch = collate_bags([item(2, key), item(4, key)])
    axis = instance_axis(key) + 1
    assert batch[key].shape[axis] == 4
    padding = batch[key][0].narrow(axis - 1, 2, 2)
    assert (padding == KEYS[key].padding).all()
    assert torch.equal(batch[key][1], item(4, key)[key])


def test_a_row_for_every_instance_that_is_not_listed_is_refused():
    with pytest.raises(ValueError, match=r"'salience' \[20\] .* list the key in KEYS .* DeleteItemsd"):
        SampleInstancesd(num_instances=6)(item(20, "salience"))
    with pytest.raises(ValueError, match=r"'salience' \[2\] .* list the key in KEYS"):
        collate_bags([item(2, "salience"), item(4, "salience")])


def test_what_has_no_row_for_every_instance_stays_as_it_is():
    assert SampleInstancesd(num_instances=6)(item(20, "age", instances=5))["age"].shape == (5,)
    batch = collate_bags([item(2, "age", instances=5), item(4, "age", instances=5)])
    assert batch["age"].shape == (2, 5)


def test_bags_of_one_size_need_no_padding_and_keep_what_is_not_listed():
    assert collate_bags([item(4, "salience")] * 2)["salience"].shape == (2, 4)
