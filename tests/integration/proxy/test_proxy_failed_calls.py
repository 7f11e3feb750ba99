"""Failed calls are recorded with request, error and time, add no tokens, and are reported in the caller's dialect."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
import pytest

from gym.captures.rollout_view import captured_rollout

pytestmark = pytest.mark.anyio

MESSAGES: list[Any] = [{"role": "user", "content": "What is 4 + 3 ="}]


async def seen(farm: Any, rollout_id: str) -> dict[str, Any]:
    records, failures = await farm.captures.both(rollout_id)
    return captured_rollout(rollout_id, records, failures, conversation=True, segments=True)


async def test_a_refused_call_is_kept_and_its_repeat_is_sampled(farm, model, proxy, http):
    url = f"{proxy}/rollouts/r/v1/chat/completions"
    model.behave(fail_next=1, fail_status=400)
    refused = await http.post(url, json={"messages": MESSAGES})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_rejected")
    assert (await http.post(url, json={"messages": MESSAGES})).status_code == 200
    shown = await seen(farm, "r")
    assert (shown["model_calls"], shown["failed_calls"], len(shown["segments"])) == (1, 1, 1)
    failed, answered = shown["calls"]
    assert (failed["finish"], answered["finish"]) == ("failed", "stop")
    assert failed["error"]["kind"] == "model_rejected"
    assert failed["error"]["status"] == 400
    assert "told to answer 400" in failed["error"]["message"]
    assert failed["endpoint"] == answered["endpoint"] == f"{model.url}/v1"
    assert failed["request"] == [{"role": "user", "content": "What is 4 + 3 ="}]
    assert failed["duration_s"] > 0
    assert not failed["has_tokens"]
    assert (failed["turn"], failed["call_id"]) == (answered["turn"], answered["call_id"])


async def test_calls_that_fail_alike_keep_their_request_once(farm, model, http):
    proxy = await farm.proxy(model={"max_retries": 0})
    model.behave(status=500)
    for _ in range(3):
        answer = await http.post(f"{proxy}/rollouts/r/v1/messages", json={"max_tokens": 9, "messages": MESSAGES})
        assert answer.status_code == 503
    shown = await seen(farm, "r")
    assert (shown["model_calls"], shown["failed_calls"], shown["segments"]) == (0, 3, [])
    assert [call["request"] is not None for call in shown["calls"]] == [True, False, False]
    assert {call["error"]["kind"] for call in shown["calls"]} == {"model_unreachable"}
    assert {call["endpoint"] for call in shown["calls"]} == {f"{model.url}/v1"}
    assert shown["responses_create_params"]["max_tokens"] == 9


async def test_a_call_whose_client_left_is_kept(farm, model, proxy, http, eventually):
    model.behave(latency_s=30.0)
    call = asyncio.create_task(http.post(f"{proxy}/rollouts/r/v1/chat/completions", json={"messages": MESSAGES}))
    await eventually(lambda: model.stats["in_flight"] == 1)
    call.cancel()
    await eventually(lambda: model.stats["cancelled_by_client"] == 1)
    async with asyncio.timeout(10):
        while not (await farm.captures.both("r"))[1]:  # noqa: ASYNC110  what Redis holds
            await asyncio.sleep(0.02)
    [left] = (await seen(farm, "r"))["calls"]
    assert left["error"]["kind"] == "client_left"


async def test_a_call_that_overflows_the_context_says_so(farm, http):
    short = await farm.model(max_model_len=64)
    await farm.serve(short.url)
    proxy = await farm.proxy()
    long = [{"role": "user", "content": "long " * 100}]
    assert (await http.post(f"{proxy}/rollouts/r/v1/chat/completions", json={"messages": long})).status_code == 400
    shown = await seen(farm, "r")
    assert (shown["calls"][0]["finish"], shown["failed_calls"]) == ("context_overflow", 0)
    assert "maximum context length is 64" in shown["calls"][0]["error"]["message"]


async def test_the_request_of_each_call_is_found_where_conversations_run_side_by_side(farm, model, proxy, http):
    system = {"role": "system", "content": "Be brief."}
    url = f"{proxy}/rollouts/r/v1/chat/completions"
    talks: dict[str, list[Any]] = {
        name: [system, {"role": "user", "content": f"What is {name} + 3 ="}] for name in ("4", "5")
    }
    for again in ("What is 1 + 1 =", "What is 2 + 2 ="):
        for messages in talks.values():
            answer = (await http.post(url, json={"messages": messages})).json()["choices"][0]["message"]
            messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": again}]
    shown = await seen(farm, "r")
    items = shown["responses_create_params"]["input"] + shown["response"]["output"]
    said = [
        [_text(item) for start, end in call["request_ranges"] for item in items[start:end]] for call in shown["calls"]
    ]
    asked = [[_text(message) for message in messages] for messages in talks.values()]
    assert said == [asked[0][:2], asked[1][:2], asked[0][:4], asked[1][:4]]


def _text(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def test_a_call_with_other_settings_than_the_first_shows_them(farm, model, proxy, http):
    url = f"{proxy}/rollouts/r/v1/chat/completions"
    for temperature in (0.5, 0.5, 0.9):
        await http.post(url, json={"messages": MESSAGES, "temperature": temperature, "seed": model.stats["requests"]})
    shown = await seen(farm, "r")
    assert shown["responses_create_params"]["temperature"] == 0.5
    assert [call.get("settings", {}).get("seed") for call in shown["calls"]] == [None, 1, 2]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_of_the_farms_own_key_or_model_is_not_the_callers(farm, model, proxy, status):
    model.behave(status=status)
    async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError, match="refused the farm, not you") as chat:
            await client.chat.completions.create(model="any", messages=MESSAGES)
        with pytest.raises(openai.InternalServerError, match=f"with {status}"):
            await client.responses.create(model="any", input="hi")
    assert (chat.value.status_code, chat.value.code, chat.value.type) == (502, "model_rejected", "server_error")
    async with anthropic.AsyncAnthropic(base_url=proxy, api_key="none", max_retries=2) as other:
        with pytest.raises(anthropic.InternalServerError, match="refused the farm, not you") as messages:
            await other.messages.create(model="any", max_tokens=5, messages=MESSAGES)
    assert messages.value.body["error"]["type"] == "api_error"
    assert model.stats["requests"] == 3  # the clients were told not to try again


async def test_a_refusal_of_the_request_keeps_its_status(model, proxy):
    model.behave(status=422)
    async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=2) as client:
        with pytest.raises(openai.UnprocessableEntityError, match="told to answer 422"):
            await client.responses.create(model="any", input="hi")
    async with anthropic.AsyncAnthropic(base_url=proxy, api_key="none", max_retries=2) as other:
        with pytest.raises(anthropic.UnprocessableEntityError, match="told to answer 422") as refused:
            await other.messages.create(model="any", max_tokens=5, messages=MESSAGES)
    assert refused.value.body["error"]["type"] == "invalid_request_error"
