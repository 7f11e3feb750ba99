from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gym.environments.base import Environment, Row, tool
from gym.environments.builtin.weather import Weather
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import EnvironmentType, environment_type
from gym.errors import BadRow, EnvironmentFailed, JudgeFailed, Stage, VerifierFailed
from gym.judges.base import Ask, Question
from gym.reward import Reward
from gym.trajectory import ToolCall, Trajectory

pytestmark = pytest.mark.anyio
Open = Callable[..., EnvironmentSession]
EMPTY = Trajectory(params={})


class Answer(BaseModel):
    value: int


@dataclass
class Pair:
    left: int
    right: str


class NumberRow(Row):
    number: int = 0


class Everything(Environment[NumberRow]):
    """Tools that answer, err and misbehave in every way."""

    name = "everything"
    row_model = NumberRow
    result: Any = 1.0

    @tool
    def give(self, kind: str) -> Any:
        """Give something of a kind."""
        return {
            "text": "as it is",
            "none": None,
            "model": Answer(value=1),
            "pair": Pair(1, "a"),
            "object": {"a": [1, 2.5, None]},
            "set": {1},
            "generator": (number for number in range(3)),
            "surrogate": "a\ud800b",
        }[kind]

    @tool
    async def later(self, value: int) -> int:
        """Answer on the event loop."""
        await asyncio.sleep(0)
        return value + self.row.number

    @tool
    def promise(self) -> Any:
        """Answer by something to await, from a plain method."""
        return self.later(1)

    @tool
    def fail(self, how: str) -> None:
        """Raise something."""
        raise {
            "value": ValueError("no such thing"),
            "long": ValueError("x" * 10_000),
            "exit": SystemExit(3),
            "stop": StopIteration(),
            "cancelled": asyncio.CancelledError(),
            "environment": EnvironmentFailed("the simulator is gone"),
            "judge": JudgeFailed("no judge"),
        }[how]

    def secret(self) -> str:
        return "never offered"

    def verify(self, trajectory: Trajectory) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}


class Threaded(Everything):
    """The same in threads."""

    name = "threaded"
    blocking = True


@pytest.fixture(params=[Everything, Threaded])
async def session(request: pytest.FixtureRequest, open_session: Open) -> EnvironmentSession:
    opened = open_session(request.param)
    await opened.setup()
    return opened


async def said(session: EnvironmentSession, name: str, arguments: str) -> str:
    call = await session.call_tool(name, arguments)
    assert call.failed
    return str(json.loads(call.output)["error"])


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("text", "as it is"),
        ("none", "null"),
        ("model", '{"value":1}'),
        ("pair", '{"left":1,"right":"a"}'),
        ("object", '{"a":[1,2.5,null]}'),
        ("set", "[1]"),
        ("surrogate", "a?b"),
    ],
)
async def test_a_text_goes_as_it_is_and_everything_else_as_json(
    session: EnvironmentSession, kind: str, output: str
) -> None:
    assert await session.call_tool("give", json.dumps({"kind": kind})) == ToolCall(
        "give", {"kind": kind}, output, failed=False
    )


async def test_async_tools_and_awaitables_are_awaited(session: EnvironmentSession) -> None:
    assert (await session.call_tool("later", '{"value": 4}')).output == "4"
    assert (await session.call_tool("promise", "")).output == "1"


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("give", '{"kind": 1}', "bad arguments of give: kind: Input should be a valid string"),
        ("give", "{", "the arguments are not valid JSON"),
        ("give", "[]", "the arguments must be a JSON object, not list"),
        ("give", '{"kind": "unknown"}', "KeyError: 'unknown'"),
        ("fail", '{"how": "value"}', "ValueError: no such thing"),
        ("fail", '{"how": "exit"}', "SystemExit: 3"),
        ("fail", '{"how": "stop"}', "StopIteration"),
        ("fail", '{"how": "cancelled"}', "RuntimeError: it was cancelled from inside"),
        ("nothing", "{}", "there is no tool `nothing` in this task; its tools: fail, give, later, promise"),
    ],
)
async def test_every_fault_of_a_tool_call_is_an_error_text_for_the_model(
    session: EnvironmentSession, name: str, arguments: str, error: str
) -> None:
    with anyio.fail_after(20):
        assert error in await said(session, name, arguments)


