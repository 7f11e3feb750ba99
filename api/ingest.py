"""Ingestion of rows: a stream is split into lines, rows are read and checked, then staged in slices.

Invariant: nothing is visible before the whole request has been read and checked; rows staged for a request that fails
are discarded. Memory is bounded by one slice and one row, however long the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import orjson

from api.bodies import malformed_json
from api.services import Backlog, Services
from gym.environments.registry import Registry
from gym.environments.row_requests import Api, check_request
from gym.errors import Invalid, NotFound, TooLarge
from gym.jsontypes import JsonObject
from gym.plain import exact_json, json_bounds
from gym.state.ledger.submission import StagedRow, Staging, canonical_digest
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store
from gym.task import bad_row, read_header

SLICE_ROWS = 1000
SLICE_BYTES = 4 * 2**20
# orjson writes 254 levels; two are reserved for the envelope of a row
MAX_ROW_DEPTH = 252


class LineSplitter:
    """Splitter of a stream into lines; holds at most one line, of at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._line = 1

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """Return the lines that a piece completes, stripped, numbered from 1; empty lines are skipped.

        Raises TooLarge, naming the line, as soon as a line is over the limit.
        """
        first, *others = piece.split(b"\n")
        self._hold(first)
        for other in others:
            yield from self._take()
            self._line += 1
            self._hold(other)

    def end(self) -> Iterator[tuple[int, bytes]]:
        """Return the last line if the stream does not end with a newline."""
        yield from self._take()

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_bytes:
            raise TooLarge(
                "row_too_large",
                f"line {self._line} is longer than {self._max_bytes} bytes (setting api.max_row_bytes); "
                "nothing of the request was added",
                {"line": self._line, "limit_bytes": self._max_bytes},
            )
        if part:
            self._parts.append(part)

    def _take(self) -> Iterator[tuple[int, bytes]]:
        line = b"".join(self._parts).strip()
        self._parts.clear()
        self._size = 0
        if line:
            yield self._line, line


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reader that checks rows; the batch's defaults apply to rows that do not set a value.

    `api` is that of the batch's policy.
    """

    registry: Registry
    known: frozenset[str]
    default_environment: str | None
    default_samples: int
    max_row_bytes: int
    default_agent: str | None = None
    sampling: Mapping[str, object] | None = None
    api: Api = "chat"

    def read_line(self, raw: bytes, *, row: int, line: int) -> StagedRow:
        """Read a row from one line of NDJSON, kept as sent. Raises Malformed or Invalid, naming line and field."""
        try:
            data = json_bounds.loads(raw)
        except json_bounds.TooManyContainers as error:
            raise TooLarge(
                "too_many_values",
                f"line {line} cannot be accepted: {error}; nothing of the request was added",
                {"line": line},
            ) from None
        except orjson.JSONDecodeError as error:
            raise malformed_json(error, where=f"line {line}", line=line, row=row, field="") from None
        if raw.count(b"{") + raw.count(b"[") > MAX_ROW_DEPTH:
            _encode([[data]], row=row, line=line)
        return self._read(data, raw, row=row, line=line)

    def read_value(self, data: object, *, row: int) -> StagedRow:
        """Read a row that came inside a larger body. Raises Invalid or TooLarge, naming row and field."""
        raw = _encode([[data]], row=row, line=None)[2:-2]
        if len(raw) > self.max_row_bytes:
            raise TooLarge(
                "row_too_large",
                f"row {row} is longer than {self.max_row_bytes} bytes (setting api.max_row_bytes); "
                "nothing of the request was added",
                {"row": row, "limit_bytes": self.max_row_bytes},
            )
        return self._read(data, raw, row=row, line=None)

    def _read(self, data: object, raw: bytes, *, row: int, line: int | None) -> StagedRow:
        header = read_header(
            data,
            row=row,
            default_environment=self.default_environment,
            default_samples=self.default_samples,
            line=line,
        )
        assert isinstance(data, dict)  # noqa: S101  read_header refuses everything else
        if header.environment not in self.known:
            raise self._unknown(header.environment, row=row, line=line)
        agent = data.get("agent")
        if agent is not None and agent not in self.registry.agents:
            raise bad_row(row, "agent", f"there is no agent `{agent[:80]}`; {_known(self.registry)}", line=line)
        self.registry.check_row(header.environment, data, row=row, line=line)
        runs = agent or self.default_agent or self.registry.get(header.environment).agent
        check_request(data, agent=runs, sampling=self.sampling, api=self.api, row=row, line=line)
        digest = canonical_digest(data) if header.task_id is not None else ""
        return StagedRow(header=header, raw=raw, digest=digest)

    def _unknown(self, name: str, *, row: int, line: int | None) -> Invalid:
        where: JsonObject = {"row": row} if line is None else {"row": row, "line": line}
        return unknown_environment(self.registry, name, where)


def row_reader(
    farm: Services,
    environment: str | None,
    num_samples: int,
    *,
    agent: str | None = None,
    sampling: Mapping[str, object] | None = None,
    api: Api = "chat",
) -> RowReader:
    """Return a reader with a batch's defaults; `api` is that of its policy."""
    return RowReader(
        registry=farm.registry,
        known=frozenset(farm.registry.names()),
        default_environment=environment,
        default_samples=num_samples,
        max_row_bytes=farm.settings.api.max_row_bytes,
        default_agent=agent,
        sampling=sampling,
        api=api,
    )


