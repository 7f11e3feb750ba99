"""Rows from files: JSONL, Parquet, and datasets written by Hugging Face's `save_to_disk`; and selection of rows.

Tables need pyarrow (the extra `datasets`), not the package `datasets`. Empty cells are left out, since a table has
every field in every row. A cell of `responses_create_params` may be JSON text. Everything is read into memory.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from gym.errors import Invalid, Malformed, SettingsError
from gym.jsontypes import JsonObject
from gym.plain import exact_json

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetLine:
    """One line (of a table: one row), counted from 1: a row, or the reason why it cannot be read."""

    number: int
    row: Any = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows and their line numbers, counted from 1; empty lines are skipped."""

    name: str
    rows: list[Any]
    lines: list[int]

    @contextlib.contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Add the line of the file to an error about a row."""
        try:
            yield
        except Invalid as error:
            row = error.details.get("row")
            if not isinstance(row, int) or not 0 <= row < len(self.lines):
                raise
            where = f"{self.name}, line {self.lines[row]}"
            raise Invalid(error.code, f"{where}: {error.message}", error.details) from None

    def taken(self, *, limit: int | None = None, sample: int | None = None, seed: int = 0, repeat: int = 1) -> FileRows:
        """Select rows, as `take` does."""
        pairs = take(zip(self.rows, self.lines, strict=True), limit=limit, sample=sample, seed=seed)
        rows = repeated([row for row, _ in pairs], repeat)
        return FileRows(self.name, rows, [line for _, line in pairs] * repeat)


def read_rows(path: Path | str, *, split: str | None = None, prompt: str | None = None) -> FileRows:
    """Read all rows of a file or folder; `-` reads JSONL from standard input.

    `split` selects one of a folder's splits; `prompt` names the field that becomes the task's input, a text or
    messages, in rows without `responses_create_params`. Raises Malformed, which names the file and the line.
    """
    rows, lines = [], []
    name = _name(path)
    for line in scan(path, split=split):
        if line.fault is not None:
            expected = "expected one row, a JSON object, per line"
            raise Malformed(
                "invalid_json", f"{name}, line {line.number}: {line.fault}; {expected}", {"line": line.number}
            )
        rows.append(line.row if prompt is None else with_prompt(line.row, prompt))
        lines.append(line.number)
    if not rows:
        raise Malformed("no_rows", f"{name} holds no rows; expected one JSON object per line")
    return FileRows(name, rows, lines)


def scan(path: Path | str, *, split: str | None = None) -> Iterator[DatasetLine]:
    """Read every line of a file, or row of a table, even unreadable ones. Raises Malformed for an unreadable file."""
    path = Path(path)
    if str(path) == "-":
        yield from _json_lines(sys.stdin.buffer.read())
        return
    try:
        if path.is_dir():
            yield from _folder(path, split)
        elif path.suffix in (".parquet", ".arrow"):
            yield from _numbered(_table_rows([path]))
        else:
            yield from _json_lines(path.read_bytes())
    except OSError as error:
        raise Malformed("unreadable_file", f"{path} cannot be read: {error.strerror or error}") from None


def take(rows: Iterable[RowT], *, limit: int | None = None, sample: int | None = None, seed: int = 0) -> list[RowT]:
    """Take the first `limit` rows, and draw `sample` of them without repetition; deterministic for a seed."""
    chosen = list(rows)[:limit]
    if sample is None:
        return chosen
    return random.Random(seed).sample(chosen, min(sample, len(chosen)))


def repeated(rows: Sequence[JsonObject], times: int) -> list[JsonObject]:
    """Repeat the rows as separate tasks: a copy of a row with a `task_id` gets the suffix `-rN`."""
    copies = list(rows)
    for number in range(1, times):
        for row in rows:
            task_id = row.get("task_id") if isinstance(row, dict) else None
            copies.append(row if task_id is None else {**row, "task_id": f"{task_id}-r{number}"})
    return copies


def with_prompt(row: Any, field: str) -> Any:
    """Return the row with a field as its input, if it has none."""
    if not isinstance(row, dict) or "responses_create_params" in row or field not in row:
        return row
    return {**row, "responses_create_params": {"input": row[field]}}


def _name(path: Path | str) -> str:
    return "standard input" if str(path) == "-" else Path(path).name


def _json_lines(text: bytes) -> Iterator[DatasetLine]:
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield DatasetLine(number=number, row=exact_json.loads(line))
        except orjson.JSONDecodeError as error:
            yield DatasetLine(number=number, fault=f"not JSON: {error}")


def _folder(folder: Path, split: str | None) -> Iterator[DatasetLine]:
    """Read a saved dataset, a dataset with splits, or a folder of Parquet files."""
    splits = folder / "dataset_dict.json"
    state = folder / "state.json"
    if splits.exists():
        names: list[str] = orjson.loads(splits.read_bytes())["splits"]
        chosen = names[0] if split is None and len(names) == 1 else split
        if chosen is None or chosen not in names:
            raise Malformed(
                "unknown_split", f"{folder.name} has the splits {', '.join(names)}: choose one with --split"
            )
        yield from _folder(folder / chosen, None)
    elif split is not None:
        raise Malformed("unknown_split", f"{folder.name} has no splits")
    elif state.exists():
        files = [folder / each["filename"] for each in orjson.loads(state.read_bytes())["_data_files"]]
        yield from _numbered(_table_rows(files))
    else:
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise Malformed(
                "no_rows", f"{folder.name} is not a saved dataset (it has no state.json) and holds no Parquet files"
            )
        yield from _numbered(_table_rows(files))


def _table_rows(files: Sequence[Path]) -> Iterator[JsonObject]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SettingsError(
            "reading tables needs pyarrow, which is not installed: pip install 'rollout-farm[datasets]'"
        ) from None
    for file in files:
        try:
            if file.suffix == ".parquet":
                with pq.ParquetFile(file) as table:
                    for batch in table.iter_batches():
                        yield from map(_row, batch.to_pylist())
                continue
            with pa.memory_map(str(file)) as source:
                for batch in _arrow(pa, source):
                    yield from map(_row, batch.to_pylist())
        except pa.ArrowInvalid as error:
            raise Malformed("unreadable_file", f"{file.name} is not a table: {error}") from None


def _arrow(pa: Any, source: Any) -> Iterator[Any]:
    """Read record batches of the stream format, which `save_to_disk` writes, or of the file format."""
    try:
        stream = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        with pa.ipc.open_file(source) as file:
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        yield from stream


def _row(cells: dict[str, Any]) -> JsonObject:
    row: JsonObject = _without_none(cells)
    params = row.get("responses_create_params")
    if isinstance(params, str) and params.lstrip().startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            row["responses_create_params"] = exact_json.loads(params)
    return row


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else value


def _numbered(rows: Iterable[JsonObject]) -> Iterator[DatasetLine]:
    for number, row in enumerate(rows, 1):
        yield DatasetLine(number=number, row=row)
