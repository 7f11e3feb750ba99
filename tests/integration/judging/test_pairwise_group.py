"""A group's answers compared: each waits for the others, also for those that come late."""

from __future__ import annotations

import zlib
from typing import Any


def test_every_answer_is_compared_with_all_others_of_its_group(judged_farm: Any) -> None:
    batch_id = judged_farm.submit(
        [{"responses_create_params": {"input": f"hello {number}"}} for number in range(4)],
        batch_id="contest",  # the seeds follow from it, and so do the answers
        environment="contest",
        num_samples=4,
    )
    found = judged_farm.results(batch_id)
    good = {result["rollout_id"]: zlib.crc32(result["rollout_id"].encode()) % 2 for result in found}
    assert 0 < sum(good.values()) < len(good)
    for result in found:
        rivals = [other for other in found if other["group_id"] == result["group_id"] and other is not result]
        assert len(rivals) == 3
        # a good answer beats a bad one and ties with a good one
        wins = [(1 + good[result["rollout_id"]] - good[other["rollout_id"]]) / 2 for other in rivals]
        assert result["reward"] == sum(wins) / 3
        assert sorted(result["verdicts"][0]["votes"]) == sorted(wins)
