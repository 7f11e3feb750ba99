"""Checks of `farm doctor`: one small function per check, each with bounded waits, none of which raises."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import httpx

from gym.client import connect_sync
from gym.errors import FarmError, SettingsError, Unavailable

if TYPE_CHECKING:
    from gym.config import Settings

HTTP_PORTS = {"http": 80, "https": 443}
WAIT_S = 3.0
OLDEST_PYTHON = (3, 11)
OLDEST_REDIS = (6, 2)


class Level(StrEnum):
    """Outcome of a check; only `fail` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Result of one check: its name, the observation, and advice (empty if none is needed)."""

    name: str
    level: Level
    seen: str
    advice: str = ""


def check_python() -> Check:
    """Check the version of Python."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        return _fail("python", version, f"install Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later")
    return _ok("python", version)


def check_packages() -> Check:
    """Check for the packages that a farm needs in addition to the client's."""
    missing = [name for name in ("celery", "fastapi", "uvicorn", "aiohttp") if find_spec(name) is None]
    if missing:
        return _warn(
            "packages",
            f"not installed: {', '.join(missing)}",
            "this machine can only be a client; `pip install 'rollout-farm[farm]'` makes it a farm",
        )
    return _ok("packages", "api and workers can run here")


def check_redis(settings: Settings) -> Iterator[Check]:
    """Check that Redis answers, is new enough, and is durable."""
    url = settings.redis.url
    if url is None:
        from gym.state.redis.embedded import embedded_url, find_server

        try:
            server = find_server()
            yield _ok("redis server", f"{server.path}, version {server.version}")
        except SettingsError as error:
            yield _fail("redis server", "none on this machine", str(error))
        if not (settings.data_dir / "redis" / "url").exists():
            yield _ok("redis", f"not started yet; `farm up` keeps its data in {settings.data_dir}")
            return
        try:
            url = embedded_url(settings.data_dir, timeout_s=0)
        except SettingsError:
            yield _warn("redis", f"the server of {settings.data_dir} is not running", "start the farm: `farm up`")
            return
    yield from _redis_at(url)


def _redis_at(url: str) -> Iterator[Check]:
    from gym.state.redis.driver import NoBackoff, NoPermissionError, Redis, RedisError, Retry
    from gym.state.redis.eviction import eviction_policy

    where = urlsplit(url).hostname or url.partition("://")[0]
    try:
        client = Redis.from_url(url, socket_timeout=WAIT_S, socket_connect_timeout=WAIT_S, retry=Retry(NoBackoff(), 0))
    except ValueError as error:
        yield _fail("redis", f"its URL cannot be used: {error}", "give redis://[:PASSWORD@]HOST:PORT/DATABASE")
        return
    policy = None
    try:
        client.ping()
        policy = eviction_policy(client)
        info: dict[str, object] | None = client.info()
    except NoPermissionError:
        yield _warn("redis", f"{where} answers, but the user may not run INFO", "permit INFO, or ask the administrator")
        info = None
    except RedisError as error:
        yield _fail("redis", f"{where} does not answer: {error}", "check redis.url (FARM_REDIS_URL) and its password")
        return
    finally:
        client.close()
    yield memory_check(policy)
    if info is not None:
        yield from redis_checks(info, where)


def redis_checks(info: dict[str, object], where: str) -> Iterator[Check]:
    """Check a server's version and durability by its INFO. Pure."""
    version = str(info.get("valkey_version") or info.get("redis_version") or "?")
    compatible = tuple(int(part) for part in str(info.get("redis_version", "0.0")).split(".")[:2])
    if compatible < OLDEST_REDIS:
        yield _fail("redis", f"{where} runs version {version}", "use Redis 6.2 or later, or Valkey")
    else:
        yield _ok("redis", f"{where} answers, version {version}")
    if str(info.get("aof_enabled")) == "1":
        yield _ok("redis persistence", "append-only file is on")
    else:
        yield _warn(
            "redis persistence",
            "append-only file is off: batches since the last snapshot are lost when it crashes",
            "set `appendonly yes`",
        )


def memory_check(policy: str | None) -> Check:
    """Check that a full server refuses writes rather than drop keys; `policy` is None if it is unknown. Pure."""
    from gym.state.redis.eviction import NEEDED, explain

    if policy is None:
        return _warn("redis memory", "its maxmemory-policy cannot be read", f"see that it is {NEEDED}")
    if policy == NEEDED:
        return _ok("redis memory", f"{NEEDED}: nothing is dropped when it is full")
    return _fail("redis memory", explain(policy), f"set `maxmemory-policy {NEEDED}`")


def check_api(url: str, api_key: str | None) -> Check:
    """Check that the farm answers and is ready."""
    try:
        with connect_sync(url, api_key=api_key, timeout_s=WAIT_S, retries=0) as farm:
            readiness = farm.ready()
    except Unavailable:
        return _warn("api", f"nobody answers at {url}", "start the farm: `farm up`; or give its address with --url")
    except FarmError as error:
        return _fail("api", str(error), f"is {url} the farm's address?")
    if readiness.ready:
        return _ok("api", f"{url} is ready")
    missing = readiness.raw.get("missing") or (readiness.raw.get("error") or {}).get("message") or readiness.raw
    return _fail("api", f"{url} is not ready: {missing}", "see the log of the process that is missing")


