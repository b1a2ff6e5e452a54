"""Values of DICOM attributes, whatever stands in their place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError

_MOMENT = re.compile(r"(\d{8})?(\d\d)(\d\d)(\d\d(?:\.\d+)?)?")
_OF_NUMBERS = set("0123456789+-.eE/NA\\ ")


def raw_value(dataset: Any, keyword: str) -> Any:
    """The value of an attribute, as it stands in the file where pydicom cannot make a number of it."""
    try:
        return dataset.get(keyword)
    except (ArithmeticError, TypeError, ValueError):
        value = dataset.get_item(keyword).value
        return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def texts_of_numbers(value: Any) -> list[str]:
    """The numbers of a value one by one as text; a decimal comma counts as a point."""
    if value is None:
        return []
    parts = value.split("\\") if isinstance(value, str) else value if np.iterable(value) else [value]
    found = [str(part).strip(" \0").replace(",", ".") for part in parts]
    return found if any(found) else []


def numbers_of(path: Path, keyword: str, value: Any, count: int) -> np.ndarray | None:
    """The numbers of an attribute, float64 ``[count]``; None where it is missing or empty."""
    texts = texts_of_numbers(value)
    if not texts:
        return None
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,):
        shown = "\\".join(texts)[:60]
        # In a damaged header anything may stand there, the patient's name too.
        what = f"'{shown}'" if set(shown) <= _OF_NUMBERS else "text"
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise ScanReadError(f"scan file '{path}': {keyword} is {what}, not {wanted}; export the series again")
    return numbers


def number_if_any(value: Any) -> float | None:
    """A number that the reader can do without; None where it is none, such as ``N/A``."""
    try:
        (text,) = texts_of_numbers(value)
        return float(text)
    except ValueError:
        return None


def whole_number(value: Any) -> int | None:
    """A whole number that the reader can do without; None where it is none."""
    number = number_if_any(value)
    return int(number) if number is not None and number.is_integer() else None


def seconds_of(dataset: Any, moment: Any) -> float | None:
    """A time of DICOM, ``YYYYMMDDhhmmss.f`` or else date and time, in seconds; None where there is none."""
    text = str(moment or "").strip()
    if not text and (clock := str(raw_value(dataset, "AcquisitionTime") or "").strip()):
        text = str(raw_value(dataset, "AcquisitionDate") or "").strip() + clock.replace(":", "")
    found = _MOMENT.match(text)
    if found is None:
        return None
    day, hours, minutes, seconds = found.groups()
    days = 0 if day is None else int(day[:4]) * 372 + int(day[4:6]) * 31 + int(day[6:])
    return days * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds or 0)


def texts_of(value: Any) -> list[str]:
    """The texts of an attribute with one value, several or none."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(text) for text in value]
