"""Behaviour specific to clients over Redis; the other tests run over both transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from api.app import create_app
from gym.client import AsyncFarm, connect
from gym.config import ApiKey, Settings
from gym.errors import Forbidden, Unavailable
from gym.policy import PolicySpec

pytestmark = pytest.mark.anyio
NewClient = Callable[..., str]


@asynccontextmanager
async def answering(settings: Settings) -> AsyncIterator[Any]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def trainer(settings: Settings, new_client: NewClient) -> AsyncIterator[AsyncFarm]:
    assert settings.redis.url is not None
    async with answering(settings), connect(new_client(settings.redis.url)) as farm:
        yield farm


async def test_a_reader_may_follow_batches_and_change_nothing(
    settings: Settings, trainer: AsyncFarm, new_client: NewClient, row: dict[str, Any]
) -> None:
    batch = await trainer.submit([row], batch_id="b")
    async with connect(new_client(settings.redis.url, "watcher", "read")) as watcher:
        assert (await watcher.batch("b").status()).ledger.submitted == 1
        with pytest.raises(Forbidden, match="watcher has the scope read"):
            await watcher.batch("b").cancel()
        with pytest.raises(Forbidden):
            await watcher.submit([row])
        with pytest.raises(Forbidden):
            await watcher.put_policy("p", PolicySpec(base_urls=["http://127.0.0.1:9/v1"], model="m"))
    assert (await batch.status()).ledger.queued == 1
    assert len(await trainer.batches()) == 1


async def test_a_client_needs_no_api_key_where_others_do(
    settings: Settings, new_client: NewClient, row: dict[str, Any]
) -> None:
    keys = (ApiKey(key="a-key-of-16-bytes"),)
    guarded = settings.model_copy(update={"api": settings.api.model_copy(update={"keys": keys})})
    async with answering(guarded) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://farm") as http:
            assert (await http.get("/v1/batches")).status_code == 401
        async with connect(new_client(settings.redis.url)) as farm:
            await farm.submit([row], batch_id="b")
            assert [batch.batch_id for batch in await farm.batches()] == ["b"]


async def test_a_farm_that_wants_no_such_clients_does_not_listen(settings: Settings, new_client: NewClient) -> None:
    closed = settings.model_copy(update={"redis": settings.redis.model_copy(update={"clients": False})})
    async with answering(closed), connect(new_client(settings.redis.url), retries=0) as farm:
        with pytest.raises(Unavailable, match="no farm listens"):
            await farm.queues()


async def test_two_farms_on_one_redis_do_not_hear_each_others_clients(
    settings: Settings, trainer: AsyncFarm, redis_url: str, row: dict[str, Any]
) -> None:
    await trainer.submit([row], batch_id="b")
    other = settings.model_copy(update={"redis": settings.redis.model_copy(update={"prefix": "farm-b"})})
    async with answering(other), connect(f"{redis_url}?prefix=farm-b") as others:
        assert await others.batches() == []
        assert len(await trainer.batches()) == 1
        database = redis_url.rsplit("/", 1)[0] + "/7?prefix=farm-b"
        async with connect(database, retries=0) as nobody:
            with pytest.raises(Unavailable, match="no farm listens"):
                await nobody.batches()


async def test_a_password_is_never_in_an_error_or_a_log(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable) as caught:
        async with connect("redis://trainer:pass-word-1@127.0.0.1:1/0", retries=1) as farm:
            await farm.queues()
    assert "127.0.0.1:1" in str(caught.value)
    assert "pass-word-1" not in str(caught.value) + caplog.text


async def test_many_calls_wait_side_by_side(trainer: AsyncFarm, row: dict[str, Any]) -> None:
    batch = await trainer.submit([row], batch_id="b", sealed=False)
    waiting = [asyncio.create_task(batch.results().page(wait_s=50)) for _ in range(40)]
    done, _ = await asyncio.wait([asyncio.create_task(batch.status())], timeout=30)
    assert [task.result().ledger.submitted for task in done] == [1]
    await batch.cancel()
    async with asyncio.timeout(40):
        pages = await asyncio.gather(*waiting)
    assert {page[0].outcome for page in pages} == {"cancelled"}
