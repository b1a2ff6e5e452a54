"""One run of a bundle: its configs in order and the settings that differ from them."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil.errors import SettingsError
from monai_mil.leftovers import remove_leftovers
from monai_mil.runs.bundles import Bundle
from monai_mil.runs.quiet_imports import quiet_imports

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


@dataclass(frozen=True)
class BundleRun:
    """What ``python -m monai.bundle run`` would be told.

    Attributes:
        bundle: the bundle.
        configs: names of its configs, each laid over those before it.
        settings: keys of the configs and their values.
    """

    bundle: Bundle
    configs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [name for name in self.configs if not self.bundle.has(name)]
        if missing:
            raise SettingsError(f"bundle '{self.bundle.name}' has no configs/{missing[0]}.json")

    @property
    def files(self) -> list[str]:
        """Paths of the configs."""
        return [str(self.bundle.config(name)) for name in self.configs]

    @property
    def line(self) -> str:
        """The command that does the same, to be typed in a shell."""
        files = str(self.files) if len(self.files) > 1 else self.files[0]
        words = ["python", "-m", "monai.bundle", "run", "--config_file", files]
        for name, value in self._all_settings.items():
            words += [f"--{name}", _typed(value)]
        return " ".join(map(_quoted, words))

    def workflow(self) -> ConfigWorkflow:
        """The workflow, not initialized yet; logging stays as it is.

        Raises:
            SettingsError: a setting is none of the configs'.
        """
        logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # that logging stays as it is
        with quiet_imports():
            from monai.bundle import ConfigWorkflow

        with warnings.catch_warnings():
            # Whoever names the bundle trusts it; MONAI says so again at every start.
            warnings.filterwarnings("ignore", message=".*from a source you trust.*")
            workflow = ConfigWorkflow(self.files, logging_file=False)
            known: Mapping[str, Any] = workflow.parser.config  # type: ignore[assignment]
            for name in self.settings:
                if name.replace("::", "#").lstrip("+").partition("#")[0] not in known:
                    raise SettingsError(
                        f"bundle '{self.bundle.name}' has no setting '{name}' in {', '.join(self.configs)}"
                    )
            workflow.parser.update(pairs=self._all_settings)
        return workflow

    def start(self, prepared: Callable[[ConfigWorkflow], None] | None = None) -> ConfigWorkflow:
        """Run it as ``monai.bundle`` does, its log on standard output.

        Args:
            prepared: is given the workflow when it is set up and about to run.

        Returns:
            The workflow, when it has run.

        Raises:
            MonaiMILError: the user's error, where one ends the run.
        """
        logging.basicConfig(
            level=logging.INFO,
            stream=sys.stdout,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
        )
        for name in self.settings.keys() & {"output_dir", "ckpt_dir"}:
            remove_leftovers(Path(self.settings[name]))
        with in_users_words():
            workflow = self.workflow()
            workflow.initialize()
            if prepared is not None:
                prepared(workflow)
            with _untold_on_the_way():
                workflow.run()
                workflow.finalize()
        return workflow

    @property
    def _all_settings(self) -> dict[str, Any]:
        return {"bundle_root": str(self.bundle.root), **self.settings}


@contextmanager
def in_users_words() -> Iterator[None]:
    """Raise the user's own error where MONAI has wrapped it."""
    try:
        yield
    except Exception as error:
        from monai_mil.training import users_error

        own = users_error(error)
        if own is None or own is error:
            raise
        raise own from None


@contextmanager
def _untold_on_the_way() -> Iterator[None]:
    """Keep libraries that pass the user's error on from logging it, with its traceback: its last word is one line."""

    def is_shown(record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or record.name.startswith("monai_mil"):
            return True
        from monai_mil.training import users_error

        return users_error(sys.exc_info()[1]) is None

    def handle(handler: logging.Handler, record: logging.LogRecord) -> Any:
        return handle_all(handler, record) if is_shown(record) else False

    handle_all = logging.Handler.handle
    logging.Handler.handle = handle  # type: ignore[method-assign, assignment]  # MONAI makes handlers of its own while it runs
    try:
        yield
    finally:
        logging.Handler.handle = handle_all  # type: ignore[method-assign]


def parsed_settings(entries: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as typed; values are read as ``monai.bundle`` reads them: literals, else text. Paths are text.

    Raises:
        SettingsError: an entry is not ``KEY=VALUE``.

    Examples:
        >>> from monai_mil.runs import parsed_settings
        >>> parsed_settings(["threshold=0.4", "grid=[14,14]", "encoder=uni", "output_dir=2024"])
        {'threshold': 0.4, 'grid': [14, 14], 'encoder': 'uni', 'output_dir': '2024'}
    """
    from monai_mil.training import value_of

    settings = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise SettingsError(f"'{entry}' is not KEY=VALUE")
        key = name.strip().removeprefix("--")
        settings[key] = value_of(key, value)
    return settings


def _quoted(word: str) -> str:
    """A word as a shell takes it; in double quotes where it has single ones, which is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _typed(value: Any) -> str:
    """A value as it is typed on ``monai.bundle``'s command line, so that the same value arrives."""
    from fire.parser import DefaultParseValue

    text = str(value) if isinstance(value, (str, Path)) else repr(value)
    arrives = DefaultParseValue(text)
    return text if arrives == (str(value) if isinstance(value, Path) else value) else repr(str(value))
