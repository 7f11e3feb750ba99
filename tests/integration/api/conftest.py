"""The app against a real Redis, in this process or served by uvicorn; and a worker controlled by the test."""

from __future__ import annotations

import asyncio
import socket
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from gym.config import Settings
from gym.results.record import pack_trajectory
from gym.state.ledger.rollouts import Claim, Commit, Rollouts
from gym.state.redis.store import Store
from gym.trajectory import Segment

ROW: dict[str, Any] = {"environment": "weather", "responses_create_params": {"input": "Oslo?"}}
POLICY = {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m", "api_key": "sk-very-secret"}


@pytest.fixture
def row() -> dict[str, Any]:
    """Return a row that can be run."""
    return dict(ROW)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Small limits, and a registered default policy."""
    return Settings(
        data_dir=tmp_path,
        redis={"url": redis_url},
        api={"max_row_bytes": 4096, "max_body_bytes": 100_000, "max_backlog": 6000},
        policies={"policy": POLICY},
    )


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://farm", timeout=30) as client,
    ):
        yield client


@pytest.fixture
async def http(carrier: str, settings: Settings, new_client: Any, over_redis: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the app in this process, over HTTP and over Redis with only a client's rights.

    What the app does not catch is raised in the test, over HTTP.
    """
    app = create_app(settings)
    async with running(app) as client:
        if carrier == "http":
            yield client
            return
        url = new_client(settings.redis.url)
        async with httpx.AsyncClient(transport=over_redis(url), base_url="http://farm", timeout=30) as client:
            yield client


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the app behind a real server."""
    config = uvicorn.Config(
        create_app(settings), loop="asyncio", http="httptools", ws="none", lifespan="on", log_config=None,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server._serve([listener]))  # `serve` would take the process's signals
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
            yield client
        server.should_exit = True
        await task


@dataclass
class Worker:
    """Worker that claims and commits when the test says so."""

    store: Store

    async def claim(self, batch_id: str, most: int = 100) -> list[Claim]:
        rollouts = Rollouts(self.store)
        taken = await rollouts.take(batch_id, most)
        return await rollouts.claim(batch_id, "w1", [(item.member, item.attempt) for item in taken])

    async def end(self, claim: Claim, *, kind: str | None = None, reward: float = 1.0) -> None:
        """Commit a result; `kind` makes it a failure."""
        rollouts = Rollouts(self.store)
        attempts = [orjson.loads(line) for line in claim.tries.splitlines()]
        attempts.append({"attempt": claim.attempt, "worker": "w1", "kind": kind, "message": "m"})
        row = claim.member.partition(":")[0]
        record = {
            "rollout_id": f"{claim.batch_id}:{claim.member}",
            "batch_id": claim.batch_id,
            "run": claim.batch_id,
            "group_id": f"{claim.batch_id}:{row}",
            "task_id": claim.task_id,
            "sample_index": 0,
            "attempt": claim.attempt,
            "environment": claim.environment,
            "outcome": "failed" if kind else "succeeded",
            "stop_reason": "error" if kind else "completed",
            "error": {"kind": kind, "stage": "tool", "message": "m", "retryable": True, "attempts": attempts}
            if kind
            else None,
            "reward": None if kind else reward,
        }
        segment = Segment(array("i", [5, 6]), bytearray([0, 1]), array("f", [0.0, -0.5]), [(0, 2, 3)])
        sums = {"run": 1.0, "turns": 2.0} | (
            {} if kind else {"scored": 1.0, "reward": reward, "passed": float(reward >= 1)}
        )
        commit = Commit(
            outcome="failed" if kind else "succeeded",
            record=orjson.dumps(record),
            trajectory=b"" if kind else b"i" + pack_trajectory({"id": "resp"}, [], [segment]),
            usable=not kind,
            early_stop=0,
            sums=sums,
        )
        [answer] = await self.store.run_many([rollouts.commit_call(claim, commit)])
        assert answer[0] == 1

    async def until_blocked(self) -> None:
        """Return once a client waits in a blocking read."""
        async with asyncio.timeout(20):
            while True:
                clients = await self.store.redis.info("clients")
                if int(clients["blocked_clients"]):
                    return

    async def end_all(self, batch_id: str, **how: Any) -> int:
        claims = await self.claim(batch_id)
        for claim in claims:
            await self.end(claim, **how)
        return len(claims)


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[Worker]:
    """Return a worker controlled by the test."""
    store = Store.connect(redis_url)
    yield Worker(store)
    await store.close()
