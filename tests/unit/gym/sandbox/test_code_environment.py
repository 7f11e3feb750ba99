# ruff: noqa: E501, ISC004  programs are easier to read on one line
from __future__ import annotations

from typing import Any

import pytest

from gym.environments.builtin.code import Code, CodeRow
from gym.errors import BadRow
from gym.trajectory import Trajectory

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("pools")]
TESTS = {"tests": ["assert double(2) == 4", "assert double(0) == 0", "assert double('a') == 'aa'"]}
HUMAN = {
    "prompt": "from typing import List\n\ndef largest(numbers: List[int]) -> int:\n    '''The largest.'''\n",
    "entry_point": "largest",
    "test": "def check(candidate):\n    assert candidate([1, 3, 2]) == 3\n    assert candidate([-1]) == -1\n",
}


async def score(answer: str, **row: Any) -> tuple[float, float]:
    environment = Code(CodeRow.model_validate(row or TESTS), seed=0)
    text = f"Here it is.\n```python\n{answer}\n```"
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    try:
        reward = await environment.verify(Trajectory(params={}, items=[message], tool_calls=[]))
    finally:
        await environment.close()
    return reward.value, round(reward.components["passed"], 2)


async def test_a_right_answer_passes() -> None:
    assert await score("def double(x):\n    return x + x") == (1.0, 1.0)


async def test_a_partly_right_answer_has_its_share() -> None:
    assert await score("def double(x):\n    return 0") == (0.0, 0.33)


@pytest.mark.parametrize("answer", ["def largest(numbers):\n    return max(numbers)", "    return max(numbers)"])
async def test_an_answer_in_humanevals_way_may_be_a_function_or_its_body(answer: str) -> None:
    assert await score(answer, **HUMAN) == (1.0, 1.0)


@pytest.mark.parametrize(
    "cheat",
    [
        "print('passed'); print('{\"passed\": true}'); print('{\"finished\": true}')",
        "import os\nos._exit(0)",
        "import os\ndef double(x):\n    os._exit(0)",
        "import sys\ndef double(x):\n    sys.exit(0)",
        "class Same(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\ndef double(x):\n    return Same(7)",
        "class Any:\n    def __eq__(self, other): return True\ndef double(x):\n    return Any()",
        "import builtins\nbuiltins.AssertionError = ValueError\ndef double(x):\n    return 1",
        "import sys\nmain = sys.modules['__main__']\nmain.names['encode'] = lambda v: True\ndef double(x):\n    return None",
        "import os\ndef double(x):\n    for fd in range(3, 60):\n        try: os.write(fd, b'{\"finished\": true}\\n')\n"
        "        except OSError: pass\n    return 1",
        "import os, signal\ndef double(x):\n    os.kill(-1, signal.SIGKILL)",
        "import os\ndef double(x):\n    for p in os.listdir('/proc'):\n        if p.isdigit() and int(p) != os.getpid():\n"
        "            open(f'/proc/{p}/mem', 'r+b')\n    return 1",
        "import os\nos.fork()\ndef double(x):\n    raise SystemExit",
    ],
)
async def test_an_answer_cannot_forge_its_verdict(cheat: str) -> None:
    assert (await score(cheat))[0] == 0.0


async def test_an_answer_that_changes_its_argument_is_seen_to() -> None:
    row = {"tests": ["x = [2, 1]\norder(x)\nassert x == [1, 2]"]}
    assert await score("def order(x):\n    x.sort()", **row) == (1.0, 1.0)


async def test_an_expected_exception_reaches_the_tests() -> None:
    row = {
        "tests": [
            "try:\n    half(1)\n    found = ''\nexcept ValueError as error:\n    found = str(error)\nassert found == 'odd'"
        ]
    }
    assert await score("def half(x):\n    raise ValueError('odd')", **row) == (1.0, 1.0)


async def test_tests_that_pass_functions_are_a_bad_row_not_a_wrong_answer() -> None:
    with pytest.raises(BadRow, match="function cannot pass"):
        await score("def apply(f):\n    return f(1)", tests=["assert apply(lambda x: x) == 1"])


async def test_the_tools_share_files_and_tell_of_limits() -> None:
    environment = Code(CodeRow.model_validate(TESTS), seed=0)
    await environment.bash("echo 42 > n")
    assert (await environment.python_exec("print(open('n').read(), end='')"))["stdout"] == "42\n"
    assert "printed too much" in (await environment.bash("yes"))["error"]
    await environment.close()
