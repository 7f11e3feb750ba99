"""Two machines: network namespaces with a cable between them, and only the documented ports open on it.

Where they cannot be made (no root, another kernel), the two are loopback addresses, on which nothing can be closed.
Ports are closed where packets leave, by routing rules: a kernel without a packet filter has those too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.local.local_farm import free_port

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "separate_clusters.yaml"
KEY = "a-key-for-these-tests"
POLICY_PORT = 9000
READY_S = 60.0
END_S = 10.0
EndFamily = Callable[[subprocess.Popen[bytes], float], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """One of the two; `inside` goes before a command that is to run there."""

    address: str
    inside: tuple[str, ...] = ()

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program there, to its end."""
        command = [*self.inside, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, env={**_bare(), **environment})

    def start(self, log: Path, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """Run a program there until it is ended."""
        with log.open("wb") as out:
            command = [*self.inside, *words]
            return subprocess.Popen(command, stdout=out, stderr=out, env={**_bare(), **environment})

    def ip(self, *words: str) -> None:
        """Change its network. Raises CalledProcessError."""
        subprocess.run([*self.inside, "ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True, slots=True)
class Apart:
    """The farm's machine and the trainer's, with a farm on one and a policy's server on the other."""

    farm: Machine
    trainer: Machine
    api_port: int
    proxy_port: int
    policy_port: int
    config: Path
    why_not_apart: str
    closed: list[tuple[Machine, tuple[str, ...]]] = field(default_factory=list)

    @property
    def farm_url(self) -> str:
        """Return the farm's URL for the trainer."""
        return f"http://{self.farm.address}:{self.api_port}"

    @property
    def policy_url(self) -> str:
        """Return the policy's URL for the farm."""
        return f"http://{self.trainer.address}:{self.policy_port}/v1"

    def doctor(self, side: Machine) -> tuple[int, dict[str, dict[str, str]]]:
        """The exit status of `farm doctor` on one side, and its checks by name."""
        options = ["--config", str(self.config)] if side is self.farm else ["--url", self.farm_url]
        done = side.run(sys.executable, "-m", "api.cli.main", "doctor", *options, "--json", FARM_API_KEY=KEY)
        assert done.stdout, done.stderr
        return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}

    def close(self, sender: Machine, port: int) -> None:
        """Let nothing of one machine reach that port of the other, until `open_all`."""
        rule = ("pref", "5", "ipproto", "tcp", "dport", str(port), "unreachable")
        sender.ip("rule", "add", *rule)
        self.closed.append((sender, rule))

    def open_all(self) -> None:
        """Take back what `close` did."""
        while self.closed:
            sender, rule = self.closed.pop()
            sender.ip("rule", "del", *rule)


@pytest.fixture(scope="module")
def both(end_family: EndFamily) -> Iterator[Apart]:
    """A farm and a policy's server, ready."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="farm-apart-")))
        why_not = _why_no_namespaces()
        if why_not:
            farm, trainer = Machine("127.0.0.1"), Machine("127.0.0.2")
            ports = (free_port(), free_port(), free_port())
        else:
            farm, trainer = _cabled(running, end_family)
            written: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
            ports = (written["api"]["port"], written["proxy"]["port"], POLICY_PORT)
        config = _config(folder, farm.address if why_not else "0.0.0.0", ports)
        program = (sys.executable, "-m", "api.cli.main")
        model = trainer.start(
            folder / "model.log", *program, "mock-model", "--host", trainer.address, "--port", str(ports[2])
        )
        running.callback(end_family, model, END_S)
        up = farm.start(folder / "up.log", *program, "up", "--workers", "1", "--config", str(config))
        running.callback(end_family, up, END_S)
        apart = Apart(farm, trainer, *ports, config, why_not)
        _wait(apart, up, folder / "up.log")
        yield apart
        assert up.poll() is None


@pytest.fixture
def apart(both: Apart) -> Iterator[Apart]:
    """The two machines with the documented ports open, at the beginning and at the end of each test."""
    yield both
    both.open_all()


def _cabled(running: ExitStack, end_family: EndFamily) -> tuple[Machine, Machine]:
    """Two namespaces with a cable, each in the hands of a process that sleeps."""
    machines = []
    for address in ("10.77.0.1", "10.77.0.2"):
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        running.callback(end_family, holder, END_S)
        machines.append(Machine(address, ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")))
        own = Path(f"/proc/{holder.pid}/ns/net")
        _until(lambda own=own: own.readlink() != Path("/proc/self/ns/net").readlink())
    farm, trainer = machines
    peer = trainer.inside[1].removeprefix("--net=/proc/").partition("/")[0]
    farm.ip("link", "add", "farm0", "type", "veth", "peer", "name", "trainer0", "netns", peer)
    documented = {
        farm: [("sport", "8700-8701"), ("dport", str(POLICY_PORT))],
        trainer: [("dport", "8700-8701"), ("sport", str(POLICY_PORT))],
    }
    for machine, device in ((farm, "farm0"), (trainer, "trainer0")):
        machine.ip("link", "set", "lo", "up")
        machine.ip("addr", "add", f"{machine.address}/24", "dev", device)
        machine.ip("link", "set", device, "up")
        for way in documented[machine]:
            machine.ip("rule", "add", "pref", "10", "ipproto", "tcp", *way, "lookup", "main")
        machine.ip("rule", "add", "pref", "20", "to", "10.77.0.0/24", "unreachable")
    return farm, trainer


def _why_no_namespaces() -> str:
    """Return the reason why this machine cannot have the two namespaces, or an empty text."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} is not installed"
    steps = "ip link add farm0 type veth peer name trainer0 && ip rule add pref 9 ipproto tcp dport 9 unreachable"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", steps], capture_output=True, text=True)
    return tried.stderr.strip() if tried.returncode else ""


def _config(folder: Path, host: str, ports: tuple[int, int, int]) -> Path:
    """The documented settings without their judges, which other tests look at, and with where to keep state."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    del settings["judges"], settings["pool"]
    settings["host"], settings["data_dir"] = host, str(folder / "data")
    settings["flower"] = {"enabled": False}
    settings["api"] = {"port": ports[0], "keys": [{"key": KEY, "scopes": ["admin"]}]}
    settings["proxy"]["port"] = ports[1]
    path = folder / "farm.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _bare() -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FARM_")},
        "PYTHONPATH": str(ROOT),
    }


def _wait(apart: Apart, up: subprocess.Popen[bytes], log: Path) -> None:
    """The farm must be ready as the trainer sees it, over the cable."""
    ask = "import sys, httpx; print(httpx.get(sys.argv[1] + '/readyz', timeout=5).status_code)"
    _until(lambda: "ready http" in log.read_text() or up.poll() is not None)
    assert up.poll() is None, log.read_text()[-4000:]
    _until(lambda: apart.trainer.run(sys.executable, "-c", ask, apart.farm_url).stdout.strip() == "200")
    ask = ask.replace("/readyz", "/models")
    _until(lambda: apart.farm.run(sys.executable, "-c", ask, apart.policy_url).stdout.strip() == "200")


def _until(found: Any) -> None:
    give_up_at = time.monotonic() + READY_S
    while not found():
        assert time.monotonic() < give_up_at, "it did not come to pass in time"
        time.sleep(0.1)
