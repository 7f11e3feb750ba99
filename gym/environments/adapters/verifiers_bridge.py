"""Runs an environment of the package verifiers (0.1 to 0.3) for the farm, in a process and a Python of its own.

Started as `PYTHON verifiers_bridge.py ID JSON-ARGUMENTS JSON-FOLDERS`; imports verifiers and nothing of the farm. Lines
of JSON come in and go out. verifiers' own loop runs each rollout, tools, stop conditions and rubric included; where it
asks a model, the new part of the prompt goes out as `ask`, and the next `act` is the model's answer.

    in   {rollout, do: open, input} · {rollout, do: act, message, cut} · {rollout, do: end} · {rollout, do: close}
         {do: rows, start, count}
    out  {ready: {…}} first · {rollout, ask: [messages], tools} · {rollout, done: {reward, metrics, truncated}}
         {rollout, fault} · {rollout, unscored} · {rows} · {failed} when it cannot start

Invariant: a reward function that raises makes a fault; verifiers itself would score it 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import math
import os
import sys
import threading
import time
from typing import Any, TextIO

_ENDED = object()


class BridgedRollouts:
    """Registry of the rollouts of one environment."""

    def __init__(self, vf: Any, env: Any, out: TextIO) -> None:
        self.vf, self.env, self._out = vf, env, out
        self.answers: dict[str, asyncio.Queue[Any]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def say(self, **line: Any) -> None:
        """Write one line."""
        self._out.write(json.dumps(line, default=str) + "\n")
        self._out.flush()

    def take(self, line: dict[str, Any]) -> None:
        """Handle one line."""
        rollout = str(line.get("rollout"))
        match line["do"]:
            case "open":
                self.answers[rollout] = asyncio.Queue()
                task = asyncio.get_running_loop().create_task(self._run(rollout, line["input"]))
                self._tasks[rollout] = task
            case "act" if rollout in self.answers:
                self.answers[rollout].put_nowait((line["message"], bool(line.get("cut"))))
            case "end" if rollout in self.answers:
                self.answers[rollout].put_nowait(_ENDED)
            case "close":
                if rollout in self._tasks:
                    self._tasks[rollout].cancel()
            case "rows":
                self.say(rows=rows_of(self.env, line["start"], line["count"]))

    async def _run(self, rollout: str, given: dict[str, Any]) -> None:
        """Run a rollout from its row to its reward."""
        try:
            state = await self.env._run_rollout_state(given, BridgedClient.make(self, rollout), "policy", {})
            if (fault := state.get("error")) is not None:
                cause = getattr(fault, "__cause__", None)
                self.say(rollout=rollout, fault=f"{type(fault).__name__}: {fault}" + (f" ({cause!r})" if cause else ""))
                return
            if (fault := state.get("_farm_fault")) is not None:
                self.say(rollout=rollout, unscored=f"{type(fault).__name__}: {fault}")
                return
            metrics = {name: float(value) for name, value in (state.get("metrics") or {}).items()}
            numbers = {"reward": float(state["reward"]), **metrics}
            if odd := {name: value for name, value in numbers.items() if not math.isfinite(value)}:
                self.say(rollout=rollout, unscored=f"ValueError: no finite number: {odd}")
                return
            truncated = bool(state.get("is_truncated") or state.get("timed_out"))
            done = {"reward": float(state["reward"]), "metrics": metrics, "truncated": truncated}
            self.say(rollout=rollout, done=done, shown=shown(state.get("final_env_response")))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  one rollout's fault is reported and harms no other
            self.say(rollout=rollout, fault=f"{type(error).__name__}: {error}")
        finally:
            self.answers.pop(rollout, None)
            self._tasks.pop(rollout, None)


class BridgedClient:
    """Factory of a rollout's verifiers client, whose base class is known once verifiers is imported."""

    @staticmethod
    def make(rollouts: BridgedRollouts, rollout: str) -> Any:
        """Return a client whose model calls go to the farm."""
        vf = rollouts.vf

        async def unused(*_: Any, **__: Any) -> Any:
            raise NotImplementedError

        class Asked(vf.Client):  # type: ignore[misc,name-defined]  # its base is another package's
            seen: list[Any] = []  # noqa: RUF012  one class for each rollout

            async def get_response(self, prompt: Any, model: str, *_: Any, tools: Any = None, **__: Any) -> Any:
                known = self.seen
                if [plain(each) for each in prompt[: len(known)]] != known:
                    raise vf.Error("this environment rewrites the conversation, which the farm cannot follow")
                rollouts.say(
                    rollout=rollout,
                    ask=[plain(each) for each in prompt[len(known) :]],
                    tools=[plain(each) for each in tools or ()],
                )
                answer = await rollouts.answers[rollout].get()
                if answer is _ENDED:
                    rollouts.answers[rollout].put_nowait(_ENDED)
                    raise vf.OverlongPromptError("the farm ended the rollout")
                message, cut = answer
                finish = "length" if cut else "tool_calls" if message.get("tool_calls") else "stop"
                made = vf.ResponseMessage(**message, finish_reason=finish, is_truncated=cut)
                type(self).seen = [plain(each) for each in prompt] + [plain_answer(vf, message)]
                return vf.Response(id=rollout, created=int(time.time()), model=model, usage=None, message=made)

        for name in getattr(Asked, "__abstractmethods__", ()):
            setattr(Asked, name, unused)
        Asked.__abstractmethods__ = frozenset()
        return Asked(None)


