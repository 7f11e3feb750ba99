"""Solvers of the built-in environments for the scripted policy: small rules over the text of the question.

Each takes the last user message and the items after it, and returns the next turn.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import orjson

from gym.jsontypes import JsonObject
from gym.testing.scripted_policy.directives import ScriptedCall, ScriptedReply
from gym.testing.scripted_policy.tokenizer import canonical_arguments, text_of

_CITY_WORDS_END = re.compile(
    r"[?.!,:;\n]|\b(?:today|tonight|tomorrow|now|right|tn|please|this|currently|like|is|at|in|on|over|and|or|then)\b",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\b(?:in|for|at|of|near|around|to)\s+(?=\w)", re.IGNORECASE)
_NOT_A_CITY = re.compile(
    r"a|about|an|and|are|be|cold|do|does|forecast|get|give|going|hello|hey|hi|hot|how|how's|humidity|i|i'm|is|it|it's"
    r"|like|look|me|my|need|no|now|of|on|out|outside|please|rain|raining|right|show|temperature|tell|that|the|there"
    r"|this|to|today|tomorrow|tonight|up|warm|weather|what|what's|whats|will|with|you|your",
    re.IGNORECASE,
)
_PARTICLES = frozenset(("da", "de", "del", "der", "di", "do", "dos", "la", "le", "of", "the", "upon"))
_WORDS = re.compile(r"\w[\w'.-]*\w|\w")
_FEW_WORDS = 4
LONGEST_QUESTION = 2000  # characters; only the end of a longer text is read

_MOVE = re.compile(
    r"\b(add|increment|increase|subtract|decrement|decrease|take)\b[^\d\n.;,]*?(-?\d+)"
    r"|\b(?:increment|increase)\b(?!\w)|\b(get|read|what|tell|report|show)\b",
    re.IGNORECASE,
)
_DOWN = frozenset(("subtract", "decrement", "decrease", "take"))
_AT_ONCE = re.compile(r"\bparallel\b|\bat once\b|\bat the same time\b", re.IGNORECASE)

_SQL_HINT = re.compile(r"\(hint:\s*(.+)\)\s*$", re.IGNORECASE | re.DOTALL)
_SQL_BLOCK = re.compile(r"```sql\s*\n(.*?)```", re.IGNORECASE | re.DOTALL)
_SQL_TABLE = re.compile(r"\b(?:from|join)\s+[\"`\[]?(\w+)", re.IGNORECASE)

_EXPRESSION = re.compile("[0-9(+\\-][0-9 +\\-*/%().,\u00d7\u00f7]*[0-9)]")

_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def last_user(messages: Sequence[JsonObject]) -> int:
    """Return the index of the last user message, -1 if there is none."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].get("role") == "user":
            return place
    return -1


def weather(question: str, after: Sequence[JsonObject]) -> ScriptedReply:
    """Ask for the city once, then repeat the tool's report."""
    outputs = _outputs(after)
    if not outputs:
        return _calls(
            ScriptedCall("get_weather", canonical_arguments({"city": city}))
            for city in cities(question[-LONGEST_QUESTION:])
        )
    said = [read.get("weather_description") if isinstance(read := _json(text), dict) else None for text in outputs]
    return ScriptedReply(
        content=" ".join(
            str(line) if line else f"The weather tool answered: {text[:200]}"
            for line, text in zip(said, outputs, strict=True)
        )
    )


@lru_cache(maxsize=4096)
def cities(question: str) -> tuple[str, ...]:
    """Return the cities that a question is about, at least one."""
    found: list[str] = []
    for match in _PLACE.finditer(question):
        name = _city_at(question, match.end())
        if name and not _NOT_A_CITY.fullmatch(name):
            found.append(name)
            second = re.match(r"\s+and\s+(?=[A-ZÀ-Þ])", question[match.end() + len(name) :])
            if second:
                found.append(_city_at(question, match.end() + len(name) + second.end()))
    named = [name for name in found if name[:1].isupper()]
    if named or found:
        return tuple(dict.fromkeys(named or found[-1:]))
    words = [word for word in _WORDS.findall(question) if not _NOT_A_CITY.fullmatch(word)]
    capitals = [word for word in words if word[:1].isupper()]
    left = " ".join((capitals or words)[-_FEW_WORDS:])
    return (left.removesuffix("'s") or "here",)


def _city_at(text: str, start: int) -> str:
    end = _CITY_WORDS_END.search(text, start)
    words = text[start : end.start() if end else len(text)].split()
    if words and words[0][:1].isupper():
        small = (n for n, word in enumerate(words) if word[:1].islower() and word not in _PARTICLES)
        words = words[: next(small, len(words))]
    return " ".join(words[:_FEW_WORDS])