async def test_arguments_are_kept_when_they_are_an_object_and_none_when_not(session: EnvironmentSession) -> None:
    assert (await session.call_tool("give", '{"kind": 1}')).arguments == {"kind": 1}
    assert (await session.call_tool("give", "[]")).arguments is None


async def test_a_long_error_is_cut(session: EnvironmentSession) -> None:
    assert len(await said(session, "fail", '{"how": "long"}')) == 2001


@pytest.mark.parametrize(
    "name", ["verify", "setup", "close", "secret", "__init__", "_ready", "row", "give.__func__", ""]
)
async def test_nothing_but_tools_can_be_called(session: EnvironmentSession, name: str) -> None:
    assert "there is no tool" in await said(session, name, "{}")


async def test_nothing_but_tools_can_be_called_even_where_the_row_offers_it(open_session: Open) -> None:
    tools = [{"type": "function", "name": name} for name in ("verify", "secret", "__init__", "give")]
    row = {"responses_create_params": {"input": "hello", "tools": tools}}
    session = open_session(Everything, row)
    await session.setup()
    assert session.tools == tools
    for name in ("verify", "secret", "__init__"):
        assert "there is no tool" in await said(session, name, "{}")
    assert (await session.call_tool("give", '{"kind": "text"}')).output == "as it is"


async def test_a_tool_that_the_task_does_not_offer_cannot_be_called(open_session: Open) -> None:
    row = {"responses_create_params": {"input": "hello", "tools": [{"type": "function", "name": "later"}]}}
    session = open_session(Everything, row)
    await session.setup()
    assert await said(session, "give", '{"kind": "text"}') == "there is no tool `give` in this task; its tools: later"


@pytest.mark.parametrize("params", [{}, {"tools": None}, {"tools": []}])
async def test_a_row_without_tools_has_all_of_the_environment(open_session: Open, params: dict[str, Any]) -> None:
    session = open_session(Everything, {"responses_create_params": {"input": "hello", **params}})
    assert [each["name"] for each in session.tools] == ["give", "later", "promise", "fail"]


async def test_a_tool_that_says_that_the_environment_is_gone_fails_the_rollout(session: EnvironmentSession) -> None:
    with pytest.raises(EnvironmentFailed, match="the simulator is gone") as caught:
        await session.call_tool("fail", '{"how": "environment"}')
    assert caught.value.stage is Stage.TOOL
    assert EnvironmentFailed.stage is Stage.SETUP
    with pytest.raises(JudgeFailed):
        await session.call_tool("fail", '{"how": "judge"}')


async def test_a_row_that_does_not_fit_any_more_is_a_bad_row(open_session: Open) -> None:
    with pytest.raises(BadRow, match="field `number`: Input should be a valid integer"):
        await open_session(Everything, {"number": "many"}).setup()


