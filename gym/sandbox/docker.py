"""Sandboxes by Docker, one container each, for machines that have an engine and no user namespaces.

Docker's own seccomp profile is kept: it refuses what `gym.sandbox.seccomp` refuses, and is kept up with the engine. The
image needs `python3` and `bash` and is never pulled by a rollout. A client that is killed leaves its container, so each
has a label with its owner's process id, and `sweep` removes those whose owner is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gym.sandbox.base import Mount, SandboxUnavailable, Start
from gym.sandbox.bubblewrap import BOOT
from gym.sandbox.left_over import is_alive, started_at
from gym.sandbox.limits import Limits

DEFAULT_IMAGE = "python:3.11-slim"
OWNER = "rollout-farm-owner"
_PASSED_ON = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT")
_WAIT_S = 30.0


class Docker:
    """`command` is the client; it takes Podman's too."""

    name = "docker"

    def __init__(self, *, command: str = "docker", image: str = DEFAULT_IMAGE) -> None:
        self._command = command
        self._image = image

    def start(self, label: str, limits: Limits, filter_fd: int, mounts: Sequence[Mount] = ()) -> Start:  # noqa: ARG002  Docker has its own filter
        """Raises SandboxUnavailable where there is no client; whether it has an engine shows when it is run."""
        client = self._client()
        memory = str(limits.memory_bytes + 3 * limits.work_bytes)
        argv = [client, "run", "--interactive", "--rm", "--pull=never", "--name", label, "--network=none"]
        argv += ["--read-only", "--user=65534:65534", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        argv += ["--ipc=none", "--memory", memory, "--memory-swap", memory]
        argv += ["--pids-limit", str(limits.processes + 2), "--ulimit", "core=0"]
        for place in ("/work", "/tmp"):  # noqa: S108  the container's own
            argv += ["--tmpfs", f"{place}:rw,exec,nosuid,nodev,mode=1777,size={limits.work_bytes}"]
        for mount in mounts:
            argv += ["--volume", f"{mount.source}:{mount.target}:ro"]
        argv += ["--workdir=/work", "--env=HOME=/work", "--label", f"{OWNER}={os.getpid()}.{started_at(os.getpid())}"]
        return Start(
            argv=[*argv, self._image, "python3", "-I", "-S", "-c", BOOT],
            environment={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            stop=[client, "rm", "--force", label],
        )

    def sweep(self, directory: Path) -> int:  # noqa: ARG002  the engine knows its containers
        """Raises SandboxUnavailable where the engine does not answer."""
        listed = self._run(
            "ps", "--all", "--filter", f"label={OWNER}", "--format", f'{{{{.ID}}}} {{{{.Label "{OWNER}"}}}}'
        )
        pairs = [line.split() for line in listed.splitlines() if len(line.split()) == 2]
        left = [container for container, owner in pairs if not is_alive(owner)]
        if left:
            self._run("rm", "--force", *left)
        return len(left)

    def _client(self) -> str:
        client = shutil.which(self._command)
        if client is None:
            raise SandboxUnavailable(f"there is no {self._command}")
        return client

    def _run(self, *arguments: str) -> str:
        try:
            command = [self._client(), *arguments]
            done = subprocess.run(command, capture_output=True, timeout=_WAIT_S, text=True, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxUnavailable(f"{self._command} {arguments[0]}: {error}") from error
        return done.stdout
