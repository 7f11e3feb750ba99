"""The URL of Celery's Redis."""

from __future__ import annotations

import pytest

from gym.config import broker_url
from gym.errors import SettingsError
from gym.state.settings import RedisSettings


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://:secret@127.0.0.1:6379/0", "redis://:secret@127.0.0.1:6379/1"),
        ("redis://redis.example.com", "redis://redis.example.com/1"),
        (
            "rediss://user:secret@redis:6380/3?ssl_cert_reqs=none",
            "rediss://user:secret@redis:6380/4?ssl_cert_reqs=none",
        ),
        ("redis://redis?db=4", "redis://redis?db=5"),
    ],
)
def test_the_broker_is_the_next_database(url: str, broker: str) -> None:
    assert broker_url(RedisSettings(url=url)) == broker


def test_a_broker_that_is_given_wins() -> None:
    given = "redis://elsewhere/0"
    assert broker_url(RedisSettings(url="redis://here/0", broker_url=given)) == given


@pytest.mark.parametrize("url", [None, "redis://h/name", "unix:///run/redis.sock"])
def test_a_broker_that_cannot_be_derived_is_an_error(url: str | None) -> None:
    with pytest.raises(SettingsError):
        broker_url(RedisSettings(url=url))
