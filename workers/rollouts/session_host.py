"""Environment sessions that this worker holds for trainers which keep their own loop.

Invariants: calls of one session run one after the other. A session that is unused for a while is closed, and all are
closed when the worker ends. A call that is sent again with the same key gets the first one's answer (idempotent).
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from gym.config import SessionSettings
from gym.environments.hosting.process_session import new_session
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import Registry
from gym.environments.tools import BadArguments
from gym.environments.values import BOUNDS, ValueBounds
from gym.errors import NotFound, RolloutError, VerifierFailed, text_of
from gym.jsontypes import JsonObject
from gym.judges.base import Ask
from gym.plain import exact_json
from gym.plain.values import utf8
from gym.state.assignments import SessionAssignment
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store
from gym.state.session_records import SessionRecord, Sessions, session_not_found
from gym.trajectory import Trajectory

LISTEN_S = 4.0
SWEEP_S = 1.0
COMPARE_S = 3.0
AGAIN_S = 0.5
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """An open session."""

    record: SessionRecord
    session: EnvironmentSession
    trajectory: Trajectory
    made: JsonObject
    used_at: float = field(default_factory=time.monotonic)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_key: str | None = None
    last_answer: JsonObject = field(default_factory=dict)


class SessionHost:
    """The handler of calls for this worker's sessions, on its event loop."""

    def __init__(
        self,
        store: Store,
        settings: SessionSettings,
        registry: Registry,
        executor: EnvironmentThreads,
        processes: EnvironmentProcesses,
        worker: str,
        bounds: ValueBounds = BOUNDS,
        *,
        compare_every_s: float = COMPARE_S,
    ) -> None:
        self._bounds = bounds
        self._compare_every_s = compare_every_s
        self._compare_at = 0.0
        self._making: set[str] = set()
        self._unknown: set[str] = set()
        self._sessions = Sessions(store)
        self._settings = settings
        self._registry = registry
        self._executor = executor
        self._processes = processes
        self._worker = worker
        self._open: dict[str, _Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unstruck: list[SessionRecord] = []

    def __len__(self) -> int:
        return len(self._open)

    async def run(self) -> None:
        """Take calls until cancelled."""
        loop = asyncio.get_running_loop()
        swept_at = loop.time()
        while True:
            try:
                for call in await self._sessions.calls(self._worker, wait_s=LISTEN_S if not self._open else SWEEP_S):
                    self._begin(self._serve(call))
            except RedisError as error:
                _LOG.warning("no session calls: %s", error, extra={"action": "redis_unavailable"})
                await asyncio.sleep(AGAIN_S)
            if loop.time() - swept_at >= SWEEP_S:
                swept_at = loop.time()
                self._begin(self._sweep())

    async def close(self) -> None:
        """Close every session; calls under way are cut."""
        for task in self._tasks:
            task.cancel()
        held = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*(each.session.close() for each in held), return_exceptions=True)
        if held:
            await self._strike(held)

    async def _strike(self, gone: list[_Open]) -> None:
        """Strike sessions off; failed changes are repeated at the next sweep. Without this worker they end anyway."""
        records = [*self._unstruck, *(each.record for each in gone)]
        self._unstruck = []
        try:
            await self._sessions.strike(records)
        except RedisError as error:
            self._unstruck += records
            _LOG.warning("sessions not struck off: %s", error, extra={"action": "redis_unavailable"})

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, call: JsonObject) -> None:
        """Serve one call, from its entry in the list to its answer."""
        try:
            async with asyncio.timeout(self._settings.call_timeout_s):
                answer = await self._answer(call)
        except TimeoutError:
            answer = _fault(
                503,
                "session_timeout",
                f"the environment did not answer within {self._settings.call_timeout_s:g} s (sessions.call_timeout_s)",
            )
        except NotFound as error:
            answer = _fault(404, error.code, error.message)
        except BadArguments as error:
            answer = _fault(422, "invalid_action", str(error))
        except RolloutError as error:
            answer = _fault(422, error.kind.value, error.message)
        except Exception as error:  # noqa: BLE001  the boundary of a call, as a rollout is one
            _LOG.exception("a session call failed", extra={"action": "session_internal"})
            answer = _fault(503, "internal", text_of(error))
        await self._send(call, answer)

    async def _send(self, call: JsonObject, answer: JsonObject) -> None:
        """Send the answer, or a fault if it cannot be written: the caller is never left waiting."""
        try:
            try:
                await self._sessions.answer(call["asker"], [{"call": call["call"], **answer}])
            except (TypeError, ValueError) as error:
                _LOG.exception("a session's answer cannot be written", extra={"action": "session_internal"})
                fault = _fault(503, "internal", f"the answer cannot be written: {text_of(error)}")
                await self._sessions.answer(call["asker"], [{"call": call["call"], **fault}])
        except RedisError as error:
            _LOG.warning("answer of a session lost: %s", error, extra={"action": "redis_unavailable"})
        except KeyError as error:
            _LOG.warning("a session call without %s was dropped", error, extra={"action": "session_internal"})

    async def _answer(self, call: JsonObject) -> JsonObject:
        if call["do"] == "open":
            record = SessionRecord(**call["record"])
            self._making.add(record.session_id)
            try:
                return await self._make(record, call["row"], call["seed"])
            finally:
                self._making.discard(record.session_id)
        held = self._open.get(call["session_id"])
        if held is None:
            raise session_not_found(call["session_id"])
        async with held.turn:
            if self._open.get(call["session_id"]) is not held:
                raise session_not_found(call["session_id"])
            key = call.get("key")
            if key is not None and key == held.last_key:
                return held.last_answer
            held.used_at = time.monotonic()
            answer = await self._act(held, call)
            held.used_at = time.monotonic()
            held.last_key, held.last_answer = key, answer
            return answer

    async def _make(self, record: SessionRecord, row: JsonObject, seed: int | None) -> JsonObject:
        if len(self._open) >= self._settings.max_per_worker:
            return _fault(503, "worker_full", f"this worker holds {len(self._open)} sessions already; try again")
        environment = self._registry.get(record.environment)
        session = new_session(
            environment,
            row,
            seed=seed if seed is not None else zlib.crc32(record.session_id.encode()),
            executor=self._executor,
            processes=self._processes,
            bounds=self._bounds,
        )
        try:
            await session.setup()
            observation = await session.observe()
        except BaseException:
            await session.close()
            raise
        params = row.get("responses_create_params")
        trajectory = Trajectory(params=params if isinstance(params, dict) else {})
        made: JsonObject = {"observation": observation, "tools": session.tools}
        self._open[record.session_id] = _Open(record, session, trajectory, made)
        return made

    async def _act(self, held: _Open, call: JsonObject) -> JsonObject:
        match call["do"]:
            case "describe":
                answer: JsonObject = held.made
            case "tool":
                text = exact_json.dumps(call["arguments"]).decode()
                outcome = await held.session.call_tool(call["tool"], text)
                held.trajectory.tool_calls.append(outcome)
                answer = {"output": outcome.output, "failed": outcome.failed}
            case "step":
                action, steps = call["action"], held.trajectory.steps
                step = await held.session.step(action)
                steps.append(step.taken(action, turn=len(steps)))
                answer = {
                    "observation": step.observation,
                    "reward": step.reward,
                    "done": step.done,
                    "truncated": step.truncated,
                    "info": step.info,
                }
            case "verify":
                held.trajectory.items = call["output"]
                held.trajectory.stop_reason = "completed"
                reward = await held.session.verify(held.trajectory)
                if isinstance(reward, Ask):
                    raise VerifierFailed("its verifier asks a judge, which is done for rollouts of a batch only")
                answer = {"reward": reward.value, "reward_components": reward.components}
            case "close":
                self._open.pop(held.record.session_id, None)
                await held.session.close()
                await self._sessions.strike([held.record])
                return {}
            case other:
                raise BadArguments(f"{other!r} is nothing that a session does")
        expires_at = await self._sessions.touch(held.record, idle_s=self._settings.idle_s)
        if expires_at is None:
            self._drop([held])
            raise session_not_found(held.record.session_id)
        return {**answer, "expires_at_ms": expires_at}

    async def compare_when_due(self, assigned: Sequence[SessionAssignment]) -> None:
        """Strike off assigned sessions that are not here, and close sessions that no longer have a record.

        A session is struck off only if it was unknown here at two comparisons: its first call may be on its way.
        """
        unknown = {each.session_id for each in assigned} - self._open.keys() - self._making
        gone = [each for each in assigned if each.session_id in unknown & self._unknown]
        if assigned:
            self._unknown = unknown
        if gone:
            _LOG.warning("%d sessions are not here", len(gone), extra={"action": "sessions_unheld"})
            await self._sessions.strike(gone)
        now = time.monotonic()
        if now >= self._compare_at:
            self._compare_at = now + self._compare_every_s
            lost = {record.session_id for record in await self._sessions.lost([each.record for each in self._held()])}
            self._drop([each for each in self._held() if each.record.session_id in lost])

    def _held(self) -> list[_Open]:
        """Return the sessions that no call uses now."""
        return [each for each in self._open.values() if not each.turn.locked()]

    def _drop(self, lost: Sequence[_Open]) -> None:
        """Close sessions whose record is gone: no call can find them any more."""
        for each in lost:
            if self._open.pop(each.record.session_id, None) is not None:
                self._begin(each.session.close())
        if lost:
            _LOG.warning("%d sessions have no record and are closed", len(lost), extra={"action": "sessions_void"})

    async def _sweep(self) -> None:
        """Close sessions that have been idle for too long."""
        now = time.monotonic()
        idle = [
            each
            for each in self._open.values()
            if not each.turn.locked() and now - each.used_at > self._settings.idle_s
        ]
        for each in idle:
            self._open.pop(each.record.session_id, None)
            await each.session.close()
        if idle:
            _LOG.info("%d idle sessions closed", len(idle), extra={"action": "sessions_expired"})
        if idle or self._unstruck:
            await self._strike(idle)


def _fault(status: int, code: str, message: str) -> JsonObject:
    return {"fault": {"status": status, "code": code, "message": utf8(message)}}
