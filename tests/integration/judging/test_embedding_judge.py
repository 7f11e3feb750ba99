"""essay_similarity with the real embedding server: weights from a package, on this CPU, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from workers.judge_server.embedding import SentenceEmbeddings
from workers.judge_server.item import Item

SUBJECTS = ("rain", "bread", "the sea", "old trains", "bees")
CLAIMS = (
    "is made slowly",
    "comes in the morning",
    "cannot be bought",
    "makes people happy",
    "is louder than you think",
)
REFERENCE = "Bread is made slowly, and its smell makes people happy."


def replicas(judged_farm: Any) -> list[dict[str, Any]]:
    listed = judged_farm.http.get("/v1/judges").json()["items"]
    found: list[dict[str, Any]] = next(judge for judge in listed if judge["judge"] == "similarity")["replicas"]
    return found


def test_essays_get_the_scores_that_the_model_gives_directly(judged_farm: Any, embedding_server: Any) -> None:
    essays = [f"{subject} {claim}" for subject in SUBJECTS for claim in CLAIMS]
    rows = [
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"[[say {essay}]]"}]},
            "environment": "essay_similarity",
            "reference": REFERENCE,
            "floor": -1.0,
        }
        for essay in essays
    ]
    # two of each: the second is the same question, and is asked once
    batch_id = judged_farm.submit(rows, num_samples=2)
    found = judged_farm.results(batch_id)
    model = SentenceEmbeddings.load("all-minilm-l6-v2")
    with threadpool_limits(limits=1, user_api="blas"):
        directly = model.scores([Item(essay, "", REFERENCE) for essay in essays])
    assert len(set(directly)) == len(essays)
    assert [result["reward"] for result in found] == pytest.approx(
        [score for score in directly for _ in "ab"], abs=1e-5
    )
    assert {verdict["version"].partition("@")[2] for result in found for verdict in result["verdicts"]} == {
        model.version
    }
    assert sum(result["verdicts"][0]["cached"] for result in found) == len(essays)
    [replica] = replicas(judged_farm)
    assert (replica["state"], replica["alive"], replica["version"]) == ("ready", True, model.version)
