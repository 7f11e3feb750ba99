"""Host names and origins that a farm without API keys answers."""

from __future__ import annotations

from typing import Any

import pytest

from api.trusted_hosts import TrustedHosts, trusted_hosts
from gym.config import load_settings
from gym.errors import Forbidden, Misdirected

KEYS = [{"key": "k" * 20}]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """App that is never called here."""


def _check(*headers: tuple[str, str], **settings: Any) -> None:
    guard = trusted_hosts(app, load_settings(**settings))
    assert isinstance(guard, TrustedHosts)
    guard.check([(name.encode(), value.encode("latin-1")) for name, value in headers])


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8700", "127.0.0.1:8700", "127.9.9.9", "[::1]:8700", "[::1]", "localhost."]
)
def test_loopback_names_are_answered(host):
    _check(("host", host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8700",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.5:8700",
        "0.0.0.0",
        "[::ffff:10.0.0.5]",
        "farm",
        "user@localhost",
        "localhost:8700/x",
        "localhost:port",
        "evil.example#localhost",
        "",
        "xn--loclhost-2za",
    ],
)
def test_other_names_are_misdirected(host):
    with pytest.raises(Misdirected, match=r"api\.trusted_hosts"):
        _check(("host", host))


def test_a_request_without_a_host_or_with_two_is_misdirected():
    with pytest.raises(Misdirected):
        _check()
    with pytest.raises(Misdirected):
        _check(("host", "localhost"), ("host", "evil.example"))


def test_names_of_the_settings_are_answered():
    _check(("host", "farm.example:8700"), api={"trusted_hosts": ["Farm.example"]})
    _check(("host", "host.docker.internal:8701"), proxy={"url": "http://host.docker.internal:8701"})


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:8700", "http://[::1]", "https://localhost"]
)
def test_a_page_of_this_machine_may_ask(origin):
    _check(("host", "localhost:8700"), ("origin", origin), ("sec-fetch-site", "same-site"))


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "http://localhost.evil.example", "", "x"])
def test_a_page_of_another_site_is_forbidden(origin):
    with pytest.raises(Forbidden, match="web page"):
        _check(("host", "localhost:8700"), ("origin", origin))


@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket", ""])
def test_what_another_site_embeds_is_forbidden_though_it_has_no_origin(mode):
    with pytest.raises(Forbidden):
        _check(("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", mode))


def test_a_link_on_another_site_may_be_followed():
    _check(("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"))


def test_with_keys_every_name_is_answered():
    assert trusted_hosts(app, load_settings(host="0.0.0.0", api={"keys": KEYS})) is app


def test_a_host_that_was_good_before_lets_nothing_else_pass() -> None:
    guard = TrustedHosts(app, ("127.0.0.1",))
    for _ in range(2):
        guard.check([(b"host", b"localhost:8700"), (b"accept", b"*/*")])
    with pytest.raises(Misdirected):
        guard.check([(b"host", b"localhost:8700"), (b"host", b"evil.example")])
    with pytest.raises(Misdirected):
        guard.check([(b"host", b"localhost:8701.evil.example")])
    with pytest.raises(Forbidden):
        guard.check([(b"host", b"localhost:8700"), (b"origin", b"https://evil.example")])
    with pytest.raises(Forbidden):
        guard.check([(b"host", b"localhost:8700"), (b"sec-fetch-site", b"cross-site")])
