"""Errors of translation, by their origin.

WireError      a faulty request: becomes 422 and names the field
BadCompletion  a faulty model server: its answer is no finished chat completion
"""

from __future__ import annotations

from gym.errors import Invalid, ModelUnreachable


class WireError(Invalid):
    """A request that is malformed, or that Chat Completions cannot express.

    `field` is the path in the body as the caller wrote it: `tools.0.type`, `input.3.content.1.file_id`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__("untranslatable", f"`{field}`: {message}" if field else message, {"field": field})
        self.field = field


class BadCompletion(ModelUnreachable):
    """The server's answer is broken, aborted or an error in mid-stream; another call may succeed."""