def check_environments(settings: Settings, url: str, api_key: str | None) -> Iterator[Check]:
    """Report environments that cannot be loaded, by the running farm or else on this machine."""
    try:
        with connect_sync(url, api_key=api_key, timeout_s=WAIT_S, retries=0) as farm:
            listed = [(each.name, each.error) for each in farm.environments()]
            seen_by = "the farm"
    except FarmError:
        from gym.environments.registry import load_registry

        listed = [
            (str(each["name"]), each.get("error"))
            for each in load_registry(settings.environments, sandbox=settings.sandbox).describe()
        ]
        seen_by = "this machine"
    broken = [(name, error) for name, error in listed if error]
    for name, error in broken:
        if str(error).startswith("SandboxUnavailable"):
            yield _warn(f"environment {name}", f"{seen_by} has no sandbox for it", "see the check of the sandbox")
            continue
        yield _fail(
            f"environment {name}", f"{seen_by} cannot load it: {error}", "fix it, or remove it from the settings"
        )
    yield _ok("environments", f"{seen_by} can load {', '.join(name for name, error in listed if not error) or 'none'}")


def check_sandbox(settings: Settings) -> Check:
    """Check that a sandbox works on this machine."""
    from gym.sandbox.base import SandboxUnavailable
    from gym.sandbox.choose import find_provider

    try:
        provider = find_provider(settings.sandbox)
    except SandboxUnavailable as error:
        advice = (
            "install bubblewrap and allow user namespaces, or provide a Docker engine; "
            "otherwise code environments are disabled"
        )
        return _warn("sandbox", str(error), advice)
    return _ok("sandbox", f"{provider.name} works")


def check_policies(settings: Settings, url: str, api_key: str | None) -> Iterator[Check]:
    """Check the endpoints of the policies in the settings and of those registered with the farm."""
    endpoints = {
        (name, base_url): policy.api_key for name, policy in settings.policies.items() for base_url in policy.base_urls
    }
    try:
        with connect_sync(url, api_key=api_key, timeout_s=WAIT_S, retries=0) as farm:
            for policy in farm.policies():
                for base_url in policy.get("base_urls") or ():
                    endpoints.setdefault((str(policy.get("name")), base_url), None)
    except FarmError:
        pass  # reported by the check of the api
    if not endpoints:
        yield _warn(
            "policies",
            "none is configured",
            "register one with PUT /v1/policies/NAME or in the settings; `farm mock-model` serves one to try",
        )
    for (name, base_url), key in endpoints.items():
        yield check_endpoint(name, base_url, key)


def port_of(parts: SplitResult) -> int:
    """Return the TCP port of a URL, by default its scheme's. Raises ValueError."""
    return parts.port or HTTP_PORTS.get(parts.scheme, 80)


def server_fault(root: str, api_key: str | None) -> str:
    """Return why a server answers neither `/health` nor `/v1/models` below `root` with 200; empty if one does."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    seen = ""
    for path in ("/health", "/v1/models"):
        try:
            with httpx.stream("GET", root + path, headers=headers, timeout=WAIT_S) as answer:  # the body is not read
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            seen = str(error) or type(error).__name__
            continue
        if status == 200:
            return ""
        seen = f"{path} is answered {status}"
    return seen


def check_endpoint(name: str, base_url: str, api_key: str | None) -> Check:
    """Check that a model server answers: `/health` beside its `/v1`, else `/v1/models`."""
    root = base_url.removesuffix("/").removesuffix("/v1")
    seen = server_fault(root, api_key)
    if not seen:
        return _ok(f"policy {name}", f"{base_url} answers")
    parts = urlsplit(root)
    port = f"TCP port {port_of(parts)} of {parts.hostname}"
    advice = f"is the model server up, and reachable from this machine? If it is up, open {port} to this machine"
    return _fail(f"policy {name}", f"{base_url}: {seen}", advice)


def check_ports(settings: Settings) -> Iterator[Check]:
    """Check that the farm's ports are free, or in use by the farm itself."""
    wanted = [("api", settings.api.port, "/healthz"), ("proxy", settings.proxy.port, "/healthz")]
    if settings.flower.enabled:
        wanted.append(("flower", settings.flower.port, f"{settings.flower.url_prefix}/healthcheck"))
    for name, port, path in wanted:
        yield check_port(name, settings.host, port, path)


def check_port(name: str, host: str, port: int, path: str) -> Check:
    """Check that a port can be bound, or that the process listening there answers as the farm does."""
    title = f"port {name}"
    if port == 0:
        return _ok(title, "any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        if _answers(f"{local_url(host, port)}/{path.lstrip('/')}"):
            return _ok(title, f"{port}, in use by the farm")
        return _fail(title, f"{host}:{port} cannot be used: {error.strerror}", f"free it, or give another {name} port")
    return _ok(title, f"{port} is free")


def local_url(host: str, port: int) -> str:
    """Return the URL by which this machine reaches a listening address."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  compared, not bound
    return f"http://{reached}:{port}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=WAIT_S).status_code == 200
    except httpx.HTTPError:
        return False


def _ok(name: str, seen: str) -> Check:
    return Check(name=name, level=Level.OK, seen=seen)


def _warn(name: str, seen: str, advice: str) -> Check:
    return Check(name=name, level=Level.WARN, seen=seen, advice=advice)


def _fail(name: str, seen: str, advice: str) -> Check:
    return Check(name=name, level=Level.FAIL, seen=seen, advice=advice)
