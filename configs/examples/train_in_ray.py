"""A trainer inside a Ray cluster: the farm and its judges run on the same cluster, and results come as a stream."""

import asyncio
import json
import sys

import ray

from workers.judge_pool.rollout_farm import rollout_farm

CITIES = ["Oslo", "Lima", "Nairobi"]


async def main(policy_url: str, config: str) -> None:
    rows = [
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"Say something about {city}."}]},
            "reference": f"{city} is a city.",
        }
        for city in CITIES
    ]
    # python="/opt/farm/bin/python" if the farm has a separate environment
    async with rollout_farm(ray, config=config, options=["--workers", "1"], actor_options={"num_cpus": 1}) as farm:
        await farm.call("PUT", "/v1/policies/policy", {"base_urls": [policy_url], "model": "mock", "version": 7})
        async for result in farm.results(rows, environment="essay_similarity", num_samples=4):
            print(json.dumps([result["rollout_id"], result["reward"], result["policy_version"]]), flush=True)
    print("stopped", flush=True)


if __name__ == "__main__":
    ray.init(num_cpus=2) if len(sys.argv) < 4 else ray.init(address=sys.argv[3])  # the trainer's own
    asyncio.run(main(*sys.argv[1:3]))
