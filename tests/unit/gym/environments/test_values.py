"""Values that environments return: made plain where it enters, refused with its name, and kept within bounds."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gym.environments.base import Environment, Row, Step, SteppedEnvironment, ToolsOfRows, tool
from gym.environments.codec_calls import CodecCalls
from gym.environments.codecs import Act, TextCodec, ToolCodec
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.tools import BadArguments
from gym.environments.values import ValueBounds
from gym.errors import EnvironmentFailed, Stage, VerifierFailed
from gym.judges.base import Ask, Question
from gym.reward import Reward
from gym.trajectory import ToolCall, Trajectory

pytestmark = pytest.mark.anyio
Open = Callable[..., EnvironmentSession]
EMPTY = Trajectory(params={})
LONG = 123456789012345678901234567890
MIB = 2**20


class Given(Environment[Row]):
    """Its tool and its verifier give what a test puts there."""

    name = "given"
    result: Any = None
    judges = ("label",)

    @tool
    def give(self) -> Any:
        """Give it."""
        return self.result() if callable(self.result) else self.result

    @tool
    def take(self, text: str) -> str:
        """Take a text."""
        return f"{len(text)} characters"

    @tool
    def add(self, number: int) -> str:
        """Take a number."""
        return str(number)

    def verify(self, trajectory: Trajectory) -> Any:
        return self.result() if callable(self.result) else self.result

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}


class GivenSteps(SteppedEnvironment[Row]):
    """Its reset and its steps give what a test puts there."""

    name = "given_steps"
    result: Any = None

    def reset(self) -> Any:
        return self.result

    def step(self, action: Any) -> Any:
        return self.result() if callable(self.result) else self.result

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}


@pytest.fixture
def giving(open_session: Open) -> Callable[..., Any]:
    async def make(result: Any, kind: type[Environment[Any]] = Given, **options: Any) -> EnvironmentSession:
        session = open_session(
            type("Made", (kind,), {"result": staticmethod(result) if callable(result) else result}), **options
        )
        await session.setup()
        return session

    return make


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (np.int64(7), "7"),
        (np.float32(0.5), "0.5"),
        ({"values": np.arange(3)}, '{"values":[0,1,2]}'),
        ([np.bool_(True), (1, 2)], "[true,[1,2]]"),
        ({1: {"n": LONG}}, f'{{"1":{{"n":{LONG}}}}}'),
        (np.str_("text"), "text"),
        ({"half": "a\ud800"}, '{"half":"a?"}'),
    ],
)
async def test_a_tool_may_return_values_of_numeric_libraries(giving: Any, result: Any, output: str) -> None:
    called = await (await giving(result)).call_tool("give", "{}")
    assert called == ToolCall("give", {}, output, failed=False)
    assert type(called.output) is str


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda: (n for n in range(3)), "its output is a value of type generator, which JSON cannot hold"),
        ({"rows": [1, b"x"]}, r"its output\.rows\[1\] is a value of type bytes"),
        ({"mean": np.float64("nan")}, r"its output\.mean is "),
        ([object()], r"its output\[0\] is a value of type object"),
    ],
)
async def test_a_tool_result_that_json_cannot_hold_fails_the_rollout_as_the_environments_fault(
    giving: Any, result: Any, said: str
) -> None:
    session = await giving(result)
    with pytest.raises(EnvironmentFailed, match=f"given, tool give: {said}") as caught:
        await session.call_tool("give", "{}")
    assert caught.value.stage is Stage.TOOL


@pytest.mark.parametrize("result", [np.float32(0.5), Reward(np.float64(0.5)), np.array([0.5]), np.float16(0.5)])
async def test_a_verifier_may_give_numbers_of_numeric_libraries(giving: Any, result: Any) -> None:
    assert await (await giving(result)).verify(EMPTY) == Reward(0.5)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({1.0}, "the reward is a value of type set"),
        (np.array([1.0, 2.0]), r"the reward is a value of type numpy\.ndarray"),
        (lambda: Reward(1.0, {"share": object()}), r"reward_components\.share is a value of type object"),
        (lambda: Ask((Question(judge="label", answer="x"),), {"w": b"x"}), r"facts\.w is a value of type bytes"),
    ],
)
async def test_a_reward_that_cannot_be_recorded_is_a_verifier_error_with_field_and_type(
    giving: Any, result: Any, said: str
) -> None:
    with pytest.raises(VerifierFailed, match=f"given, verify: .*{said}"):
        await (await giving(result)).verify(EMPTY)


async def test_an_environment_that_is_gone_says_so_in_verify_too(giving: Any) -> None:
    def gone() -> None:
        raise EnvironmentFailed("the simulator is gone")

    with pytest.raises(EnvironmentFailed) as caught:
        await (await giving(gone)).verify(EMPTY)
    assert caught.value.stage is Stage.VERIFY


@pytest.mark.parametrize(
    ("first", "seen"),
    [(np.zeros(2), [0.0, 0.0]), (np.int64(3), 3), ({"place": np.uint8(1)}, {"place": 1}), ("go", "go"), (None, None)],
)
async def test_a_first_observation_may_hold_arrays(giving: Any, first: Any, seen: Any) -> None:
    observed = await (await giving(first, GivenSteps)).observe()
    assert json.dumps(observed) == json.dumps(seen)


async def test_a_first_observation_that_json_cannot_hold_is_an_environment_error_of_setup(giving: Any) -> None:
    with pytest.raises(
        EnvironmentFailed, match=r"given_steps, reset: the observation\.tags is a value of type set"
    ) as caught:
        await (await giving({"tags": {1}}, GivenSteps)).observe()
    assert caught.value.stage is Stage.SETUP


async def test_a_step_may_hold_values_of_numeric_libraries(giving: Any) -> None:
    given = Step(
        observation=np.arange(2),
        reward=np.float32(0.5),  # type: ignore[arg-type]
        done=np.bool_(True),  # type: ignore[arg-type]
        truncated=np.bool_(False),  # type: ignore[arg-type]
        info={"count": np.int64(2), "account": LONG},
    )
    step = await (await giving(given, GivenSteps)).step("go")
    assert step == Step(observation=[0, 1], reward=0.5, done=True, info={"count": 2, "account": LONG})
    assert (type(step.reward), step.done, step.truncated) == (float, True, False)


def broken() -> None:
    raise IndexError("no such place")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Step(observation="x", reward="1"), "step: reward is '1'"),  # type: ignore[arg-type]
        (Step(observation="x", reward=float("nan")), "step: reward is nan"),
        (Step(observation="x", done="yes"), "step: done is 'yes'"),  # type: ignore[arg-type]
        (Step(observation={1, 2}), "step: the observation.* is a value of type set"),
        (Step(observation="x", info={"raw": b"x"}), r"step: info\.raw is a value of type bytes"),
        (lambda: Reward(float("nan")), "step: NotPlain"),
        (5, "step: it returned int, not a Step"),
        (broken, "step: IndexError: no such place"),
    ],
)
async def test_a_step_that_cannot_be_recorded_or_raises_is_an_environment_error_of_the_tool_stage(
    giving: Any, result: Any, said: str
) -> None:
    session = await giving(result, GivenSteps)
    with pytest.raises(EnvironmentFailed, match=said) as caught:
        await session.step("go")
    assert caught.value.stage is Stage.TOOL


async def test_a_step_that_refuses_an_action_still_tells_whoever_acts(giving: Any) -> None:
    def refuse() -> None:
        raise ValueError("left or right")

    with pytest.raises(BadArguments, match="left or right"):
        await (await giving(refuse, GivenSteps)).step("up")


class Huge(ToolsOfRows[Row]):
    """Its tools are the row's, and answer at length."""

    name = "huge"

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolCall:
        return ToolCall(name, arguments, "é" * 10_000, failed=False)

    def verify(self, trajectory: Trajectory) -> float:
        return 1.0

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello", "tools": [{"type": "function", "name": "look"}]}}


