"""Stored values of the ledger as typed values, and the rule that no other package takes them apart."""

import ast
from pathlib import Path

import pytest

from gym.rollout import RolloutState
from gym.state.alarms import Alarm, AlarmKind, AlarmName
from gym.state.ledger.cancellation import StopCause, read_stop
from gym.state.redis.encodings import LiveState, attempt_of, live_or_none, log_id_of, read_live

ROOT = Path(__file__).parents[5]
SPLITS = {"split", "rsplit", "partition", "rpartition"}


def test_a_running_rollout_is_read() -> None:
    live = read_live(b"r|2|17|1700000000000|sql|host/worker-1")
    assert live is not None
    assert (live.state.state, live.attempt, live.token, live.judging) == (RolloutState.RUNNING, 2, "17", False)
    assert live.is_held_by("host/worker-1")
    assert not live.is_held_by("worker-2")


@pytest.mark.parametrize(("letter", "state"), [("w", "waiting"), ("s", "sent"), ("j", "held")])
def test_the_three_states_of_judging_are_one_to_readers(letter: str, state: str) -> None:
    live = read_live(f"{letter}|1|5|0|sql|strict/{state}".encode())
    assert live is not None
    assert live.judging
    assert live.is_held_by(state)
    assert live.holder == f"strict/{state}"


def test_a_rollout_in_celery_is_queued_and_held_by_none() -> None:
    live = read_live(b"d|1|0|0|" + b"e" * 256)
    assert live is not None
    assert (live.state, live.state.state, live.holder) == (LiveState.DISPATCHED, RolloutState.QUEUED, None)


@pytest.mark.parametrize("damaged", [b"x|1|0|0|e|w", b"r|one|0|0|e|w", b"r|1", b"\xff\xfe"])
def test_a_damaged_value_is_a_decode_error_or_none(damaged: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each of them has a text of its own
        read_live(damaged)
    assert live_or_none(damaged) is None


def test_an_end_has_an_attempt_and_a_place_in_the_log() -> None:
    assert (attempt_of(b"s|3|9|17-1000001"), log_id_of(b"s|3|9|17-1000001")) == (3, "17-1000001")
    assert (attempt_of(None), attempt_of(b"odd"), log_id_of(None)) == (None, None, "")


def test_a_batch_is_stopped_for_one_of_two_causes() -> None:
    assert [read_stop(flag) for flag in (None, b"0", b"1", b"2")] == [
        None,
        None,
        StopCause.CANCELLED,
        StopCause.DEADLINE,
    ]
    with pytest.raises(LookupError):
        read_stop(b"3")


def test_the_name_of_an_alarm_survives_redis_whatever_its_worker_is_called() -> None:
    name = Alarm(kind=AlarmKind.NO_OWNER, message="m", batch_id="b", worker="w|1").name
    assert AlarmName.parse(str(name)) == name
    assert (name.kind, name.batch_id, name.worker) == ("no_owner", "b", "w|1")


def test_no_other_package_takes_stored_values_apart() -> None:
    found = []
    for package in ("gym", "workers", "api"):
        for path in (ROOT / package).rglob("*.py"):
            if path.is_relative_to(ROOT / "gym" / "state"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(attr=name), args=[ast.Constant(value="|" | b"|"), *_]):
                        if name in SPLITS:
                            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found
