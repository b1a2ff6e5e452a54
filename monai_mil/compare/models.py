"""The networks that a comparison has trained."""

from __future__ import annotations

from pathlib import Path

from monai_mil.errors import SettingsError
from monai_mil.files import parse_json
from monai_mil.runs import Bundle


def trained_models(out: Path, method: str | None = None) -> tuple[Bundle, list[Path]]:
    """The bundle of a method, and the folders of its networks on all folds and from all seeds.

    Args:
        out: folder of the comparison.
        method: name of its row; None where there is only one.

    Raises:
        SettingsError: there is no such method, or several and none is named.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted((out / "runs").glob("*/*/result.json")):
        said = parse_json(path.read_text(encoding="utf-8"))
        found.setdefault(said["method"], []).append((said["bundle"], out / said["folder"]))
    if method is None and len(found) == 1:
        method = next(iter(found))
    if method not in found:
        raise SettingsError(
            f"'{out}' has no finished runs of {f'a method {method!r}' if method else 'one method alone'}; "
            f"name one with --method: {', '.join(found) or 'there is none'}"
        )
    return Bundle(Path(found[method][0][0])), [folder for _, folder in found[method]]
