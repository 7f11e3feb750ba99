"""Recall of results whose record or trajectory cannot be read, so that their rollouts run again.

Invariant: the ledger stays balanced. The script that takes a result back moves the rollout from its recorded outcome to
`queued`, and takes its score out of the sums.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import orjson

from gym.errors import ErrorKind
from gym.ids import parse_rollout_id
from gym.jsontypes import JsonObject
from gym.state.alarms import Alarms
from gym.state.ledger.batches import activate, being_cancelled, keep_for
from gym.state.ledger.rejudge import score_sums
from gym.state.ledger.result_records import has_trajectory, unreadable_alarm
from gym.state.ledger.results import ResultLog
from gym.state.redis.store import REQUEUE_UNREADABLE, Argument, Store

AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Recalled:
    """A result to take back, and the reason."""

    member: str
    cursor: str
    record: JsonObject
    why: str


async def find_unreadable(
    results: ResultLog, batch_id: str, found: Sequence[tuple[str, JsonObject]], wanted: Collection[str] | None
) -> list[Recalled]:
    """Return those of (cursor, light record) that cannot be read; `wanted` are rollout ids, None means all.

    Reads every stored trajectory of them. Raises Unavailable while their store is away.
    """
    recalled, members = [], {}
    for cursor, record in found:
        rollout_id = record.get("rollout_id", "")
        rollout = parse_rollout_id(rollout_id)
        if rollout is None or record.get("outcome") not in ("succeeded", "failed"):
            continue
        if wanted is not None and rollout_id not in wanted:
            continue
        error = record.get("error") or {}
        if error.get("kind") == ErrorKind.RESULT_UNREADABLE:
            recalled.append(Recalled(rollout.member, cursor, record, error["message"]))
        else:
            members[rollout.member] = (cursor, record)
    expected = {member: has_trajectory(record) for member, (_, record) in members.items()}
    for member, why in (await results.unreadable(batch_id, expected)).items():
        recalled.append(Recalled(member, *members[member], why))
    return recalled


async def recall(store: Store, batch_id: str, recalled: Sequence[Recalled]) -> int:
    """Run these rollouts again, each as its next attempt; return their number. Changed results are left alone.

    Raises Conflict while the batch is being cancelled.
    """
    keys = store.keys.batch(batch_id)
    requeued = 0
    for first in range(0, len(recalled), AT_ONCE):
        args: list[Argument] = []
        for each in recalled[first : first + AT_ONCE]:
            args += [each.member, each.cursor, each.record["environment"], *_score(each.record), _line(each)]
        done = int(await store.run(REQUEUE_UNREADABLE, keys.scripted(), args))
        if done < 0:
            raise being_cancelled(batch_id)
        requeued += done
    if requeued:
        await Alarms(store).clear(unreadable_alarm(batch_id, [], "").name)
        await keep_for(store, batch_id, None)
        await activate(store, batch_id)
    return requeued


def _score(record: JsonObject) -> tuple[bytes, int]:
    reward = record.get("reward")
    return orjson.dumps(score_sums(reward)), int(reward is not None)


def _line(each: Recalled) -> bytes:
    return orjson.dumps(
        {
            "attempt": each.record["attempt"],
            "worker": each.record.get("worker"),
            "kind": ErrorKind.RESULT_UNREADABLE,
            "message": each.why,
            "retryable": True,
        }
    )
