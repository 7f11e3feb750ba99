"""The fields of a chat request that mean the same in every dialect: sampling, and vLLM's extensions.

vLLM accepts unknown fields without a word, so a typing error in a sampling parameter would go unnoticed there; here it
is refused. A parameter of a newer server goes through `extra_body`, which is not looked at.
Source: vLLM's `ChatCompletionRequest`, 0.8 to 0.32.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_object, object_or_json, present, words
from gym.wire.errors import WireError

OPENAI_FIELDS = frozenset(
    {"temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "user"}
)

VLLM_FIELDS = words("""
    top_k min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids bad_words
    prompt_logprobs logprob_token_ids thinking_token_budget include_reasoning repetition_detection
    structured_outputs structural_tag guided_json guided_regex guided_choice guided_grammar
    guided_decoding_backend guided_whitespace_pattern
    add_generation_prompt continue_final_message add_special_tokens documents chat_template
    media_io_kwargs mm_processor_kwargs
    return_token_ids return_tokens_as_token_ids return_prompt_text required_prefix_token_ids routed_experts_prompt_start
    priority request_id session_id cache_salt kv_transfer_params ec_transfer_params vllm_xargs stream_interval
""")

PASSED = OPENAI_FIELDS | VLLM_FIELDS
EXTRAS = frozenset({"chat_template_kwargs", "extra_body"})

# fields that translation itself writes; `extra_body` may not contradict them
_OURS = frozenset({"messages", "stream"})
_AUDIO = ("audio_data", "audio_path", "audio_paths")


def passed_fields(body: JsonObject, handled: frozenset[str]) -> JsonObject:
    """Return the fields that go to the server as they are. Raises WireError for one that is in neither list."""
    fields: JsonObject = {}
    for name, value in body.items():
        if value is None or name in handled or name in EXTRAS:
            continue
        if name not in PASSED:
            raise WireError(name, "unknown field; a parameter of a newer model server goes into `extra_body`")
        fields[name] = value
    return fields


def add_extras(request: JsonObject, body: JsonObject) -> None:
    """Merge `extra_body` and `chat_template_kwargs` into a chat request; the later one here wins.

    Both may also be in `metadata`, as objects or as JSON texts: NeMo Gym's convention, since metadata is all that
    its clients let through. The rest of the metadata is for the reply's echo and never reaches the server.
    """
    metadata = as_object(body.get("metadata") or {}, "metadata")
    for name in _AUDIO:
        if metadata.get(name) is not None:
            raise WireError(f"metadata.{name}", "give audio as a content part of type input_audio")
    template: JsonObject = {}
    for source, prefix in ((body, ""), (metadata, "metadata.")):
        if (given := source.get("extra_body")) is not None:
            extra = present(object_or_json(given, f"{prefix}extra_body"))
            for name in _OURS & extra.keys():
                raise WireError(f"{prefix}extra_body.{name}", "cannot be set here; say it in the request itself")
            if extra.pop("n", 1) != 1:
                raise WireError(f"{prefix}extra_body.n", "one answer for each call: send the call again for another")
            template |= as_object(extra.pop("chat_template_kwargs", {}), f"{prefix}extra_body.chat_template_kwargs")
            request |= extra
        if (given := source.get("chat_template_kwargs")) is not None:
            template |= object_or_json(given, f"{prefix}chat_template_kwargs")
    if template:
        request["chat_template_kwargs"] = {**request.get("chat_template_kwargs", {}), **template}
