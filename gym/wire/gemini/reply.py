"""A chat completion as the answer of generateContent.

The answer has thoughts if the request asks for them (`includeThoughts`), as with Google's servers.
Source: Google's `GenerateContentResponse`.
"""

from __future__ import annotations

import base64

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.chat.completion import calls_of, choice_of, finish_of, reasoning_of, refusals_of, text_of, usage_of
from gym.wire.gemini.schemas import fields_of
from gym.wire.history import input_of

FINISH = {"stop": "STOP", "max_tokens": "MAX_TOKENS", "content_filter": "SAFETY"}


def to_gemini(body: JsonObject, completion: JsonObject, *, response_id: str) -> JsonObject:
    """Return the answer to the request `body`. Raises BadCompletion."""
    choice = choice_of(completion)
    message = choice["message"]
    parts: list[JsonObject] = []
    if (reasoning := reasoning_of(message)) and wants_thoughts(body):
        parts.append(thought_part(reasoning))
    if text := "".join([text_of(message), *refusals_of(message)]):
        parts.append({"text": text})
    parts += call_parts(message, response_id=response_id)
    model = completion.get("model") or body.get("model") or ""
    return answer(
        parts or [{"text": ""}],
        response_id=response_id,
        model=model,
        finish=FINISH[finish_of(choice)],
        usage=usage_of(completion),
    )


def wants_thoughts(body: JsonObject) -> bool:
    """Return whether a checked request asks for thoughts."""
    config = fields_of(fields_of(body, "").get("generationConfig", {}), "generationConfig")
    return bool(fields_of(config.get("thinkingConfig", {}), "thinkingConfig").get("includeThoughts"))


def thought_part(text: str) -> JsonObject:
    """Return a part that holds a thought."""
    return {"text": text, "thought": True}


def call_parts(message: JsonObject, *, response_id: str) -> list[JsonObject]:
    """Return the calls as parts. After reasoning the first one has a signature: some clients send no call back without.

    Nothing checks it here.
    """
    parts: list[JsonObject] = [
        {"functionCall": {"id": call.call_id, "name": call.name, "args": input_of(call.arguments)}}
        for call in calls_of(message, id_prefix=response_id)
    ]
    if parts and reasoning_of(message):
        parts[0]["thoughtSignature"] = base64.b64encode(response_id.encode()).decode()
    return parts


def answer(
    parts: list[JsonObject], *, response_id: str, model: str, finish: str | None = None, usage: Usage | None = None
) -> JsonObject:
    """Return an answer, or a piece of one, with these parts."""
    candidate: JsonObject = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    made: JsonObject = {"candidates": [candidate], "modelVersion": model, "responseId": response_id}
    if usage is not None:
        made["usageMetadata"] = usage_object(usage)
    return made


def usage_object(usage: Usage) -> JsonObject:
    """Return token counts as Gemini writes them: thoughts are not among the candidate's tokens."""
    return {
        "promptTokenCount": usage.input_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens,
    }