@pytest.mark.parametrize("base", [Everything, Threaded])
@pytest.mark.parametrize("place", ["__init__", "setup"])
async def test_a_raise_while_it_is_set_up_is_an_environment_failure(
    open_session: Open, base: type[Everything], place: str
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise OSError("no database")

    session = open_session(type("Broken", (base,), {place: explode}))
    with pytest.raises(EnvironmentFailed, match=r"setup: OSError: no database"):
        await session.setup()
    await session.close()


async def test_a_disabled_environment_fails_with_its_reason(open_session: Open) -> None:
    session = open_session(EnvironmentType(name="gone", error="ImportError: x"), {})
    with pytest.raises(EnvironmentFailed, match="gone cannot be run: ImportError: x"):
        await session.setup()
    await session.close()


async def test_async_setup_verify_and_close_are_awaited_in_their_order(open_session: Open) -> None:
    done: list[str] = []

    class Noting(Threaded):
        async def setup(self) -> None:
            done.append("setup")

        async def verify(self, trajectory: Trajectory) -> float:
            done.append("verify")
            return 0.5

        async def close(self) -> None:
            done.append("close")

    session = open_session(Noting)
    await session.setup()
    assert await session.verify(EMPTY) == Reward(0.5)
    await session.close()
    await session.close()
    assert done == ["setup", "verify", "close"]


@pytest.mark.parametrize(
    ("result", "reward"), [(1, 1.0), (True, 1.0), (False, 0.0), (-0.5, -0.5), (Reward(0.25, {"a": 1.0}), 0.25)]
)
async def test_a_verifier_gives_a_reward_a_number_or_a_bool(
    session: EnvironmentSession, result: Any, reward: float
) -> None:
    session._ready().result = result  # type: ignore[attr-defined]
    assert (await session.verify(EMPTY)).value == reward


@pytest.mark.parametrize("result", [None, "1.0", float("nan"), float("inf"), [1.0], KeyError("x"), StopIteration()])
async def test_a_verifier_that_raises_or_gives_no_finite_number_never_becomes_a_reward(
    session: EnvironmentSession, result: Any
) -> None:
    session._ready().result = result  # type: ignore[attr-defined]
    with anyio.fail_after(20), pytest.raises(VerifierFailed):
        await session.verify(EMPTY)


async def test_a_judge_that_failed_stays_a_judge_that_failed(session: EnvironmentSession) -> None:
    session._ready().result = JudgeFailed("no judge")  # type: ignore[attr-defined]
    with pytest.raises(JudgeFailed):
        await session.verify(EMPTY)


async def test_a_session_that_is_closed_says_so_and_where(session: EnvironmentSession) -> None:
    await session.close()
    for call, stage in ((session.verify(EMPTY), Stage.VERIFY), (session.call_tool("give", "{}"), Stage.TOOL)):
        with pytest.raises(EnvironmentFailed, match="the session is closed") as caught:
            await call
        assert caught.value.stage is stage


async def test_a_close_that_raises_is_logged_and_nothing_else(
    open_session: Open, caplog: pytest.LogCaptureFixture
) -> None:
    class Sticky(Everything):
        def close(self) -> None:
            raise OSError("busy")

    session = open_session(Sticky)
    await session.setup()
    with caplog.at_level(logging.WARNING):
        await session.close()
    assert "OSError: busy" in caplog.text


async def test_closing_what_was_never_set_up_does_nothing(open_session: Open) -> None:
    await open_session(Everything).close()


async def test_cancellation_of_an_async_tool_comes_through(open_session: Open) -> None:
    class Endless(Everything):
        @tool
        async def wait(self) -> None:
            """Wait for ever."""
            await asyncio.Event().wait()

    session = open_session(Endless)
    await session.setup()
    with anyio.move_on_after(0.01) as scope:
        await session.call_tool("wait", "")
    assert scope.cancelled_caught


WEATHER = environment_type(Weather)


@given(name=st.sampled_from(["get_weather", "verify"]) | st.text(), arguments=st.text())
def test_whatever_a_model_sends_is_answered_by_text_that_can_be_sent(name: str, arguments: str) -> None:
    async def call() -> ToolCall:
        with EnvironmentThreads(1) as pool:
            session = EnvironmentSession(WEATHER, WEATHER.example_row or {}, seed=0, executor=pool)
            await session.setup()
            return await session.call_tool(name, arguments)

    answered = asyncio.run(call())
    assert answered.failed
    json.loads(answered.output.encode())


async def test_a_verifier_may_ask_only_the_judges_that_its_class_names(session: EnvironmentSession) -> None:
    environment: Any = session._ready()
    environment.result = Ask((Question(judge="equality", answer="x"),))
    with pytest.raises(VerifierFailed, match="it asks equality, and its `judges` are none"):
        await session.verify(EMPTY)
    environment.judges = ("equality",)
    assert await session.verify(EMPTY) == environment.result
