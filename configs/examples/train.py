"""A trainer's side of the farm: submit tasks, take results as they finish."""

import asyncio
import sys

from gym.client import connect
from gym.policy import PolicySpec

CITIES = ["Oslo", "Lima", "Nairobi"]


async def main(farm_url: str, policy_url: str) -> None:
    rows = [{"responses_create_params": {"input": [{"role": "user", "content": f"Weather in {c}?"}]}} for c in CITIES]
    async with connect(farm_url) as farm:
        await farm.put_policy("policy-a", PolicySpec(base_urls=[policy_url], model="mock", version=7))
        batch = await farm.submit(rows, environment="weather", run="grpo-a", policy="policy-a", num_samples=4)
        async for result in batch.results(view="training"):
            tokens = sum(len(segment.token_ids) for segment in result.segments)
            print(result.rollout_id, result.reward, result.raw["policy_version"], f"{tokens} tokens")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
