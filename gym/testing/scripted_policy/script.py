"""The scripted policy: a pure function of messages, tools and seed that solves the built-in environments.

| the model sees                                   | it does                                                          |
|--------------------------------------------------|------------------------------------------------------------------|
| a directive (below)                              | what the directive says                                          |
| tool `get_weather`                               | asks for the city in the last user message, then says the report |
| tools `increment_counter`, `get_counter_value`   | "add 1 then add 2 then get the count", a call a turn, or all     |
|                                                  | additions in one turn where the text says "in parallel"          |
| tools `list_tables`, `describe`, `query`         | looks at the tables, runs the query, ends with it; the query is  |
|                                                  | a "(hint: SELECT …)", a ```sql block, or that of a bundled task  |
| arithmetic ("What is 4 + 3 =")                   | "<answer>7</answer>"                                             |
| anything else                                    | a short sentence with "<answer>unknown</answer>"                 |

Directives are read from the last user message, or else from the last system or developer message. A line `---` begins
the next turn; each assistant turn after the message completes one. After the last one the reply is "Done.".

| directive                         | in that turn the policy                                                       |
|-----------------------------------|-------------------------------------------------------------------------------|
| `[[call NAME {json}]]`            | calls a tool; several are parallel calls; without JSON the arguments are {}   |
| `[[raw-arguments NAME not json]]` | calls a tool with arguments as they stand                                     |
| `[[repeat-calls N NAME {json}]]`  | makes that call in each of N turns                                            |
| `[[say TEXT]]`                    | says TEXT, beside its calls if there are any                                  |
| `[[reason TEXT]]`                 | reasons TEXT first                                                            |
| `[[finish length]]`               | ends as if cut by a token limit                                               |
| `[[sleep 0.5]]`                   | answers so many seconds later                                                 |
| `[[status 500]]`                  | is answered by the server with that HTTP error, at every try                  |
| `[[hang]]`                        | never answers                                                                 |
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from gym.jsontypes import JsonObject
from gym.testing.scripted_policy import solvers
from gym.testing.scripted_policy.directives import BadDirective, ScriptedCall, ScriptedReply, directed_reply
from gym.testing.scripted_policy.tokenizer import text_of

__all__ = ["BadDirective", "ScriptedCall", "ScriptedReply", "scripted_reply", "tool_names"]

_OPENINGS = (
    "I have thought about this and cannot tell.",
    "This is beyond what I know.",
    "There is no telling from what I was given.",
    "I looked at it from several sides without finding out.",
)
_THOUGHTS = ("Let me think.", "First I look at what is asked.", "Step by step, then.", "What do I know here?")


def scripted_reply(
    messages: Sequence[JsonObject],
    tools: Sequence[JsonObject] | None = None,
    seed: int = 0,
    *,
    always_reason: bool = False,
) -> ScriptedReply:
    """Return the policy's next turn. `tools` may be in chat or Responses form; the seed determines the wording.

    Raises BadDirective if a directive cannot be read.
    """
    reply = directed_reply(messages)
    if reply is None:
        reply = _solve(messages, tools, seed)
    if always_reason and not reply.reasoning:
        reply = replace(reply, reasoning=_pick(_THOUGHTS, seed, len(messages)))
    return reply


def tool_names(tools: Sequence[JsonObject] | None) -> list[str]:
    """Return the names of tools, in chat or Responses form."""
    return [str((tool.get("function") or tool).get("name", "")) for tool in tools or ()]


def _solve(messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, seed: int) -> ScriptedReply:
    names = tool_names(tools)
    start = solvers.last_user(messages)
    question = text_of(messages[start].get("content")) if start >= 0 else ""
    after = messages[start + 1 :]
    if "get_weather" in names:
        return solvers.weather(question, after)
    if "increment_counter" in names:
        return solvers.counter(question, after)
    if "query" in names:
        return solvers.sql(question, after, names)
    answer = solvers.arithmetic(question[-solvers.LONGEST_QUESTION :])
    if answer is not None:
        return ScriptedReply(content=f"<answer>{answer}</answer>")
    return ScriptedReply(content=f"{_pick(_OPENINGS, seed, len(messages))} <answer>unknown</answer>")


def _pick(choices: Sequence[str], seed: int, salt: int) -> str:
    # seed 0 is the plain first wording; random.Random costs too much for the common case
    return choices[0] if seed == 0 else random.Random(seed * 1_000_003 + salt).choice(choices)
