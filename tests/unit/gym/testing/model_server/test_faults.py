"""The scripted server's errors, faults, hooks and life cycle."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.testing.scripted_policy.tokenizer import encode, render

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"type": "function", "function": {"name": "f"}}


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def status_of(http: aiohttp.ClientSession, body: Any = HELLO) -> int:
    async with http.post(CHAT, json=body) as response:
        await response.read()
        return response.status


async def error_of(http: aiohttp.ClientSession, body: Any) -> dict[str, Any]:
    async with http.post(CHAT, json=body) as response:
        read = await response.json()
    assert set(read["error"]) == {"message", "type", "param", "code"}
    assert read["error"]["code"] == response.status
    error: dict[str, Any] = read["error"]
    return error


async def settle(server: ScriptedModelServer, **wanted: int) -> None:
    """Wait until the server's counts have these values, ten seconds at most."""
    async with asyncio.timeout(10):
        while any(server.stats[name] != count for name, count in wanted.items()):  # noqa: ASYNC110  plain counts
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("change", "kind", "param"),
    [
        ({"messages": None}, "Bad Request", None),
        ({"messages": []}, "BadRequestError", "messages"),
        ({"tools": []}, "BadRequestError", "tools"),
        ({"tool_choice": "auto"}, "BadRequestError", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "BadRequestError", "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
            "BadRequestError",
            "tool_choice.function",
        ),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "BadRequestError", "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "BadRequestError", "stream_options"),
        ({"top_logprobs": 2}, "BadRequestError", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "BadRequestError", "logprobs"),
        ({"max_tokens": 0}, "BadRequestError", "max_tokens"),
        ({"max_completion_tokens": "9"}, "Bad Request", None),
        ({"n": 2}, "BadRequestError", "n"),
        ({"response_format": {"type": "json_schema"}}, "BadRequestError", "response_format"),
        (user("[[call f {]]"), "BadRequestError", "messages"),
        ({"stop": 5}, "Bad Request", None),
        ({"seed": "a"}, "Bad Request", None),
        ({"response_format": "json"}, "Bad Request", None),
        ({"messages": [{"role": "user", "content": 5}]}, "Bad Request", None),
        ({"messages": [{"role": "user", "content": [5]}]}, "Bad Request", None),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "Bad Request", None),
    ],
)
async def test_a_bad_request_is_refused_in_the_shape_of_vllm(
    http: aiohttp.ClientSession, change: dict[str, Any], kind: str, param: str | None
) -> None:
    error = await error_of(http, {**HELLO, **change})
    assert (error["code"], error["type"], error["param"]) == (400, kind, param)


async def test_a_body_that_is_no_object_is_refused(http: aiohttp.ClientSession) -> None:
    for body in (b"{", b"[]", b""):
        async with http.post(CHAT, data=body) as response:
            assert response.status == 400


async def test_unknown_fields_and_nulls_are_accepted(http: aiohttp.ClientSession) -> None:
    nulls = dict.fromkeys(("tools", "tool_choice", "stop", "max_tokens", "seed", "stream", "parallel_tool_calls"))
    assert await status_of(http, {**HELLO, **nulls, "no_such_field": 1}) == 200


async def test_a_prompt_longer_than_the_context_is_refused_in_the_words_of_vllm() -> None:
    options = ScriptedModelOptions(max_model_len=50)
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        error = await error_of(http, {**user("word " * 100), "max_tokens": 10})
        assert (await error_of(http, {**user("short"), "max_tokens": 60}))["param"] == "max_tokens"
    assert error == {
        "message": "This model's maximum context length is 50 tokens. However, your prompt contains at least 51 input "
        "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
        "prompt. (parameter=input_tokens, value=51)",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }


async def test_a_limit_that_the_prompt_leaves_no_room_for_is_lowered() -> None:
    asked = user("hello " * 20)
    prompt = len(encode(render(asked["messages"])))
    async with (
        ScriptedModelServer(ScriptedModelOptions(max_model_len=prompt + 3)) as server,
        aiohttp.ClientSession(server.url) as http,
        http.post(CHAT, json={**asked, "max_tokens": 10}) as response,
    ):
        answer = await response.json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == prompt + 3


async def test_a_prompt_that_fills_the_context_is_refused_as_leaving_nothing() -> None:
    options = ScriptedModelOptions(max_model_len=len(encode(render(user("hello")["messages"]))))
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        error = await error_of(http, {**user("hello"), "max_tokens": 5})
    assert error["message"].startswith("max_tokens must be at least 1, got 0")


