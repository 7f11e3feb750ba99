"""All judges of a process: who has an ask brings it here and gets the verdicts."""

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
    """Lives on one event loop, as an async context manager."""

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
        """A verdict for each question, in order; `instead` is asked in place of whom they name.

        `rivals` are, for each question, the group's other answers. Raises JudgeUnreachable, JudgeRefused or
        VerdictUnreadable, each where it is so for one of them.
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
        """When a judge gave an answer last, of `loop.time()`: a refusal or a 429 is one too, 5xx is not."""
        answered = self._calls[judge].answered_at if judge in self._calls else -math.inf
        return answered if answered > -math.inf else None

    def park(self, judge: str) -> None:
        """A judge keeps failing: what waits to be sent to it ends with JudgeParked."""
        if judge in self._calls:
            self._calls[judge].park()

    def reopen(self, judge: str) -> None:
        """A judge may work again: its replicas are tried at once."""
        if judge in self._calls:
            self._calls[judge].reopen()

    def load(self) -> dict[str, JsonObject]:
        """By judge: calls in flight and its replicas as this process sees them."""
        return {
            name: {"in_flight": calls.in_flight, "endpoints": calls.endpoints()} for name, calls in self._calls.items()
        }


async def _within(judge: Judge, case: Case) -> Verdict:
    """The verdict, or an error at the deadline, whatever the judge waits for; an error says which judge it was."""
    try:
        async with asyncio.timeout_at(case.deadline):
            return await judge.verdict(case)
    except TimeoutError:
        raise JudgeUnreachable(f"judge {judge.name!r} gave no verdict in time", judge=judge.name) from None
    except JudgeFailed as error:
        error.judge = judge.name
        raise
