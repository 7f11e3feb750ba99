"""Request bodies, read within a size limit, decompressed, and parsed by orjson; and JSON responses.

Memory is bounded by the limits of the settings, whatever a client sends or a gzip stream unpacks to.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from api.errors import invalid_body
from gym.errors import Invalid, Malformed, TooLarge, UnsupportedMedia
from gym.jsontypes import JsonObject
from gym.plain import exact_json, json_bounds

JSON_TYPES = frozenset({"application/json"})
NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
BODY_STALL_S = 60.0
PIECE_BYTES = 256 * 1024
# gzip compresses at most 1032:1; only a decompression bomb comes near that
MAX_EXPANSION = 200
FREE_EXPANSION_BYTES = 64 * 2**20
ModelT = TypeVar("ModelT", bound=BaseModel)


def check_content_type(request: Request, accepted: frozenset[str]) -> None:
    """Raise UnsupportedMedia for a wrong content type. A body without one is assumed to have the expected type."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given and given not in accepted:
        wanted = min(accepted, key=len) if accepted is JSON_TYPES else "application/x-ndjson"
        raise UnsupportedMedia(
            "unsupported_media_type",
            f"content-type is {given[:100]}; this call takes {wanted}",
            {"content_type": given[:100], "expected": wanted},
        )


async def body_stream(request: Request, *, stall_s: float = BODY_STALL_S) -> AsyncGenerator[bytes]:
    """Yield a body in pieces, decompressed if it is gzip.

    Raises UnsupportedMedia, TooLarge, or Malformed; Malformed too if no data arrives for `stall_s`.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        async for piece in _received(request, stall_s):
            yield piece
        return
    if encoding != "gzip":
        raise UnsupportedMedia(
            "unsupported_encoding", f"content-encoding is {encoding[:100]}; send the body plain or as gzip"
        )
    async with aclosing(_gunzipped(_received(request, stall_s))) as pieces:
        async for piece in pieces:
            yield piece


async def _received(request: Request, stall_s: float) -> AsyncGenerator[bytes]:
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(stall_s):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Malformed(
                "body_stalled", f"no data of the body arrived for {stall_s:g} s; nothing was stored, send it again"
            ) from None
        yield piece


async def _gunzipped(received: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Decompress the members of a gzip file (RFC 1952) in bounded pieces."""
    unpack = zlib.decompressobj(wbits=31)
    size = unpacked = 0
    async for received_piece in received:
        packed = received_piece
        size += len(packed)
        while packed:
            if unpack.eof:
                unpack = zlib.decompressobj(wbits=31)
            try:
                piece = unpack.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise Malformed("malformed_gzip", f"the body is not gzip: {error}") from None
            packed = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            unpacked += len(piece)
            if unpacked > FREE_EXPANSION_BYTES and unpacked > MAX_EXPANSION * size:
                raise TooLarge("gzip_bomb", f"the body unpacks to more than {MAX_EXPANSION} times its size")
            if piece:
                yield piece
    if size and not unpack.eof:
        raise Malformed("malformed_gzip", "the gzip body is truncated; send the whole body again")


async def read_body(request: Request, limit: int) -> bytearray:
    """Read a whole body. Raises TooLarge before it holds more than the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _body_too_large(limit)
    body = bytearray()
    async with aclosing(body_stream(request)) as stream:
        async for piece in stream:
            if len(body) + len(piece) > limit:
                raise _body_too_large(limit)
            body += piece
    return body


def _body_too_large(limit: int) -> TooLarge:
    return TooLarge(
        "body_too_large",
        f"the body is over the limit of {limit} bytes (for batches the setting api.max_body_bytes): create the batch "
        'with "sealed": false and stream its rows to POST /v1/batches/{id}/rows',
        {"limit_bytes": limit},
    )


def parse_object(body: bytes | bytearray, *, what: str) -> JsonObject:
    """Parse a JSON object. Raises Malformed with the position, TooLarge, or Invalid if it is another JSON value."""
    try:
        value = json_bounds.loads(body)
    except json_bounds.TooManyContainers as error:
        raise TooLarge("too_many_values", f"{what} cannot be accepted: {error}; stream rows as NDJSON") from None
    except orjson.JSONDecodeError as error:
        raise malformed_json(error, where="the body") from None
    if not isinstance(value, dict):
        raise Invalid("invalid_request", f"{what} must be a JSON object; got {type(value).__name__}", {"field": ""})
    return value


def malformed_json(error: orjson.JSONDecodeError, *, where: str, **details: Any) -> Malformed:
    """Return the error for text that is not JSON; positions count characters from 0."""
    return Malformed(
        "malformed_json",
        f"{where} is not JSON in UTF-8: {error}; fix it and send the whole request again",
        {"position": error.pos, "reason": error.msg, **details},
    )


def too_deep(**details: Any) -> Invalid:
    """Return the error for JSON that cannot be serialized again, such as more than 254 levels of nesting."""
    return Invalid(
        "invalid_request",
        "the body is nested deeper than 250 levels or holds a number of more than 64 bits; send "
        "it flatter, and such numbers as strings",
        {"field": "", **details},
    )


async def read_model(
    request: Request, model: type[ModelT], *, limit: int, code: str, what: str, exact: bool = False
) -> ModelT:
    """Read a JSON body into a model. Raises RequestError for every fault that a body can have."""
    check_content_type(request, JSON_TYPES)
    body = await read_body(request, limit)
    data = parse_object(body or b"{}", what=what)
    return check_model(model, data, code=code, what=what, exact=exact)


def check_model(model: type[ModelT], data: JsonObject, *, code: str, what: str, exact: bool = False) -> ModelT:
    """Raises Invalid, also for what could be read but not be stored; `exact` takes integers of more than 64 bits."""
    try:
        checked = model.model_validate(data)
        write = exact_json.dumps_flat if exact else orjson.dumps
        write([[[[checked.model_dump(mode="json")]]]])  # room for what it is stored and shown in
    except ValidationError as error:
        raise invalid_body(error, code=code, what=what) from None
    except (orjson.JSONEncodeError, RecursionError, ValueError):
        raise too_deep() from None
    return checked


def json_response(value: Any, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(exact_json.dumps(value), status_code=status, media_type="application/json")
