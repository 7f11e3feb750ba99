"""Gemini's API by the official client: errors, counts, repeats, and pieces as one JSON array."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from google import genai
from google.genai import errors
from google.genai import types as google

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "What is 1 + 3 ="}]}]}
PATH = "/v1beta/models/any"


def client_of(base: str) -> Any:
    return genai.Client(api_key="none", http_options={"base_url": base}).aio


async def test_a_refused_request_is_an_error_in_the_shape_of_googles_servers(proxy):
    async with client_of(proxy) as client:
        with pytest.raises(errors.ClientError) as refused:
            await client.models.generate_content(
                model="any", contents="hi", config=google.GenerateContentConfig(cached_content="cachedContents/1")
            )
    assert (refused.value.code, refused.value.status) == (422, "INVALID_ARGUMENT")
    assert "cachedContent" in str(refused.value.message)


async def test_an_overflow_is_told_in_the_words_of_googles_servers(farm, http):
    small = await farm.model(max_model_len=64)
    await farm.serve(small.url)
    answer = await http.post(
        f"{await farm.proxy()}{PATH}:generateContent", json={"contents": [{"parts": [{"text": "many words " * 200}]}]}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert "exceeds the maximum number of tokens allowed" in error["message"]


async def test_the_key_may_stand_in_googles_header(farm, model, http):
    proxy = await farm.proxy(api={"keys": [{"key": "secret-key-of-a-test", "scopes": ["submit"]}]})
    url = f"{proxy}{PATH}:generateContent"
    refused = await http.post(url, json=ASKED)
    assert (refused.status_code, refused.json()["error"]["status"]) == (401, "UNAUTHENTICATED")
    assert (await http.post(url, json=ASKED, headers={"x-goog-api-key": "secret-key-of-a-test"})).status_code == 200


async def test_without_alt_sse_the_pieces_are_one_json_array(proxy, http):
    answer = await http.post(f"{proxy}{PATH}:streamGenerateContent", json=ASKED)
    assert answer.headers["content-type"].startswith("application/json")
    pieces = answer.json()
    whole = (await http.post(f"{proxy}{PATH}:generateContent", json=ASKED)).json()
    text = "".join(part["text"] for piece in pieces for part in piece["candidates"][0]["content"]["parts"])
    assert text == whole["candidates"][0]["content"]["parts"][0]["text"]
    assert pieces[-1]["usageMetadata"] == whole["usageMetadata"]


async def test_a_repeat_is_answered_from_the_record_streamed_or_not(farm, model, proxy, http):
    base = f"{proxy}/rollouts/r{PATH}"
    first = (await http.post(f"{base}:generateContent", json=ASKED)).json()
    assert (await http.post(f"{base}:generateContent", json=ASKED)).json() == first
    pieces = (await http.post(f"{base}:streamGenerateContent", json=ASKED)).json()
    assert {piece["responseId"] for piece in pieces} == {first["responseId"]}
    trajectory = await farm.captures.trajectory("r")
    assert len(trajectory.calls) == 1
    assert trajectory.tokens_complete


@pytest.mark.parametrize("rollout", ["", "/rollouts/r"])
async def test_prompts_are_counted_as_the_model_server_counts_them(farm, model, proxy, http, rollout):
    whole = (await http.post(f"{proxy}{PATH}:generateContent", json=ASKED)).json()
    prompt = whole["usageMetadata"]["promptTokenCount"]
    async with client_of(f"{proxy}{rollout}") as client:
        assert (await client.models.count_tokens(model="any", contents="What is 1 + 3 =")).total_tokens == prompt
    async with anthropic.AsyncAnthropic(base_url=f"{proxy}{rollout}", api_key="none", max_retries=0) as messages:
        asked: Any = [{"role": "user", "content": "What is 1 + 3 ="}]
        assert (await messages.messages.count_tokens(model="any", messages=asked)).input_tokens == prompt
    assert await farm.captures.trajectory("r") is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
        (f"{PATH}:countTokens", ASKED),
        (f"{PATH}:countTokens", {"generateContentRequest": {"model": "models/any", **ASKED}}),
    ],
)
async def test_a_server_that_cannot_count_is_told_of(farm, http, path, body):
    server = TestServer(web.Application())
    await server.start_server()
    try:
        await farm.serve(str(server.make_url("/")).rstrip("/"))
        answer = await http.post(f"{await farm.proxy()}{path}", json=body)
    finally:
        await server.close()
    assert answer.status_code == 501
    assert "/tokenize" in answer.json()["error"]["message"]
