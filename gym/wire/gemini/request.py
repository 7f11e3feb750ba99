"""A Gemini request as a Chat Completions request.

Gemini's URL names the model and says whether the answer is streamed; the proxy writes both into the body as `model`
and `stream`. Names may be in camel case or in snake case, as Google's servers read them.
Source: Google's `GenerateContentRequest` and `GenerationConfig`.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_bool, as_list, as_name, as_object, as_text, only
from gym.wire.errors import WireError
from gym.wire.fields import Field, table
from gym.wire.gemini.contents import to_chat_messages
from gym.wire.gemini.schemas import camel, fields_of, json_schema
from gym.wire.server_fields import EXTRAS, PASSED, add_extras, passed_fields
from gym.wire.tools import add_tools

IGNORED = {
    "safetySettings": "the model server has no filters",
    "labels": "of Google's billing",
    "serviceTier": "of Google's billing",
}
_TRANSLATED = frozenset({"model", "stream", "contents", "systemInstruction", "tools", "toolConfig", "generationConfig"})
_REFUSED = {"cachedContent": "nothing is cached to refer to: send the contents themselves"}
_LIMITED = {"store": "only false: answers cannot be fetched later"}
_HANDLED = _TRANSLATED | IGNORED.keys() | _REFUSED.keys() | _LIMITED.keys()

_CONFIG_PASSED = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
}
_CONFIG_TRANSLATED = frozenset(
    {"maxOutputTokens", "stopSequences", "responseMimeType", "responseSchema", "responseJsonSchema", "thinkingConfig"}
)
_CONFIG_IGNORED = {
    "mediaResolution": "the model server decides how it reads images",
    "enableEnhancedCivicAnswers": "of Google's own models",
    "logprobs": "says something with `responseLogprobs` only",
}
_SPEECH = "the model server writes text only"
_GOOGLE = "the policy says which model answers"
_CONFIG_REFUSED = {
    "speechConfig": _SPEECH,
    "imageConfig": _SPEECH,
    "audioTranscriptionConfig": _SPEECH,
    "translationConfig": _SPEECH,
    "enableAffectiveDialog": _SPEECH,
    "audioTimestamp": "the model server cannot be told",
    "routingConfig": _GOOGLE,
    "modelSelectionConfig": _GOOGLE,
    "modelConfig": _GOOGLE,
    "responseFormat": "say it with `responseMimeType` and `responseSchema`",
    "continuationToken": "nothing is stored to go on from",
    "automaticContinuation": "an answer ends at its limit",
}
_CONFIG_LIMITED = {
    "candidateCount": "only 1: send the call again for another answer",
    "responseModalities": 'only ["TEXT"]: the model server writes text only',
    "responseLogprobs": "only false: ask in Chat Completions or Responses; a rollout's record has them in any case",
}
_JSON = "application/json"


def fields() -> list[Field]:
    """Return the treatment of each field of the request; those of `generationConfig` as `generationConfig.NAME`."""

    def inner(names: dict[str, str]) -> dict[str, str]:
        return {f"generationConfig.{name}": note for name, note in names.items()}

    return table(
        passed=[*PASSED, *(f"generationConfig.{name}" for name in _CONFIG_PASSED)],
        translated=[*_TRANSLATED, *EXTRAS, *(f"generationConfig.{name}" for name in _CONFIG_TRANSLATED)],
        ignored=IGNORED | inner(_CONFIG_IGNORED),
        refused=_REFUSED | inner(_CONFIG_REFUSED),
        limited=_LIMITED | inner(_CONFIG_LIMITED),
    )


def to_chat_request(body: JsonObject) -> JsonObject:
    """Translate the body of generateContent or streamGenerateContent. Raises WireError."""
    body = {camel(name) if camel(name) in _HANDLED else name: value for name, value in as_object(body, "").items()}
    for name, message in _REFUSED.items():
        if body.get(name):
            raise WireError(name, message)
    if body.get("store"):
        raise WireError("store", _LIMITED["store"])
    request: JsonObject = {}
    if body.get("model") is not None:
        request["model"] = as_text(body["model"], "model").removeprefix("models/")
    request["messages"] = to_chat_messages(body.get("contents"), body.get("systemInstruction"))
    if request["messages"][-1]["role"] == "assistant":
        raise WireError("contents", "end with the model's own; send what it is to answer")
    request |= passed_fields(body, _HANDLED)
    _add_config(request, body.get("generationConfig") or {})
    _add_tools(request, body.get("tools") or [], body.get("toolConfig") or {})
    if body.get("stream") is not None and as_bool(body["stream"], "stream"):
        request["stream"] = True
        request["stream_options"] = {"include_usage": True}
    add_extras(request, body)
    return request


def count_request(body: JsonObject) -> JsonObject:
    """Return the input of countTokens as the body of generateContent. Raises WireError."""
    given = fields_of(body, "")
    inner = given.pop("generateContentRequest", None)
    if inner is not None:
        given |= fields_of(inner, "generateContentRequest")
    given.pop("stream", None)
    return given


def _add_config(request: JsonObject, value: object) -> None:
    config = fields_of(value, "generationConfig")
    for name, inner in config.items():
        field = f"generationConfig.{name}"
        if name in _CONFIG_PASSED:
            request[_CONFIG_PASSED[name]] = inner
        elif name in _CONFIG_REFUSED:
            raise WireError(field, _CONFIG_REFUSED[name])
        elif name not in _CONFIG_TRANSLATED and name not in _CONFIG_IGNORED and name not in _CONFIG_LIMITED:
            raise WireError(field, "unknown field; a parameter of the model server goes into `extra_body`")
    if config.get("candidateCount", 1) != 1:
        raise WireError("generationConfig.candidateCount", _CONFIG_LIMITED["candidateCount"])
    if config.get("responseModalities") not in (None, [], ["TEXT"], ["text"]):
        raise WireError("generationConfig.responseModalities", _CONFIG_LIMITED["responseModalities"])
    if config.get("responseLogprobs"):
        raise WireError("generationConfig.responseLogprobs", _CONFIG_LIMITED["responseLogprobs"])
    if "maxOutputTokens" in config:
        request["max_tokens"] = config["maxOutputTokens"]
    if config.get("stopSequences"):
        request["stop"] = as_list(config["stopSequences"], "generationConfig.stopSequences")
    _add_form(request, config)
    _add_thinking(request, config.get("thinkingConfig") or {})


def _add_form(request: JsonObject, config: JsonObject) -> None:
    media_type = config.get("responseMimeType", "text/plain")
    schema: JsonObject | None = None
    if "responseSchema" in config:
        schema = json_schema(config["responseSchema"], "generationConfig.responseSchema")
    elif "responseJsonSchema" in config:
        schema = as_object(config["responseJsonSchema"], "generationConfig.responseJsonSchema")
    if media_type == "text/x.enum" and schema is not None and schema.get("enum"):
        request["structured_outputs"] = {"choice": schema["enum"]}
    elif media_type == _JSON and schema is not None:
        form = {"name": "output", "schema": schema, "strict": True}
        request["response_format"] = {"type": "json_schema", "json_schema": form}
    elif media_type == _JSON:
        request["response_format"] = {"type": "json_object"}
    elif media_type != "text/plain":
        raise WireError("generationConfig.responseMimeType", f"{media_type!r} is not one of text/plain, {_JSON}")
    elif schema is not None:
        raise WireError("generationConfig.responseMimeType", f"a schema needs {_JSON!r}")


def _add_thinking(request: JsonObject, value: object) -> None:
    """A budget of 0 turns thinking off; any other one is taken as a hint, since few servers are started for it."""
    thinking = fields_of(value, "generationConfig.thinkingConfig")
    only(thinking, ("includeThoughts", "thinkingBudget", "thinkingLevel"), "generationConfig.thinkingConfig")
    if "includeThoughts" in thinking:
        as_bool(thinking["includeThoughts"], "generationConfig.thinkingConfig.includeThoughts")
    if "thinkingBudget" in thinking and thinking["thinkingBudget"] != -1:
        request["chat_template_kwargs"] = {"enable_thinking": thinking["thinkingBudget"] != 0}
    if "thinkingLevel" in thinking:
        level = as_text(thinking["thinkingLevel"], "generationConfig.thinkingConfig.thinkingLevel").lower()
        if level != "thinking_level_unspecified":
            request["reasoning_effort"] = level


def _add_tools(request: JsonObject, given: object, config: object) -> None:
    tools: list[JsonObject] = []
    for number, value in enumerate(as_list(given, "tools")):
        field = f"tools.{number}"
        tool = fields_of(value, field)
        for name in tool:
            if name != "functionDeclarations":
                raise WireError(f"{field}.{name}", "the model server runs no tools of its own: declare functions")
        declared = as_list(tool.get("functionDeclarations", []), f"{field}.functionDeclarations")
        tools += [_function(each, f"{field}.functionDeclarations.{n}") for n, each in enumerate(declared)]
    settings = fields_of(config, "toolConfig")
    only(settings, ("functionCallingConfig",), "toolConfig")
    calling = fields_of(settings.get("functionCallingConfig", {}), "toolConfig.functionCallingConfig")
    only(calling, ("mode", "allowedFunctionNames"), "toolConfig.functionCallingConfig")
    add_tools(request, tools, _choice(calling), None)


def _function(value: object, field: str) -> JsonObject:
    given = fields_of(value, field)
    known = ("name", "description", "parameters", "parametersJsonSchema", "response", "responseJsonSchema", "behavior")
    only(given, known, field)
    if given.get("behavior") not in (None, "BLOCKING", "UNSPECIFIED"):
        raise WireError(f"{field}.behavior", "the model waits for each result")
    function: JsonObject = {"name": as_name(given.get("name"), f"{field}.name")}
    if "description" in given:
        function["description"] = as_text(given["description"], f"{field}.description")
    if "parameters" in given:
        function["parameters"] = json_schema(given["parameters"], f"{field}.parameters")
    elif "parametersJsonSchema" in given:
        function["parameters"] = as_object(given["parametersJsonSchema"], f"{field}.parametersJsonSchema")
    else:
        function["parameters"] = {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _choice(calling: JsonObject) -> object:
    field = "toolConfig.functionCallingConfig"
    mode = as_text(calling.get("mode", "AUTO"), f"{field}.mode").upper()
    allowed = as_list(calling.get("allowedFunctionNames", []), f"{field}.allowedFunctionNames")
    modes = {"AUTO": "auto", "MODE_UNSPECIFIED": "auto", "VALIDATED": "auto", "ANY": "required", "NONE": "none"}
    if mode not in modes:
        raise WireError(f"{field}.mode", f"{mode!r} is not one of AUTO, ANY, NONE, VALIDATED")
    if allowed and modes[mode] != "none":
        named = [{"type": "function", "name": name} for name in allowed]
        return {"type": "allowed_tools", "mode": modes[mode], "tools": named}
    return modes[mode] if "mode" in calling else None
