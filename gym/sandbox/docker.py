"""Sandboxes by Docker, one container each, for machines that have an engine and no user namespaces.

The engine's own seccomp profile is kept, and process 1 applies the farm's on top of it: profiles differ between engines
(Podman's allows user namespaces), and the strictest rule wins. The image needs `python3` and `bash` and is never pulled
by a rollout.

A killed client leaves its container behind. So each container has a label with its owner's process id, and `sweep`
removes the containers of dead owners.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gym.sandbox.base import Launch, Mount, SandboxUnavailable
from gym.sandbox.bubblewrap import BOOT
from gym.sandbox.left_over import is_alive, started_at
from gym.sandbox.limits import SandboxLimits

DEFAULT_IMAGE = "python:3.11-slim"
OWNER = "rollout-farm-owner"
_PASSED_ON = ("PATH", "HOME", "XDG_RUNTIME_DIR", "STORAGE_DRIVER")
_PASSED_ON_PREFIXES = ("DOCKER_", "CONTAINER_", "CONTAINERS_")
_PODMANS_OWN = ("/run", "/var/tmp")  # noqa: S108  writable by default and as large as the memory
_WAIT_S = 30.0


class Docker:
    """Provider of container sandboxes.

    `command` is the client, Docker's or Podman's; `arguments` are added to its `run`.
    """

    name = "docker"

    def __init__(self, *, command: str = "docker", arguments: Sequence[str] = (), image: str = DEFAULT_IMAGE) -> None:
        self._command = command
        self._arguments = tuple(arguments)
        self._image = image

    def start(self, label: str, limits: SandboxLimits, filter_fd: int, mounts: Sequence[Mount] = ()) -> Launch:  # noqa: ARG002  process 1 has the filter
        """Build the command. Raises SandboxUnavailable without a client; a missing engine shows only when it runs."""
        client = self._client()
        memory = str(limits.memory_bytes + 3 * limits.work_bytes)
        argv = [client, "run", "--interactive", "--rm", "--pull=never", "--name", label, "--network=none"]
        argv += ["--read-only", "--user=65534:65534", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        argv += ["--ipc=private", "--shm-size", str(limits.work_bytes), "--memory", memory, "--memory-swap", memory]
        argv += ["--pids-limit", str(limits.processes + 2), "--ulimit", "core=0"]
        inodes = "" if self._is_podman("version") else f",nr_inodes={limits.files}"  # Podman does not have this option
        for place in ("/work", "/tmp"):  # noqa: S108  the container's own
            argv += ["--tmpfs", f"{place}:rw,exec,nosuid,nodev,mode=1777,size={limits.work_bytes}{inodes}"]
        for place in _PODMANS_OWN:
            argv += ["--tmpfs", f"{place}:ro,noexec,nosuid,nodev,size=4k"]
        if self._is_podman("--version"):
            argv.append("--read-only-tmpfs=false")
        for mount in mounts:
            argv += ["--volume", f"{mount.source}:{mount.target}:ro"]
        argv += ["--workdir=/work", "--env=HOME=/work", "--label", f"{OWNER}={os.getpid()}.{started_at(os.getpid())}"]
        return Launch(
            argv=[*argv, *self._arguments, self._image, "python3", "-I", "-S", "-c", BOOT],
            environment={
                name: value
                for name, value in os.environ.items()
                if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
            },
            stop=[client, "rm", "--force", label],
            filters=False,
            scoped=False,
            own_user=False,
        )

    def sweep(self, directory: Path) -> int:  # noqa: ARG002  the engine knows its containers
        """Remove the containers of dead owners. Raises SandboxUnavailable if the engine does not answer."""
        listed = self._run(
            "ps", "--all", "--filter", f"label={OWNER}", "--format", f'{{{{.ID}}}} {{{{.Label "{OWNER}"}}}}'
        )
        pairs = [line.split() for line in listed.splitlines() if len(line.split()) == 2]
        left = [container for container, owner in pairs if not is_alive(owner)]
        if left:
            self._run("rm", "--force", *left)
        return len(left)

    @functools.cache  # noqa: B019  one provider lives as long as the process
    def _is_podman(self, question: str) -> bool:
        """Return whether `--version` names Podman as the client, or `version` as the client or the engine behind it."""
        return "podman" in self._run(question).lower()

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
