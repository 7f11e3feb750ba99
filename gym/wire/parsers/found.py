"""Result of a tool parser on a text, or the absence of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gym.jsontypes import JsonObject


@dataclass(frozen=True, slots=True)
class ParsedCalls:
    """Calls as (name, arguments as JSON text) in the model's order, and the text that is none of them.

    Without calls, `content` is what is left once the parser took its markup out; the `json` and Python formats leave
    the text as it was.
    """

    calls: tuple[tuple[str, str], ...]
    content: str | None


class NotACall(ValueError):
    """The text looks like a call and is none; the model server then answers with the text as it stands."""


ToolParser = Callable[[str, list[JsonObject]], ParsedCalls]


def call(name: Any, arguments: Any) -> tuple[str, str]:
    """One call from decoded JSON; NotACall where no server could send it on."""
    if not isinstance(name, str):
        raise NotACall("the name of a call is no text")
    return encodable(name, json.dumps(arguments, ensure_ascii=False))


def encodable(name: str, text: str) -> tuple[str, str]:
    """Return both as they are; NotACall where UTF-8 cannot hold them."""
    try:
        name.encode(), text.encode()
    except UnicodeEncodeError as error:
        raise NotACall("half of a surrogate pair") from error
    return name, text
