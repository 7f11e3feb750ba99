"""A store that measures the cost of each of its script calls to Redis."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from gym.state.redis.store import Argument, Script, ScriptCall, Store


@dataclass(slots=True)
class Cost:
    """Largest cost of the calls of a script: commands, milliseconds of Redis's processor, and arguments."""

    commands: int = 0
    cpu_ms: float = 0.0
    arguments: int = 0
    calls: int = 0

    def add(self, commands: int, cpu_ms: float, arguments: int) -> None:
        self.calls += 1
        self.commands = max(self.commands, commands)
        self.cpu_ms = max(self.cpu_ms, cpu_ms)
        self.arguments = max(self.arguments, arguments)


class Metered(Store):
    """Runs one script at a time and records its cost in `costs`; nothing else may use its server."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.costs: dict[str, Cost] = {}

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        await self.redis.script_load(script.text)
        await self.redis.config_resetstat()
        before = await self._cpu_ms()
        try:
            return await super().run(script, keys, args)
        finally:
            spent = await self._cpu_ms() - before
            stats = await self.redis.info("commandstats")
            ran = sum(each["calls"] for name, each in stats.items() if name not in _OWN)
            self.costs.setdefault(script.name, Cost()).add(ran, spent, len(args))

    async def _run_each(self, calls: Sequence[ScriptCall]) -> list[Any]:
        answers: list[Any] = []
        for call in calls:
            try:
                answers.append(await self.run(call.script, call.keys, call.args))
            except ResponseError as error:
                answers.append(error)
        return answers

    async def thousand_writes_ms(self) -> float:
        """Return the median time of a thousand small writes by a script, as a measure of the machine."""
        spent = []
        for _ in range(5):
            before = await self._cpu_ms()
            await self.redis.eval(_WRITES, 1, "reference")
            spent.append(await self._cpu_ms() - before)
        await self.redis.delete("reference")
        return statistics.median(spent)

    async def _cpu_ms(self) -> float:
        """Return the processor time of the thread that runs commands."""
        cpu = await self.redis.info("cpu")
        return 1000 * float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


_OWN = ("cmdstat_evalsha", "cmdstat_info", "cmdstat_config|resetstat")
_WRITES = "for i = 1, 1000 do redis.call('HSET', KEYS[1], 'f' .. i, string.format('%d', i)) end"
