"""Docstrings as the site shows them: roles become links, equations are set as such."""

from __future__ import annotations

import html
import logging
import re

import griffe

log = logging.getLogger("mkdocs.plugins.docstrings")

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([\w.]+)`")
LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
FORMULA_ROOMS = ("monai_mil.networks", "monai_mil.losses", "monai_mil.metrics")
GREEK = {name: f"&{name};" for name in ("alpha", "beta", "gamma", "eta", "theta", "lambda", "mu", "pi", "rho", "sigma")}
GREEK |= {name: f"&{name};" for name in ("tau", "omega", "phi", "delta", "epsilon")}
WORDS = GREEK | {"sum": "&sum;", "sqrt": "&radic;", "inf": "&infin;"}
SIGNS = {"<-": "&larr;", "->": "&rarr;", ">=": "&ge;", "<=": "&le;", "*": "&lowast;", "-": "&minus;", "'": "&prime;"}
SYMBOL = re.compile(
    r"[A-Za-z]\d+(?!\w)|[A-Za-z]+|\d+(?:\.\d+)?|<-|->|>=|<=|[_^]\{[^}]*\}|[_^]\w+|[_^]|\s+|.", re.DOTALL
)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """See :meth:`griffe.Extension.on_package`."""
        everything = list(members(pkg))
        by_name: dict[str, set[str]] = {}
        for item in everything:
            for tail in tails(item.path):
                by_name.setdefault(tail, set()).add(item.path)
        for item in everything:
            if item.docstring:
                item.docstring.value = shown(item.docstring.value, item, by_name)


def members(item: griffe.Object) -> list[griffe.Object]:
    """``item`` and all that is defined in it, at any depth."""
    found = [item]
    for member in item.members.values():
        if not member.is_alias:
            found += members(member)
    return found


def tails(path: str) -> list[str]:
    """``a.b.c`` as ``c``, ``b.c`` and ``a.b.c``."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def shown(text: str, item: griffe.Object, by_name: dict[str, set[str]]) -> str:
    """A docstring as Markdown."""
    if item.path.startswith(FORMULA_ROOMS):
        text = "\n\n".join(with_equations(paragraph) for paragraph in text.split("\n\n"))
        text = LITERAL.sub(lambda found: typeset(found[1]) if is_formula(found[1]) else found[0], text)
    return ROLE.sub(lambda found: link(found[1], item, by_name), text)


def link(name: str, item: griffe.Object, by_name: dict[str, set[str]]) -> str:
    """A cross reference to what ``name`` means in the docstring of ``item``; plain where no page shows it."""
    text = f"<code>{html.escape(name.removeprefix('monai_mil.'))}</code>"
    try:
        target = item.resolve(name)
    except griffe.NameResolutionError:
        target = name
    for scope in (target, f"{item.path}.{name}", *(f"{parent}.{name}" for parent in parents(item)), name):
        if scope in by_name.get(scope, ()):
            return f'<autoref identifier="{scope}" optional>{text}</autoref>'
    candidates = by_name.get(name.removeprefix("monai_mil."), by_name.get(name.split(".")[-1], set()))
    if not candidates:
        log.warning(f"{item.path}: there is no '{name}'")
        return text
    return f'<autoref identifier="{min(candidates, key=len)}" optional>{text}</autoref>'


def parents(item: griffe.Object) -> list[str]:
    """Paths of what ``item`` lies in, innermost first."""
    found = []
    while item.parent is not None:
        item = item.parent
        found.append(item.path)
    return found


def is_formula(literal: str) -> bool:
    """Whether a literal is mathematics: it says what something is, and is neither a string, an argument nor a shape."""
    program = r'"|\[[^]]*,|==|\w\.\w|_[a-z]{3}'
    return bool(re.search(r" (=|<-) ", literal)) and not re.search(program, literal)


def with_equations(paragraph: str) -> str:
    """A paragraph whose clauses begin with formulas, one of them a line; what is said before and after stays text."""
    clauses = re.split(r";\s+(?=``)", paragraph)
    if len(clauses) < 2 or paragraph.startswith((" ", "Args:", "Returns:")):
        return paragraph
    before, after = "", ""
    if not clauses[0].startswith("``"):
        found = re.match(r"(.*?[;:.])\s+(``.*)", clauses[0], re.DOTALL)
        before, clauses = (found[1], [found[2], *clauses[1:]]) if found else (clauses[0] + ":", clauses[1:])
    found = re.match(r"(``.+?``[^`]*?)\.(?:\s+(.*))?$", clauses[-1], re.DOTALL)
    if found:
        clauses[-1], after = found[1], found[2] or ""
    if not clauses or not all(is_formula(clause.split("``")[1]) for clause in clauses):
        return paragraph
    lines = "".join(f"<span>{equation(clause)}</span>" for clause in clauses)
    return "\n\n".join(part for part in (before.rstrip(";"), f'<p class="equations">{lines}</p>', after) if part)


def equation(clause: str) -> str:
    """One line of equations: literals set, words as they are."""
    return LITERAL.sub(lambda found: typeset(found[1]), " ".join(clause.split()))


def typeset(formula: str) -> str:
    """``h_i = relu(W x_i + b)`` as HTML: letters slanted, words upright, indices and powers in their places."""
    return f'<span class="formula">{"".join(symbol(part) for part in SYMBOL.findall(formula))}</span>'


def symbol(part: str) -> str:
    """One symbol of a formula."""
    if part[0] in "_^" and len(part) > 1:
        tag = "sub" if part[0] == "_" else "sup"
        return f"<{tag}>{''.join(symbol(inner) for inner in SYMBOL.findall(part[1:].strip('{}')))}</{tag}>"
    if part in WORDS:
        return WORDS[part]
    if part.isalpha():
        return f"<i>{part}</i>" if len(part) == 1 else part
    if part[0].isalpha():
        return f"<i>{part[0]}</i><sub>{part[1:]}</sub>"
    return SIGNS.get(part, " " if part.isspace() else html.escape(part))
