"""A small SQLite database in memory that confines a model's queries.

Filled by a script, then locked: an authorizer lets only reads pass, so that neither a row's script nor a model's query
reaches a file (ATTACH, VACUUM INTO, extensions), and no query writes. A statement has a time limit, a value a size
limit, the database a page limit. SQLite checks the time limit between steps of a statement, so each step is kept short:
functions are bounded (`sql_functions`), as are patterns, columns and copies of tables (`sql_expansion`). Usable from
any thread, by one at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gym.environments.builtin.sql_expansion import expands_too_far
from gym.environments.builtin.sql_functions import REFUSED, BoundedFunctions

Cell = str | int | float | bytes | None
TIME_LIMIT_S = 2.0
MAX_VALUE_BYTES = 1_000_000
MAX_PAGES = 16_384  # of 4096 bytes
MAX_SQL_CHARS = 100_000  # of a query
_SMALL_VALUE_BYTES = 250_000  # of a query's values, where the database itself has no larger ones
_INSTRUCTIONS_BETWEEN_LOOKS = 250
_QUERY_LIMITS = {
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 256,
    sqlite3.SQLITE_LIMIT_COLUMN: 256,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 200_000,
}
_NEVER = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH})
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_HARMLESS_PRAGMAS = frozenset({"foreign_keys", "table_info", "foreign_key_list"})


class QueryFailed(ValueError):
    """Error for a statement that could not be run; the text is for the model."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Result of a query; `complete` is false if a limit cut it."""

    columns: list[str]
    rows: list[tuple[Cell, ...]]
    complete: bool


class Database:
    """One connection to one database in memory. Close it."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._ends = 0.0
        self._functions = BoundedFunctions(self._connection, max_bytes=MAX_VALUE_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.execute(f"PRAGMA max_page_count = {MAX_PAGES}")
        self._connection.set_progress_handler(self._out_of_time, _INSTRUCTIONS_BETWEEN_LOOKS)
        self._connection.set_authorizer(_allow_filling)

    def fill(self, schema: str, data: str | Mapping[str, Sequence[Sequence[Cell]]]) -> None:
        """Run the scripts; `data` is one too, or rows by table. Raises sqlite3.Error, or QueryFailed when too slow."""
        self._start()
        try:
            self._connection.executescript(schema)
            if isinstance(data, str):
                self._connection.executescript(data)
                return
            for table, rows in data.items():
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    self._connection.execute(f"INSERT INTO {_quoted(table)} VALUES ({marks})", row)  # noqa: S608  quoted
        except sqlite3.OperationalError as error:
            raise self._explained(error) from error

    def lock(self) -> None:
        """Allow only reads from now on."""
        if self._connection.in_transaction:
            self._connection.commit()
        self._connection.execute("PRAGMA foreign_keys = OFF")
        self._connection.set_authorizer(None)
        self._connection.execute("PRAGMA query_only = ON")
        [pages] = self._connection.execute("PRAGMA page_count").fetchone()
        if pages * 4096 < _SMALL_VALUE_BYTES:
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _SMALL_VALUE_BYTES)
        for limit, most in _QUERY_LIMITS.items():
            self._connection.setlimit(limit, most)
        self._connection.set_authorizer(_allow_reading)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the columns of each table and view, as `{name, type, nullable, primary_key}`.

        Call it before `lock`.
        """
        names = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
        return {name: self._columns(name) for (name,) in names}

    def run(self, sql: str, *, max_rows: int, max_bytes: int | None = None) -> QueryResult:
        """Run one statement and read at most so many rows, fewer when they are over `max_bytes`. Raises QueryFailed."""
        if len(sql) > MAX_SQL_CHARS:
            raise QueryFailed(f"the statement is longer than {MAX_SQL_CHARS} characters")
        if expands_too_far(sql):
            raise QueryFailed("its WITH tables name each other too often; use each of them once or twice")
        self._start()
        try:
            cursor = self._connection.execute(sql)
            columns = [str(column[0]) for column in cursor.description or ()]
            rows: list[tuple[Cell, ...]] = []
            size_bytes = 0
            complete = True
            for row in cursor:
                size_bytes += size_of([row])
                if len(rows) == max_rows or (max_bytes is not None and size_bytes > max_bytes):
                    complete = False
                    break
                rows.append(row)
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise self._explained(error) from error
        if not columns:
            raise QueryFailed("this is not a SELECT; the database can only be read")
        return QueryResult(columns, rows, complete)

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        self._connection.close()
        self._functions.close()

    def _columns(self, table: str) -> list[dict[str, Any]]:
        found = self._connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
        return [
            {"name": name, "type": kind, "nullable": not not_null, "primary_key": bool(key)}
            for _, name, kind, not_null, _, key in found
        ]

    def _start(self) -> None:
        self._ends = time.monotonic() + TIME_LIMIT_S
        self._functions.reason = None

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._ends

    def _explained(self, error: Exception) -> QueryFailed:
        text = str(error)
        if self._functions.reason is not None:
            text = self._functions.reason
        elif text == "interrupted":
            text = f"it ran longer than {TIME_LIMIT_S:g} s and was stopped"
        elif "not authorized" in text or "prohibited" in text:
            text = f"{text}; the database can only be read, by SELECT"
        return QueryFailed(text)


def _allow_filling(action: int, first: str | None, second: str | None, _db: str | None, _by: str | None) -> int:
    if action in _NEVER or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and str(first).lower() not in _HARMLESS_PRAGMAS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _allow_reading(action: int, _first: str | None, second: str | None, _db: str | None, _by: str | None) -> int:
    if action not in _READS or (action == sqlite3.SQLITE_FUNCTION and second in REFUSED):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def size_of(rows: Sequence[tuple[Cell, ...]]) -> int:
    """Return the approximate bytes of some rows."""
    return sum(len(cell) if isinstance(cell, str | bytes) else 8 for row in rows for cell in row)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
