"""Which refusals mean that the context is full, in the words of the servers that say so."""

from __future__ import annotations

import orjson
import pytest

from gym.model_client.http.refusal import MESSAGE_CHARS, Refusal, is_context_overflow, read_refusal

OVERFLOWS = {
    "vllm 0.4": "This model's maximum context length is 6048 tokens. However, you requested 6616 tokens (568 in the "
    "messages, 6047 in the completion). Please reduce the length of the messages or completion.",
    "vllm 0.8, with its None": "This model's maximum context length is 32768 tokens. However, you requested 41648 "
    "tokens (37552 in the messages, 4096 in the completion). Please reduce the length of the messages or completion. "
    "None",
    "openai, with functions": "This model's maximum context length is 4097 tokens. However, you requested 5360 tokens "
    "(3200 in the messages, 160 in the functions, and 2000 in the completion). Please reduce the length.",
    "openai, messages alone": "This model's maximum context length is 4097 tokens. However, your messages resulted in "
    "5000 tokens. Please reduce the length of the messages.",
    "vllm 0.11": "This model's maximum context length is 262144 tokens. However, your request has 372027 input tokens. "
    "Please reduce the length of the input messages. (parameter=input_tokens, value=372027)",
    "vllm 0.11, with a limit": "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum "
    "context length is 32768 tokens and your request has 29000 input tokens (4096 > 32768 - 29000).",
    "vllm 0.15": "You passed 4097 input tokens and requested 0 output tokens. However, the model's context length is "
    "only 4096 tokens, resulting in a maximum input length of 4096 tokens. Please reduce the length of the input "
    "prompt. (parameter=input_tokens, value=4097)",
    "vllm 0.15, characters": "You passed 90000 input characters and requested 16 output tokens. However, the model's "
    "context length is only 4096 tokens, resulting in a maximum input length of 4080 tokens.",
    "vllm 0.32": "This model's maximum context length is 32768 tokens. However, you requested 32512 output tokens and "
    "your prompt contains at least 257 input tokens, for a total of at least 32769 tokens. Please reduce the length of "
    "the input prompt or the number of requested output tokens. (parameter=input_tokens, value=257)",
    "vllm 0.32, characters": "This model's maximum context length is 32768 tokens. However, you requested 512 output "
    "tokens and your prompt contains 2290998 characters (more than 722432 characters, which is the upper bound for "
    "32256 input tokens). Please reduce the length of the input prompt.",
    "vllm 0.32, seen": "This model's maximum context length is 2048 tokens. However, your prompt contains at least "
    "2049 input tokens, which exceeds this limit even without any output tokens. Please reduce the length.",
    "vllm 0.32, rendering": "Input length (2049) exceeds model's maximum context length (2048).",
    "vllm's engine": "The decoder prompt (length 8357) is longer than the maximum model length of 8192. Make sure that "
    "`max_model_len` is no smaller than the number of text tokens.",
    "vllm's engine, older": "Prompt length of 9000 is longer than the maximum model length of 8192.",
    "vllm's engine, one too many": "The decoder prompt (length 8192) plus the number of requested output tokens (at "
    "least 1) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller.",
    "vllm, images": "The prompt (total length 8357) is too long to fit into the model (context length 8192). Make sure",
    "a router before vllm": "litellm.BadRequestError: OpenAIException - This model's maximum context length is 8192 "
    "tokens. However, your request has 9000 input tokens. Please reduce the length of the input messages.",
    "a router that knows": "litellm.ContextWindowExceededError: litellm.BadRequestError: something about the window",
    "sglang": "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "sglang, with a limit": "Requested token count exceeds the model's maximum context length of 8192 tokens. You "
    "requested a total of 9000 tokens: 8000 tokens from the input messages and 1000 tokens for the completion.",
}

OTHERS = {
    "a limit that no prompt leaves room for": "max_tokens=999 cannot be greater than max_model_len=64. Please request "
    "fewer output tokens. (parameter=max_tokens, value=999)",
    "the same in vllm 0.11": "'max_tokens' or 'max_completion_tokens' is too large: 40000. This model's maximum "
    "context length is 32768 tokens and your request has 12 input tokens (40000 > 32768 - 12).",
    "the same in vllm 0.32": "This model's maximum context length is 4096 tokens. However, you requested 4096 output "
    "tokens and your prompt contains at least 1 input tokens, for a total of at least 4097 tokens.",
    "a mention of the words": "Tool 'grow' says: This model's maximum context length is 10 tokens. However, your "
    "request has 12 input tokens.",
    "a question about max_tokens": "max_tokens must be an integer, see the documentation on context length",
    "truncation": "truncate_prompt_tokens=99 cannot be greater than max_total_tokens - max_output_tokens = 64.",
    "logprobs": "Requested sample logprobs of 30, which is greater than max allowed: 20",
    "a template": "Conversation roles must alternate user/assistant/user/assistant/...",
}


@pytest.mark.parametrize("message", OVERFLOWS.values(), ids=OVERFLOWS)
def test_a_prompt_that_is_too_long_is_an_overflow(message):
    assert is_context_overflow(400, Refusal(message, "BadRequestError"), max_tokens=None)


@pytest.mark.parametrize("message", OTHERS.values(), ids=OTHERS)
def test_any_other_refusal_is_none(message):
    assert not is_context_overflow(400, Refusal(message, "BadRequestError"), max_tokens=5)


@pytest.mark.parametrize(
    "fields",
    [
        {"code": "context_length_exceeded"},
        {"type": "exceed_context_size_error"},
        {"param": "input_tokens"},
        {"param": "input_text"},
    ],
)
def test_error_fields_say_it_whatever_the_sentence(fields):
    assert is_context_overflow(400, Refusal("zu lang", **fields), max_tokens=None)


def test_a_limit_below_one_is_an_overflow_where_the_request_gave_none():
    refusal = Refusal("max_tokens must be at least 1, got -186.", "BadRequestError")
    assert is_context_overflow(400, refusal, max_tokens=None)
    assert not is_context_overflow(400, refusal, max_tokens=-186)


@pytest.mark.parametrize("status", [401, 404, 429, 502, 503])
def test_only_a_refusal_of_the_request_can_be_an_overflow(status):
    assert not is_context_overflow(status, Refusal(OVERFLOWS["vllm 0.32"]), max_tokens=None)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no", "type": "BadRequestError", "param": "p", "code": 400}},
        {"object": "error", "message": "no", "type": "BadRequestError", "param": "p", "code": 400},
    ],
)
def test_an_error_is_read_in_both_of_vllms_shapes(body):
    assert read_refusal(orjson.dumps(body)) == Refusal("no", "BadRequestError", "p", "400")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "model is loading"}', "model is loading"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "too small", "input": "private"}]}', "body.n: too small"),
        (b"upstream connect error", "upstream connect error"),
        (b"", ""),
        (b"[1]", "[1]"),
        (b"null", "null"),
        (b'{"error": null}', '{"error": null}'),
        (b"\xff\xfe", "��"),
    ],
)
def test_other_bodies_are_read_as_far_as_they_go(body, message):
    assert read_refusal(body).message == message


def test_a_long_message_is_cut():
    assert len(read_refusal(b'{"error": {"message": "' + b"x" * 9999 + b'"}}').message) == MESSAGE_CHARS