def check_defaults(registry: Registry, environment: str | None, agent: str | None) -> None:
    """Check the batch's defaults for its rows. Raises Invalid."""
    if environment is not None and environment not in registry.names():
        raise unknown_environment(registry, environment, {})
    if agent is not None and agent not in registry.agents:
        raise Invalid(
            "unknown_agent",
            f"field `agent`: there is no agent `{agent[:80]}`; {_known(registry)}",
            {"field": "agent", "known": sorted(registry.agents)},
        )


def _known(registry: Registry) -> str:
    return f"there are {', '.join(sorted(registry.agents))}"


def unknown_environment(registry: Registry, name: str, where: JsonObject) -> Invalid:
    """Return the error for an unknown environment; `where` names the row or line, and is empty for the batch."""
    try:
        registry.get(name)
        message = f"environment `{name}` cannot be used"
    except NotFound as error:
        message = error.message
    kind = "line" if "line" in where else "row"
    place = f"{kind} {where[kind]}, " if where else ""
    details = {**where, "field": "environment", "environment": name[:200], "known": registry.names()}
    return Invalid("unknown_environment", f"{place}field `environment`: {message}", details)


def _encode(value: object, *, row: int, line: int | None) -> bytes:
    try:
        return exact_json.dumps_flat(value)
    except (TypeError, ValueError):
        raise bad_row(row, "", f"it is nested deeper than {MAX_ROW_DEPTH} levels", line=line) from None


@asynccontextmanager
async def staging(store: Store, batch_id: str) -> AsyncIterator[Staging]:
    """Context in which rows are staged; they are discarded if the block fails.

    Publish outside of the block: if the reply to publishing is lost, the rows may already be in use.
    """
    staged = Staging(store, batch_id)
    try:
        yield staged
    except BaseException:
        with suppress(RedisError):  # the dispatcher deletes the rest
            await staged.abort()
        raise


async def check_values(reader: RowReader, rows: list[object]) -> list[StagedRow]:
    """Check all rows of a body, yielding to other tasks in between."""
    checked: list[StagedRow] = []
    for number, data in enumerate(rows):
        checked.append(reader.read_value(data, row=number))
        if number % SLICE_ROWS == SLICE_ROWS - 1:
            await asyncio.sleep(0)
    return checked


async def stage_values(staged: Staging, rows: list[StagedRow]) -> None:
    """Stage checked rows in slices."""
    portion = _Slice()
    for row in rows:
        if portion.add(row):
            await staged.add(portion.take())
    await staged.add(portion.take())


async def stage_lines(reader: RowReader, staged: Staging, pieces: AsyncIterator[bytes], backlog: Backlog) -> None:
    """Check and stage the rows of an NDJSON stream. Raises RequestError for the first bad line."""
    splitter = LineSplitter(reader.max_row_bytes)
    portion = _Slice()
    rows = rollouts = 0

    async def stage() -> None:
        await backlog.check_room(rollouts)
        await staged.add(portion.take())

    async for piece in pieces:
        for line, raw in splitter.feed(piece):
            row = reader.read_line(raw, row=rows, line=line)
            rows += 1
            rollouts += row.header.num_samples
            if portion.add(row):
                await stage()
    for line, raw in splitter.end():
        row = reader.read_line(raw, row=rows, line=line)
        rollouts += row.header.num_samples
        portion.add(row)
    await stage()


class _Slice:
    """Rows to be staged in one call, bounded in number and size."""

    def __init__(self) -> None:
        self._rows: list[StagedRow] = []
        self._size = 0

    def add(self, row: StagedRow) -> bool:
        """Add a row. Return whether the slice is now full."""
        self._rows.append(row)
        self._size += len(row.raw)
        return len(self._rows) >= SLICE_ROWS or self._size >= SLICE_BYTES

    def take(self) -> list[StagedRow]:
        rows, self._rows, self._size = self._rows, [], 0
        return rows
