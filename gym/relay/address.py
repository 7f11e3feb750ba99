"""The URL of a farm's Redis: redis-py's form, and `?prefix=` if the farm's prefix is not `farm`. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from gym.errors import Invalid
from gym.relay.frames import NAME, Channels

DEFAULT_PREFIX = "farm"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """A Redis and the farm that uses it. `url` is redis-py's, with the secrets; `shown` has none."""

    url: str = field(repr=False)
    channels: Channels
    name: str
    shown: str


def read_address(url: str) -> RedisAddress:
    """Parse a client's URL. Raises Invalid.

    The database is part of the farm's channel names and is not selected, so a client needs no right to select one.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = query.pop("prefix", DEFAULT_PREFIX)
    query.pop("db", None)
    name = unquote(parts.username or "") or "default"
    if not NAME.fullmatch(name):
        raise _unsupported(f"the Redis user {name!r} cannot be a client; use letters, digits and _.- (64 at most)")
    path = parts.path if parts.scheme == "unix" else ""
    return RedisAddress(
        url=urlunsplit((parts.scheme, parts.netloc, path, urlencode(query), "")),
        channels=farm_channels(url, prefix),
        name=name,
        shown=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
    )


def farm_channels(url: str, prefix: str) -> Channels:
    """Return the channels of the farm with this Redis URL and this prefix. Raises Invalid."""
    parts = urlsplit(url)
    database = dict(parse_qsl(parts.query)).get("db", "")
    if parts.scheme != "unix":
        database = database or parts.path.strip("/")
    if database and not database.isdecimal():
        raise _unsupported(f"the Redis URL names database {database!r}; expected a number, as in redis://host:6379/0")
    return Channels(prefix=prefix, db=int(database or 0))


def _unsupported(message: str) -> Invalid:
    return Invalid("unsupported_url", message, {"field": "url"})
