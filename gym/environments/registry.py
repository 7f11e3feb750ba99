"""Registry of environments, and the check of rows against them.

Built-in ones, installed ones (entry points of the group `rollout_farm.environments`) and those of the settings
(`gym.environments.settings`): classes, perhaps with options, and entries of adapters (entry points of the group
`rollout_farm.adapters` beside `ADAPTERS`). One that cannot be loaded is listed with its `error` and takes no rows; the
others are untouched. Loading an environment's code runs it: specs come from settings, never from requests.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gym.environments.base import Environment, Row
from gym.environments.settings import EnvironmentEntry, Isolation
from gym.environments.tools import ToolSpec, problems, tools_of
from gym.errors import NotFound, text_of
from gym.ids import is_id
from gym.jsontypes import JsonObject
from gym.sandbox.settings import SandboxSettings
from gym.task import OWN_AGENTS, bad_row

ENTRY_POINTS = "rollout_farm.environments"
BUILT_IN = (
    "gym.environments.builtin.weather:Weather",
    "gym.environments.builtin.stateful_counter:StatefulCounter",
    "gym.environments.builtin.sql:Sql",
    "gym.environments.builtin.reasoning_gym:ReasoningGym",
    "gym.environments.builtin.equivalence:Equivalence",
    "gym.environments.builtin.essay_similarity:EssaySimilarity",
    "gym.environments.builtin.code:Code",
)

ADAPTER_POINTS = "rollout_farm.adapters"
ADAPTERS: Mapping[str, str] = {
    "gymnasium": "gym.environments.adapters.gymnasium:Gymnasium",
    "nemo_gym": "gym.environments.adapters.nemo_gym:NemoGym",
    "openenv": "gym.environments.adapters.openenv:OpenEnv",
    "verifiers": "gym.environments.adapters.verifiers:Verifiers",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentType:
    """An environment that can be run or, with `error` set, one that cannot and why; then `cls` is None."""

    name: str
    cls: type[Environment[Any]] | None = None
    description: str = ""
    tools: tuple[ToolSpec, ...] = ()
    row_schema: JsonObject | None = None
    example_row: JsonObject | None = None
    error: str | None = None
    isolation: Isolation = "worker"
    source: str | EnvironmentEntry | None = None  # the source by which another process can load it, see `load_source`

    @property
    def agent(self) -> str:
        """The agent for rows that do not name one."""
        return self.cls.agent if self.cls is not None else Environment.agent

    @property
    def judges(self) -> tuple[str, ...]:
        """The judges that it may ask."""
        return self.cls.judges if self.cls is not None else ()

    def describe(self) -> JsonObject:
        """Return the environment as `GET /v1/environments` shows it."""
        described: JsonObject = {
            "name": self.name,
            "description": self.description,
            "tools": [spec.schema for spec in self.tools],
            "judges": list(self.judges),
            "row_schema": self.row_schema,
            "example_row": self.example_row,
        }
        if self.error is not None:
            described["error"] = self.error
        return described


class Registry:
    """Environments of one process, by name, and the names of the agents that rows may ask for.

    If `judges` are given, rows that ask for another judge are refused.
    """

    def __init__(
        self, types: Iterable[EnvironmentType], *, judges: Collection[str] | None = None, agents: Collection[str] = ()
    ) -> None:
        self.agents = frozenset((*OWN_AGENTS, *agents))
        self._types: Mapping[str, EnvironmentType] = {each.name: each for each in types}
        self._judges = judges

    def names(self) -> list[str]:
        """Return all names, sorted, including environments that cannot be run."""
        return sorted(self._types)

    def get(self, name: str) -> EnvironmentType:
        """Return an environment. Raises NotFound, with the most similar name."""
        found = self._types.get(name)
        if found is None:
            raise NotFound("environment_not_found", self._unknown(name), {"environment": name, "known": self.names()})
        return found

    def check_row(self, name: str, data: JsonObject, *, row: int, line: int | None = None) -> None:
        """Check a row against its environment's row model; called for every row of a submission.

        Raises Invalid, which names the row and the field.
        """
        found = self._types.get(name)
        if found is None:
            raise bad_row(row, "environment", self._unknown(name), line=line)
        if found.cls is None:
            raise bad_row(row, "environment", f"{name} cannot be run: {found.error}", line=line)
        if unknown := [judge for judge in found.judges if self._judges is not None and judge not in self._judges]:
            message = f"{name} asks the judge {', '.join(unknown)}, which the farm's settings (`judges`) do not have"
            raise bad_row(row, "environment", message, line=line)
        try:
            found.cls.row_model.model_validate(data)
        except ValidationError as error:
            (field, message), *others = problems(error)
            more = f" (and {len(others)} more)" if others else ""
            raise bad_row(row, field, f"{message}{more}; a row of {name} is expected", line=line) from None

    def describe(self) -> list[JsonObject]:
        """Return all environments as `GET /v1/environments` shows them."""
        return [self._types[name].describe() for name in self.names()]

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._types, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(self.names())}"
        return f"there is no environment `{name[:80]}`; {hint}"


def load_registry(
    specs: Sequence[str | EnvironmentEntry] = (),
    *,
    judges: Collection[str] | None = None,
    agents: Collection[str] = (),
    sandbox: SandboxSettings | None = None,
) -> Registry:
    """Load the built-in and the installed environments and those of `specs`; never raises for one that fails to load.

    A name belongs to the first environment that uses it; a later one is listed under its spec, with an error.
    """
    sources: list[tuple[str, str | EnvironmentEntry]] = [(spec, spec) for spec in BUILT_IN]
    sources += [(point.name, point.value) for point in entry_points(group=ENTRY_POINTS)]
    sources += [(spec if isinstance(spec, str) else spec.name, spec) for spec in specs]
    types: dict[str, EnvironmentType] = {}
    for source, spec in sources:
        loaded = load_source(spec, source, sandbox)
        if loaded.error is None and loaded.name in types:
            other = source if source not in types else f"settings:{source}"
            loaded = EnvironmentType(name=other, error=f"the name {loaded.name} is taken by another environment")
        if loaded.error is not None:
            logger.warning("environment %s is disabled: %s", loaded.name, loaded.error)
        types.setdefault(loaded.name, loaded)
    return Registry(types.values(), judges=judges, agents=agents)


def load_source(
    spec: str | EnvironmentEntry, name: str = "", sandbox: SandboxSettings | None = None
) -> EnvironmentType:
    """Load one environment, as the settings name it; if that fails, return it with the error, under `name`."""
    if isinstance(spec, str):
        loaded = _load(name or spec, partial(_import, spec), sandbox)
    else:
        loaded = _load(name or spec.name, partial(_configured, spec), sandbox)
    if loaded.cls is None:
        return loaded
    isolation = (None if isinstance(spec, str) else spec.isolation) or loaded.cls.isolation
    if isolation == "process" and loaded.cls.apart:
        error = "`isolation: process` is not for it: what it runs is in a sandbox, process or server of its own already"
        return EnvironmentType(name=loaded.name, error=error)
    return replace(loaded, isolation=isolation, source=spec)


def environment_type(cls: type[Environment[Any]], sandbox: SandboxSettings | None = None) -> EnvironmentType:
    """Read a class. Raises TypeError for a class that is not an environment, or whose example row is not valid."""
    if not (isinstance(cls, type) and issubclass(cls, Environment)):
        raise TypeError(f"{cls!r} is not a subclass of gym.environments.base.Environment")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise TypeError(f"{cls.__qualname__} lacks {', '.join(missing)}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not is_id(name):
        raise TypeError(f"{cls.__qualname__}.name is {name!r}; it must be letters, digits and ._:-")
    if not issubclass(cls.row_model, Row):
        raise TypeError(f"{cls.__qualname__}.row_model is not a subclass of gym.environments.base.Row")
    if missing := [package for package in cls.requires if importlib.util.find_spec(package) is None]:
        raise TypeError(f"it needs the packages {', '.join(missing)}, which are not installed")
    cls.check_machine(sandbox or SandboxSettings())
    example = cls.example_row()
    try:
        cls.row_model.model_validate(example)
    except ValidationError as error:
        field, message = problems(error)[0]
        raise TypeError(f"example_row is not a row of {cls.__qualname__}: {field}: {message}") from error
    return EnvironmentType(
        name=name,
        cls=cls,
        description=cls.description(),
        tools=tools_of(cls),
        row_schema=_row_schema(cls.row_model),
        example_row=example,
    )


def _load(source: str, load: Callable[[], object], sandbox: SandboxSettings | None = None) -> EnvironmentType:
    """Load environments' code, whose exceptions end here: any of them disables that one environment."""
    name = source
    try:
        loaded: Any = load()
        name = str(getattr(loaded, "name", source))
        return environment_type(loaded, sandbox)
    except ValidationError as error:
        said = "; ".join(f"{field}: {message}" if field else message for field, message in problems(error))
        return EnvironmentType(name=name, error=f"its options cannot be used: {said}")
    except (Exception, SystemExit) as error:  # noqa: BLE001  see above
        return EnvironmentType(name=name, error=text_of(error))


