"""The interface of sandbox providers, and the results of calls.

Invariant: a sandbox has no network and sees no file of the host that it could change. After each call and after
`close`, no process that it started is left. Files in its `/work` stay from one call to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gym.sandbox.limits import SandboxLimits

MAX_CODE_CHARS = 100_000  # a program is one argument, which Linux limits to 128 KiB


class SandboxFailed(Exception):
    """Failure of the sandbox itself, not of the program in it. The sandbox is gone; a new one may work."""


class SandboxEnded(SandboxFailed):
    """Error for a sandbox that ended, or stopped answering, during a call; most likely its program is the cause."""


class SandboxUnavailable(Exception):
    """Error for a machine on which no sandbox can be started; the text says what was tried and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOutcome:
    """Result of a call. `stopped` names the limit that ended it: cpu, memory, files, processes, output or wall.

    `exit_code` is negative for a signal, and None if the call was stopped.
    """

    exit_code: int | None
    stopped: str | None
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVerdict:
    """Verdict of the tests on an answer.

    `failed` says why nothing could be run, `bad_tests` which test is not supported.

    `finished` is false if the answer, or a limit (`stopped`), ended the tests early.
    """

    passed: int
    seen: int
    finished: bool
    failed: str | None
    bad_tests: str | None
    stopped: str | None


@dataclass(frozen=True, slots=True)
class Mount:
    """File or directory of the host that a sandbox may read, and its path inside."""

    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch of a provider's sandbox: the command, and the content of the file descriptors it inherits."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    stop: Sequence[str] = ()  # a command that ends it for good, if killing the process does not
    filters: bool = True  # whether the command applies the system-call filter; else process 1 does
    scoped: bool = True  # whether to run it in a control group, if one can be made
    own_user: bool = True  # whether no process outside of it counts towards its user's limits


class SandboxProvider(Protocol):
    """A kind of sandbox. It only builds commands; `gym.sandbox.process` starts the sandboxes and talks to them."""

    name: str

    def start(self, label: str, limits: SandboxLimits, filter_fd: int, mounts: Sequence[Mount] = ()) -> Launch:
        """Return the command for one sandbox. `filter_fd` holds the seccomp program. Raises SandboxUnavailable."""
        ...

    def sweep(self, directory: Path) -> int:
        """End the sandboxes that dead processes left behind. Returns the number of sandboxes ended."""
        ...
