"""The schedule of kills and the workload, which follow from a seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from gym.testing.scripted_policy.script import scripted_reply
from tests.chaos.schedule import BAG, KINDS, strikes
from tests.chaos.workload import LEAST_TURNS, MOST_TURNS, SAMPLES, plan_batches

ONE_BAG = sum(BAG.values())


def test_a_seed_gives_the_same_strikes_again_and_another_seed_others() -> None:
    first, again, other = (list(islice(strikes(seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_kind_is_struck_in_every_bag() -> None:
    struck = [strike.kind for strike in islice(strikes(3), 2 * ONE_BAG)]
    assert set(BAG) == set(KINDS)
    assert Counter(struck[:ONE_BAG]) == Counter(struck[ONE_BAG:]) == BAG


def test_strikes_come_one_to_three_seconds_apart() -> None:
    gaps = [strike.after_s for strike in islice(strikes(4), 200)]
    assert 1.0 <= min(gaps) < 1.2
    assert 2.8 < max(gaps) <= 3.0


def test_a_plan_has_as_many_rollouts_as_asked_for_each_with_a_name_of_its_own() -> None:
    plans = plan_batches(5, 2000, Path("journal"))
    assert sum(len(plan.rollouts) for plan in plans) == 2000
    tasks = [row["task_id"] for plan in plans for portion in plan.portions for row in portion]
    assert len(set(tasks)) == len(tasks) == 2000 // SAMPLES


def test_a_plan_mixes_environments() -> None:
    [whole, *_] = plan_batches(5, 400, Path("journal"))
    kinds = Counter(row["environment"] for row in whole.portions[0])
    assert set(kinds) == {"weather", "sql", "journaled_counter", "judged_counter"}


def test_counters_take_from_three_to_six_turns_with_the_scripted_model() -> None:
    tools = [{"type": "function", "name": name} for name in ("increment_counter", "get_counter_value")]
    turns: Counter[int] = Counter()
    for plan in plan_batches(6, 400, Path("journal")):
        for row in (row for portion in plan.portions for row in portion if "journal" in row):
            messages = list(row["responses_create_params"]["input"])
            taken = 1
            while scripted_reply(messages, tools).tool_calls:
                messages += [{"role": "assistant"}, {"role": "tool", "content": '{"count": 1}'}]
                taken += 1
            turns[taken] += 1
    assert set(turns) == {3, 4, 5, 6}
    assert min(turns) >= LEAST_TURNS
    assert max(turns) <= MOST_TURNS
