"""Circuit breakers: rollouts that depend on failing infrastructure are parked for a while.

There is a breaker for each policy, environment and judge that has failed lately. It opens after a number of consecutive
failures of any rollouts. After a pause one rollout is let through as a probe. Its success closes the breaker, its
failure doubles the next pause. Any sign of life closes it, the probe's or another's.

Invariants: every change is one script; a success costs nothing here unless there were failures. Parking changes no
state: a parked rollout is `queued`, or `judging` if its judge fails. It can be cancelled, expires as usual, and is
probed for as long as it waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gym.model_client.routing.served_model import inline_model
from gym.policy import PolicySpec
from gym.state.batch_spec import SPEC_FIELD, read_spec
from gym.state.ledger.judging import waiting_of
from gym.state.redis.store import BREAKER, Argument, ScriptCall, Store
from gym.state.redis.unreadable import read_object, read_or_none
from gym.state.settings import BreakerSettings

PROBE_TTL_S = 120.0  # after which a probe without a report counts as lost


class BreakerKind(StrEnum):
    """Kind of infrastructure that a breaker guards."""

    POLICY = "policy"
    ENVIRONMENT = "environment"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class BreakerKey:
    """One policy, environment or judge; an inline policy has the name of its record."""

    kind: BreakerKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}|{self.name}"

    @classmethod
    def parse(cls, text: str) -> BreakerKey:
        """Return the key that `str` gives."""
        kind, _, name = text.partition("|")
        return cls(BreakerKind(kind), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """A breaker with consecutive failures; times in ms of the server's clock, `opened_at` None while closed.

    `stage` and `error` are those of the last failure that counted.
    """

    key: BreakerKey
    failures: int
    stage: str
    error: str
    opened_at: int | None
    next_probe_at: int

    @property
    def open(self) -> bool:
        return self.opened_at is not None


@dataclass(frozen=True, slots=True)
class Casualty:
    """An attempt that failed because of infrastructure, as the breaker remembers it.

    `token` is the claim's. All tries of one judging share a token and count once, but not as a probe.
    """

    batch_id: str
    member: str
    attempt: int
    token: str

    def __str__(self) -> str:
        return f"{self.batch_id} {self.member} {self.attempt} {self.token}"

    @classmethod
    def parse(cls, text: str) -> Casualty:
        """Return the casualty that `str` gives."""
        batch_id, member, attempt, token = text.split(" ")
        return cls(batch_id, member, int(attempt), token)


@dataclass(frozen=True, slots=True)
class BreakerResponse:
    """Response to a reported failure: whether the breaker is open now, and whether this failure opened it.

    `before` are the failures that led to it; each cost its rollout an attempt, which is to be refunded.
    """

    open: bool
    opened: bool
    before: list[Casualty]


@dataclass(frozen=True, slots=True)
class ParkedCounts:
    """Number of a batch's rollouts that are parked, queued or judging, and the open breakers that hold them."""

    count: int = 0
    reasons: tuple[Breaker, ...] = ()


class Breakers:
    """Reader of breakers, and the calls that change them."""

    def __init__(self, store: Store, settings: BreakerSettings) -> None:
        self._store = store
        self._settings = settings

    async def all(self) -> list[Breaker]:
        """Return every breaker with consecutive failures, open or not."""
        return read_breakers(await self._store.redis.hgetall(self._store.keys.breakers))

    def fail_call(
        self, key: BreakerKey, who: Casualty, *, seen_s: float | None, probe: bool, stage: str, error: str
    ) -> ScriptCall:
        """Count a failure; `seen_s` is how long ago the caller saw it work. The answer is read by `failed`."""
        seen_ms = -1 if seen_s is None else int(seen_s * 1000)
        return self._call("fail", key, [str(who), self._settings.failures, seen_ms, int(probe), stage, error[:500]])

    @staticmethod
    def failed(answer: Sequence[Any]) -> BreakerResponse:
        """Read the answer to `fail_call`."""
        texts = [text.decode(errors="backslashreplace") for text in answer[2:]]
        casualties = [read_or_none("casualty", text, Casualty.parse, text) for text in texts]
        before = [casualty for casualty in casualties if casualty is not None]
        return BreakerResponse(open=answer[0] > 0, opened=answer[0] == 2, before=before)

    async def alive(self, key: BreakerKey) -> bool:
        """Report a sign of life: close the breaker, or forget its failures. Return whether it was open."""
        return bool((await self._run("alive", key))[0])

    async def may_probe(self, key: BreakerKey) -> bool:
        """Return whether one rollout may probe an open breaker; no other may until that one failed or got lost."""
        return bool((await self._run("probe", key, int(PROBE_TTL_S * 1000)))[0])

    async def probe_missed(self, key: BreakerKey) -> None:
        """Report a probe that ended inconclusively; another one goes after the same pause."""
        await self._run("missed", key)

    async def probe_soon(self, key: BreakerKey) -> None:
        """Probe at once, since something has changed."""
        await self._run("soon", key)

    async def sweep(self) -> None:
        """Forget breakers that have been closed for long."""
        for name in await self._store.redis.hkeys(self._store.keys.breakers):
            key = read_or_none("breaker", name, BreakerKey.parse, name.decode(errors="backslashreplace"))
            if key is not None:
                await self._run("sweep", key)

    async def _run(self, what: str, key: BreakerKey, *args: Argument) -> Any:
        call = self._call(what, key, args)
        return await self._store.run(call.script, call.keys, call.args)

    def _call(self, what: str, key: BreakerKey, args: Sequence[Argument]) -> ScriptCall:
        first = int(self._settings.probe_after_s * 1000)
        longest = max(first, int(self._settings.max_probe_after_s * 1000))
        return ScriptCall(BREAKER, [self._store.keys.breakers], [what, str(key), first, longest, *args])


