"""From the text that a model wrote to the message that a chat server would have answered: pure functions.

    registry        the parsers by vLLM's names; `parse_reply` and all else that is used from outside
    reasoning       deepseek_r1            json_calls    hermes, llama3_json
    qwen3           qwen3, qwen3_coder     pythonic      pythonic, llama4_pythonic
    schema_types    typing of parameters that a format writes as text
    forced          demanded calls in formats without a grammar of their own

Invariant: whatever a model writes is a message. Text that is almost a call is text; only an unknown parser is an error.
Held against vLLM 0.32.0 on the texts of the golden tests.
"""

from gym.wire.parsers.registry import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    finish_reason,
    is_read_as_it_is,
    parse_reply,
)

__all__ = ["REASONING_PARSERS", "TOOL_PARSERS", "finish_reason", "is_read_as_it_is", "parse_reply"]
