"""Rows to send: checked, given ids, encoded, split into requests. No I/O.

Invariant: every row that is sent carries a `task_id`, so sending it again is idempotent and never makes a second task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson

from gym.errors import Invalid
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.task import bad_row, read_header

MAX_INLINE_ROWS = 1_000
MAX_INLINE_BYTES = 8 * 2**20
MAX_REQUEST_ROWS = 20_000
MAX_REQUEST_BYTES = 32 * 2**20
PIECE_BYTES = 256 * 1024
MAX_DEPTH = 254  # orjson's own limit


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as JSON texts, one each, without newlines, and the number of their rollouts."""

    lines: list[bytes]
    rollouts: int

    @property
    def fit_one_request(self) -> bool:
        """Return whether they are few and small enough for the request that creates their batch."""
        return len(self.lines) <= MAX_INLINE_ROWS and sum(map(len, self.lines)) <= MAX_INLINE_BYTES

    def as_list(self) -> bytes:
        """Return a JSON array of the rows."""
        return b"[" + b",".join(self.lines) + b"]"

    def requests(self) -> Iterator[list[bytes]]:
        """Yield NDJSON bodies, each cut into pieces for sending; the farm accepts or refuses each body as a whole."""
        body: list[bytes] = []
        rows = size = 0
        for line in self.lines:
            if body and (rows >= MAX_REQUEST_ROWS or size + len(line) > MAX_REQUEST_BYTES):
                yield _pieces(body)
                body, rows, size = [], 0, 0
            body.append(line)
            rows += 1
            size += len(line) + 1
        if body:
            yield _pieces(body)


def encode_rows(
    rows: Iterable[JsonObject], *, id_prefix: str, environment: str | None, num_samples: int
) -> EncodedRows:
    """Check and encode all rows; a row without `task_id` gets the id `PREFIX-NUMBER`, counted from 0.

    Raises Invalid, which names the row and the field, before any request is sent.
    """
    lines: list[bytes] = []
    rollouts = 0
    for number, row in enumerate(rows):
        header = read_header(row, row=number, default_environment=environment, default_samples=num_samples)
        line = _encode(row, number)
        if header.task_id is None:
            line = b'{"task_id":"%s-%d",' % (id_prefix.encode(), number) + _encode_without_id(row, line)
        lines.append(line)
        rollouts += header.num_samples
    return EncodedRows(lines, rollouts)


def _encode_without_id(row: JsonObject, line: bytes) -> bytes:
    """Return the members of a row's JSON text after its opening brace, with no `task_id` among them."""
    if "task_id" not in row:
        return line[1:]
    return exact_json.dumps({name: value for name, value in row.items() if name != "task_id"})[1:]


def _encode(row: JsonObject, number: int) -> bytes:
    try:
        line = orjson.dumps(row)
    except TypeError:
        if (fault := _find_fault(row)) is not None:
            raise bad_row(number, *fault) from None
        line = _encode_exactly(row, number)
    # orjson writes NaN as null, which would change the row in silence
    if b"null" in line and (fault := _find_fault(row)) is not None:
        raise bad_row(number, *fault)
    return line


def _encode_exactly(row: JsonObject, number: int) -> bytes:
    """A row with integers of more than 64 bits."""
    try:
        return exact_json.dumps_flat(row)
    except (TypeError, ValueError) as error:
        raise bad_row(number, "", str(error)) from None


def _find_fault(row: object) -> tuple[str, str] | None:
    """Return path and reason of the first value that JSON cannot represent."""
    return _fault_in(row, "", above=())


def _fault_in(value: object, path: str, *, above: tuple[int, ...]) -> tuple[str, str] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return path, f"{value} cannot be written as JSON; leave it out or send it as a string"
    if not isinstance(value, dict | list | tuple):
        if isinstance(value, int):
            return None
        try:
            orjson.dumps(value)
        except TypeError as error:
            return path, f"a value of type {type(value).__name__} cannot be sent as JSON: {error}"
        return None
    if id(value) in above:
        return path, "the row is cyclic: this value contains itself"
    if len(above) >= MAX_DEPTH:
        return path, f"nested deeper than {MAX_DEPTH} levels"
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in members:
        if isinstance(value, dict) and not isinstance(name, str):
            return path, f"the key {name!r} is not a string"
        inner_path = f"{path}.{name}" if path else str(name)
        if (fault := _fault_in(inner, inner_path, above=(*above, id(value)))) is not None:
            return fault
    return None


def _pieces(lines: list[bytes]) -> list[bytes]:
    """Split an NDJSON body into pieces of about 256 KiB."""
    pieces: list[bytes] = []
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line) + 1
        if size >= PIECE_BYTES:
            pieces.append(b"\n".join(piece) + b"\n")
            piece, size = [], 0
    if piece:
        pieces.append(b"\n".join(piece) + b"\n")
    return pieces


def refused(error: Invalid, *, first_row: int) -> Invalid:
    """Return an error about a row of one request, with the row counted from the start of the submission."""
    row = error.details.get("row")
    if first_row == 0 or not isinstance(row, int):
        return error
    details = error.details | {"row": row + first_row, "row_in_request": row}
    details.pop("line", None)
    return Invalid(error.code, f"{error.message} (row {row + first_row} of the submission)", details)
