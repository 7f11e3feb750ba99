"""A real vLLM as the judge `equality`: placed by the farm's own Ray, asked by its judge worker, killed, back by itself.

The model is small and random, so only the grammar keeps it to a verdict. What is tested is the way to it and back.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from gym.judges.settings import EQUALITY_TEMPLATE
from gym.judges.verdicts import fill
from tests.vllm.llm_judge import JUDGE, LABELS, LlmJudgeFarm, Served, llm_judge_farm, rows_to_judge

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2400)]
SAMPLING = {"temperature": 0.0, "max_tokens": 64, "structured_outputs": {"choice": list(LABELS)}}


@pytest.fixture(scope="module")
def judged(vllm_on_this_cpu: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmJudgeFarm]:
    """One farm and one vLLM; a custom resource stands for the GPU that is not there."""
    served = Served(
        **vllm_on_this_cpu, needs={"resources": {"vllm": 1}}, cluster={"resources": {"vllm": 1}}, sampling=SAMPLING
    )
    with llm_judge_farm(tmp_path_factory.mktemp("vllm-judge"), served) as started:
        yield started


def test_every_reward_is_the_verdict_that_vllm_gives_when_it_is_asked_directly(judged: LlmJudgeFarm) -> None:
    rows = rows_to_judge(8)
    items = judged.results(judged.submit(rows))
    [replica] = judged.ready()
    assert len(items) == len({item["rollout_id"] for item in items}) == 8
    for item in items:
        row = rows[int(item["rollout_id"].split(":")[-2])]
        [verdict] = item["verdicts"]
        assert verdict["judge"] == JUDGE
        assert item["reward"] == float(_directly(replica["url"], row) == LABELS[0])


def test_a_killed_engine_comes_back_by_itself_and_what_waited_is_judged(judged: LlmJudgeFarm) -> None:
    [before] = judged.ready()
    engine = next(one for one in psutil.Process(before["pid"]).children(recursive=True) if _is_engine(one))
    os.kill(engine.pid, signal.SIGKILL)
    batch_id = judged.submit(rows_to_judge(6))
    judged.until(lambda: judged.ledger(batch_id)["judging"])
    items = judged.results(batch_id)
    [after] = judged.ready()
    assert after["pid"] != before["pid"]
    assert not psutil.pid_exists(engine.pid)
    assert {item["outcome"] for item in items} == {"succeeded"}
    assert {len(item["verdicts"]) for item in items} == {1}


def _directly(url: str, row: dict[str, Any]) -> str:
    said = row["responses_create_params"]["input"][0]["content"].removeprefix("[[say ").removesuffix("]]")
    fields = {"question": row["question"], "answer": said, "reference": row["expected_answer"]}
    model = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
    asked = {"model": model, "messages": [{"role": "user", "content": fill(EQUALITY_TEMPLATE, fields)}], **SAMPLING}
    answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120).raise_for_status().json()
    text: str = answer["choices"][0]["message"]["content"]
    assert text in LABELS
    return text


def _is_engine(process: psutil.Process) -> bool:
    return "EngineCore" in " ".join([process.name(), *process.cmdline()])
