"""A config's ``network_def`` may be a network or a method that builds one."""

from functools import partial

from monai_mil.networks import ABMIL
from monai_mil.training import build_network


def test_a_network_is_taken_and_a_method_is_built():
    network = ABMIL(4, 2)
    assert build_network(network) is network
    assert isinstance(build_network(partial(ABMIL, 4, 2)), ABMIL)
