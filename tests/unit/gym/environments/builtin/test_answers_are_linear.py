"""Answers are found in 200 KB of a degenerate text in a moment, by every environment that looks for one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle

import pytest

from gym.environments.builtin import code, equivalence, evaluable, reasoning_gym
from gym.environments.codecs import TextCodec, ToolCodec
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.registry import load_registry
from gym.environments.tools import BadArguments, decode_arguments
from gym.errors import VerifierFailed
from gym.jsontypes import JsonObject
from gym.trajectory import Trajectory

pytestmark = pytest.mark.anyio
SIZE = 200_000
MOST_CPU_S = 3.0
UNITS = (
    *("<answer>", "</answer>", "<answer", "<ANSWER></answer>", "<answer><answer>x", "<action>", "<action></action>"),
    *(
        "```",
        "```python\n",
        "```py\n```",
        "``` \t",
        "```sql\n",
        "```sql",
        "\\boxed{",
        "\\boxed",
        "{",
        "}",
        "{}",
        "\\boxed {",
    ),
    *(
        "a",
        "\u017f",
        "İ",
        "1",
        "1,",
        "1,000",
        "1/",
        "1e",
        ".",
        "-",
        " ",
        "\n",
        "\t\n",
        "\u0301\u0323",
        "\ufdfa",
        "\ud83c",
        "cold ",
    ),
    *('{"', '{"a":', "[", '"', "\\", "\\u", '{"n": ', "<", ">", "&", "0.", "(", "lambda:", "x = ", "def f", "not "),
)
ENDS = ("", "</answer>", "```", "}", "</action>", '"}')
EXTRACT: dict[str, Callable[[str], object]] = {
    "code": code.answer_of,
    "equivalence": equivalence.answer_of,
    "same_plainly": lambda text: equivalence.same_plainly(text, text[::-1] or "x"),
    "same_plainly_short": lambda text: equivalence.same_plainly(text[: equivalence.MOST_COMPARED], "12"),
    "reasoning_gym": reasoning_gym.extract_answer,
    "literal": evaluable.is_literal,
    "literal_short": lambda text: evaluable.is_literal(text[: evaluable.MAX_CHARS]),
    "arithmetic_short": lambda text: evaluable.is_arithmetic(text[: evaluable.MAX_CHARS]),
    "text_codec": lambda text: TextCodec().acts([message(text)]),
    "tool_codec": lambda text: ToolCodec({"type": "function", "name": "act"}, argument="n").acts([called(text)]),
    "arguments": lambda text: decode_arguments(text),
}


def message(text: str) -> JsonObject:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def called(text: str) -> JsonObject:
    return {"type": "function_call", "call_id": "c", "name": "act", "arguments": text}


def texts() -> list[str]:
    """Repeated marks, unclosed and closed ones, and pairs of them."""
    found = [unit * (SIZE // len(unit)) + end for unit, end in zip(UNITS, cycle(ENDS), strict=False)]
    marks = UNITS[:18]
    return found + [(a + b) * (SIZE // len(a + b)) for a, b in zip(marks, marks[1:] + marks[:1], strict=True)]


TEXTS = texts()


@pytest.mark.parametrize("name", sorted(EXTRACT))
def test_an_answer_is_found_in_linear_time(name: str) -> None:
    for text in TEXTS:
        began = time.thread_time()
        with suppress(BadArguments):
            EXTRACT[name](text)
        assert time.thread_time() - began < MOST_CPU_S, f"{name}: {text[:80]!r}"


@pytest.mark.parametrize(
    "name", ["weather", "equivalence", "essay_similarity", "reasoning_gym", "sql", "stateful_counter"]
)
async def test_a_verifier_reads_any_last_message_in_linear_time(
    open_session: Callable[..., EnvironmentSession], name: str
) -> None:
    session = open_session(load_registry().get(name))
    await session.setup()
    for text in TEXTS:
        trajectory = Trajectory(params={}, items=[message(text)])
        began = time.process_time()
        with suppress(VerifierFailed):
            await session.verify(trajectory)
        assert time.process_time() - began < MOST_CPU_S, f"{name}: {text[:80]!r}"
    await session.close()
