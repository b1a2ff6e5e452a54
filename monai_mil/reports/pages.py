"""What all HTML pages share: how a template becomes a file, and the facts at its foot."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_mil import __version__
from monai_mil.files import replacing


def write_page(template: str, out_html: str | Path, **values: Any) -> Path:
    """Fill a template of this room and write it as one file that needs no network; returns its path."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("monai_mil.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    out_html = Path(out_html)
    with replacing(out_html) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out_html


def footer(source: str | Path, further: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and values of the lines at a page's foot: ``further``, the file it was made of, when and with what."""
    versions = [f"monai-mil {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai", "numpy")]
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    own = {"made of": Path(source).name, "written": written, "versions": ", ".join(versions)}
    return [*further.items(), *own.items()]
