"""The training side: `gym.client` and nothing else of the farm. Registers its policy, submits, prints what came."""

from __future__ import annotations

import json
import sys

from gym.client import connect_sync

farm_url, policy_url, api_key, count = sys.argv[1:]
rows = [
    {
        "environment": "weather",
        "responses_create_params": {"input": [{"role": "user", "content": f"What is the weather in town {number}?"}]},
    }
    for number in range(int(count))
]
with connect_sync(farm_url, api_key=api_key) as farm:
    farm.put_policy("trained", {"base_urls": [policy_url], "model": "mock"})
    results = list(farm.submit(rows, policy="trained", num_samples=2).results(view="training"))
servers = {"ray", "celery", "fastapi", "aiohttp", "workers", "api"} & set(sys.modules)
found = {
    "outcomes": [result.outcome for result in results],
    "with_tokens": sum(bool(result.segments) for result in results),
    "servers": sorted(servers),
}
sys.stdout.write(json.dumps(found))
