"""Answers of the scripted policy."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gym.environments.builtin.sql import Sql
from gym.environments.builtin.stateful_counter import StatefulCounter
from gym.environments.builtin.weather import Weather
from gym.environments.tools import tools_of
from gym.testing.scripted_policy.script import BadDirective, ScriptedCall, ScriptedReply, scripted_reply
from gym.testing.scripted_policy.solvers import arithmetic, cities

WEATHER_TOOLS = [{"type": "function", "function": tool.schema} for tool in tools_of(Weather)]
COUNTER_TOOLS = [{"type": "function", "function": tool.schema} for tool in tools_of(StatefulCounter)]
SQL_TOOLS = [{"type": "function", "function": tool.schema} for tool in tools_of(Sql)]


def play(
    text: str, tools: list[dict[str, Any]] | None, answer: Callable[[ScriptedCall], str], *, role: str = "user"
) -> tuple[list[list[ScriptedCall]], ScriptedReply]:
    """Run the policy against tools until it calls none; return the calls of each turn and the last reply."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "go"}] if role != "user" else []
    messages.insert(0, {"role": role, "content": text})
    turns: list[list[ScriptedCall]] = []
    for _ in range(20):
        reply = scripted_reply(messages, tools)
        if not reply.tool_calls:
            return turns, reply
        turns.append(list(reply.tool_calls))
        calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in reply.tool_calls]
        messages.append({"role": "assistant", "content": reply.content, "tool_calls": calls})
        messages += [{"role": "tool", "content": answer(call)} for call in reply.tool_calls]
    raise AssertionError("the policy does not come to an end")


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("what's it like in sf?", ("sf",)),
        ("going out in sf tn", ("sf",)),
        ("humidity in sf", ("sf",)),
        ("How is the weather in New York City today?", ("New York City",)),
        ("Tell me the weather for Tokyo, please", ("Tokyo",)),
        ("Paris weather?", ("Paris",)),
        ("Is it warm in Zürich right now?", ("Zürich",)),
        ("I am going out in San Francisco tonight. Do I need a coat?", ("San Francisco",)),
        ("Pack my bag for Lima: what is it like there today?", ("Lima",)),
        ("What is Berlin's weather like?", ("Berlin",)),
        ("Will it rain in Rio de Janeiro?", ("Rio de Janeiro",)),
        ("weather in Paris and London", ("Paris", "London")),
        ("how's the outside?", ("here",)),
        ("", ("here",)),
    ],
)
def test_the_city_is_found_in_any_phrasing(question: str, found: tuple[str, ...]) -> None:
    assert cities(question) == found


def test_weather_is_asked_for_once_and_said() -> None:
    turns, last = play(
        "what's it like in sf?",
        WEATHER_TOOLS,
        lambda call: orjson.dumps(Weather.get_weather(None, **orjson.loads(call.arguments))).decode(),  # type: ignore[arg-type]  # it uses no state
    )
    assert turns == [[ScriptedCall("get_weather", '{"city": "sf"}')]]
    assert last.content == "The weather in sf is cold."


def test_every_demo_question_names_its_city() -> None:
    for row in Weather.demo_rows(50, 3):
        question = row["responses_create_params"]["input"][-1]["content"]
        assert cities(question)[0] in question
        assert cities(question)[0][0].isupper()


def test_a_new_question_after_an_answer_is_asked_for_again() -> None:
    messages = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "The weather in Oslo is cold."},
        {"role": "user", "content": "And in Rome?"},
    ]
    assert scripted_reply(messages, WEATHER_TOOLS).tool_calls == (ScriptedCall("get_weather", '{"city": "Rome"}'),)


def counter_tools() -> Callable[[ScriptedCall], str]:
    count = 3

    def answer(call: ScriptedCall) -> str:
        nonlocal count
        count += orjson.loads(call.arguments).get("count", 0)
        return f'{{"count": {count}}}' if call.name == "get_counter_value" else '{"success": true}'

    return answer


def test_the_counter_is_moved_step_by_step_and_read() -> None:
    turns, last = play("add 1 then add 2 then get the count", COUNTER_TOOLS, counter_tools())
    assert [call.name for [call] in turns] == ["increment_counter", "increment_counter", "get_counter_value"]
    assert last.content == "The count is 6."


def test_the_counter_is_moved_in_one_turn_where_the_text_says_so() -> None:
    turns, last = play("add 1 and subtract 5 in parallel then get the count", COUNTER_TOOLS, counter_tools())
    assert [call.arguments for call in turns[0]] == ['{"count": 1}', '{"count": -5}']
    assert last.content == "The count is -1."


def run_sql(row: dict[str, Any], question: str) -> tuple[list[str], ScriptedReply]:
    environment = Sql(Sql.row_model.model_validate(row), seed=0)  # type: ignore[arg-type]  # the class's own row model
    environment.setup()
    specs = {spec.name: spec for spec in tools_of(Sql)}

    def answer(call: ScriptedCall) -> str:
        arguments = specs[call.name].read_arguments(call.arguments)
        return orjson.dumps(getattr(environment, call.name)(**arguments)).decode()

    turns, last = play(question, SQL_TOOLS, answer)
    environment.close()
    return [call.name for calls in turns for call in calls], last