def _configured(entry: EnvironmentEntry) -> object:
    if entry.use is not None:
        cls = _import(entry.use)
    else:
        loads: dict[str, Callable[[], object]] = {
            point.name: point.load for point in entry_points(group=ADAPTER_POINTS)
        }
        loads |= {name: partial(_import, spec) for name, spec in ADAPTERS.items()}
        adapter = str(entry.adapter)
        if adapter not in loads:
            raise ValueError(f"there is no adapter {adapter!r}; there are {', '.join(sorted(loads))}")
        cls = loads[adapter]()
    if not (isinstance(cls, type) and issubclass(cls, Environment)):
        raise TypeError(f"{cls!r} is not a subclass of gym.environments.base.Environment")
    if missing := [package for package in cls.requires if importlib.util.find_spec(package) is None]:
        raise TypeError(f"it needs the packages {', '.join(missing)}, which are not installed")
    return cls.configured(entry.name, entry.options)


def _import(spec: str) -> object:
    module, _, attribute = spec.rpartition(":")
    if not module or not attribute:
        raise TypeError(f"{spec!r} is neither package.module:Class nor path/to/file.py:Class")
    loaded = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    return getattr(loaded, attribute)


def _import_file(path: Path) -> object:
    """Import a file's module, under a unique name in `sys.modules`, where type hints are resolved."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"farm_environment_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _row_schema(model: type[Row]) -> JsonObject:
    """Return the row model's schema with the one field of the farm that every row has."""
    schema = model.model_json_schema()
    params = {"type": "object", "description": "The first model call: `input`, and what else the Responses API takes."}
    schema["properties"] = {"responses_create_params": params, **schema.get("properties", {})}
    schema["required"] = ["responses_create_params", *schema.get("required", ())]
    if model is Row:
        schema.pop("description", None)
    return schema
