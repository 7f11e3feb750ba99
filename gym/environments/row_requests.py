"""Check of a row's request when it is submitted: whether the farm can send its first model call.

The translators to the model server's API are pure, so whatever they would refuse at the first call is known at once.
Agents outside the farm write their own requests; for them a row's request is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from gym.jsontypes import JsonObject
from gym.task import OWN_AGENTS, bad_row
from gym.wire.errors import WireError
from gym.wire.passthrough.request import to_server_request
from gym.wire.responses.request import to_chat_request

Api = Literal["chat", "tokens", "responses"]
STEPPED = "stepped"  # the agent whose environment makes the first message
_PLACEHOLDER: list[JsonObject] = [{"role": "user", "content": "…"}]


def check_request(
    data: JsonObject,
    *,
    agent: str,
    sampling: Mapping[str, object] | None = None,
    api: Api = "chat",
    row: int,
    line: int | None = None,
) -> None:
    """Check that the request of a row whose header was read can be sent to a policy with this `api`.

    `agent` is the agent that will run the row, `sampling` the batch's defaults. Raises Invalid, which names the row and
    the field.
    """
    if agent not in OWN_AGENTS:
        return
    params: JsonObject = {**(sampling or {}), **data["responses_create_params"]}
    if params["input"] == []:
        if agent != STEPPED:
            message = f"it is empty, and the agent {agent} sends it as it is: give a text or a list of items"
            raise bad_row(row, "responses_create_params.input", message, line=line)
        params["input"] = _PLACEHOLDER
    if not params.get("tools") or isinstance(params.get("tool_choice"), dict):
        params.pop("tool_choice", None)  # it may name a tool of the environment
    if not params.get("tools"):
        params.pop("parallel_tool_calls", None)
    try:
        if api == "responses":
            to_server_request(params)
        else:
            to_chat_request(params)
    except WireError as error:
        field = f"responses_create_params.{error.field}" if error.field else "responses_create_params"
        said = error.message.removeprefix(f"`{error.field}`: ")
        raise bad_row(row, field, f"{said}; no model call can be made of it", line=line) from None
