"""An agent that is a program, started for each rollout and ended with it.

It has its own directory, none of the worker's environment variables, and a key for its own rollout only. It runs with
the worker's rights: run an untrusted program in a sandbox (`gym.agents.outside.sandboxed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gym.agents.base import Episode
from gym.agents.outside.base import Access, AgentProxy, AgentReport, OutsideAgent
from gym.agents.settings import CommandSettings
from gym.errors import AgentFailed, AgentUnreachable, TimedOut
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.processes import process_tree
from gym.processes.subprocesses import start_process
from gym.trajectory import message_text

MOST_ARGUMENT_CHARS = 100_000  # Linux limits one argument to 128 KiB
END_S = 10.0  # for the process tree to be killed, on a loaded machine
TAIL_CHARS = 2000
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class _Output:
    """The first `most` bytes of a stream."""

    most: int
    kept: bytearray
    cut: bool = False

    async def read(self, stream: asyncio.StreamReader, episode: Episode) -> None:
        while data := await stream.read(65536):
            episode.touch()
            room = self.most - len(self.kept)
            self.kept += data[:room]
            self.cut = self.cut or len(data) > room

    @property
    def text(self) -> str:
        return bytes(self.kept).decode(errors="replace")


class CommandAgent(OutsideAgent):
    """Agent that starts one program for each rollout."""

    def __init__(self, name: str, proxy: AgentProxy, settings: CommandSettings) -> None:
        super().__init__(name, proxy)
        self._settings = settings

    async def drive(self, episode: Episode, access: Access) -> AgentReport:
        """Run the program; see OutsideAgent."""
        with tempfile.TemporaryDirectory(prefix="farm-agent-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            prompt = prompt_of(episode.task.params)
            task = exact_json.dumps(episode.task.params)
            (directory / "prompt.txt").write_text(prompt)
            (directory / "task.json").write_bytes(task)
            words = {
                "prompt": prompt,
                "prompt_file": str(directory / "prompt.txt"),
                "task_file": str(directory / "task.json"),
                "base_url": f"{access.base_url}/v1",
                "model": access.model,
                "rollout_id": episode.rollout_id,
                "directory": name,
            }
            work = directory / "work"
            work.mkdir()
            given = {"prompt": prompt.encode(), "task": task, "none": b""}[self._settings.stdin]
            return await self._run(episode, access, words, work, given)

    async def _run(
        self, episode: Episode, access: Access, words: dict[str, str], work: Path, given: bytes
    ) -> AgentReport:
        argv = [filled(part, words) for part in self._settings.argv]
        if any(len(part) > MOST_ARGUMENT_CHARS or "\0" in part for part in argv):
            raise AgentFailed(f"an argument of {self.name} is too long: use `stdin` or `{{prompt_file}}`")
        most = self._settings.output_kib * 1024
        out, error = _Output(most, bytearray()), _Output(most, bytearray())
        process = await self._start(argv, environment_of(self._settings, access, words, work), work)
        readers: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                async with asyncio.TaskGroup() as group:
                    for stream, output in ((process.stdout, out), (process.stderr, error)):
                        assert stream is not None  # noqa: S101  both are pipes
                        readers.append(group.create_task(output.read(stream, episode)))
                    group.create_task(_feed(process, given))
                code = await process.wait()
        except TimeoutError:
            raise TimedOut(f"the agent {self.name} took longer than {self._settings.timeout_s or 0:g} s") from None
        finally:
            await _end(process)
        if out.cut and self._settings.answer == "stdout":
            raise AgentFailed(f"the agent {self.name} printed more than {self._settings.output_kib} KiB (`output_kib`)")
        return outcome_of(self.name, self._settings, access, code, out.text, error.text)

    async def _start(self, argv: list[str], environment: dict[str, str], work: Path) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        keeper = [sys.executable, "-I", "-S", str(Path(process_tree.__file__)), str(os.getpid())]
        try:
            return await start_process(
                [*keeper, *argv], stdin=pipe, stdout=pipe, stderr=pipe, environment=environment, directory=work
            )
        except OSError as error:
            raise AgentUnreachable(f"the agent {self.name} cannot be started: {error}") from error


def outcome_of(name: str, settings: CommandSettings, access: Access, code: int, out: str, error: str) -> AgentReport:
    """Return the result of an ended program. Raises AgentFailed, without the key, for an exit code other than 0."""
    if code != 0:
        tail = (error or out).replace(access.key, "…")[-TAIL_CHARS:].strip()
        raise AgentFailed(f"the agent {name} ended with {_named(code)}: {tail or 'it printed nothing'}")
    return AgentReport(text=out.strip() if settings.answer == "stdout" else None)


def filled(text: str, words: dict[str, str]) -> str:
    """Replace each `{word}` of a text once; replaced text is not scanned again."""
    parts = []
    while True:
        before, brace, rest = text.partition("{")
        parts.append(before)
        if not brace:
            return "".join(parts)
        name, end, after = rest.partition("}")
        if end and name in words:
            parts.append(words[name])
            text = after
        else:
            parts.append("{")
            text = rest


def environment_of(settings: CommandSettings, access: Access, words: dict[str, str], work: Path) -> dict[str, str]:
    """Return the program's whole environment."""
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": str(work),
        "TMPDIR": str(work),
        "OPENAI_BASE_URL": words["base_url"],
        "OPENAI_API_BASE": words["base_url"],  # litellm's name for it
        "OPENAI_API_KEY": access.key,
        "ANTHROPIC_BASE_URL": access.base_url,
        "ANTHROPIC_API_KEY": access.key,
        "FARM_ROLLOUT_ID": words["rollout_id"],
        "FARM_ATTEMPT": str(access.attempt),
        "FARM_MODEL": access.model,
        "FARM_PROMPT_FILE": words["prompt_file"],
        "FARM_TASK_FILE": words["task_file"],
    } | {name: filled(value, words) for name, value in settings.environment.items()}


def prompt_of(params: JsonObject) -> str:
    """Return the task as one text: its input, or the texts of its messages."""
    given = params["input"]
    if isinstance(given, str):
        return given
    return "\n\n".join(text for item in given if (text := message_text(item)))


async def _feed(process: asyncio.subprocess.Process, given: bytes) -> None:
    assert process.stdin is not None  # noqa: S101  it is a pipe
    with contextlib.suppress(ConnectionError, BrokenPipeError):  # the program need not read it
        process.stdin.write(given)
        await process.stdin.drain()
    process.stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill every process that the program has started, and wait for their end."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(END_S):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _named(code: int) -> str:
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"the signal {signal.Signals(code - 128).name}"
    return f"exit code {code}"
