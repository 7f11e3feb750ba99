"""A model with predetermined answers, for tests of environments without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import orjson

from gym.jsontypes import JsonObject
from gym.model_client.client import ModelReply, ModelRequest
from gym.trajectory import CallFacts, CallFinish, Usage

Answer = str | JsonObject | list[JsonObject]
_CALLS = count()


class Answers:
    """Model that gives its answers in order, or computes them with a function of the request; it records the requests.

    An answer is a text, an item of the Responses API, or a list of items.
    """

    def __init__(
        self,
        answers: Sequence[Answer] | Callable[[JsonObject], Answer],
        *,
        finish: CallFinish = "stop",
    ) -> None:
        self._answers = answers
        self._finish = finish
        self.requests: list[JsonObject] = []

    async def respond(self, request: ModelRequest) -> ModelReply:
        """Return the next answer. Raises AssertionError if none is left."""
        number = len(self.requests)
        self.requests.append(request.params)
        if callable(self._answers):
            answer = self._answers(request.params)
        elif number < len(self._answers):
            answer = self._answers[number]
        else:
            raise AssertionError(f"the model was asked for answer {number + 1}; only {len(self._answers)} were given")
        if isinstance(answer, str):
            answer = said(answer)
        return ModelReply(
            items=answer if isinstance(answer, list) else [answer],
            facts=CallFacts(
                endpoint="answers",
                finish=self._finish,
                usage=Usage(),
                version_before=None,
                version_after=None,
                duration_s=0.0,
                attempts=1,
            ),
            tokens=None,
        )


def said(text: str) -> JsonObject:
    """Return a message of the model."""
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def called(name: str, arguments: JsonObject | str, call_id: str | None = None) -> JsonObject:
    """Return a function call of the model; string arguments are used unchanged."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return {"type": "function_call", "call_id": call_id or f"call-{next(_CALLS)}", "name": name, "arguments": text}
