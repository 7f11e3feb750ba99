"""Programming problems with tests, in the shape of HumanEval's and MBPP's rows.

The answer is the last fenced block of the last message, else all of it. The tests run in a sandbox, in a process apart
from the answer's: they call its functions by plain values and compare themselves, so that nothing the answer prints,
patches or kills can make it pass (`gym.sandbox.inside`). An answer that ends its own sandbox has reward 0.
"""

from __future__ import annotations

import ast
import re

from pydantic import Field, field_validator, model_validator

from gym.environments.base import Row
from gym.environments.sandboxed import SandboxedEnvironment
from gym.errors import BadRow, EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.plain.enclosed import enclosed
from gym.reward import Reward
from gym.sandbox.base import MAX_CODE_CHARS, CodeVerdict, SandboxEnded, SandboxFailed
from gym.trajectory import Trajectory

_OPENING = re.compile(r"```[ \t]*(?:(?:python|py)[ \t]*)?\n", re.IGNORECASE)
_CLOSING = re.compile("```")
_TRIES = 2
_NOTHING_RAN = Reward(0.0, {"passed": 0.0, "ran": 0.0})
_NAME = re.compile(r"[A-Za-z_]\w{0,99}")


class CodeRow(Row):
    """A problem: `test` with a function `check` and the `entry_point` it is given, or `tests`, a list of asserts."""

    prompt: str = Field(
        default="", max_length=MAX_CODE_CHARS, description="what the answer may leave out, as HumanEval has it"
    )
    entry_point: str | None = None
    test: str | None = Field(default=None, max_length=MAX_CODE_CHARS)
    tests: list[str] | None = Field(default=None, min_length=1, max_length=1000)

    @field_validator("test")
    @classmethod
    def _test_is_python(cls, text: str | None) -> str | None:
        if text is not None:
            tree = _parsed(text)
            if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
                raise ValueError("it defines no function `check`")
        return text

    @field_validator("tests")
    @classmethod
    def _tests_are_python(cls, texts: list[str] | None) -> list[str] | None:
        for number, text in enumerate(texts or ()):
            try:
                tree = _parsed(text)
            except ValueError as error:
                raise ValueError(f"number {number}: {error}") from None
            if not _asserts(tree):
                raise ValueError(f"number {number} has no assert")
        return texts

    @model_validator(mode="after")
    def _one_kind_of_test(self) -> CodeRow:
        if (self.test is None) == (self.tests is None):
            raise ValueError("give one of `test` and `tests`")
        if self.test is not None and not (self.entry_point and _NAME.fullmatch(self.entry_point)):
            raise ValueError("`test` needs an `entry_point`, the name of the function that `check` is given")
        return self


class Code(SandboxedEnvironment[CodeRow]):
    """Write a Python function that passes its tests.

    Reward 1.0 when all tests pass; `passed` is the share of asserts that held. The tools' effects do not count.
    """

    name = "code"
    row_model = CodeRow

    async def verify(self, trajectory: Trajectory) -> Reward:
        """Score the answer in a sandbox that no tool has used.

        Raises BadRow if the tests ask for something unsupported, EnvironmentUnavailable without a sandbox.
        """
        answer = answer_of(trajectory.final_text)
        if not answer.strip() or len(answer) + len(self.row.prompt) > MAX_CODE_CHARS:
            return _NOTHING_RAN
        tests = self.row.tests if self.row.tests is not None else [self.row.test or ""]
        verdict = await self._verdict(self._program(answer), tests)
        if verdict is None:
            return _NOTHING_RAN
        if verdict.bad_tests is not None:
            raise BadRow(f"the tests of this row cannot be run: {verdict.bad_tests}")
        total = max(verdict.seen, sum(_asserts(_parsed(text)) for text in tests), 1)
        passed = verdict.finished and verdict.seen > 0 and verdict.passed == verdict.seen
        ran = 1.0 if verdict.failed is None else 0.0
        return Reward(1.0 if passed else 0.0, {"passed": 1.0 if passed else verdict.passed / total, "ran": ran})

    async def _verdict(self, program: str, tests: list[str]) -> CodeVerdict | None:
        """Return the verdict, or None if the answer ended its sandbox twice: once could be the machine's fault.

        A sandbox that fails before the answer runs says nothing about the answer.
        """
        entry = self.row.entry_point if self.row.test is not None else None
        ended = failed = 0
        while ended < _TRIES:
            sandbox = await self.new_sandbox()
            try:
                return await sandbox.check(program, tests, entry)
            except SandboxEnded:
                ended += 1
            except SandboxFailed as error:
                failed += 1
                if failed == _TRIES:
                    raise EnvironmentUnavailable(f"the sandbox failed: {error}") from error
        return None

    def _program(self, answer: str) -> str:
        """Return the answer after the prompt's definitions, or as the body that the prompt asks for."""
        prompt = self.row.prompt
        if self.row.test is None or not prompt:
            return answer
        whole = _defines(answer, self.row.entry_point)
        program = f"{prompt.rstrip()}\n    pass\n\n{answer}" if whole else f"{prompt.rstrip()}\n{answer}"
        return program if _is_python(program) else answer

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a problem with a list of asserts."""
        return {
            "responses_create_params": {
                "input": "Write a Python function `middle(numbers)` that gives the median of a list of numbers. "
                "End with the whole function in a ```python block."
            },
            "environment": cls.name,
            "tests": ["assert middle([3, 1, 2]) == 2", "assert middle([4, 1, 3, 2]) == 2.5", "assert middle([7]) == 7"],
        }

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:  # noqa: ARG003  see Environment
        """Return no rows: the scripted model cannot program."""
        return []


def answer_of(text: str) -> str:
    """Return the last fenced block of a text, else the text."""
    blocks = enclosed(text, _OPENING, _CLOSING)
    return blocks[-1] if blocks else text


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no Python: {error}") from None


def _asserts(tree: ast.Module) -> int:
    return sum(isinstance(node, ast.Assert) for node in ast.walk(tree))


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _defines(answer: str, name: str | None) -> bool:
    return re.search(rf"^(?:async )?def {name}\b", answer, re.MULTILINE) is not None
