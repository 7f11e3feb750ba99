"""SQL functions whose built-in form may run for minutes within one call, out of reach of the time limit.

`replace`, `instr` and the trims of SQLite take quadratic time; `printf` and `format` take time in proportion to the
width. Here they give the same results in linear time, or refuse. Functions without a fast form are not offered
(`REFUSED`).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from functools import partial

Value = str | int | float | bytes | None
REFUSED = frozenset({"load_extension", "json_patch", "fts3_tokenizer"})
MAX_WIDTH = 999
MAX_COMPARED = 10**8  # bytes, of values other than texts
_SPEC = r"%[-+ 0,#!.]*"
_STAR = re.compile(rf"{_SPEC}(?:\d{{1,3}}[.]?)?\*")
_WIDE = re.compile(r"%[-+ ,#!.0-9]*?[0-9]{4}")


class FunctionRefused(ValueError):
    """Error for a call that a function refuses; the text is for the model."""


class BoundedFunctions:
    """Bounded functions of a connection; `reason` is why the last statement was refused, if it was."""

    def __init__(self, connection: sqlite3.Connection, *, max_bytes: int) -> None:
        self.reason: str | None = None
        self._max_bytes = max_bytes
        # SQLite's own forms, for values other than texts
        self._own = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._own.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max_bytes)
        functions: tuple[tuple[str, int, Callable[..., Value]], ...] = (
            ("replace", 3, self._replace),
            ("instr", 2, self._instr),
            *((name, count, partial(self._trim, name)) for name in ("trim", "ltrim", "rtrim") for count in (1, 2)),
            *((name, -1, partial(self._printf, name)) for name in ("printf", "format")),
        )
        for name, arguments, function in functions:
            connection.create_function(name, arguments, self._told(function), deterministic=True)

    def close(self) -> None:
        """Free the resources of the functions."""
        self._own.close()

    def _told(self, function: Callable[..., Value]) -> Callable[..., Value]:
        """Wrap a function and keep its refusals, since SQLite only reports that a function raised."""

        def called(*values: Value) -> Value:
            try:
                return function(*values)
            except (FunctionRefused, sqlite3.Error) as error:
                self.reason = str(error)
                raise

        return called

    def _replace(self, text: Value, old: Value, new: Value) -> Value:
        if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)) or "\0" in old[:1]:
            return self._by_sqlite("replace", text, old, new)
        if not old:
            return text
        if len(new) > len(old) and len(text) + text.count(old) * (len(new) - len(old)) > self._max_bytes:
            raise FunctionRefused("string or blob too big")
        return text.replace(old, new)

    def _instr(self, text: Value, part: Value) -> Value:
        if isinstance(text, str) and isinstance(part, str):
            return text.find(part) + 1
        return self._by_sqlite("instr", text, part)

    def _trim(self, name: str, text: Value, characters: Value = " ") -> Value:
        if not (isinstance(text, str) and isinstance(characters, str)) or "\0" in characters:
            return self._by_sqlite(name, text, characters)
        removed = "".join(set(characters))
        return {"trim": text.strip, "ltrim": text.lstrip, "rtrim": text.rstrip}[name](removed)

    def _printf(self, name: str, *values: Value) -> Value:
        form = values[0] if values else None
        if isinstance(form, str) and (_STAR.search(form) or _WIDE.search(form)):
            raise FunctionRefused(f"{name}: a width or precision is written in the format and is at most {MAX_WIDTH}")
        return self._by_sqlite(name, *values)

    def _by_sqlite(self, name: str, *values: Value) -> Value:
        sizes = [len(value) if isinstance(value, str | bytes) else 20 for value in values]
        if name not in ("printf", "format") and len(sizes) > 1 and sizes[0] * sizes[1] > MAX_COMPARED:
            raise FunctionRefused(f"{name}: the values are too long to be compared")
        marks = ", ".join("?" * len(values))
        found: Value = self._own.execute(f"SELECT {name}({marks})", values).fetchone()[0]
        return found
