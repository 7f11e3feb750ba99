"""MkDocs hook that generates the reference pages from the code: settings, REST, command line, metrics, scripts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "settings": settings_page,
        "rest": rest_page,
        "cli": cli_page,
        "metrics": metrics_page,
        "scripts": scripts_page,
    }
    for name, make in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def settings_page() -> str:
    """Return a table of each section of the settings."""
    from gym.config import Settings

    lines = [
        "# Settings",
        "",
        "Each setting is a field of the YAML file (`--config`) and an environment variable. A field of a section is",
        "indented below the section's name in YAML. Lists and objects are given as JSON in variables. Precedence, from",
        "low to high: default, YAML, variable, command-line option. `farm config show` prints the resolved values.",
        "",
    ]
    plain = {name: field for name, field in Settings.model_fields.items() if not _section(field)}
    lines += ["## Top level", "", *_table(plain, "FARM_")]
    for name, field in Settings.model_fields.items():
        if section := _section(field):
            lines += ["", f"## {name}", "", _text(section.__doc__), ""]
            lines += _table(section.model_fields, f"FARM_{name.upper()}_")
    return "\n".join(lines) + "\n"


def rest_page() -> str:
    """Return the routes of the OpenAPI document, by tag."""
    from api.app import create_app
    from gym.config import Settings

    document = create_app(Settings()).openapi()
    tags: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = ", ".join(code for code in operation["responses"] if code[0] in "12345")
            text = _text(operation.get("description") or operation.get("summary"))
            row = f"| `{method.upper()} {path}` | {text} | {answers} |"
            tags.setdefault((operation.get("tags") or ["other"])[0], []).append(row)
    lines = ["# REST", "", "The api serves this document at `/openapi.json`, with a page to try it at `/docs`.", ""]
    for tag, rows in tags.items():
        lines += [f"## {tag}", "", "| call | meaning | statuses |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def cli_page() -> str:
    """Return each command of `farm` with its arguments and options."""
    import typer.main

    from api.cli.main import build

    lines = ["# Command line", ""]
    for path, command in _commands(typer.main.get_command(build()), "farm"):
        lines += [f"## {path}", "", _text(command.help), ""]
        rows = [row for parameter in command.params if (row := _parameter(parameter))]
        if rows:
            lines += ["| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def metrics_page() -> str:
    """Return the names, types and meanings of the metrics of `/metrics`."""
    from prometheus_client.parser import text_string_to_metric_families

    from api.metrics import FarmNumbers, HttpMetrics, exposition

    http = HttpMetrics()
    http.observe("GET", "/healthz", 200, 0.0)
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of the api, in Prometheus' text format; counters end in `_total` there.",
        "",
        "| metric | type | meaning |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{family.name}` | {family.type} | {_text(family.documentation)} |"
        for family in text_string_to_metric_families(exposition(http, FarmNumbers(up=True)).decode())
        if not family.name.endswith("_created")
    ]
    return "\n".join(lines) + "\n"


def scripts_page() -> str:
    """Return each Lua script with its first comment and the modules that call it."""
    import gym.state

    root = Path(gym.state.__file__).parents[2]
    folders = [folder for name in ("state", "captures") if (folder := root / "gym" / name).is_dir()]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in paths}
    loaded = {
        name: constant
        for source in sources.values()
        for constant, name in re.findall(r'^([A-Z_]+) = load_script\("(\w+)"', source, re.MULTILINE)
    }
    lines = [
        "# Scripts",
        "",
        "Every change of state is one of these Lua scripts in `gym/state/scripts`. Redis runs a script as one step.",
        "The header of each file documents its arguments and what it returns.",
        "",
        "| script | does | called in |",
        "|---|---|---|",
    ]
    for path in sorted((root / "gym/state/scripts").glob("*.lua")):
        does = _text(path.read_text().splitlines()[0].removeprefix("--")).replace("{", "&#123;")
        family = path.stem.partition("_")[0]
        used = rf"\b{loaded[path.stem]}\b(?! = )" if path.stem in loaded else rf'load_script\(f"{family}_{{'
        callers = [f"`{name}`" for name, source in sources.items() if re.search(used, source)]
        lines.append(f"| `{path.stem}` | {does} | {', '.join(callers)} |")
    return "\n".join(lines) + "\n"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _table(fields: dict[str, FieldInfo], prefix: str) -> list[str]:
    rows = ["| field | variable | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None or "Undefined" in repr(default) else f"`{_plain(default)}`"
        rows.append(f"| `{name}` | `{prefix}{name.upper()}` | {shown} | {_text(field.description)} |")
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return _text(json.dumps(value, default=str))


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in sorted(children):
        if not children[name].hidden:
            yield from _commands(children[name], f"{path} {name}")


def _parameter(parameter: Any) -> str | None:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return None
    is_option = parameter.param_type_name == "option"
    name = ", ".join(parameter.opts) if is_option else parameter.metavar or parameter.name.upper()
    default = "" if callable(parameter.default) or parameter.default in (None, "", ()) else f"`{parameter.default}`"
    return f"| `{name}` | {_text(getattr(parameter, 'help', ''))} | {_text(default)} |"


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
