"""Forwarder inside a sandbox without network: gives a program the model proxy, and nothing else.

It listens on the sandbox's own loopback, forwards each connection to a Unix socket of the worker, and runs the program.
Standard library only; its source is the program that the sandbox is asked to run, with a JSON argument: `{port, socket,
files, stdin, environment, argv}`. Its exit status is the program's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy data in one direction until its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def join(
    here: tuple[asyncio.StreamReader, asyncio.StreamWriter], there: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Copy data in both directions until both have ended, then close both."""
    try:
        await asyncio.gather(pump(here[0], there[1]), pump(there[0], here[1]))
    finally:
        here[1].close()
        there[1].close()


def listen(port: int, socket: str, listening: threading.Event) -> None:
    """Accept connections until the process ends."""

    async def serve() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = await asyncio.open_unix_connection(socket)
            except OSError:
                writer.close()
                return
            await join((reader, writer), there)

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        listening.set()
        await server.serve_forever()

    asyncio.run(serve())


def main(said: str) -> int:
    """Run the program; return its exit status, or 128 plus the signal that ended it."""
    asked: dict[str, Any] = json.loads(said)
    for name, text in asked["files"].items():
        Path(name).write_text(text)
    listening = threading.Event()
    threading.Thread(target=listen, args=(asked["port"], asked["socket"], listening), daemon=True).start()
    if not listening.wait(30):
        sys.stderr.write("the way to the model proxy cannot be opened\n")
        return 1
    argv = [sys.executable if part == "{python}" else part for part in asked["argv"]]
    try:
        program = subprocess.Popen(argv, stdin=subprocess.PIPE, env=asked["environment"])  # noqa: S603  the settings' own
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        return 127
    program.communicate(asked["stdin"].encode())
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
