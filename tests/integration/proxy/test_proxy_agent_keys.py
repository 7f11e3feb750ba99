"""Agents' keys at the proxy: good while their attempt runs, refused from the next call on once it does not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from gym.agents.outside.keys import AgentKeys, Grant, agent_secret
from gym.ids import RolloutRef, parse_rollout_id
from gym.state.ledger.batches import Batches
from gym.state.ledger.cancellation import StopCause
from gym.state.ledger.rollouts import Claim, Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio

BATCH = "agents"
ROLLOUT = f"{BATCH}:0:0"
ASKED = {"model": "any", "messages": [{"role": "user", "content": "What is 4 + 3 ="}]}
WITHIN_S = 5.0


class Running:
    """A rollout that a worker runs, and the key of its agent."""

    def __init__(self, store: Store, claim: Claim, http: httpx.AsyncClient, url: str) -> None:
        self.batches, self.rollouts = Batches(store), Rollouts(store)
        self.claim = claim
        self.store, self._http, self._url = store, http, url

    @classmethod
    async def begin(cls, store: Store, http: httpx.AsyncClient, url: str) -> Running:
        staging = Staging(store, BATCH)
        header = RowHeader(task_id=None, environment="said", num_samples=1)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")])
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="policy")
        await staging.publish(create=spec, seal=True)
        return cls(store, await cls._claim(store), http, url)

    @staticmethod
    async def _claim(store: Store) -> Claim:
        rollouts = Rollouts(store)
        taken = await rollouts.take(BATCH, 1)
        [claim] = await rollouts.claim(BATCH, "w", [(one.member, one.attempt) for one in taken])
        return claim

    async def claim_again(self) -> Claim:
        """Claim the retry of a failed attempt, as a worker does."""
        self.claim = await self._claim(self.store)
        return self.claim

    async def ask(self, attempt: int) -> httpx.Response:
        """Make a model call with the key of an attempt."""
        grant = Grant(rollout_id=ROLLOUT, attempt=attempt, policy="policy", max_calls=99, until=time.time() + 600)
        key = AgentKeys(await agent_secret(self.store)).issue(grant)
        path = f"{self._url}/rollouts/{ROLLOUT}/v1/chat/completions"
        return await self._http.post(path, json=ASKED, headers={"authorization": f"Bearer {key}"})


@pytest.fixture
async def running(farm: Any, http: httpx.AsyncClient, proxy: str) -> Running:
    return await Running.begin(farm.store, http, proxy)


async def cancel(running: Running) -> None:
    await running.batches.cancel_batch(BATCH)


async def cancel_one(running: Running) -> None:
    rollout = parse_rollout_id(ROLLOUT)
    assert isinstance(rollout, RolloutRef)
    await running.batches.cancel_rollout(rollout)


async def expire(running: Running) -> None:
    await running.batches.cancel_batch(BATCH, cause=StopCause.DEADLINE)


async def finish(running: Running) -> None:
    commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
    await running.store.run_many([running.rollouts.commit_call(running.claim, commit)])


async def fail(running: Running) -> None:
    await running.store.run_many([running.rollouts.retry_call(running.claim, b"{}", 0)])


@pytest.mark.parametrize("end", [cancel, cancel_one, expire, finish, fail])
async def test_a_key_is_refused_at_the_next_call_after_its_attempt_has_ended(running, model, end):
    assert (await running.ask(1)).status_code == 200
    await end(running)
    refused = await running.ask(1)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "attempt_over"
    assert model.stats["requests"] == 1


async def test_the_key_of_an_earlier_attempt_is_refused_while_a_later_one_runs(running, model):
    await fail(running)
    again = await running.claim_again()
    assert again.attempt == 2
    assert (await running.ask(1)).status_code == 403
    assert (await running.ask(2)).status_code == 200


async def test_a_call_under_way_ends_when_its_rollout_is_cancelled(running, model, eventually):
    model.behave(latency_s=30.0)
    call = asyncio.create_task(running.ask(1))
    await eventually(lambda: model.stats["requests"] == 1)
    await cancel(running)
    async with asyncio.timeout(WITHIN_S):
        assert (await call).status_code == 403
