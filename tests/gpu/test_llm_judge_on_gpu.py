"""The judge `equality` as vLLM serves it on one GPU that the farm's own Ray gives it: verdicts for each second.

FARM_TEST_GPU_PYTHON names the interpreter of an environment with vLLM, FARM_TEST_GPU_MODEL an instruction-tuned model.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.vllm.llm_judge import LABELS, Served, llm_judge_farm, rows_to_judge

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]
COUNT = 512
# the grammar keeps a verdict to one line, so that what is counted is the same for every model
SAMPLING = {"temperature": 0.0, "max_tokens": 16, "structured_outputs": {"choice": list(LABELS)}}


def test_rollouts_are_judged_on_one_gpu(tmp_path: Path) -> None:
    python, model = os.environ.get("FARM_TEST_GPU_PYTHON"), os.environ.get("FARM_TEST_GPU_MODEL")
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no NVIDIA GPU is at hand")
    if not python or not model:
        pytest.skip("FARM_TEST_GPU_PYTHON and FARM_TEST_GPU_MODEL say what to serve")
    served = Served(
        python=python,
        model=model,
        needs={"num_gpus": 1},
        cluster={"num_gpus": 1},
        args=("--max-model-len", "4096"),
        sampling=SAMPLING,
    )
    with llm_judge_farm(tmp_path, served) as judged:
        judged.results(judged.submit(rows_to_judge(32)))
        began = time.perf_counter()
        items = judged.results(judged.submit(rows_to_judge(COUNT)))
        took_s = time.perf_counter() - began
        [replica] = judged.ready()
    print(f"\n{model} on GPU {replica['gpus']}: {COUNT / took_s:.1f} verdicts for each second")  # noqa: T201  a figure
    assert {item["outcome"] for item in items} == {"succeeded"}
    assert {len(item["verdicts"]) for item in items} == {1}
    assert len(items) == COUNT