def plain(message: Any) -> Any:
    """Return a message or a tool as JSON, without unset fields."""
    return message.model_dump(mode="json", exclude_none=True) if hasattr(message, "model_dump") else message


def plain_answer(vf: Any, message: dict[str, Any]) -> Any:
    """Return an answer as verifiers shows it in the next prompt."""
    return plain(vf.AssistantMessage(**message))


def shown(messages: Any) -> list[Any]:
    """Return the last response of an environment, which no model reads any more."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [plain(each) for each in messages or ()]


def rows_of(env: Any, start: int, count: int) -> list[dict[str, Any]]:
    """Return rows of the dataset, as verifiers takes them."""
    dataset = env.get_dataset()
    chosen = dataset.select(range(min(start, len(dataset)), min(start + count, len(dataset))))
    return [{name: value for name, value in dict(row).items() if value is not None} for row in chosen]


def watch_rewards(rubric: Any) -> None:
    """Record the exceptions of every reward function."""
    for inner in getattr(rubric, "rubrics", ()):
        watch_rewards(inner)
    if isinstance(getattr(rubric, "funcs", None), list) and not getattr(rubric, "rubrics", ()):
        rubric.funcs = [_watched(func) for func in rubric.funcs]


def _watched(func: Any) -> Any:
    signature = inspect.signature(func)
    takes_state = "state" in signature.parameters or any(
        each.kind is each.VAR_KEYWORD for each in signature.parameters.values()
    )

    @functools.wraps(func)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        state = kwargs["state"] if takes_state else kwargs.pop("state")
        try:
            result = func(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            state["_farm_fault"] = error
            raise

    if not takes_state:
        added = inspect.Parameter("state", inspect.Parameter.KEYWORD_ONLY)
        watched.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    return watched


def load(env_id: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Load the package and the environment. Raises RuntimeError if they do not fit the farm."""
    import verifiers as vf  # type: ignore[import-not-found,unused-ignore]  # lies in the other virtual environment

    if not hasattr(vf, "load_environment"):
        raise RuntimeError(f"verifiers {vf.__version__} has no load_environment; the farm runs 0.1 to 0.3")
    env = vf.load_environment(env_id, **arguments)
    if not hasattr(env, "_run_rollout_state") or not hasattr(vf, "Client"):
        raise RuntimeError(f"verifiers {vf.__version__} is too old; take 0.1.11 or newer, below 0.4")
    if getattr(env, "requires_group_rollouts", False):
        raise RuntimeError("its rubric scores whole groups, and the farm gives it one rollout at a time")
    watch_rewards(env.rubric)
    return vf, env


async def serve(rollouts: BridgedRollouts) -> None:
    """Serve lines until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        rollouts.take(json.loads(line))
    with contextlib.suppress(Exception):
        await asyncio.wait_for(rollouts.env._teardown(), 3)


def end_with_parent() -> None:
    """End with the parent even if an environment never yields the event loop."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Serve, with an environment's prints in the log and never among the lines."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Python put this file's folder first, where modules have the names of the packages that they adapt
    sys.path[:1] = json.loads(sys.argv[3])
    try:
        vf, env = load(sys.argv[1], json.loads(sys.argv[2]))
        first = rows_of(env, 0, 1)
    except BaseException as error:  # noqa: BLE001  reported to the parent
        cause = f" ({error.__cause__!r})" if error.__cause__ else ""
        out.write(json.dumps({"failed": f"{type(error).__name__}: {error}{cause}"}) + "\n")
        out.flush()
        sys.exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    rollouts = BridgedRollouts(vf, env, out)
    tools = [plain(each) for each in getattr(env, "tool_defs", None) or ()]
    rollouts.say(ready={"rows": first, "tools": tools, "size": len(env.get_dataset()), "doc": (env.__doc__ or "")})
    asyncio.run(serve(rollouts))
    os._exit(0)  # packages leave threads behind that would delay the end


if __name__ == "__main__":
    main()
