"""A trainer that reads one result of many, then waits to be killed. Prints JSON lines."""

import asyncio
import json
import sys
from typing import Any

import ray

from workers.judge_pool.rollout_farm import FarmFailed, rollout_farm


def tell(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main(policy_url: str) -> None:
    try:
        async with rollout_farm(ray, config="/nowhere.yaml"):
            pass
    except FarmFailed as error:
        tell(str(error))
    row = {"responses_create_params": {"input": [{"role": "user", "content": "Weather in Oslo?"}]}}
    async with rollout_farm(ray, options=["--workers", "1", "--concurrency", "2"]) as farm:
        await farm.call("PUT", "/v1/policies/policy", {"base_urls": [policy_url], "model": "mock"})
        results = farm.results([row], environment="weather", num_samples=2000, batch_id="left-early")
        async for _ in results:
            break
        await results.aclose()
        while (batch := await farm.call("GET", "/v1/batches/left-early"))["state"] == "running":  # noqa: ASYNC110  asked over HTTP
            await asyncio.sleep(0.1)
        tell(batch["ledger"])
        tell(farm.url)
        await asyncio.sleep(3600)


ray.init(address=sys.argv[2], log_to_driver=False, logging_level="error")
asyncio.run(main(sys.argv[1]))