def counter(question: str, after: Sequence[JsonObject]) -> ScriptedReply:
    """Make the additions in order, read the counter if asked to, state the last number seen."""
    adds, wants_value = _moves(question)
    calls = [ScriptedCall("increment_counter", canonical_arguments({"count": amount})) for amount in adds]
    read = [ScriptedCall("get_counter_value", "{}")] if wants_value else []
    turns = [
        *([calls] if _AT_ONCE.search(question) and calls else [[call] for call in calls]),
        *([read] if read else []),
    ]
    done = _turns(after)
    if done < len(turns):
        return _calls(turns[done])
    outputs = _outputs(after)
    value = re.search(r"-?\d+", outputs[-1]) if outputs and wants_value else None
    return ScriptedReply(content=f"The count is {value[0]}." if value else "Done.")


def _moves(question: str) -> tuple[list[int], bool]:
    adds: list[int] = []
    wants_value = False
    for match in _MOVE.finditer(question):
        if match[2] is not None:
            adds.append(-int(match[2]) if match[1].casefold() in _DOWN else int(match[2]))
        elif match[3] is not None:
            wants_value = True
        else:
            adds.append(1)
    return adds, wants_value


def sql(question: str, after: Sequence[JsonObject], names: Sequence[str]) -> ScriptedReply:
    """List and describe the tables, run the query, finish with it."""
    query = _known_query(question)
    done = [
        str(call.get("function", {}).get("name"))
        for message in after
        if message.get("role") == "assistant"
        for call in message.get("tool_calls") or ()
    ]
    outputs = _outputs(after)
    listed = _json(outputs[0]) if outputs and done[:1] == ["list_tables"] else None
    tables = [str(table) for table in listed] if isinstance(listed, list) else []
    if "list_tables" in names and not done:
        return _calls([ScriptedCall("list_tables", "{}")])
    wanted = [table for table in _SQL_TABLE.findall(query or "") if table in tables] or tables[:1]
    if "describe" in names and wanted and "describe" not in done and "query" not in done:
        calls = [ScriptedCall("describe", canonical_arguments({"table": table})) for table in dict.fromkeys(wanted)]
        return _calls(calls)
    if query is None:
        query = f'SELECT COUNT(*) FROM "{tables[0]}"' if tables else "SELECT 1"  # noqa: S608  read-only test data
    if "query" not in done:
        return _calls([ScriptedCall("query", canonical_arguments({"sql": query}))])
    return ScriptedReply(content=f"The database answers {outputs[-1][:400] if outputs else ''}\n```sql\n{query}\n```")


def _known_query(question: str) -> str | None:
    for pattern in (_SQL_BLOCK, _SQL_HINT):
        hints = pattern.findall(question)
        if hints:
            return str(hints[-1]).strip()
    for pattern, template in _bundled_queries():
        match = pattern.search(question)
        if match:
            return template.format(**match.groupdict())
    return None


@cache
def _bundled_queries() -> list[tuple[re.Pattern[str], str]]:
    """Return questions of the bundled tasks as patterns, with the query of each."""
    from gym.environments.builtin.sql import Sql
    from gym.environments.builtin.sql_shop import QUESTIONS

    example = Sql.example_row()
    known = [(str(example["question"]), str(example["expected_sql"]))]
    known += [(question.text, question.sql) for question in QUESTIONS]
    patterns = []
    for text, query in known:
        parts = re.split(r"\{(\w+)\}", text)
        pattern = "".join(f"(?P<{part}>.+?)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
        patterns.append((re.compile(pattern), query))
    return patterns


@lru_cache(maxsize=4096)
def arithmetic(question: str) -> str | None:
    """Evaluate the longest arithmetic expression in a text; None if there is none that can be evaluated."""
    found = [match[0] for match in _EXPRESSION.finditer(question)]
    for text in sorted(found, key=len, reverse=True):
        plain = text.replace("\u00d7", "*").replace("\u00f7", "/").replace(",", "").strip()
        try:
            tree = ast.parse(plain, mode="eval").body
            if not isinstance(tree, ast.BinOp):
                continue
            return _number_text(_evaluate(tree))
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
            continue
    return None


def _evaluate(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and (operate := _OPERATORS.get(type(node.op))):
        return Fraction(operate(_evaluate(node.left), _evaluate(node.right)))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def _number_text(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _calls(calls: Any) -> ScriptedReply:
    return ScriptedReply(tool_calls=tuple(calls))


def _turns(after: Sequence[JsonObject]) -> int:
    return sum(message.get("role") == "assistant" for message in after)


def _outputs(after: Sequence[JsonObject]) -> list[str]:
    return [text_of(message.get("content")) for message in after if message.get("role") == "tool"]


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
