"""Rights of a client's Redis user, on a real server: its own channels only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from gym.client import connect_sync
from gym.client.exchange import RetryPolicy
from gym.client.farm import Farm
from gym.client.transport import SyncTransport
from gym.errors import Forbidden, Unauthorized, Unavailable
from gym.relay.frames import Asker, Channels
from gym.state.redis.keys import Keys

CHANNELS = Channels(prefix="farm")
KEYS = Keys("farm")
ONCE = RetryPolicy(retries=0)


@pytest.fixture
def trainer(redis_url: str, new_client: Callable[..., str]) -> Iterator[Any]:
    """Yield a plain Redis connection of a client's user."""
    with Redis.from_url(redis_url) as farm:
        farm.hset(KEYS.policies, "p", '{"api_key": "sk-very-secret"}')
        farm.hset(KEYS.batch("b").meta, "run", "r")
        farm.rpush("celery", "a job")
        farm.set("other:key", "1")
    with Redis.from_url(new_client(redis_url), protocol=2) as redis:
        yield redis


@pytest.mark.parametrize(
    "command",
    [
        ("HGETALL", KEYS.policies),
        ("HGETALL", KEYS.batch("b").meta),
        ("HSET", KEYS.batch("b").meta, "submitted", "0"),
        ("XADD", KEYS.batch("b").log, "*", "m", "0:0"),
        ("LRANGE", "celery", "0", "-1"),
        ("LPUSH", "celery", "{}"),
        ("GET", "other:key"),
        ("SET", "anything", "1"),
        ("EVAL", "return redis.call('KEYS', '*')", "0"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("MONITOR",),
        ("PUBSUB", "CHANNELS"),
        ("SELECT", "1"),
        ("SHUTDOWN",),
        ("PSUBSCRIBE", "*"),
        ("PSUBSCRIBE", "farm:0:relay:*"),
    ],
    ids=" ".join,
)
def test_a_clients_user_may_not_touch_what_is_not_its_own(trainer: Any, command: tuple[str, ...]) -> None:
    with pytest.raises(NoPermissionError):
        trainer.execute_command(*command)


@pytest.mark.parametrize(
    "channel",
    [
        CHANNELS.ask(Asker(scope="submit", name="another"), "s-1"),
        CHANNELS.tell("another", "line"),
        Channels(prefix="farm-b").ask(Asker(scope="submit", name="trainer"), "s-1"),
        Channels(prefix="farm", db=1).ask(Asker(scope="submit", name="trainer"), "s-1"),
        "celeryev/worker.heartbeat",
    ],
)
def test_a_clients_user_may_not_speak_or_listen_for_another(trainer: Any, channel: str) -> None:
    with pytest.raises(NoPermissionError):
        trainer.publish(channel, b"{}")
    with trainer.pubsub() as pubsub:
        pubsub.subscribe(channel)
        with pytest.raises(NoPermissionError):
            pubsub.get_message(timeout=10)


def test_a_client_does_nothing_that_its_user_may_not(redis_url: str, new_client: Callable[..., str]) -> None:
    with Redis.from_url(redis_url) as farm:
        farm.execute_command("ACL", "LOG", "RESET")
        with connect_sync(new_client(redis_url), retries=0) as client, pytest.raises(Unavailable, match="no farm"):
            client.queues()
        assert farm.execute_command("ACL", "LOG") == []


def test_a_user_that_redis_does_not_know_is_unauthorized(redis_url: str, new_client: Callable[..., str]) -> None:
    url = new_client(redis_url).replace("trainer:", "stranger:")
    with connect_sync(url) as client, pytest.raises(Unauthorized, match="farm redis-acl stranger") as caught:
        client.queues()
    assert caught.value.details == {"user": "stranger"}


def test_a_user_without_the_channels_is_forbidden(redis_url: str, new_client: Callable[..., str]) -> None:
    url = new_client(redis_url)
    with Redis.from_url(redis_url) as farm:
        farm.execute_command("ACL", "SETUSER", "trainer", "resetchannels")
    transport = SyncTransport(url, api_key=None, timeout_s=5, policy=ONCE)
    with Farm(transport) as client, pytest.raises(Forbidden, match="farm redis-acl trainer") as caught:
        client.queues()
    assert "a-password" not in str(caught.value)


def test_the_printed_line_is_one_that_redis_takes(redis_url: str, trainer: Any) -> None:
    with Redis.from_url(redis_url, decode_responses=True) as farm:
        user: Any = farm.acl_getuser("trainer")
    assert user["enabled"]
    assert user["keys"] == []
    assert sorted(user["channels"]) == ["&farm:0:relay:ask:submit:trainer:*", "&farm:0:relay:tell:trainer:*"]
    assert user["categories"] == ["-@all"]
    assert sorted(user["commands"]) == ["+publish", "+subscribe"]
    with pytest.raises(ResponseError):
        trainer.ping()
