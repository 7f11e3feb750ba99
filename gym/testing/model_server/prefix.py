"""`required_prefix_token_ids` as implemented by a server that supports it.

Source: NeMo RL, `nemo_rl/models/generation/vllm/vllm_worker_async.py` (_replace_prefix_tokens): the required tokens
replace the template's text of the conversation up to its last assistant message, followed by the template's own end
mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gym.jsontypes import JsonObject
from gym.testing.model_server.behaviour import RequiredPrefix
from gym.testing.model_server.chat_request import Refused
from gym.testing.scripted_policy.tokenizer import END_ID, History, encode, render

FIELD = "required_prefix_token_ids"


def prompt_for(
    body: JsonObject, messages: Sequence[JsonObject], tools: Any, *, history: History, mode: RequiredPrefix
) -> list[int] | None:
    """Return the prompt's ids, None if the template alone determines them. Raises Refused."""
    required = body.get(FIELD)
    if required is None or mode == "ignore":
        return None
    if mode == "refuse":
        raise Refused(400, f"body.{FIELD}: Extra inputs are not permitted", kind="Bad Request", param=f"body.{FIELD}")
    if not isinstance(required, list) or not all(isinstance(token_id, int) for token_id in required):
        raise Refused(400, f"body.{FIELD}: Input should be a valid list of integers", kind="Bad Request", param=FIELD)
    last = max((place for place, message in enumerate(messages) if message.get("role") == "assistant"), default=None)
    if last is None or not required:
        return None
    before = encode(render(messages[: last + 1], tools, history=history, add_generation_prompt=False))
    whole = encode(render(messages, tools, history=history))
    end = max(place for place, token_id in enumerate(before) if token_id == END_ID)
    kept = required[:-1] if required[-1] == END_ID else required
    return [*kept, *whole[end:]]
