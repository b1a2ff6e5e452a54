"""What class names and label columns of a run must be, said before anything is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from monai_mil.errors import SettingsError


def check_labels(class_names: Sequence[object], label_columns: Sequence[str], multi_label: bool = False) -> None:
    """Refuse class names that stand for two classes, and several labels without the setting for them.

    Args:
        class_names: of the run; ``1``, ``True`` and ``"1"`` are names as any other, by what they are written as.
        label_columns: columns of the cohort's table.
        multi_label: whether classes do not exclude each other.

    Raises:
        SettingsError: a name stands twice, or there are several columns and one label.

    Examples:
        >>> from monai_mil.training import check_labels
        >>> check_labels(["normal", "tumor"], ["label"])
    """
    twice = [name for name, count in Counter(map(str, class_names)).items() if count > 1]
    if twice:
        raise SettingsError(
            f"class_names {list(class_names)}: {', '.join(twice)} stands there twice; give every class its own name"
        )
    if len(label_columns) > 1 and not multi_label:
        raise SettingsError(
            f"label_columns {list(label_columns)}: {len(label_columns)} labels of a case need --multi_label True"
        )
