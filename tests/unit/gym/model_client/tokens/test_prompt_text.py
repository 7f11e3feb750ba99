"""Prompts read from where the turn before ended: always what a JSON parser reads in the whole answer."""

from __future__ import annotations

import json
from array import array
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.model_client.tokens.capture import read_generated
from gym.model_client.tokens.prompt_text import MARK, SHORT_BYTES, PromptIds, cut_prompt
from gym.trajectory import TurnTokens

IDS = st.lists(st.integers(0, 200_000), max_size=40)
LONG = "x" * SHORT_BYTES


def answer(ids: Any, **fields: Any) -> dict[str, Any]:
    return {"id": LONG, "prompt_token_ids": ids, "choices": [{"message": {"content": "hi"}}], **fields}


def turn(ids: list[int], generated: list[int], prompt: PromptIds | None) -> TurnTokens:
    sampled = array("i", generated)
    text = None if prompt is None else prompt.continued(sampled)
    return TurnTokens(array("i", ids), sampled, array("f", [0.0] * len(sampled)), text=text)


@given(before=IDS, generated=IDS, more=IDS, breaks=st.booleans(), separators=st.sampled_from([",", ", "]))
def test_what_is_cut_is_what_a_parser_reads(before, generated, more, breaks, separators):
    _, kept = cut_prompt(json.dumps(answer(before), separators=(separators, ":")).encode(), None)
    assert (kept is None) == (not before)
    earlier = turn(before, generated, kept)
    whole = answer(more if breaks else before + generated + more)
    raw = json.dumps(whole, separators=(separators, ":")).encode()
    rest, prompt = cut_prompt(raw, earlier)
    if prompt is None:
        assert rest == raw
    else:
        assert prompt.ids.tolist() == whole["prompt_token_ids"]
        assert orjson.loads(rest) == whole | {"prompt_token_ids": MARK}
        assert orjson.loads(b"[" + prompt.text + b"]") == whole["prompt_token_ids"]


def test_a_prompt_that_goes_on_is_read_from_there_on():
    _, first = cut_prompt(orjson.dumps(answer(list(range(2000)))), None)
    assert first is not None
    earlier = turn([9] * 2000, [5, 6], first)  # its ids would be read otherwise if its text were read again
    _, prompt = cut_prompt(orjson.dumps(answer([*range(2000), 5, 6, 7])), earlier)
    assert prompt is not None
    assert prompt.ids.tolist() == [9] * 2000 + [5, 6, 7]


def test_a_number_is_not_taken_for_the_beginning_of_another():
    _, first = cut_prompt(orjson.dumps(answer([1, 2])), None)
    assert first is not None
    for ids in ([1, 2, 33, 4], [1, 2, 3]):
        _, prompt = cut_prompt(orjson.dumps(answer(ids)), turn([1, 2], [3], first))
        assert prompt is not None
        assert prompt.ids.tolist() == ids


@pytest.mark.parametrize(
    "raw",
    [
        orjson.dumps(answer(None)),
        orjson.dumps(answer([])),
        orjson.dumps(answer("[1, 2]")),
        orjson.dumps(answer([1, None])),
        orjson.dumps(answer([1, 2.5])),
        orjson.dumps(answer([[1], 2])),
        orjson.dumps(answer(["]", 2])),
        orjson.dumps(answer([2**40])),
        orjson.dumps(answer([1], other={"prompt_token_ids": [2]})),
        orjson.dumps({"id": LONG}),
        orjson.dumps({"id": f'{LONG}"prompt_token_ids":[1]'}),
        orjson.dumps(answer([1])).replace(b"[1]", b"[1,]"),
        orjson.dumps(answer([1])).replace(b"[1]", b"[1"),
        orjson.dumps({"prompt_token_ids": [1]}),
    ],
)
def test_what_is_not_certain_is_left_to_the_parser(raw):
    earlier = turn([1], [2], PromptIds(array("i", [1]), b"1"))
    assert cut_prompt(raw, earlier) == (raw, None)


def test_a_comma_with_nothing_behind_it_is_no_prompt():
    raw = orjson.dumps(answer([1, 2])).replace(b"[1,2]", b"[1,2,]")
    assert cut_prompt(raw, turn([1], [2], PromptIds(array("i", [1]), b"1"))) == (raw, None)


def test_the_text_goes_along_to_the_next_turn():
    choice = {"token_ids": [7], "logprobs": {"content": [{"logprob": -0.5}]}}
    rest, prompt = cut_prompt(orjson.dumps(answer([5, 6], choices=[choice])), None)
    generated, level = read_generated(orjson.loads(rest) | {"prompt_token_ids": prompt})
    assert generated is not None
    tokens = generated.complete()
    assert tokens is not None
    assert (level, tokens.prompt_ids, tokens.text) == ("native", array("i", [5, 6]), b"5,6,7")
