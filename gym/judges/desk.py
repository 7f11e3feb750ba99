"""All judges of a process: takes an ask and returns the verdicts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from gym.errors import JudgeFailed, JudgeUnreachable
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Case, Judge, Question, Verdict
from gym.judges.cache import VerdictCache, VerdictStore
from gym.judges.calls import JudgeCalls, together
from gym.judges.registry import make_judge
from gym.judges.settings import JudgeSettings
from gym.model_client.http.hosts import EVERY_HOST, HostRules
from gym.model_client.routing.served_model import ModelSource


class Desk:
    """Judges by name, as an async context manager on one event loop."""

    def __init__(
        self,
        judges: Mapping[str, JudgeSettings],
        replicas: ModelSource,
        *,
        published_version: Callable[[str], str] = lambda _: "",
        store: VerdictStore | None = None,
        hosts: HostRules = EVERY_HOST,
    ) -> None:
        self.settings = judges
        self._calls = {
            name: JudgeCalls(name, settings, replicas, published_version=published_version, hosts=hosts)
            for name, settings in judges.items()
        }
        self._judges: dict[str, Judge] = {
            name: make_judge(settings, self._calls[name], VerdictCache(name, store if settings.cache else None))
            for name, settings in judges.items()
        }
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for calls in self._calls.values():
            await self._exits.enter_async_context(calls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def verdicts(
        self,
        ask: Ask,
        *,
        deadline: float,
        request_id: str,
        instead: str | None = None,
        rivals: Sequence[Sequence[Question]] = (),
        fresh: bool = False,
    ) -> list[Verdict]:
        """Return a verdict for each question, in order; `instead` replaces the judge that the questions name.

        `rivals` are, for each question, the other answers of the group. Raises JudgeUnreachable, JudgeRefused or
        VerdictUnreadable if one question fails.
        """
        asking = []
        for number, question in enumerate(ask.questions):
            name = instead or question.judge
            judge = self._judges.get(name)
            if judge is None:
                raise JudgeUnreachable(
                    f"there is no judge {name!r}; the settings have {', '.join(sorted(self._judges)) or 'none'}",
                    judge=name,
                )
            case = Case(
                question,
                deadline,
                f"{request_id}-q{number}",
                rivals[number] if number < len(rivals) else (),
                fresh,
            )
            asking.append(_within(judge, case))
        return await together(asking)

    def answered_at(self, judge: str) -> float | None:
        """Return the `loop.time()` of a judge's last answer: refusals and 429 count, 5xx do not."""
        answered = self._calls[judge].answered_at if judge in self._calls else -math.inf
        return answered if answered > -math.inf else None

    def park(self, judge: str) -> None:
        """Fail the calls that wait for a judge with JudgeParked, since it keeps failing."""
        if judge in self._calls:
            self._calls[judge].park()

    def reopen(self, judge: str) -> None:
        """Try a judge's replicas again at once, since it may work again."""
        if judge in self._calls:
            self._calls[judge].reopen()

    def load(self) -> dict[str, JsonObject]:
        """Return by judge: calls in flight, and its replicas as this process sees them."""
        return {
            name: {"in_flight": calls.in_flight, "endpoints": calls.endpoints()} for name, calls in self._calls.items()
        }


async def _within(judge: Judge, case: Case) -> Verdict:
    """Return the verdict, or raise at the deadline; errors name the judge."""
    try:
        async with asyncio.timeout_at(case.deadline):
            return await judge.verdict(case)
    except TimeoutError:
        raise JudgeUnreachable(f"judge {judge.name!r} gave no verdict in time", judge=judge.name) from None
    except JudgeFailed as error:
        error.judge = judge.name
        raise
