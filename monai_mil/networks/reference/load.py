"""Checkpoints of the reference's CT classifiers (Harvey, Loevlie and Hughes 2026): ``pool.*`` and ``clf.*``.

A file may hold the pooling part alone, without its prefix; the classifier then keeps its initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def check_tensors(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Refuse what is no bare state dict; a state dict is returned as it is.

    Raises:
        ValueError: something in it is no tensor, as in a checkpoint that holds the state dict and more.
    """
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"not this network's state dict: '{name}' is no tensor; of a whole checkpoint give the part with the "
                "parameters, often checkpoint['state_dict'] or checkpoint['model']"
            )
    return state_dict


def reference_parameters(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Float32 parameters under this package's names.

    Args:
        state_dict: under the reference's names.
        names: this package's beginning of a name for the reference's, without ``pool.``; what stands in neither is
            kept as it is.
    """
    renamed = {}
    for name, tensor in check_tensors(state_dict).items():
        name = name.removeprefix("pool.")
        for theirs, ours in ({"clf.": "classifier."} | dict(names)).items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        renamed[name] = tensor.float()
    return renamed


def size_of(parameters: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Length of an axis of a parameter, from which a network's widths are told.

    Raises:
        ValueError: there is no such parameter, so the checkpoint is another method's.
    """
    if name not in parameters:
        raise ValueError(f"not this network's state dict: it has no parameter for '{name}'")
    return parameters[name].shape[axis]


def class_count(parameters: Mapping[str, Tensor]) -> int:
    """Number of classes; 1 where the checkpoint has no classifier."""
    return len(parameters["classifier.bias"]) if "classifier.bias" in parameters else 1


def load_reference(network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Fill every parameter and buffer of ``network`` but a classifier that ``parameters`` lack.

    Raises:
        ValueError: names or shapes are not those of the network.
    """
    try:
        missing, unexpected = network.load_state_dict(parameters, strict=False)
    except RuntimeError as error:
        raise ValueError(f"not this network's state dict: {error}") from error
    lacking = [name for name in missing if not name.startswith("classifier.")]
    if lacking or unexpected:
        raise ValueError(f"not this network's state dict: it lacks {lacking} and has {unexpected} too much")
