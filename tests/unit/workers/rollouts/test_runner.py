"""The idle time of a rollout."""

import time

from gym.batch import BatchSpec
from gym.state.ledger.rollouts import Claim
from workers.rollouts.runner import RunningRollout, start


def running() -> RunningRollout:
    claim = Claim(
        batch_id="b",
        member="0:0",
        attempt=1,
        token="t",
        tries=b"",
        environment="weather",
        num_samples=1,
        task_id="t",
        published_at=0,
        claimed_at=0,
        row=b"{}",
    )
    return start(claim, BatchSpec(run="default"))


def test_what_waits_for_capacity_is_not_idle_and_what_is_set_up_without_a_sign_is() -> None:
    rollout = running()
    later = time.monotonic() + 100
    assert rollout.idle_s(later) >= 100
    with rollout.waits.wait():
        assert rollout.idle_s(later) == 0
    assert 99 < rollout.idle_s(time.monotonic() + 100) <= 101
    rollout.waits = running().waits
    assert rollout.idle_s(later) >= 100
