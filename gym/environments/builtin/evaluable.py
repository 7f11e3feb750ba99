"""Check of a model's answers before a verifier that evaluates them as Python.

Some of reasoning_gym's verifiers call `eval` or SymPy's `parse_expr` (which is `eval` with more names) on the text that
a model wrote. Model-written code runs only in a sandbox. So such a verifier gets only plain words, a Python literal, or
arithmetic whose numbers stay small; anything else counts as no answer.
"""

from __future__ import annotations

import ast
import math
import re

MAX_CHARS = 4000
MAX_BITS = 1024  # of a number that an answer may work out to, roughly
FUNCTIONS = frozenset({"sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln", "sqrt"})

_WORDS = re.compile(r"[\w\s]*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,15}")


def is_literal(answer: str) -> bool:
    """Return whether `eval` can only read a value from it: words and blanks alone, or a Python literal."""
    if len(answer) > MAX_CHARS:
        return False
    if _WORDS.fullmatch(answer):
        return True
    try:
        ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def is_arithmetic(answer: str) -> bool:
    """Return whether it is numbers, names, + - * / ** and calls of `FUNCTIONS`, without a power that grows large."""
    if len(answer) > MAX_CHARS:
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval")
        return _bits(tree.body) <= MAX_BITS
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _bits(node: ast.expr) -> float:
    """Return an upper bound for the length of a number, infinite for anything but arithmetic."""
    match node:
        case ast.Constant(value=bool()):
            return math.inf
        case ast.Constant(value=int() as number):
            return max(1, number.bit_length())
        case ast.Constant(value=float() as number):
            return max(1, abs(math.frexp(number)[1])) if math.isfinite(number) else math.inf
        case ast.Name(id=name):
            return 1 if _NAME.fullmatch(name) else math.inf
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _bits(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_bits(left), _bits(right)) + 1
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
            return _bits(left) + _bits(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            exponent = _bits(right)
            return _bits(left) * 2**exponent if exponent <= math.log2(MAX_BITS) else math.inf
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return _bits(argument)
    return math.inf