def test_sql_looks_at_the_tables_then_runs_the_query_of_a_bundled_task() -> None:
    row = Sql.example_row()
    names, last = run_sql(row, row["question"])
    assert names == ["list_tables", "describe", "describe", "query"]
    assert f"```sql\n{row['expected_sql']}\n```" in last.content
    assert "Tove Jansson" in last.content


@pytest.mark.parametrize(
    "question", ["How many books? (hint: SELECT COUNT(*) FROM books)", "Run\n```sql\nSELECT COUNT(*) FROM books\n```"]
)
def test_sql_takes_the_query_from_a_hint(question: str) -> None:
    _, last = run_sql(Sql.example_row(), question)
    assert last.content.endswith("```sql\nSELECT COUNT(*) FROM books\n```")


def test_sql_knows_every_demo_row() -> None:
    for row in Sql.demo_rows(60, 1):
        _, last = run_sql(row, row["question"])
        assert row["expected_sql"] in last.content


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("State the final answer to the following arithmetic problem: 4 - 1 - 7 =", "-4"),
        ("Calculate 2 - -1.", "3"),
        ("Calculate ( 56 + -33 ) - 84.", "-61"),
        ("Solve the following multiplication: 18271 * 43432. Give only the result.", "793546072"),
        ("What is 7 / 2?", "3.5"),
        ("1 / 0", None),
        ("In 2024", None),
        ("9 ** 9 ** 9 ** 9", None),
        ("__import__('os')", None),
    ],
)
def test_arithmetic_is_worked_out(question: str, answer: str | None) -> None:
    assert arithmetic(question) == answer


def test_what_it_cannot_know_it_says_so() -> None:
    assert "<answer>unknown</answer>" in scripted_reply([{"role": "user", "content": "Who wrote it?"}]).content


def test_wording_follows_from_the_seed() -> None:
    ask = [{"role": "user", "content": "Who wrote it?"}]
    said = [scripted_reply(ask, seed=seed).content for seed in range(20)]
    assert said == [scripted_reply(ask, seed=seed).content for seed in range(20)]
    assert len(set(said)) > 1


def test_calls_on_a_line_are_parallel_and_a_rule_begins_the_next_turn() -> None:
    text = '[[call a {"x": [[1]]}]] [[call b]]\n---\n[[call c {}]]\n---\n[[say all done]]'
    turns, last = play(text, None, lambda _: "ok")
    assert turns == [[ScriptedCall("a", '{"x": [[1]]}'), ScriptedCall("b", "{}")], [ScriptedCall("c", "{}")]]
    assert last.content == "all done"


def test_behind_the_last_step_it_is_done() -> None:
    _, last = play("[[call a]]", None, lambda _: "ok")
    assert last.content == "Done."


def test_repeated_calls_take_a_turn_each() -> None:
    turns, last = play('[[repeat-calls 5 a {"x": 1}]]\n---\n[[say end]]', None, lambda _: "ok")
    assert turns == [[ScriptedCall("a", '{"x": 1}')]] * 5
    assert last.content == "end"


def test_directives_in_a_system_message_count_where_the_user_gives_none() -> None:
    for role in ("system", "developer"):
        turns, last = play("[[call a]]\n---\n[[say end]]", None, lambda _: "ok", role=role)
        assert (len(turns), last.content) == (1, "end")


def test_a_turn_can_say_reason_and_call() -> None:
    text = "[[reason hm]] [[say look]] [[raw-arguments a not json]] [[finish length]] [[sleep 0.5]]"
    reply = scripted_reply([{"role": "user", "content": text}])
    assert reply == ScriptedReply(
        content="look",
        reasoning="hm",
        tool_calls=(ScriptedCall("a", "not json"),),
        finish_reason="length",
        sleep_s=0.5,
    )


def test_a_turn_can_hang_or_fail() -> None:
    assert scripted_reply([{"role": "user", "content": "[[hang]]"}]).hang
    assert scripted_reply([{"role": "user", "content": "[[status 502]]"}]).status == 502


@pytest.mark.parametrize(
    "text",
    ["[[call a {]]", "[[call]]", "[[say never closed", "[[status 200]]", "[[sleep long]]", "[[finish x]]"],
)
def test_a_malformed_directive_is_refused(text: str) -> None:
    with pytest.raises(BadDirective):
        scripted_reply([{"role": "user", "content": text}])


@pytest.mark.parametrize("text", ["[[link]]", "The matrix [[1, 2], [3, 4]]", "[[callable]]"])
def test_other_double_brackets_are_text(text: str) -> None:
    assert "unknown" in scripted_reply([{"role": "user", "content": text}]).content
