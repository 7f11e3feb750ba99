from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.environments.builtin.evaluable import is_arithmetic, is_literal

CODE = [
    "__import__('os').system('id')",
    "().__class__.__base__.__subclasses__()",
    "[x for x in ().__class__.__mro__]",
    "open('f').read()",
    "exec(chr(49))",
    "lambda: 1",
    "f'{1}'",
    "x.__class__",
    "(y := 3)",
]


@pytest.mark.parametrize("answer", ["1 2 3", "_ Q _ _\nQ _ _ _", "ABCD", "", "[[0, 1], [1, 0]]", "['A', 'B']", " [1] "])
def test_words_and_literals_may_be_evaluated(answer: str) -> None:
    assert is_literal(answer)


@pytest.mark.parametrize("answer", [*CODE, "9**9**9", "[" * 3000, "1 + 2", "x" * 5000])
def test_nothing_else_is_a_literal(answer: str) -> None:
    assert not is_literal(answer)


@pytest.mark.parametrize(
    "answer", ["(3 + 5) * 3", "x**2/2 + C", "-exp(2*x)*sin(x)/4", "log(x + 1)", "2**10", "7", "4.5*x**3 - 12", " 1/2 "]
)
def test_arithmetic_may_be_evaluated(answer: str) -> None:
    assert is_arithmetic(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *CODE,
        *("9**9**9", "(9**99)**99", "2**2000", "x**100000", "(x + 1)**5000", "1e400", "1 << 10", "True", "'a'*3"),
        *(
            "factorial(9)",
            "eval(x)",
            "sin(x, y)",
            "sin(x=1)",
            "S[0]",
            "a if b else c",
            "1 = 1",
            "\uff45val(1)",
            "",
            "1j",
        ),
        *("_", "x" * 5000, "(" * 3000),
    ],
)
def test_nothing_else_is_arithmetic(answer: str) -> None:
    assert not is_arithmetic(answer)


@given(st.text(alphabet="0123456789+-*/()xC. _[]'\"e,:=", max_size=40))
def test_what_passes_as_arithmetic_has_no_attribute_subscript_text_or_foreign_call(answer: str) -> None:
    if is_arithmetic(answer):
        for node in ast.walk(ast.parse(answer.strip(), mode="eval")):
            assert not isinstance(node, ast.Attribute | ast.Subscript | ast.Lambda | ast.JoinedStr | ast.NamedExpr)
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes | complex))
