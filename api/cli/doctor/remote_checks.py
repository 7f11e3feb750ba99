"""Checks of `farm doctor --url` on another machine: the network path, version, key and clock of the farm.

The opposite direction, from the farm to the policy's servers, is checked by `farm doctor` on the farm's machine.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from urllib.parse import urlsplit

import httpx

from api.cli.doctor.checks import WAIT_S, Check, Level, port_of

CLOCK_S = 5.0


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of a URL. Raises ValueError."""
    parts = urlsplit(url)
    if parts.hostname is None:
        raise ValueError(f"{url!r} is not a URL such as http://farm:8700")
    return parts.hostname, port_of(parts)


def is_apart(url: str) -> bool:
    """Return whether the URL is of another machine: none of its addresses can be bound here."""
    try:
        host, _ = address_of(url)
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, ValueError):
        return True
    return not any(_is_here(family, where) for family, _, _, _, where in found)


def check_way(url: str, proxy_port: int, api_key: str | None) -> Iterator[Check]:
    """Check the farm's two ports from here, and through the first one its version and the key."""
    try:
        host, port = address_of(url)
    except ValueError as error:
        yield Check(name="way to the farm", level=Level.FAIL, seen=str(error), advice="give --url http://FARM:8700")
        return
    closed = check_open("way to the api", host, port)
    yield closed
    yield check_open("way to the proxy", host, proxy_port, needed=False)
    if closed.level == Level.OK:
        yield check_version(url)
        yield check_key(url, api_key)


def check_open(name: str, host: str, port: int, *, needed: bool = True) -> Check:
    """Check that a TCP port of another machine can be reached from this one."""
    try:
        with socket.create_connection((host, port), WAIT_S):
            return Check(name=name, level=Level.OK, seen=f"TCP port {port} of {host} is open to this machine")
    except OSError as error:
        seen = f"TCP port {port} of {host}: {error.strerror or 'no answer'}"
    advice = f"open TCP port {port} of {host} to this machine; does the farm run there, with `--host 0.0.0.0`?"
    if needed:
        return Check(name=name, level=Level.FAIL, seen=seen, advice=advice)
    return Check(name=name, level=Level.WARN, seen=seen, advice=f"{advice} Only agents outside the farm need it.")


def check_version(url: str) -> Check:
    """Check that both sides run the same release."""
    here = version("rollout-farm")
    try:
        there = str(httpx.get(f"{url.rstrip('/')}/openapi.json", timeout=WAIT_S).json()["info"]["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        seen = f"{url} does not report its version: {type(error).__name__}"
        return Check(name="version", level=Level.WARN, seen=seen, advice="is it the farm's address?")
    if there == here:
        return Check(name="version", level=Level.OK, seen=f"{here} on both sides")
    seen = f"{here} here, {there} there"
    return Check(name="version", level=Level.WARN, seen=seen, advice="install the farm's version on this side")


def check_key(url: str, api_key: str | None) -> Check:
    """Check that the farm accepts the key, or needs none."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        status = httpx.get(f"{url.rstrip('/')}/v1/policies", headers=headers, timeout=WAIT_S).status_code
    except httpx.HTTPError as error:
        return Check(name="key", level=Level.FAIL, seen=str(error) or type(error).__name__, advice="ask again")
    if status == 401:
        seen = "the key is unknown to the farm" if api_key else "the farm needs a key, and none was given"
        return Check(
            name="key", level=Level.FAIL, seen=seen, advice="give --api-key or FARM_API_KEY, as in FARM_API_KEYS"
        )
    if status == 403:
        advice = "ask for a key with the scope `read` or `submit`"
        return Check(name="key", level=Level.FAIL, seen="its scopes do not cover reading policies", advice=advice)
    if status != 200:
        return Check(name="key", level=Level.FAIL, seen=f"{url} answers {status}", advice="is it the farm's address?")
    return Check(name="key", level=Level.OK, seen="the farm accepts it" if api_key else "the farm needs none")


def check_clock(url: str) -> Check:
    """Compare this machine's clock with the farm's, to the second that HTTP's `Date` has."""
    try:
        stamp = httpx.get(f"{url}/healthz", timeout=WAIT_S).headers.get("date", "")
        offset_s = time.time() - parsedate_to_datetime(stamp).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError):
        return Check(name="clock", level=Level.OK, seen="not compared: the farm does not answer or gives no date")
    return clock_check(offset_s)


def clock_check(offset_s: float) -> Check:
    """Check a clock offset in seconds. Pure."""
    if abs(offset_s) > CLOCK_S:
        advice = "synchronize both by NTP: otherwise timestamps of results and of training do not match"
        return Check(name="clock", level=Level.WARN, seen=f"{offset_s:+.0f} s from the farm's", advice=advice)
    return Check(name="clock", level=Level.OK, seen=f"within {CLOCK_S:.0f} s of the farm's")


def _is_here(family: int, where: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as bound:
            bound.bind((where[0], 0))
    except OSError:
        return False
    return True
