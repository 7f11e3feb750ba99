"""Rows from a JSONL file or standard input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gym.errors import Invalid, Malformed


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows and the lines that they stand on, counted from 1; empty lines are skipped."""

    name: str
    rows: list[Any]
    lines: list[int]

    @contextlib.contextmanager
    def naming_lines(self) -> Iterator[None]:
        """An error about a row says which line of the file it is."""
        try:
            yield
        except Invalid as error:
            row = error.details.get("row")
            if not isinstance(row, int) or not 0 <= row < len(self.lines):
                raise
            where = f"{self.name}, line {self.lines[row]}"
            raise Invalid(error.code, f"{where}: {error.message}", error.details) from None


def read_rows(path: Path) -> FileRows:
    """All rows of a file; `-` reads standard input. Raises Malformed, which names the file and the line."""
    if str(path) == "-":
        return _parse(sys.stdin.buffer.read(), "standard input")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Malformed("unreadable_file", f"{path} cannot be read: {error.strerror}") from None
    return _parse(text, path.name)


def _parse(text: bytes, name: str) -> FileRows:
    rows: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise Malformed(
                "invalid_json",
                f"{name}, line {number}: not JSON: {error}; expected one row, a JSON object, per line",
                {"line": number},
            ) from None
        lines.append(number)
    if not rows:
        raise Malformed("no_rows", f"{name} holds no row; expected one JSON object per line")
    return FileRows(name, rows, lines)
