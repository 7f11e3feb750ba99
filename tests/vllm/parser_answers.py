"""What vLLM's own parsers make of texts. Run by the Python that vLLM is installed in; never imported.

    python parser_answers.py < cases > answers

Reads {"tools": […], "cases": {name: case}} as JSON, writes vLLM's version and, per case, the message and finish
reason of `/v1/chat/completions`. The parsers are asked as that route asks them; the server around them is not started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import Any


class Tokenizer:
    """As much of a tokenizer as the parsers ask for: that their tags are in its vocabulary."""

    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        """The tags, numbered."""
        tags = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<|im_start|>", "<|im_end|>")
        return {tag: number for number, tag in enumerate(tags)}


def answer(case: dict[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The message and the finish reason, as `chat_completion_full_generator` puts them together."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager

    parser_class = ParserManager.get_parser(case["tool_parser"], case["reasoning_parser"], enable_auto_tools=True)
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    if tools:
        body["tools"] = tools
    if "tool_choice" in case:
        body["tool_choice"] = case["tool_choice"]
    request = ChatCompletionRequest.model_validate(body)
    thinking = {"enable_thinking": case.get("thinking", True)}
    parser = parser_class(Tokenizer(), request.tools, chat_template_kwargs=thinking)
    reasoning, content, calls = parser.parse(case["text"], request, enable_auto_tools=True)

    choice = request.tool_choice
    named = choice is not None and not isinstance(choice, str)
    forced = named or choice == "required"
    if not case["tool_parser"] or (not forced and choice != "auto"):
        calls = None
    message = {"role": "assistant", "content": (content or "") if forced else content}
    if reasoning is not None:
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in calls]
    stopped = case.get("stopped", "stop")
    called = (choice == "auto" and bool(calls)) or (choice == "required" and stopped == "stop")
    return {"message": message, "finish_reason": "tool_calls" if called else stopped}


def main() -> None:
    """Answer the cases of the standard input."""
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # vLLM speaks while it is imported
        from vllm import __version__

        logging.disable(logging.CRITICAL)  # a text that is no call is worth a traceback to it
        answers = {
            name: answer(case, json.loads(json.dumps(case.get("tools", asked["tools"]))))
            for name, case in asked["cases"].items()
        }
    json.dump({"version": __version__, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