@pytest.mark.parametrize("result", ["x" * 10_000, "é" * 10_000, ["x" * 10_000], [{"n": n} for n in range(10_000)]])
async def test_an_output_that_is_too_long_is_cut_with_a_mark(giving: Any, result: Any) -> None:
    session = await giving(result, bounds=ValueBounds(output_bytes=2000))
    called = await session.call_tool("give", "{}")
    assert not called.failed
    assert 1900 < len(called.output.encode()) <= 2000
    assert called.output.endswith("[cut here: the output is longer than 2000 bytes]")


async def test_an_output_of_a_tool_that_rows_offer_is_cut_too(open_session: Open) -> None:
    session = open_session(Huge, bounds=ValueBounds(output_bytes=2000))
    await session.setup()
    assert len((await session.call_tool("look", "{}")).output.encode()) <= 2000


@pytest.mark.parametrize(
    "make", [lambda: "x" * (300 * MIB), lambda: ["é" * (50 * MIB)] * 3, lambda: {"rows": ["x" * MIB] * 300}]
)
async def test_a_huge_output_is_not_copied(giving: Any, make: Callable[[], Any]) -> None:
    result = make()
    session = await giving(lambda: result)
    tracemalloc.start()
    try:
        called = await session.call_tool("give", "{}")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(called.output.encode()) <= 4 * MIB
    assert most < 40 * MIB


