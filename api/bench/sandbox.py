"""What a call in a sandbox costs, cold and warm: `python -m api.bench.sandbox`."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from gym.sandbox.choose import find_provider
from gym.sandbox.limits import Limits
from gym.sandbox.process import start_sandbox

CALLS = 10


async def measure() -> dict[str, float]:
    """Medians in seconds. Raises SandboxUnavailable."""
    provider = find_provider()
    times: dict[str, list[float]] = {"cold: start, python_exec, close": [], "warm: python_exec": [], "warm: bash": []}
    python, bash = ["{python}", "-I", "-c", "print(1)"], ["/bin/bash", "-c", "echo 1"]
    for _ in range(CALLS):
        start = time.perf_counter()
        sandbox = await start_sandbox(provider, Limits())
        await sandbox.run(python)
        await sandbox.close()
        times["cold: start, python_exec, close"].append(time.perf_counter() - start)
    sandbox = await start_sandbox(provider, Limits())
    for name, argv in (("warm: python_exec", python), ("warm: bash", bash)):
        for _ in range(CALLS):
            start = time.perf_counter()
            await sandbox.run(argv)
            times[name].append(time.perf_counter() - start)
    await sandbox.close()
    return {name: statistics.median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    for name, seconds in asyncio.run(measure()).items():
        sys.stdout.write(f"{name:<34}{seconds * 1000:7.1f} ms\n")
