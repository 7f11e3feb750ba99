"""Connection to Ray: an own cluster that is started and stopped here, or a foreign one that is only attached to.

Invariants: an address is probed and versions are compared before `ray.init` sees it (an attach to a dead address
hangs for minutes). Two calls are never made: `ray.init()` without an address, which joins any cluster it finds, and
`ray stop`, which ends every Ray of the machine. `ray` is imported only after the variables that it reads at import
are set.

Source of the names and traps: Ray 2.60; `get_cluster_metadata` is private to Ray, so if it is missing the comparison
in `ray.init` decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workers.judge_pool.plan import Cluster

PROBE_S = 3.0
ATTACH_S = 60.0
LONGEST_TEMP_DIR = 40  # a socket's path below it may have 107 bytes
TEMP_ROOT, TEMP_PREFIX = "/tmp", "farm-ray-"  # noqa: S108  short, and a directory of our own below it
_LOG = logging.getLogger(__name__)


class RayUnusable(Exception):
    """The cluster cannot be used as it is; the text names the necessary change."""


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Yield the module `ray`, connected. At the end an own cluster is stopped; a foreign one is left alone."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with contextlib.ExitStack() as left:
        if cluster.address:
            ray = _attach(cluster)
        else:
            folder = cluster.temp_dir
            if folder is None:
                _sweep()
                made = tempfile.TemporaryDirectory(
                    prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=TEMP_ROOT, ignore_cleanup_errors=True
                )
                folder = left.enter_context(made)
            ray = _start(cluster, Path(folder))
        left.callback(ray.shutdown)
        for number, handler in handlers.items():  # ray.init takes SIGTERM for itself
            signal.signal(number, handler)
        yield ray


def _sweep() -> None:
    """Remove temporary directories of pools that Ray or SIGKILL ended: a directory's name has its process."""
    for folder in Path(TEMP_ROOT).glob(f"{TEMP_PREFIX}*-*"):
        pid = folder.name.removeprefix(TEMP_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and folder.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)


def probe(address: str) -> tuple[str, int]:
    """Return host and port of a head node that accepts connections. Raises RayUnusable."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise RayUnusable(
            f"ray_head_node_address is {address!r}; expected HOST:PORT of the head's GCS, as "
            "ray.get_runtime_context().gcs_address gives it (ray:// is the client server's, which is not used)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError as error:
        raise RayUnusable(
            f"nothing answers at {address} ({error}): is the Ray head up, and is the port of its GCS (6379 by default) "
            "open to this machine?"
        ) from None
    return host, int(port)


def _keeps_to_loopback(host: str, port: int) -> bool:
    """Return whether a head that answers at a loopback address no longer answers at this machine's own address."""
    if not (host == "localhost" or host.startswith("127.")):
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect(("198.51.100.1", 9))  # sends nothing; the kernel gives the address that it would send from
            own = route.getsockname()[0]
        socket.create_connection((own, port), PROBE_S).close()
    except OSError:
        return True
    return bool(own.startswith("127."))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, str]) -> list[str]:
    """Return the version differences of Ray and Python to a cluster; Ray compares Python to the patch level."""
    names = {"ray_version": "Ray", "python_version": "Python"}
    return [
        f"{title}: the cluster has {theirs[name]}, this process has {ours[name]}"
        for name, title in names.items()
        if theirs.get(name) is not None and theirs[name] != ours[name]
    ]


def check_versions(address: str) -> dict[str, Any]:
    """Compare before attaching; return the cluster's metadata, empty if this Ray cannot ask. Raises RayUnusable."""
    host, port = probe(address)
    if _keeps_to_loopback(host, port):
        # without the same variable as its head a driver hangs; Ray reads it at import
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    _authenticate()
    ray = import_ray()
    theirs: dict[str, Any] = _bounded(lambda: _metadata(address), PROBE_S, default={})
    ours = {"ray_version": ray.__version__, "python_version": ".".join(map(str, sys.version_info[:3]))}
    found = differences(theirs, ours)
    if found:
        raise RayUnusable(
            f"the Ray cluster at {address} cannot be attached to: {'; '.join(found)}. Set pool.python to an "
            f"interpreter that has Python {theirs['python_version']} and ray=={theirs['ray_version']} (the trainer's "
            "own will do: the pool needs no other package)"
        )
    return theirs


