"""A container engine for tests, where this machine has one: an image of the machine's own Python, nothing is pulled.

Images and containers lie in a directory of their own, so that nothing is left in the engine's usual storage.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE = "localhost/rollout-farm-tests:latest"
PROGRAMS = ("python3", "bash", "sh", "cat", "head", "kill", "ls", "sleep", "stat", "tr", "true", "yes")
LEFT_OUT = (
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "dist-packages",
    "site-packages",
    "pydoc_data",
)
WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Engine:
    """Facts for the settings of sandboxes, and the environment that the client runs in."""

    command: str
    arguments: tuple[str, ...]
    environment: dict[str, str]


class NoEngine(Exception):
    """The text says why."""


@contextlib.contextmanager
def docker(engine: Engine) -> Iterator[Engine]:
    """Docker's client at the Docker-compatible socket of that Podman. Raises NoEngine."""
    if shutil.which("docker") is None:
        raise NoEngine("there is no docker client")
    with tempfile.TemporaryDirectory(prefix="farm-docker-") as name:
        address = f"unix://{name}/docker.sock"
        command = ["podman", "system", "service", "--time=0", address]
        service = subprocess.Popen(
            command,
            env={**os.environ, **engine.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(Path(name) / "docker.sock", service)
            environment = {**engine.environment, "DOCKER_HOST": address}
            _run(
                ["docker", "run", "--rm", "--network=none", *engine.arguments, IMAGE, "python3", "-c", ""], environment
            )
            yield Engine("docker", engine.arguments, environment)
        finally:
            service.terminate()
            service.wait(WAIT_S)


def _wait_for(place: Path, service: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_at and service.poll() is None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as tried:
            tried.connect(str(place))
            return
        time.sleep(0.05)
    raise NoEngine("podman system service does not listen")


@contextlib.contextmanager
def podman() -> Iterator[Engine]:
    """Podman, with the image. Raises NoEngine."""
    if shutil.which("podman") is None:
        raise NoEngine("there is no podman")
    if not Path("/usr/bin/python3").exists():
        raise NoEngine("there is no /usr/bin/python3 to make an image of")
    with tempfile.TemporaryDirectory(prefix="farm-engine-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        runtime = next((each for each in ("runc", "crun") if shutil.which(each)), None)
        (folder / "containers.conf").write_text(f'[engine]\nruntime = "{runtime}"\n' if runtime else "")
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        )
        environment = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        _run(["podman", "import", "-", IMAGE], environment, given=_root())
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = ("--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=4096:4096")
        _run(["podman", "run", "--rm", "--network=none", *limits, IMAGE, "python3", "-c", "pass"], environment)
        try:
            yield Engine("podman", limits, environment)
        finally:
            _run(["podman", "rm", "--all", "--force"], environment)


def _run(command: list[str], environment: dict[str, str], given: bytes | None = None) -> None:
    try:
        subprocess.run(
            command, env={**os.environ, **environment}, input=given, capture_output=True, check=True, timeout=WAIT_S
        )
    except subprocess.CalledProcessError as error:
        raise NoEngine(f"{' '.join(command[:2])}: {error.stderr.decode(errors='replace').strip()[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoEngine(f"{' '.join(command[:2])}: {error}") from error


def _root() -> bytes:
    """A tar file of the machine's Python, bash and what they need."""
    python = Path("/usr/bin/python3").resolve()
    library = Path("/usr/lib") / python.name
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name, path="/usr/bin:/bin"))]
    wanted = {*programs, python, *(library / "lib-dynload").glob("*.so")}
    for each in list(wanted):
        wanted |= _libraries(each)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            if (Path("/") / name).is_symlink():
                tar.add(f"/{name}", name)
        for name in ("work", "tmp", "proc", "dev", "sys", "etc", "run", "var/tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name in ("work", "tmp", "var/tmp") else 0o755
            tar.addfile(folder)
        tar.add(library, str(library)[1:], filter=_kept)
        for path in sorted(_with_targets(wanted)):
            tar.add(path, str(path)[1:])
    return packed.getvalue()


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = Path(member.name).name
    return None if name in LEFT_OUT or name.startswith("config-") else member


def _with_targets(paths: set[Path]) -> set[Path]:
    """Each path where it really lies, and what it is a link to."""
    found = set()
    for path in paths:
        place = path.parent.resolve() / path.name
        found |= {place, place.resolve()}
    return {path for path in found if "lib-dynload" not in path.parts}


def _libraries(program: Path) -> set[Path]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False, timeout=WAIT_S).stdout
    return {Path(word) for line in said.splitlines() for word in line.split() if word.startswith("/")}
