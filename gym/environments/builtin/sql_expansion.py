"""Bound on the copies of the tables of a WITH clause in a statement.

SQLite copies such a table wherever it is named, before it checks any time limit: twenty tables, each naming the one
before twice, make a million copies. This is an upper bound, read from the statement's words in linear time.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict

MAX_COPIES = 5_000
MAX_DEPTH = 100  # of parentheses, as in SQLite's parser
_TOKEN = re.compile(
    r"""--[^\n]*+|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*+(?:'|\Z)|(?P<quoted>"(?:[^"]|"")*+(?:"|\Z)|`(?:[^`]|``)*+(?:`|\Z))"""
    r"""|\[(?P<bracketed>[^\]]*+)(?:\]|\Z)|(?P<word>[^\W\d][\w$]*+)|(?P<mark>[(),.])|\S""",
    re.DOTALL,
)
_BEFORE_TABLES = frozenset({"from", "join", ",", "(", "in"})


class _ExpansionTooLarge(Exception):
    """Error for more than MAX_COPIES, or for deeper nesting than SQLite reads."""


def expands_too_far(sql: str) -> bool:
    """Return whether more than MAX_COPIES of a statement's WITH tables may be made."""
    if "with" not in sql.casefold():
        return False
    try:
        return _copies(_tokens(sql)) > MAX_COPIES
    except (_ExpansionTooLarge, RecursionError):
        return True


def _copies(tokens: list[str]) -> int:
    closing = _closing(tokens)
    bodies: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, token in enumerate(tokens):
        if (begin := _body(tokens, closing, place)) is not None:
            bodies[token].append((begin, closing.get(begin, len(tokens))))
    named = [
        place
        for place, token in enumerate(tokens)
        if token in bodies
        and tokens[place - 1] in _BEFORE_TABLES
        and tokens[place + 1 : place + 2] not in (["."], ["("], ["as"])
    ]
    known: dict[str, int] = {}
    return sum(_count(tokens[place], tokens, named, bodies, known) for place in named)


def _tokens(sql: str) -> list[str]:
    """Return words without case, names without quotes, and marks; literals, operators and comments are left out."""
    found = []
    for token in _TOKEN.finditer(sql):
        if token["quoted"]:
            found.append(token["quoted"][1:-1].casefold())
        elif token["bracketed"] is not None:
            found.append(token["bracketed"].casefold())
        elif token["word"] or token["mark"]:
            found.append(token[0].casefold())
    return found


def _closing(tokens: list[str]) -> dict[int, int]:
    """Map each opening parenthesis to its closing one."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for place, mark in enumerate(tokens):
        if mark == "(":
            opened.append(place)
            if len(opened) > MAX_DEPTH:
                raise _ExpansionTooLarge
        elif mark == ")" and opened:
            found[opened.pop()] = place
    return found


def _body(tokens: list[str], closing: dict[int, int], place: int) -> int | None:
    """Return where the body of `NAME [(columns)] AS [[NOT] MATERIALIZED] (` begins, or None if there is none here."""
    following = place + 1
    if tokens[following : following + 1] == ["("]:
        following = closing.get(following, len(tokens)) + 1
    if tokens[following : following + 1] != ["as"]:
        return None
    following += 1
    while tokens[following : following + 1] in (["not"], ["materialized"]):
        following += 1
    return following if tokens[following : following + 1] == ["("] else None


def _count(
    table: str,
    tokens: list[str],
    named: list[int],
    bodies: dict[str, list[tuple[int, int]]],
    known: dict[str, int],
) -> int:
    """Return the copies that a table makes, with those of the tables that it names. Raises _ExpansionTooLarge."""
    if table in known:
        return known[table]
    known[table] = 1  # if it names itself
    total = 1
    for begin, end in bodies[table]:
        for place in named[bisect_left(named, begin) : bisect_left(named, end)]:
            total += _count(tokens[place], tokens, named, bodies, known)
            if total > MAX_COPIES:
                raise _ExpansionTooLarge
    known[table] = total
    return total