async def test_a_long_observation_is_cut_and_one_that_is_no_text_is_an_environment_error(giving: Any) -> None:
    bounds = ValueBounds(output_bytes=2000)
    assert len(await (await giving("x" * 10_000, GivenSteps, bounds=bounds)).observe()) == 2000
    with pytest.raises(EnvironmentFailed, match="the observation takes more than 2000 bytes"):
        await (await giving(["x" * 10_000], GivenSteps, bounds=bounds)).observe()


async def test_arguments_that_are_too_long_are_refused_to_the_model(giving: Any) -> None:
    session = await giving(None, bounds=ValueBounds(argument_chars=1000))
    taken = await session.call_tool("take", json.dumps({"text": "x" * 900}))
    refused = await session.call_tool("take", json.dumps({"text": "x" * 1000}))
    assert (taken.output, taken.failed) == ("900 characters", False)
    assert refused.failed
    assert refused.arguments is None
    assert "at most 1000 are taken" in refused.output


async def test_long_integers_in_arguments_are_recorded_as_they_were_written(giving: Any) -> None:
    called = await (await giving(None)).call_tool("add", f'{{"number": {LONG}}}')
    assert (called.output, called.arguments) == (str(LONG), {"number": LONG})


async def test_a_long_error_of_a_tool_is_cut_before_it_is_copied(giving: Any) -> None:
    text = "x" * (50 * MIB)

    def fail() -> None:
        raise ValueError(text)

    session = await giving(fail)
    tracemalloc.start()
    try:
        called = await session.call_tool("give", "{}")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert called.failed
    assert most < 5 * MIB


def test_a_codec_reads_long_integers_and_refuses_arguments_that_are_too_long() -> None:
    codec = ToolCodec({"type": "function", "name": "act"}, argument="n")

    def acts(arguments: str) -> list[Act]:
        return codec.acts([{"type": "function_call", "call_id": "c", "arguments": arguments}])

    assert acts(f'{{"n": {LONG}}}') == [Act(action=LONG, call_id="c")]
    assert "longer than" in str(acts(json.dumps({"n": "x" * 2 * MIB}))[0].fault)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            lambda *_: [{"role": "user", "content": b"x"}],
            r"Odd\.show: its items\[0\]\.content is a value of type bytes",
        ),
        (lambda *_: 1 / 0, r"Odd\.show: ZeroDivisionError"),
    ],
)
def test_a_codec_that_fails_is_a_fault_of_the_environment(method: Any, said: str) -> None:
    odd = type("Odd", (TextCodec,), {"show": method})()
    with pytest.raises(EnvironmentFailed, match=said):
        CodecCalls(odd).show("x", None)