async def test_servers_before_refuse_a_limit_that_does_not_fit() -> None:
    options = ScriptedModelOptions(max_model_len=50, lowers_limit=False)
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        error = await error_of(http, {**user("word " * 100), "max_tokens": 10})
        assert await status_of(http, user("short")) == 200
        assert (await error_of(http, {**user("short"), "max_tokens": 60}))["param"] == "max_tokens"
    assert error == {
        "message": "This model's maximum context length is 50 tokens. However, you requested 10 output tokens and your "
        "prompt contains at least 41 input tokens, for a total of at least 51 tokens. Please reduce the length of the "
        "input prompt or the number of requested output tokens. (parameter=input_tokens, value=41)",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }


async def test_only_the_served_model_is_known_where_one_is_named() -> None:
    options = ScriptedModelOptions(served_model="mine")
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        error = await error_of(http, {**HELLO, "model": "yours"})
        assert (error["code"], error["type"], error["param"]) == (404, "NotFoundError", "model")
        assert await status_of(http, {**HELLO, "model": "mine"}) == 200
        async with http.get("/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["mine"]


async def test_a_key_is_asked_for_where_there_is_one() -> None:
    options = ScriptedModelOptions(api_key="secret")
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        assert await status_of(http) == 401
        async with http.post(CHAT, json=HELLO, headers={"Authorization": "Bearer secret"}) as response:
            assert response.status == 200


async def test_health_version_and_metrics_answer(http: aiohttp.ClientSession) -> None:
    await status_of(http)
    for path in ("/health", "/version", "/v1/models", "/metrics"):
        async with http.get(path) as response:
            assert response.status == 200
            text = await response.text()
    assert 'vllm:num_requests_running{engine="0",model_name="scripted"} 0' in text
    assert 'vllm:request_success_total{engine="0",model_name="scripted",finished_reason="stop"} 1' in text
    async with http.get("/no/such/path") as response:
        assert (response.status, await response.json()) == (404, {"detail": "Not Found"})


async def faults(options: ScriptedModelOptions, count: int) -> list[int]:
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        return [await status_of(http) for _ in range(count)]


async def test_faults_follow_from_the_seed() -> None:
    options = ScriptedModelOptions(error_rate=0.3, rate_limit_rate=0.2, seed=5)
    first = await faults(options, 60)
    assert first == await faults(options, 60)
    assert first != await faults(ScriptedModelOptions(error_rate=0.3, rate_limit_rate=0.2, seed=6), 60)
    assert 8 <= first.count(500) <= 28
    assert 4 <= first.count(429) <= 22


async def test_a_rate_limit_says_when_to_come_back() -> None:
    options = ScriptedModelOptions(rate_limit_rate=1.0, retry_after_s=0.5)
    async with (
        ScriptedModelServer(options) as server,
        aiohttp.ClientSession(server.url) as http,
        http.post(CHAT, json=HELLO) as response,
    ):
        assert (response.status, response.headers["Retry-After"]) == (429, "0.5")


@pytest.mark.parametrize("change", [{"error_rate": 1.5}, {"latency_s": -1}, {"error_rate": 0.6, "hang_rate": 0.6}])
async def test_options_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"rate|latency_s"):
        ScriptedModelOptions(**change)  # type: ignore[arg-type]  # wrong on purpose


async def test_behaviour_changes_while_it_runs(http: aiohttp.ClientSession) -> None:
    async with http.post("/admin/behaviour", json={"status": 502}) as response:
        assert (await response.json())["status"] == 502
    assert await status_of(http) == 502
    async with http.post("/admin/behaviour", json={"status": None, "fail_next": 2}) as response:
        assert response.status == 200
    assert [await status_of(http) for _ in range(3)] == [503, 503, 200]
    for wrong in ({"latency": 1}, {"hang_rate": 2}, {"status": 200}):
        async with http.post("/admin/behaviour", json=wrong) as response:
            assert response.status == 400


async def test_a_directive_fails_every_try(http: aiohttp.ClientSession) -> None:
    assert [await status_of(http, user("[[status 500]]")) for _ in range(2)] == [500, 500]


async def test_weight_versions_are_announced_and_read_as_in_vllm(http: aiohttp.ClientSession) -> None:
    async def version() -> str:
        async with http.get("/weight_info") as response:
            return str((await response.json())["weight_version"])

    assert await version() == "default"
    async with http.post("/update_weight_version", json={"new_version": "7"}) as response:
        assert await response.json() == {"success": True, "new_version": "7"}
    assert await version() == "7"
    async with http.post("/admin/weight_version", json={"version": 8}) as response:
        assert response.status == 200
    assert await version() == "8"


