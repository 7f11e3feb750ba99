"""What a sandbox is, whoever provides it.

Invariant: a sandbox has no network, sees no file of the host that it could change, and after each call and after
`close` nothing that ran in it is left. Files in its `/work` stay from one call to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gym.sandbox.limits import SandboxLimits

MAX_CODE_CHARS = 100_000  # a program is one argument, and Linux takes no longer one than 128 KiB


class SandboxFailed(Exception):
    """The sandbox itself failed, not what ran in it; a new one may do. It is gone."""


class SandboxEnded(SandboxFailed):
    """The sandbox ended, or stopped answering, while a program ran in it: most likely the program's doing."""


class SandboxUnavailable(Exception):
    """No sandbox can be had here; the text says what was tried and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOutcome:
    """What a call came to. `stopped` names the limit that ended it: cpu, memory, files, processes, output or wall.

    `exit_code` is negative for a signal, and None where the call was stopped.
    """

    exit_code: int | None
    stopped: str | None
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVerdict:
    """What the tests said of an answer. `failed` says why nothing could be run, `bad_tests` what the tests may not ask.

    `finished` is false where the answer, or a limit (`stopped`), ended the tests early.
    """

    passed: int
    seen: int
    finished: bool
    failed: str | None
    bad_tests: str | None
    stopped: str | None


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host that a sandbox may read, and where it finds it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a provider's sandbox is started: the command, and the content of the file descriptors it inherits."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    stop: Sequence[str] = ()  # a command that ends it for good, where killing the process does not
    filters: bool = True  # whether the command applies the filter of system calls; else process 1 does
    scoped: bool = True  # whether it is to run in a control group of its own, where one can be made
    own_user: bool = True  # whether no process outside of it counts towards its user's limits


class SandboxProvider(Protocol):
    """One way to make sandboxes. It only says how; `gym.sandbox.process` starts and speaks to them."""

    name: str

    def start(self, label: str, limits: SandboxLimits, filter_fd: int, mounts: Sequence[Mount] = ()) -> Start:
        """The command for one sandbox. `filter_fd` holds the seccomp program. Raises SandboxUnavailable."""
        ...

    def sweep(self, directory: Path) -> int:
        """End what processes that are gone have left; the number of sandboxes ended."""
        ...
