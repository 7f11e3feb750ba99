"""The trainer's client of a farm; it needs httpx, orjson and pydantic, and no server package.

    async with connect("http://farm:8700", api_key=…) as farm:
        batch = await farm.submit(rows, run="grpo-a", policy="policy-a", num_samples=8)
        async for result in batch.results(view="training"):
            ...

`connect_sync` returns the same interface with blocking methods. Errors are those of `gym.errors`.
"""

from gym.client.calls import BatchOptions
from gym.client.datasets import read_rows, repeated, take
from gym.client.farm import AsyncBatch, AsyncFarm, AsyncResults, Batch, Farm, Results, connect, connect_sync
from gym.client.records import (
    Added,
    BatchStatus,
    EnvironmentInfo,
    Event,
    Lease,
    Page,
    Readiness,
    Result,
    RolloutFailure,
    Timing,
    View,
    read_result,
)
from gym.client.sessions import AsyncSession, Session, StepAnswer, ToolAnswer
from gym.rollout import Ledger, Outcome

__all__ = [
    "Added",
    "AsyncBatch",
    "AsyncFarm",
    "AsyncResults",
    "AsyncSession",
    "Batch",
    "BatchOptions",
    "BatchStatus",
    "EnvironmentInfo",
    "Event",
    "Farm",
    "Lease",
    "Ledger",
    "Outcome",
    "Page",
    "Readiness",
    "Result",
    "Results",
    "RolloutFailure",
    "Session",
    "StepAnswer",
    "Timing",
    "ToolAnswer",
    "View",
    "connect",
    "connect_sync",
    "read_result",
    "read_rows",
    "repeated",
    "take",
]
