"""`farm play`: one rollout in this process, without Redis or Celery, for authors of environments."""

from __future__ import annotations

import asyncio
import contextlib
import pdb
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.options import AsJson, ConfigFile, console, print_json, progress_console, settings_from

if TYPE_CHECKING:
    from gym.config import Settings
    from gym.environments.registry import EnvironmentType
    from gym.episode import EpisodeResult
    from gym.jsontypes import JsonObject
    from gym.model_client.routing.served_model import ServedModel
    from gym.policy import PolicySpec

FAILED = 1
PLAY_ID = "play:0:0"
DEBUGGED_S = 86_400.0


class NoReplicas:
    """Policy source without entries: judges of the pool are published in Redis, which is not read here."""

    def get(self, name: str) -> ServedModel | None:  # noqa: ARG002 - the protocol's signature
        """Return None."""
        return None


def register(app: typer.Typer) -> None:
    app.command()(play)


def play(
    environment: Annotated[str, typer.Argument(metavar="ENVIRONMENT", help="Name of the environment.")],
    row: Annotated[Path | None, typer.Option("--row", help="File whose first row is played. [the example row]")] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME|URL", help="A policy of the settings, or the URL of a model server.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, with a policy URL.")] = None,
    scripted: Annotated[
        bool, typer.Option("--scripted", help="Use the scripted model, the default without --policy.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the environment.")] = 0,
    debug: Annotated[bool, typer.Option("--pdb", help="Stop in the debugger if the environment raises.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Run one rollout in this process, and print its conversation and its reward; exit with 1 if it fails.

    Judges that the environment asks are called directly, if the settings give them URLs.
    """
    from api.cli.client.conversation import conversation

    if scripted and policy is not None:
        raise typer.BadParameter("--scripted and --policy exclude each other")
    settings = settings_from(config)
    shown = asyncio.run(_play(settings, environment, _row(environment, row, settings), policy, model, seed, debug))
    if as_json:
        print_json(shown)
    else:
        console().print(conversation(shown))
    if shown["error"] is not None:
        raise typer.Exit(FAILED)


def _kind(name: str, settings: Settings) -> EnvironmentType:
    from gym.environments.registry import load_registry

    return load_registry(settings.environments, sandbox=settings.sandbox).get(name)


def _row(environment: str, path: Path | None, settings: Settings) -> JsonObject:
    """Return the first row of the file, or the example row. Raises BadParameter if there is none."""
    if path is None:
        kind = _kind(environment, settings)
        if kind.cls is None:
            raise typer.BadParameter(f"{environment} cannot be run here: {kind.error}")
        return kind.cls.example_row()
    from gym.client.datasets import read_rows

    rows = read_rows(path).rows
    if not rows:
        raise typer.BadParameter(f"{path} holds no row")
    first: JsonObject = rows[0]
    return first


async def _play(
    settings: Settings, name: str, row: JsonObject, policy: str | None, model: str | None, seed: int, debug: bool
) -> JsonObject:
    """Play the row and return the result as `farm show` prints one."""
    from gym.agents.registry import AGENTS
    from gym.environments.hosting.session import EnvironmentSession
    from gym.environments.hosting.threads import EnvironmentThreads
    from gym.episode import EpisodeResult, Play, play, task_of
    from gym.errors import RolloutError, TimedOut
    from gym.limits import Limits
    from gym.model_client.client import PolicyClient
    from gym.model_client.routing.served_model import inline_model
    from gym.rollout import StopReason

    kind = _kind(name, settings)
    task = task_of(row, kind, task_id=str(row.get("task_id") or "play"))
    limits = Limits()
    if debug:
        limits = limits.model_copy(update={"rollout_timeout_s": DEBUGGED_S})
    state = Play()
    async with _policy(settings, policy, model) as spec, PolicyClient(settings.model, NoReplicas()) as client:
        record = inline_model(spec)
        with EnvironmentThreads(1) as executor:
            session = EnvironmentSession(
                kind, row, seed=seed, executor=executor, on_fault=_post_mortem if debug else None
            )
            try:
                async with asyncio.timeout(limits.rollout_timeout_s):
                    finished = await play(
                        task,
                        session,
                        AGENTS,
                        client,
                        policy=lambda: record,
                        limits=limits,
                        rollout_id=PLAY_ID,
                        group_id="play:0",
                        state=state,
                    )
                finished = await _judged(settings, kind, finished, limits.judge_timeout_s)
            except (RolloutError, TimeoutError) as error:
                failure = error if isinstance(error, RolloutError) else TimedOut("the rollout took too long")
                finished = EpisodeResult(
                    stop_reason=StopReason.ERROR,
                    reward=None,
                    error=failure,
                    trajectory=None if state.episode is None else state.episode.trajectory,
                    timing=state.close_timing(),
                )
    return _shown(task.environment, task.params, finished)


@contextlib.asynccontextmanager
async def _policy(settings: Settings, policy: str | None, model: str | None) -> AsyncIterator[PolicySpec]:
    """Yield the named policy; without a name the scripted model, served for the duration of the block."""
    from gym.policy import PolicySpec

    if policy is None:
        from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer

        async with ScriptedModelServer(ScriptedModelOptions(), port=0) as server:
            yield PolicySpec(base_urls=[f"{server.url}/v1"], model="scripted")
    elif "://" in policy:
        if model is None:
            raise typer.BadParameter("a policy URL needs --model, the model name on that server")
        yield PolicySpec(base_urls=[policy], model=model)
    elif policy in settings.policies:
        yield settings.policies[policy]
    else:
        known = ", ".join(sorted(settings.policies)) or "none"
        raise typer.BadParameter(f"the settings name no policy {policy!r}; they have: {known}")


async def _judged(settings: Settings, kind: EnvironmentType, finished: EpisodeResult, within_s: float) -> EpisodeResult:
    """Ask the judges if the verifier leaves the reward to them. Raises RolloutError."""
    import dataclasses

    from gym.episode import judged_reward
    from gym.judges.desk import Desk

    if finished.ask is None:
        return finished
    async with Desk(settings.judges, NoReplicas()) as desk:
        deadline = asyncio.get_running_loop().time() + within_s
        verdicts = await desk.verdicts(finished.ask, deadline=deadline, request_id=PLAY_ID)
    return dataclasses.replace(finished, reward=judged_reward(kind, finished.ask, verdicts), ask=None)


def _shown(environment: str, params: JsonObject, finished: EpisodeResult) -> JsonObject:
    from dataclasses import asdict

    from gym.results.record import call_json

    trajectory, error, reward = finished.trajectory, finished.error, finished.reward
    return {
        "rollout_id": PLAY_ID,
        "environment": environment,
        "outcome": "succeeded" if error is None else "failed",
        "stop_reason": finished.stop_reason.value,
        "reward": None if reward is None else reward.value,
        "reward_components": {} if reward is None else reward.components,
        "error": None if error is None else {"kind": error.kind, "stage": error.stage, "message": error.message},
        "model_calls": 0 if trajectory is None else len(trajectory.calls),
        "tool_calls": 0 if trajectory is None else len(trajectory.tool_calls),
        "usage": {} if trajectory is None else asdict(trajectory.usage),
        "timing": asdict(finished.timing),
        "responses_create_params": params,
        "response": {"output": [] if trajectory is None else trajectory.items},
        "calls": [] if trajectory is None else [call_json(call) for call in trajectory.calls],
    }


def _post_mortem(error: BaseException) -> None:
    """Open the debugger at the frame in which the environment raised."""
    progress_console().print(f"{type(error).__name__}: {error}", markup=False, style="red")
    debugger: Any = pdb.Pdb(stdout=sys.stderr)
    debugger.reset()
    debugger.interaction(None, error.__traceback__)
