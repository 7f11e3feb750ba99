"""Reasoning that the model writes before its answer.

Each function gives (reasoning, the rest); `None` where there is none. The names differ in what a missing tag means:

    name           no <think>                no </think>                 a call inside the reasoning
    deepseek_r1    begins reasoning anyway   all is reasoning, no rest   stays reasoning
    qwen3          begins reasoning anyway   all is reasoning, no rest   ends it

`deepseek_r1` (vLLM's `reasoning/deepseek_r1_reasoning_parser.py` over `basic_parsers.py`) drops text before `<think>`,
and leaves later tags in the rest; `qwen3` is in its own module.
"""

from __future__ import annotations


def deepseek_r1(text: str) -> tuple[str | None, str | None]:
    """Split at the first `</think>` after the first `<think>`; the latter may be missing, as it is in the prompt."""
    _, opened, inside = text.partition("<think>")
    reasoning, _, rest = (inside if opened else text).partition("</think>")
    return reasoning, rest or None
