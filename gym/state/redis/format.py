"""Version of the stored data, in Redis and in the data directory, checked when a process starts.

Invariant: a farm never works on data of a newer one. Data without a version is older than versions; it is read as it
is, and marked.

Raise `FORMAT` with every change of stored values that an older farm would misread, and convert older data in
`_migrate`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from gym.errors import SettingsError
from gym.private_files import create_private
from gym.state.redis.keys import Keys
from gym.state.redis.unreadable import printable

FORMAT = 1
FILE = "format"
MOST_BYTES = 100
_TIMEOUT_S = 3.0
_LOG = logging.getLogger(__name__)


def require_format(url: str, prefix: str) -> bool:
    """Return whether the server at `url` answered, with its data marked as of this version.

    Raises SettingsError if the data is of a newer farm, or its version cannot be read.
    """
    keys = Keys(prefix)
    where = f"the Redis at {urlsplit(url).hostname or 'its socket'} (prefix {prefix})"
    redis = Redis.from_url(
        url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )
    try:
        if redis.type(keys.format) not in (b"none", b"string"):
            raise _not_a_version(where, "a key of another type", f"delete the key {keys.format}")
        found = redis.get(keys.format)
        version = None
        if isinstance(found, bytes):
            version = _read(found, where, f"delete the key {keys.format}")
        if version == FORMAT:
            return True
        if version is None and (redis.exists(keys.batches) or redis.exists(keys.policies)):
            _LOG.info("%s holds data without a format version; it is read as it is", where, extra={"action": "format"})
        _migrate(version)
        redis.set(keys.format, FORMAT, nx=version is None)
    except ResponseError as error:  # full, a replica, or an ACL: its own checks say so
        _LOG.warning("the format version of %s is not stored: %s", where, error, extra={"action": "format"})
    except RedisError:
        return False
    finally:
        redis.close()
    return True


def require_data_format(data_dir: Path, *, create: bool = False) -> None:
    """Mark a data directory as of this version; a missing one is made if `create` is set.

    Raises SettingsError if its data is of a newer farm, or its version cannot be read.
    """
    where = f"the data directory {data_dir}"
    file = data_dir / FILE
    version = None
    try:
        with file.open("rb") as opened:
            version = _read(opened.read(MOST_BYTES), where, f"delete {file}")
    except FileNotFoundError:
        if not create and not data_dir.is_dir():
            return
    except OSError as error:
        raise _not_a_version(where, f"{file} cannot be read: {error.strerror}", "make it readable") from error
    if version == FORMAT:
        return
    _migrate(version)
    part = data_dir / f".{FILE}.{os.getpid()}"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with create_private(part) as opened:
            opened.write(f"{FORMAT}\n".encode())
        part.replace(file)
    except OSError as error:  # read-only, or of another user: writes there will fail anyway
        _LOG.warning("the format version of %s is not stored: %s", where, error, extra={"action": "format"})


def _migrate(version: int | None) -> None:
    """Bring older data to `FORMAT`."""


def _read(stored: bytes, where: str, otherwise: str) -> int:
    text = stored.strip()
    if not text.isdigit():
        raise _not_a_version(where, repr(printable(text[:40])), otherwise)
    version = int(text)
    if version > FORMAT:
        raise SettingsError(
            f"{where} holds data of a newer farm (format {version}, this farm reads up to {FORMAT}): "
            "start a farm of that version, or give this one other data"
        )
    return version


def _not_a_version(where: str, found: str, otherwise: str) -> SettingsError:
    return SettingsError(
        f"{where} has no readable format version ({found}): if the data is a farm's of this version, {otherwise}"
    )
