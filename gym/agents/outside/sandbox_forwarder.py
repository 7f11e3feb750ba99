"""Inside a sandbox without network: lets a program reach the model proxy, and nothing else, and runs it.

It listens on the sandbox's own loopback and hands each connection to a Unix socket that the worker listens on. Standard
library only; its source is the program that the sandbox is asked to run, with a JSON argument:
`{port, socket, files, stdin, environment, argv}`. It exits as the program did.
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
    """Carry what comes until its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def join(
    here: tuple[asyncio.StreamReader, asyncio.StreamWriter], there: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Carry both ways until both have ended, then close both."""
    try:
        await asyncio.gather(pump(here[0], there[1]), pump(there[0], here[1]))
    finally:
        here[1].close()
        there[1].close()


def listen(port: int, socket: str, listening: threading.Event) -> None:
    """Serve until the process ends."""

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
    """The exit status of the program, 128 and the signal where one ended it."""
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
