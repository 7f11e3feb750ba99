"""Token ids and log-probabilities read from answers of servers."""

from __future__ import annotations

import math
from array import array
from typing import Any

import pytest

from gym.model_client.http.refusal import Refusal
from gym.model_client.tokens.capture import Capture, read_generated, read_tokenized, tokenize_request, with_asks
from gym.trajectory import Segments


def answer(tokens: list[Any], *, ids: Any = None, prompt: Any = None, logprobs: Any = ...) -> dict[str, Any]:
    content = [{"token": token, "logprob": -0.5 - place, "bytes": None} for place, token in enumerate(tokens)]
    choice = {
        "message": {"role": "assistant", "content": "x"},
        "logprobs": {"content": content} if logprobs is ... else logprobs,
        "token_ids": ids,
    }
    usage = {"prompt_tokens": 3, "completion_tokens": max(1, len(tokens))}
    return {"choices": [choice], "prompt_token_ids": prompt, "usage": usage}


def test_ids_are_read_from_the_fields_for_them():
    generated, level = read_generated(answer(["a", "b"], ids=[7, 8], prompt=[1, 2, 3]))
    assert level == "native"
    assert generated is not None
    tokens = generated.complete()
    assert tokens is not None
    assert (list(tokens.prompt_ids), list(tokens.token_ids), list(tokens.logprobs)) == ([1, 2, 3], [7, 8], [-0.5, -1.5])
    assert tokens.source == "server"


def test_ids_are_read_out_of_the_texts_of_tokens():
    generated, level = read_generated(answer(["token_id:7", "token_id:100000"]))
    assert level == "text"
    assert generated is not None
    assert list(generated.token_ids) == [7, 100000]
    assert generated.complete() is None
    assert generated.with_prompt(array("i", [1, 2, 3])).source == "tokenize"


def test_the_servers_own_prompt_ids_are_used_with_ids_out_of_texts():
    generated, level = read_generated(answer(["token_id:7"], prompt=[1]))
    assert level == "text"
    assert generated is not None
    assert generated.complete() is not None


def test_a_server_that_names_no_prompt_token_has_not_named_the_prompt():
    generated, _ = read_generated(answer(["a"], ids=[7], prompt=[]))
    assert generated is not None
    assert generated.complete() is None
    assert read_tokenized({"tokens": []}, {"usage": {"prompt_tokens": 0}}) is None


def test_a_turn_goes_into_a_segment_as_it_is():
    generated, _ = read_generated(answer(["a", "b"], ids=[7, 8], prompt=[1, 2, 3]))
    assert generated is not None
    tokens = generated.complete()
    assert tokens is not None
    segments = Segments()
    segments.add_turn(tokens, 4)
    assert list(segments.segments[0].token_ids) == [1, 2, 3, 7, 8]
    assert bytes(segments.segments[0].loss_mask) == b"\0\0\0\1\1"


@pytest.mark.parametrize(
    "completion",
    [
        answer([], logprobs=None),
        answer([], logprobs={"content": None}),
        answer(["a", "b"]),
        answer(["token_id:7", "b"]),
        answer(["a"], ids=[7, 8], prompt=[1]),
        answer(["a"], ids=["7"], prompt=[1]),
        answer(["a"], ids=[2**31], prompt=[1]),
        answer(["a"], ids=[7], prompt=[1], logprobs={"content": [{"token": "a", "logprob": None}]}),
        answer(["a"], ids=[7], prompt=[1], logprobs={"content": [{"token": "a"}]}),
        answer(["a"], ids=[7], prompt=[1], logprobs={"content": [None]}),
        # a stream that left some of eight tokens out
        answer(["a", "b", "c"], ids=[4, 6, 8], prompt=[1]) | {"usage": {"completion_tokens": 8}},
        answer(["token_id:4", "token_id:6"]) | {"usage": {"completion_tokens": 8}},
        answer(["a"], ids=[7], prompt=[1]) | {"usage": {"completion_tokens": 0}},
    ],
)
def test_what_does_not_fit_together_gives_no_tokens(completion):
    assert read_generated(completion)[0] is None


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}])
def test_a_server_that_counts_no_tokens_is_believed(usage):
    generated, _ = read_generated(answer(["a"], ids=[7], prompt=[1]) | {"usage": usage})
    assert generated is not None


