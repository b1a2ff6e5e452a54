"""The pages that nobody writes: the repository's own documents, one page a room and one a network."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.plugins.pages")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "monai_mil"
INNER_DOORS = ("networks/blocks", "networks/reference")
READING_ORDER = yaml.safe_load((ROOT / "docs" / "rooms.yml").read_text())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The table of contents; a new room, network or bundle finds its place in it by itself."""
    networks = [{title(names): f"networks/{module}.md"} for module, names in networks_by_module().items()]
    others = [room for room in rooms() if room != "networks"]
    config.nav = [
        {"Home": "README.md"},
        {"Tutorial": "tutorial.md"},
        {"Training recipes": "recipes.md"},
        {"Comparing methods": "compare.md"},
        {"Annotate and learn": "annotate.md"},
        {"Deploy": "deploy.md"},
        {"DICOM results": "dicom.md"},
        {"Robustness": "robustness.md"},
        {"Bundles": ["bundles/index.md", *({name: f"bundles/{name}/docs/README.md"} for name in bundles())]},
        {"Networks": ["networks/index.md", *networks, "networks/blocks.md", "networks/reference.md"]},
        {"Rooms": ["rooms/index.md", *(f"rooms/{room}.md" for room in others), "rooms/errors.md"]},
        {"Contributing": "CONTRIBUTING.md"},
        {"Changelog": "CHANGELOG.md"},
    ]
    config.watch += [str(PACKAGE), str(ROOT / "bundles"), str(ROOT / "docs")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The repository's documents under their own paths, so that their links hold, and the generated pages."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"):
        files.append(repository_file(name, config))
    for path in sorted(ROOT.glob("bundles/*/docs/*")):
        files.append(repository_file(path.relative_to(ROOT).as_posix(), config))
    pages = {"networks/index.md": networks_page(), "rooms/index.md": rooms_page(), "bundles/index.md": bundles_page()}
    pages |= {f"networks/{module}.md": network_page(module, names) for module, names in networks_by_module().items()}
    pages |= {f"{door}.md": room_page(door) for door in INNER_DOORS} | {"rooms/errors.md": errors_page()}
    pages |= {f"rooms/{room}.md": room_page(room) for room in rooms() if room != "networks"}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The repository keeps the written pages in ``docs/pages``, the site at its root."""
    if page.file.src_uri == "README.md":
        return markdown.replace("](docs/pages/", "](")
    written = (ROOT / "docs" / "pages" / page.file.src_uri).exists()
    return markdown.replace("](../../", "](") if written else markdown


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """A page loads nothing from the net."""
    for tag in re.findall(
        r"<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>", output
    ):
        log.warning(f"{page.file.src_uri} would be read from the net in part: {tag}")
    return output


def repository_file(name: str, config: MkDocsConfig) -> File:
    """A file of the repository at the same place of the site."""
    return File(name, str(ROOT), config.site_dir, config.use_directory_urls)


def bundles() -> list[str]:
    """Names of the bundles that have a README."""
    return [path.parents[1].name for path in sorted(ROOT.glob("bundles/*/docs/README.md"))]


def rooms() -> list[str]:
    """The rooms that exist, in the order of ``rooms.yml``, new ones last."""
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return [*(room for room in READING_ORDER if room in found), *sorted(found - set(READING_ORDER))]


def public_names(door: str) -> dict[str, str]:
    """Every name that ``monai_mil/<door>`` offers and the module it is defined in, below ``monai_mil``."""
    folder = PACKAGE / door
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else folder / "__init__.py").read_text())
    here = door.replace("/", ".")
    modules = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("monai_mil.")):
            module = f"{here}.{node.module}" if node.level else str(node.module).removeprefix("monai_mil.")
            modules |= {alias.name: module for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    return {name: modules[name] for name in names}


def classes_of(module: str) -> dict[str, ast.ClassDef]:
    """The classes that a module defines."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def networks_by_module() -> dict[str, list[str]]:
    """The public networks by the module that holds them, both sorted by name; the base class is not one."""
    found: dict[str, list[str]] = {}
    for name, module in public_names("networks").items():
        if module != "networks.contract" and name in classes_of(module):
            found.setdefault(module.split(".")[-1], []).append(name)
    return dict(sorted(found.items(), key=lambda item: title(item[1]).lower()))


def title(names: list[str]) -> str:
    """The name of a network's page."""
    return ", ".join(names)


def summary(path: Path) -> str:
    """First paragraph of a module's docstring, roles as literals."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", " ".join(paragraph.split()))


def network_page(module: str, names: list[str]) -> str:
    """Paper, equations and arguments of the networks of one module, with the base they share."""
    classes = classes_of(f"networks.{module}")
    bases = [ast.unparse(base) for name in names for base in classes[name].bases]
    ordered = dict.fromkeys([*(base for base in bases if base in classes and base not in names), *names])
    return "\n\n".join(
        [
            f"# {title(names)}",
            summary(PACKAGE / "networks" / f"{module}.py"),
            *(f"::: monai_mil.networks.{module}.{name}" for name in ordered),
        ]
    )


def networks_page() -> str:
    """All networks in a table, and what they have in common."""
    rows = [
        f"| [{title(names)}]({module}.md) | {summary(PACKAGE / 'networks' / f'{module}.py')} |"
        for module, names in networks_by_module().items()
    ]
    networks = {name for names in networks_by_module().values() for name in names}
    shared = [name for name in ordered_names("networks") if name not in {*networks, "KEYS"}]
    return "\n\n".join(
        [
            "# Networks",
            "\n".join(["| network | source |", "|---|---|", *rows]),
            "What several of them share is in [blocks](blocks.md), reading released checkpoints in "
            "[reference](reference.md).",
            "## The contract",
            "::: monai_mil.networks.contract\n    options:\n      show_root_heading: false\n      members: []",
            "### KEYS { #monai_mil.networks.contract.KEYS }",
            keys_table(),
            *(entry("networks", name) for name in shared),
            "::: monai_mil.networks.contract.ChunkedNetwork\n    options:\n      heading_level: 3",
        ]
    )


def keys_table() -> str:
    """The table of keys of ``networks.contract``: what travels through an engine."""
    tree = ast.parse((PACKAGE / "networks" / "contract.py").read_text())
    keys = next(node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "KEYS")
    table = next(node for node in ast.walk(keys) if isinstance(node, ast.Dict))
    rows = []
    for name, key in zip(table.keys, table.values, strict=True):
        shape, meaning, *padding = (ast.unparse(argument).strip("'\"") for argument in key.args)
        axes = shape.split()
        filled = (padding or ["0"])[0].replace("torch.", "") if "n" in axes else ""
        cells = [f"`{ast.literal_eval(name)}`", f"`[{', '.join(axes)}]`" if axes else "", meaning, filled]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(["| key | axes | meaning | padding |", "|---|---|---|---|", *rows])


def bundles_page() -> str:
    """All bundles in a table."""
    rows = []
    for name in bundles():
        heading = (ROOT / "bundles" / name / "docs" / "README.md").read_text().split("\n", 1)[0].lstrip("# ")
        rows.append(f"| [{name}]({name}/docs/README.md) | {heading} |")
    return "\n\n".join(["# Bundles", "\n".join(["| bundle | what it is |", "|---|---|", *rows])])


def rooms_page() -> str:
    """All rooms in a table."""
    rows = []
    for room in rooms():
        page = "../networks/index.md" if room == "networks" else f"{room}.md"
        rows.append(f"| [{room}]({page}) | {summary(PACKAGE / room / '__init__.py')} |")
    return "\n\n".join(
        [
            "# Rooms",
            "The package is divided into rooms. Each is entered by its door, `from monai_mil.<room> import ...`, and "
            "has a page here with all the names it offers.",
            "\n".join(["| room | holds |", "|---|---|", *rows]),
        ]
    )


def room_page(door: str) -> str:
    """A room's public names in the order of a reader."""
    parts = [f"# {door.split('/')[-1]}", summary(PACKAGE / door / "__init__.py")]
    for heading, names in sections(door).items():
        parts += [f"## {heading}"] if heading else []
        parts += [entry(door, name, 3 if heading else 2) for name in names]
    return "\n\n".join(parts)


def errors_page() -> str:
    """The errors that all rooms raise."""
    names = classes_of("errors")
    return "\n\n".join(
        ["# errors", summary(PACKAGE / "errors.py"), *(f"::: monai_mil.errors.{name}" for name in names)]
    )


def entry(door: str, name: str, level: int = 3) -> str:
    """One public name, shown with its docstring."""
    module = public_names(door)[name]
    return f"::: monai_mil.{module}.{name}\n    options:\n      heading_level: {level}"


def sections(door: str) -> dict[str, list[str]]:
    """The names of a room under the headings of ``rooms.yml``; what is not listed there comes last."""
    names = public_names(door)
    listed = READING_ORDER.get(door) or {}
    unknown = {name for group in listed.values() for name in group} - set(names)
    if unknown:
        raise PluginError(f"docs/rooms.yml: {door} has no {sorted(unknown)}")
    rest = [name for name in names if not any(name in group for group in listed.values())]
    return {**listed, **({"Further" if listed else "": rest} if rest else {})}


def ordered_names(door: str) -> list[str]:
    """All names of a room, as :func:`sections` orders them."""
    return [name for group in sections(door).values() for name in group]
