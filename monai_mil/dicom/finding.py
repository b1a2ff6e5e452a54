"""What a network says of one class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The answer for one class of a slide or scan.

    Attributes:
        name: of the class.
        probability: of the class, 0 to 1.
        called: whether the class is called: the word of every report, which nothing else may decide again.
        operating_point: the probability from which on it is; None where the most probable class is called, or 0.5.
    """

    name: str
    probability: float
    called: bool
    operating_point: float | None = None
