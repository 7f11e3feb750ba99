"""Bounds of the proxy against abuse and mistakes: endless bodies, and policies that lead back to it."""

from __future__ import annotations

import asyncio
import gzip
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
import pytest

from api.proxy import exchange
from gym.model_client.http import hops

pytestmark = pytest.mark.anyio


@pytest.fixture
def other_redis_url(redis_url: str) -> str:
    """Another database of the same server, for another farm."""
    return urlunsplit(urlsplit(redis_url)._replace(path="/7"))


CALL = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_policy_at_the_farms_own_proxy_is_cut_at_the_first_hop(farm, http):
    proxy = await farm.proxy()
    await farm.serve(proxy)
    began = time.monotonic()
    answer = await http.post(f"{proxy}/v1/chat/completions", json=CALL)
    assert answer.status_code == 508
    assert "own proxy" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert time.monotonic() - began < 10


async def test_two_proxies_of_one_farm_do_not_call_each_other_in_circles(farm, http):
    first, second = await farm.proxy(), await farm.proxy()
    await farm.serve(second, name="policy")
    answer = await http.post(f"{first}/v1/chat/completions", json=CALL)
    assert answer.status_code == 508
    assert "leads back" in answer.json()["error"]["message"]


async def test_two_farms_in_a_row_are_no_loop(farm, farm_of, model, http, other_redis_url):
    behind = farm_of(other_redis_url)
    await behind.serve(model.url)
    await farm.serve(await behind.proxy(), name="front")
    answer = await http.post(f"{await farm.proxy()}/v1/chat/completions", json={**CALL, "model": "front"})
    assert answer.status_code == 200


async def test_two_farms_that_call_each_other_end_at_the_second_visit(farm, farm_of, http, other_redis_url):
    other = farm_of(other_redis_url)
    first, second = await farm.proxy(), await other.proxy()
    await farm.serve(second)
    await other.serve(first)
    answer = await http.post(f"{first}/v1/chat/completions", json=CALL)
    assert answer.status_code == 508


async def test_a_call_that_has_passed_too_many_farms_is_508(proxy, http):
    passed = ", ".join(f"farm-{number}" for number in range(hops.MOST))
    answer = await http.post(f"{proxy}/v1/chat/completions", json=CALL, headers={hops.HEADER: passed})
    assert (answer.status_code, answer.json()["error"]["code"]) == (508, "policy_loops")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/rollouts/x/v1/responses"])
async def test_a_body_beyond_the_bound_is_413_before_it_comes(farm, model, path):
    proxy = await farm.proxy(proxy={"max_body_bytes": 4096})
    status, body = await _raw(proxy, path, b"Content-Length: 314572800\r\n\r\n")
    assert (status, "proxy.max_body_bytes" in orjson.dumps(body).decode()) == (413, True)


async def test_a_body_without_end_is_413(farm, model):
    proxy = await farm.proxy(proxy={"max_body_bytes": 4096})
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    status, _ = await _raw(proxy, "/v1/responses", b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4)
    assert status == 413


async def test_a_body_that_stops_is_408(proxy, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_STALL_S", 0.2)
    status, body = await _raw(proxy, "/v1/responses", b'Content-Length: 100\r\n\r\n{"model": ')
    assert (status, body["error"]["code"]) == (408, "body_stalled")


async def test_a_body_that_drips_is_408(proxy, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_S", 0.3)
    host, port = proxy.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")

    async def drip() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    try:
        async with asyncio.timeout(10):
            assert b" 408 " in await reader.readuntil(b"\r\n")
    finally:
        dripping.cancel()
        writer.close()


async def test_a_compressed_body_is_415(proxy, http):
    packed = gzip.compress(orjson.dumps(CALL))
    answer = await http.post(f"{proxy}/v1/responses", content=packed, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


async def _raw(proxy: str, path: str, rest: bytes) -> tuple[int, dict[str, Any]]:
    """Send a request as it is and read the answer, even if the request is incomplete."""
    url = httpx.URL(proxy)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(10):
            writer.write(b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % path.encode() + rest)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head.split()[1]), orjson.loads(await reader.readexactly(length))
    finally:
        writer.close()
