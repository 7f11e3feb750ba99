"""The house rules that no linter checks: small folders, short modules, no import cycle."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_MODULES = 15
MOST_LINES = 400
LONGER = frozenset(
    {
        "gym/client/farm.py",  # the whole of the public client, which readers look up by its methods
        "gym/state/redis/keys.py",  # a table: every key in Redis with what it holds
    }
)
"""Modules that may be longer, each with its reason beside it."""

PATHS = [path for package in ("gym", "workers", "api") for path in sorted((ROOT / package).rglob("*.py"))]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in PATHS}


def _imports(path: Path) -> set[str]:
    """Modules of the farm that a module imports, at its top or inside a function, but not for types alone."""
    tree = ast.parse(path.read_text())
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_no_folder_holds_more_modules_than_one_can_tell_apart() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in PATHS if path.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in PATHS}
    assert {name: count for name, count in lines.items() if count > MOST_LINES and name not in LONGER} == {}


def test_every_package_says_in_a_sentence_what_it_holds() -> None:
    packages = [path for path in PATHS if path.name == "__init__.py"]
    assert [_name(path) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in PATHS}
    assert [folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").exists()] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: _imports(path) - {name} for name, path in MODULES.items()}
    while ends := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in ends}
    while starts := left.keys() - set().union(*left.values(), set()):
        left = {name: imports for name, imports in left.items() if name not in starts}
    assert sorted(left) == []
