"""The turn that a captured call continues, and that turn's tokens from the records."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gym.captures.continuation import RecentTurns, goes_on_from, prompt_digest, turn_of
from gym.captures.conversation import Head, Tokens, pack_tokens
from gym.trajectory import TurnTokens

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=4)
HEAD = Head(0, Tokens(3, b"\x01" * 16), "p")
USER = {"role": "user", "content": "q"}


@given(
    turns=st.lists(st.tuples(st.booleans(), IDS, IDS, st.booleans(), st.integers(0, 9)), min_size=1, max_size=8),
)
def test_a_turn_is_put_together_as_it_was(turns):
    records: list[dict[str, Any]] = []
    whole: list[TurnTokens | None] = []
    ends: list[tuple[list[int], Any]] = []
    for place, (goes_on, prompt, ids, has_tokens, back) in enumerate(turns):
        parent = back % place if place and back < 8 else -1
        so_far, before = ends[parent] if parent >= 0 else ([], None)
        asked = [*so_far, *prompt] if goes_on else prompt
        turn = TurnTokens(array("i", asked), array("i", ids), array("f", [-0.5] * len(ids)), ended=True)
        packed, after = pack_tokens(turn if has_tokens else None, before)
        records.append({"parent": parent, "tokens": packed})
        whole.append(turn if has_tokens else None)
        ends.append(([*asked, *ids] if has_tokens else so_far, after))
    assert [turn_of(records, place) for place in range(len(records))] == whole


def test_a_call_goes_on_where_no_other_answer_stands_between():
    assert goes_on_from(HEAD, [{"role": "tool", "content": "x"}, USER], "p")
    assert not goes_on_from(HEAD, [USER, {"role": "assistant", "content": "from elsewhere"}, USER], "p")
    assert not goes_on_from(None, [USER], "p")


def test_a_call_does_not_go_on_from_a_prompt_that_was_written_otherwise():
    assert not goes_on_from(HEAD, [USER], "q")
    assert not goes_on_from(Head(0, None, "p"), [USER], "p")
    assert not goes_on_from(Head(0, HEAD.tokens), [USER], "p")


def test_sampling_is_no_part_of_how_a_prompt_is_written_and_tools_and_template_are():
    def digest(policy: str = "p", model: str = "m", **chat: Any) -> str:
        return prompt_digest({"messages": [USER], **chat}, policy=policy, model=model)

    assert digest(temperature=0.5, max_tokens=3, tool_choice="none", stream=True) == digest()
    others = [
        digest(tools=[{"type": "function", "function": {"name": "f"}}]),
        digest(chat_template_kwargs={"enable_thinking": False}),
        digest(reasoning_effort="high"),
        digest(of_a_newer_server=1),
        digest(policy="other"),
        digest(model="other"),
    ]
    assert len({digest(), *others}) == 7


def test_what_is_remembered_is_bounded_and_the_latest_of_a_conversation():
    turn = TurnTokens(array("i", range(1000)), array("i", [1]), array("f", [-1.0]))
    recent = RecentTurns(max_bytes=15_000)
    recent.keep("a", 0, turn, after=None)
    recent.keep("a", 1, turn, after=Head(0, None))
    assert (recent.find("a", 0), recent.find("a", 1)) == (None, turn)
    for place in range(5):
        recent.keep("b", place, turn, after=None)
    assert recent.find("a", 1) is None
    assert [recent.find("b", place) is not None for place in range(5)] == [False, False, True, True, True]
