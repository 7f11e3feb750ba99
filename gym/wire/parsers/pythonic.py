"""Tool calls written as a Python list: `[get_weather(city="Paris"), now()]` (`pythonic`, `llama4_pythonic`).

Nothing is ever run: the text is read as a syntax tree of which only literals are taken. Behaves as vLLM's
`tool_parsers/pythonic_tool_parser.py`: one element that is no call with literal keyword arguments makes the whole reply
plain text, as does text around the list.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.parsers.found import NotACall, ParsedCalls, call

_NAME = r"[a-zA-Z]\w*"
# What vLLM's expression accepts, without its backtracking: calls without arguments, of which the last or one more may
# have keyword arguments; these swallow all that follows, up to a closing `)]`.
_LIST_OF_CALLS = re.compile(
    rf"\[(?:{_NAME}\(\),\s*)*(?:{_NAME}\(\)\s*)*(?:{_NAME}\(\)\s*\]|{_NAME}\({_NAME}=.*\)\s*\])", re.DOTALL
)
MOST_CHARS = 2**18  # Python's own parser takes some microseconds for each, in one piece
_JSON_NAMES = {"null": None, "true": True, "false": False}


def pythonic(text: str, tools: list[JsonObject]) -> ParsedCalls:  # noqa: ARG001 - one signature for all tool parsers
    """A list of calls as the whole reply, or else plain text."""
    if len(text) > MOST_CHARS or not _LIST_OF_CALLS.match(text):
        return ParsedCalls((), text)
    try:
        return ParsedCalls(tuple(_call(node) for node in _elements(text)), None)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ParsedCalls((), text)


def llama4_pythonic(text: str, tools: list[JsonObject]) -> ParsedCalls:
    """As `pythonic`, between `<|python_start|>` and `<|python_end|>` where the model writes them."""
    if text.startswith("<|python_start|>"):
        text = text.removeprefix("<|python_start|>").replace("<|python_end|>", "")
    return pythonic(text, tools)


def _elements(text: str) -> list[ast.expr]:
    with warnings.catch_warnings():
        # Python warns of unknown escapes such as "\d", which models write in patterns and paths.
        warnings.simplefilter("ignore")
        first = ast.parse(text).body[0]
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.List):
        raise NotACall("the reply is no list")
    return first.value.elts


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call):
        raise NotACall("the list holds something that is no call")
    return call(_dotted(node.func), {keyword.arg: _literal(keyword.value) for keyword in node.keywords})


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            return f"{_dotted(owner)}.{name}"
    raise NotACall("what is called has no plain name")


def _literal(node: ast.expr) -> Any:
    """A JSON value; tuples and sets are lists, `null`, `true` and `false` mean what they say."""
    match node:
        case ast.Constant(value=None | str() | int() | float() as value):
            return value
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_literal(item) for item in items]
        case ast.JoinedStr(values=parts) if all(isinstance(part, ast.Constant) for part in parts):
            return "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _literal(operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value if isinstance(sign, ast.USub) else value
    raise NotACall("an argument is no literal")


def _key(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, None | str | int | float):
        return node.value
    raise NotACall("a key is no literal")