async def test_the_log_tells_what_was_asked(http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json=HELLO, headers={"x-request-id": "abc", "x-farm-group": "g1"}) as response:
        assert (await response.json())["id"] == "chatcmpl-abc"
    await status_of(http, user("[[status 500]]"))
    async with http.get("/admin/requests?after=0") as response:
        page = await response.json()
    first, second = page["items"]
    assert (first["x_request_id"], first["headers"]["x-farm-group"]) == ("abc", "g1")
    assert (first["status"], second["status"]) == (200, 500)
    assert (first["prompt_tail"], first["messages"], first["disconnected"]) == ("hello", 1, False)
    assert first["started"] <= first["ended"] <= second["ended"]
    async with http.get(f"/admin/requests?after={first['number']}") as response:
        assert [item["number"] for item in (await response.json())["items"]] == [second["number"]]
    async with http.get("/admin/requests?after=2") as response:
        assert await response.json() == {"items": [], "next_after": 2}


async def test_the_log_is_bounded() -> None:
    options = ScriptedModelOptions(log_size=3)
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        for _ in range(5):
            await status_of(http)
        assert [record.number for record in server.records] == [3, 4, 5]
        async with http.get("/admin/requests?after=3") as response:
            assert [item["number"] for item in (await response.json())["items"]] == [4, 5]
        assert server.stats["requests"] == 5


async def test_the_log_file_outlives_the_server_and_goes_on_with_the_next(tmp_path: Path) -> None:
    options = ScriptedModelOptions(log_file=tmp_path / "calls.jsonl")
    for status in (200, 500):
        async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
            server.behave(status=None if status == 200 else status)
            async with http.post(CHAT, json=HELLO, headers={"x-request-id": f"to-be-{status}"}) as response:
                assert response.status == status
    lines = [orjson.loads(line) for line in (tmp_path / "calls.jsonl").read_bytes().splitlines()]
    assert [(line["event"], line["x_request_id"], line.get("status")) for line in lines] == [
        ("begin", "to-be-200", None),
        ("end", "to-be-200", 200),
        ("begin", "to-be-500", None),
        ("end", "to-be-500", 500),
    ]
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


@pytest.mark.parametrize("body", [user("[[hang]]"), user("[[sleep 600]]"), {**user("[[sleep 600]]"), "stream": True}])
async def test_a_client_that_leaves_is_seen(
    server: ScriptedModelServer, http: aiohttp.ClientSession, body: dict[str, Any]
) -> None:
    call = asyncio.create_task(status_of(http, body))
    await settle(server, in_flight=1)
    call.cancel()
    await settle(server, in_flight=0, cancelled_by_client=1)
    [record] = server.records
    assert (record.disconnected, record.status) == (True, None)


async def test_a_client_that_leaves_a_stream_is_seen() -> None:
    options = ScriptedModelOptions(token_latency_s=0.005)
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        response = await http.post(CHAT, json={**user("[[say " + "word " * 4000 + "]]"), "stream": True})
        assert (await response.content.readuntil(b"\n\n")).startswith(b'data: {"id"')
        assert server.stats["in_flight"] == 1
        response.close()
        await settle(server, in_flight=0, cancelled_by_client=1)


async def test_calls_at_once_are_counted(server: ScriptedModelServer, http: aiohttp.ClientSession) -> None:
    calls = [asyncio.create_task(status_of(http, user("[[hang]]"))) for _ in range(5)]
    await settle(server, in_flight=5, max_in_flight=5)
    for call in calls:
        call.cancel()
    await settle(server, in_flight=0, max_in_flight=5)


async def test_hanging_calls_end_with_the_server_and_not_as_left() -> None:
    options = ScriptedModelOptions(hang_rate=1.0)
    async with aiohttp.ClientSession() as http:
        async with ScriptedModelServer(options) as server:
            call = asyncio.create_task(http.post(f"{server.url}{CHAT}", json=HELLO))
            await settle(server, in_flight=1)
        with pytest.raises(aiohttp.ClientError):
            await call
    assert (server.stats["in_flight"], server.stats["cancelled_by_client"]) == (0, 0)


async def test_latency_passes_before_the_answer() -> None:
    options = ScriptedModelOptions(latency_s=0.02, token_latency_s=0.005)
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        await status_of(http, user("[[say one two three four]]"))
        [record] = server.records
        assert record.ended is not None
        assert record.ended - record.started >= 0.02 + 6 * 0.005


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_that_it_is_ready_and_stops_on_a_signal(number: signal.Signals) -> None:
    code = "from gym.testing.model_server.server import *; run_model_server(ScriptedModelOptions(), port=0)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready http://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(20) == 0