def test_an_empty_answer_has_empty_tokens():
    completion = answer([], ids=[], prompt=[1])
    completion["usage"]["completion_tokens"] = 0
    generated, _ = read_generated(completion)
    assert generated is not None
    assert len(generated.token_ids) == len(generated.logprobs) == 0


def test_what_an_endpoint_can_do_is_learned_from_its_first_answer():
    capture = Capture()
    assert set(with_asks({}, capture.level)) == {"logprobs", "return_token_ids", "return_tokens_as_token_ids"}
    capture.read(answer(["a"], ids=[7], prompt=[1]), asked="unknown")
    assert set(with_asks({}, capture.level)) == {"logprobs", "return_token_ids"}
    capture = Capture()
    capture.read(answer(["token_id:7"]), asked="unknown")
    assert set(with_asks({}, capture.level)) == {"logprobs", "return_tokens_as_token_ids"}
    capture = Capture()
    capture.read(answer(["a"]), asked="unknown")
    assert with_asks({}, capture.level) == {}


def test_an_answer_without_a_token_teaches_nothing():
    capture = Capture()
    completion = answer([], logprobs=None)
    completion["usage"]["completion_tokens"] = 0
    capture.read(completion, asked="unknown")
    assert capture.level == "unknown"


def test_an_endpoint_that_stops_giving_ids_is_asked_for_all_again():
    capture = Capture()
    capture.read(answer(["a"], ids=[7], prompt=[1]), asked="unknown")
    capture.read(answer(["a"]), asked="native")
    assert capture.level == "unknown"


@pytest.mark.parametrize(
    ("refusal", "refused"),
    [
        (Refusal("Unrecognized request argument supplied: return_token_ids"), True),
        (Refusal("body.return_tokens_as_token_ids: Extra inputs are not permitted"), True),
        (Refusal("not with this model", param="logprobs"), True),
        (Refusal("Unrecognized request argument supplied: top_k"), False),
    ],
)
def test_an_endpoint_that_refuses_the_question_is_not_asked_again(refusal, refused):
    capture = Capture()
    assert capture.refused(refusal, asked="unknown") is refused
    assert capture.level == ("none" if refused else "unknown")
    assert not capture.refused(refusal, asked="none")


def test_the_question_about_a_prompt_carries_what_its_template_reads():
    body = {"model": "m", "messages": [1], "tools": [2], "temperature": 1.0, "chat_template_kwargs": {"a": 1}}
    assert tokenize_request(body) == {
        "model": "m",
        "add_generation_prompt": True,
        "messages": [1],
        "tools": [2],
        "chat_template_kwargs": {"a": 1},
    }


@pytest.mark.parametrize("reply", [None, {}, {"tokens": None}, {"tokens": [1, 2]}, {"tokens": ["a", "b", "c"]}, [1, 2]])
def test_a_prompt_that_is_not_as_long_as_the_server_counted_is_not_used(reply):
    assert read_tokenized(reply, answer(["a"])) is None
    assert read_tokenized({"tokens": [1, 2, 3]}, answer(["a"])) == array("i", [1, 2, 3])


def test_log_probabilities_of_impossible_tokens_are_kept():
    completion = answer(["a"], ids=[7], prompt=[1], logprobs={"content": [{"logprob": -9999.0}]})
    generated, _ = read_generated(completion)
    assert generated is not None
    assert math.isclose(generated.logprobs[0], -9999.0)


def test_who_wants_alternatives_reads_their_texts_and_a_server_without_ids_is_asked_otherwise_next():
    body = {"messages": [], "logprobs": True, "top_logprobs": 2}
    assert "return_tokens_as_token_ids" not in with_asks(body, "unknown")
    assert with_asks(body, "unknown")["return_token_ids"]
    capture = Capture()
    plain = answer(["a"])
    plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [{"token": "a", "logprob": -0.5, "bytes": None}]
    assert capture.read(plain, asked="unknown") is None
    assert capture.level == "text"
    assert with_asks(body, capture.level)["return_tokens_as_token_ids"]