def read_breakers(stored: Mapping[bytes, bytes]) -> list[Breaker]:
    """Return the breakers with consecutive failures."""
    breakers = []
    for name, text in sorted(stored.items()):
        breaker = read_or_none("breaker", name, read_breaker, name, text)
        if breaker is not None and breaker.failures:
            breakers.append(breaker)
    return breakers


def read_breaker(name: bytes, text: bytes) -> Breaker:
    """Return a breaker, perhaps without failures. Raises a decode error."""
    record = read_object(text)
    streak = record.get("streak") or ()
    return Breaker(
        key=BreakerKey.parse(name.decode()),
        failures=len(streak),
        stage=str(record["stage"]) if streak else "",
        error=str(record["error"]) if streak else "",
        opened_at=int(record["opened_at"]) if "opened_at" in record else None,
        next_probe_at=int(record.get("next_probe_at", 0)),
    )


def policy_key(policy: str | PolicySpec | None) -> BreakerKey:
    """Return the key of a batch's policy."""
    name = inline_model(policy).name if isinstance(policy, PolicySpec) else policy or ""
    return BreakerKey(BreakerKind.POLICY, name)


def environment_key(name: str) -> BreakerKey:
    return BreakerKey(BreakerKind.ENVIRONMENT, name)


def judge_key(name: str) -> BreakerKey:
    return BreakerKey(BreakerKind.JUDGE, name)


def parked_field(environment: str) -> str:
    """Return the field of a batch's `meta` that counts the parked rollouts of an environment."""
    return f"parked|{environment}"


def parked_in(
    waiting: int,
    policy: BreakerKey,
    counted: Mapping[str, int],
    breakers: Sequence[Breaker],
    judged: Mapping[str, int],
) -> ParkedCounts:
    """Count the parked rollouts among `waiting` (queued and not in Celery), `counted` by environment.

    `judged` are those that wait for judges, by judge.
    """
    is_open = {breaker.key: breaker for breaker in breakers if breaker.open}
    held = _held(is_open, {environment_key(name): number for name, number in counted.items()})
    if policy in is_open:
        held = {is_open[policy].key: waiting, **dict.fromkeys(held, 0)} if waiting else {}
    held |= _held(is_open, {judge_key(name): number for name, number in judged.items()})
    return ParkedCounts(sum(held.values()), tuple(is_open[key] for key in held))


def _held(is_open: Mapping[BreakerKey, Breaker], numbers: Mapping[BreakerKey, int]) -> dict[BreakerKey, int]:
    return {key: number for key, number in numbers.items() if number and key in is_open}


async def parked_now(store: Store, batch_id: str, breakers: Sequence[Breaker]) -> ParkedCounts:
    """Return a batch's parked rollouts at this moment."""
    names = open_names(breakers, BreakerKind.ENVIRONMENT)
    fields = [SPEC_FIELD, "queued", "dispatched", *map(parked_field, names)]
    keys = store.keys.batch(batch_id)
    pipeline = store.redis.pipeline(transaction=False)
    pipeline.hmget(keys.meta, fields)
    if open_names(breakers, BreakerKind.JUDGE):
        pipeline.hgetall(keys.judges)
    answers = await pipeline.execute(raise_on_error=False)
    return read_or_none("batch", batch_id, _parked_of, names, breakers, answers) or ParkedCounts()


def _parked_of(names: Sequence[str], breakers: Sequence[Breaker], answers: Sequence[Any]) -> ParkedCounts:
    (spec, queued, dispatched, *counts), *lines = answers
    if spec is None:
        return ParkedCounts()
    counted = {name: int(count or 0) for name, count in zip(names, counts, strict=True)}
    policy = policy_key(read_spec(spec).policy)
    return parked_in(int(queued or 0) - int(dispatched or 0), policy, counted, breakers, waiting_of(*lines or [{}]))


def open_names(breakers: Sequence[Breaker], kind: BreakerKind) -> list[str]:
    """Return the names of one kind whose breakers are open."""
    return [breaker.key.name for breaker in breakers if breaker.open and breaker.key.kind is kind]
