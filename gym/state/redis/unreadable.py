"""Stored values that cannot be read: which errors mean that, and how a reader goes on without such a value.

Invariant: a reader of many values delivers all that it can read. What it leaves out is logged, at most once a minute
for each value, and shown in an alarm by the dispatcher (`workers.dispatch.upkeep.inspection`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import msgpack
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.state.redis.store import will_pass

P = ParamSpec("P")
T = TypeVar("T")

DECODE_ERRORS = (
    ValueError,  # those of orjson and pydantic too, and most of msgpack's
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
    msgpack.UnpackException,
)
"""Errors that decoding of an unexpected value raises."""

SAY_AGAIN_S = 60.0
MOST_SAID = 1000
_LOG = logging.getLogger(__name__)
_said: dict[tuple[str, str], float] = {}  # limits the log alone


def read_or_none(what: str, name: str | bytes, read: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return what `read` gives for the arguments, `None` where the value cannot be read.

    `what` and `name` say in the log which value that is.
    """
    try:
        return read(*args, **kwargs)
    except DECODE_ERRORS as error:
        complain(what, name, error)
        return None


def concerns_redis(error: Exception) -> bool:
    """Return whether an error is of the connection, the server or its permissions, and so of no single batch."""
    if isinstance(error, OutOfMemoryError | NoPermissionError | AuthenticationError) or will_pass(error):
        return True
    return isinstance(error, RedisError) and str(error).startswith(("OOM", "NOAUTH", "NOPERM", "DENIED"))


def complain(what: str, name: str | bytes, error: Exception) -> None:
    """Log that a stored value cannot be read."""
    label = printable(name)
    now = time.monotonic()
    if now < _said.get((what, label), 0.0):
        return
    if len(_said) >= MOST_SAID:
        _said.clear()
    _said[(what, label)] = now + SAY_AGAIN_S
    _LOG.error("%s %s cannot be read: %s", what, label, reason(error), extra={"action": "unreadable"})


def read_object(text: bytes) -> JsonObject:
    """Return a JSON object. Raises a decode error for anything else."""
    value = exact_json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"a JSON object was expected, this is {type(value).__name__}")
    return value


def reason(error: BaseException) -> str:
    """Return an error in a line of bounded length."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(name: str | bytes) -> str:
    """Return a name for messages, whatever its bytes are."""
    return (name.decode(errors="backslashreplace") if isinstance(name, bytes) else name)[:200]


def names(values: Iterable[bytes]) -> list[str]:
    """Return the names that are UTF-8; others cannot be asked for and are left out."""
    found = []
    for value in values:
        name = read_or_none("name", value, value.decode)
        if name is not None:
            found.append(name)
    return found
