"""A Redis client of one socket, for the interpreter of a trainer's Ray, which may have no Redis package.

Requests and replies of RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/); commands are pipelined.
"""

from __future__ import annotations

import socket
import ssl
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

Reply = bytes | int | None | list["Reply"]
Word = str | bytes | int | float


class RedisAway(Exception):
    """Redis cannot be reached, or it refused; the next call connects again."""


class Redis:
    """The client, for `redis://`, `rediss://` and `unix://` URLs; each call is bounded by `timeout_s`."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self._url = urlsplit(url)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._file: BinaryIO | None = None

    def run(self, *commands: tuple[Word, ...]) -> list[Reply]:
        """Send the commands together and read their replies. Raises RedisAway."""
        try:
            if self._socket is None:
                self._connect()
            return self._exchange(commands)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise RedisAway(f"Redis at {self._url.hostname or self._url.path}: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        for each in (self._file, self._socket):
            if each is not None:
                each.close()
        self._file = self._socket = None

    def _connect(self) -> None:
        url = self._url
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.scheme == "unix":
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(self._timeout_s)
            made.connect(unquote(url.path))
            database = query.get("db", "0")
        else:
            made = socket.create_connection((url.hostname or "127.0.0.1", url.port or 6379), self._timeout_s)
            if url.scheme == "rediss":
                context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
                made = context.wrap_socket(made, server_hostname=url.hostname)
            database = query.get("db") or url.path.strip("/") or "0"
        self._socket, self._file = made, made.makefile("rb")
        hello: list[tuple[Word, ...]] = []
        if url.password is not None:
            user = (unquote(url.username),) if url.username else ()
            hello.append(("AUTH", *user, unquote(url.password)))
        if database != "0":
            hello.append(("SELECT", database))
        if hello:
            self._exchange(tuple(hello))

    def _exchange(self, commands: tuple[tuple[Word, ...], ...]) -> list[Reply]:
        assert self._socket is not None  # noqa: S101  connected before
        out = bytearray()
        for command in commands:
            out += b"*%d\r\n" % len(command)
            for word in command:
                data = word if isinstance(word, bytes) else str(word).encode()
                out += b"$%d\r\n%s\r\n" % (len(data), data)
        self._socket.sendall(out)
        # every reply is read before one that refuses is raised, so that the connection stays in step
        replies = [self._read() for _ in commands]
        refused = [str(reply, "utf-8", "replace") for reply in replies if isinstance(reply, _Refusal)]
        if refused:
            raise ValueError(refused[0])
        return replies

    def _read(self) -> Reply:
        assert self._file is not None  # noqa: S101  connected before
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return _Refusal(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if rest == b"-1":
                return None
            data = self._file.read(int(rest) + 2)
            if len(data) != int(rest) + 2:
                raise EOFError("the connection was closed")
            return data[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self._read() for _ in range(int(rest))]
        raise EOFError(f"a reply begins with {kind!r}")


class _Refusal(bytes):
    """An error reply."""