def import_ray() -> Any:
    """Return the module. Raises RayUnusable if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise RayUnusable(
            f"{sys.executable} has no Ray ({error}): `pip install 'rollout-farm[judge-pool]'`, or set pool.python to "
            "an interpreter that has it"
        ) from None
    return ray


def _metadata(address: str) -> dict[str, Any]:
    try:
        from ray._common.usage import usage_lib
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

        found: dict[str, Any] = usage_lib.get_cluster_metadata(GcsClient(address=address)) or {}
    except Exception as error:  # noqa: BLE001  private to Ray; ray.init compares again in any case
        _LOG.info("versions were not read before attaching: %s", error, extra={"action": "ray_metadata"})
        return {}
    return found


def _authenticate() -> None:
    """Load Ray's token: with an explicit address Ray does not look for it by itself."""
    has_token = (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or (Path.home() / ".ray" / "auth_token").exists()
    )
    if has_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _attach(cluster: Cluster) -> Any:
    assert cluster.address is not None  # noqa: S101  asked before
    check_versions(cluster.address)
    ray = import_ray()

    def attach() -> Exception | None:
        try:
            ray.init(address=cluster.address, namespace=cluster.namespace, log_to_driver=False, logging_level="error")
        except Exception as error:  # noqa: BLE001  carried to the caller's thread
            return error
        return None

    handed = _watchdog(ATTACH_S, f"attaching to Ray at {cluster.address} took longer than {ATTACH_S:.0f} s")
    try:
        error = attach()
    finally:
        handed.set()
    if error is not None:
        raise RayUnusable(f"Ray at {cluster.address} refused: {error}") from error
    return ray


def _start(cluster: Cluster, folder: Path) -> Any:
    if len(str(folder)) > LONGEST_TEMP_DIR:
        raise RayUnusable(f"pool.temp_dir {folder} is too long for Ray's sockets: at most {LONGEST_TEMP_DIR} bytes")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    if cluster.loopback:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = import_ray()
    sizes = {
        "num_cpus": cluster.num_cpus,
        "num_gpus": cluster.num_gpus,
        "resources": dict(cluster.resources) or None,
        "object_store_memory": cluster.object_store_bytes,
    }
    for attempt in range(1, cluster.start_attempts + 1):
        handed = _watchdog(cluster.start_timeout_s, f"Ray was not up after {cluster.start_timeout_s:.0f} s")
        try:
            ray.init(
                address="local",
                namespace=cluster.namespace,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=str(folder),
                **sizes,
            )
        except Exception as error:
            ray.shutdown()
            _LOG.warning("Ray did not start: %s", error, extra={"action": "ray_start_failed"})
            if attempt == cluster.start_attempts:
                raise RayUnusable(f"Ray did not start in {attempt} tries: {error}") from error
            time.sleep(2.0 * attempt)
        else:
            return ray
        finally:
            handed.set()
    raise RayUnusable("pool.start_attempts is 0")


def _watchdog(seconds: float, text: str) -> threading.Event:
    """End the process unless the event is set in time: nothing else interrupts Ray's own waiting."""
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            sys.stderr.write(f"error: {text}\n")
            sys.stderr.flush()
            os._exit(75)

    threading.Thread(target=watch, daemon=True, name="watchdog").start()
    return done


def _bounded(ask: Any, seconds: float, *, default: Any) -> Any:
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(ask()), daemon=True)
    asking.start()
    asking.join(seconds)
    return found[0] if found else default
