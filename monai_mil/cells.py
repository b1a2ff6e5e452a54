"""Free text in the cells of CSV files: a spreadsheet must show it, and never take it for a formula."""

from __future__ import annotations

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARK = "'"


def text_cell(text: str) -> str:
    """Free text as it is written: behind an apostrophe where a spreadsheet would take it for a formula.

    Numbers, and the names of cases and classes, are written as they are, without this.

    Examples:
        >>> from monai_mil.cells import cell_text, text_cell
        >>> text_cell("=1+1"), text_cell("gantry tilt"), cell_text(text_cell("=1+1"))
        ("'=1+1", 'gantry tilt', '=1+1')
    """
    return _MARK + text if text.lstrip(_MARK).startswith(_BEGINS_FORMULA) else text


def cell_text(cell: str) -> str:
    """The text that :func:`text_cell` made the cell of."""
    is_marked = cell.startswith(_MARK) and cell.lstrip(_MARK).startswith(_BEGINS_FORMULA)
    return cell[len(_MARK) :] if is_marked else cell
