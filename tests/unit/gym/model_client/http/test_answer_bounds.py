"""Answers without end, of every kind, cost a bounded amount of memory and one attempt."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from gym.errors import ModelRejected
from gym.model_client.forward import ChatCall

pytestmark = pytest.mark.anyio

LIMIT = 2**20
SENT_MOST = 48 * 2**20
BLOCK = b"x" * 2**16
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNFRAMED = b"HTTP/1.1 200 OK\r\n\r\n"
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"


class Flood:
    """A server that answers with a beginning and then repeats a block until the client leaves."""

    def __init__(self, head: bytes, block: bytes) -> None:
        self._head = head
        self._block = block
        self.requests = 0
        self.sent = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            writer.write(self._head)
            while self._block and self.sent < SENT_MOST:
                writer.write(self._block)
                self.sent += len(self._block)
                await writer.drain()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def floods() -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def start(head: bytes, block: bytes = b"") -> Flood:
            flood = Flood(head, block)
            server = await asyncio.start_server(flood.answer, "127.0.0.1", 0)
            stack.callback(server.close)
            flood.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return flood

        yield start


@pytest.fixture
def peak() -> Any:
    """The most memory that was allocated since the test began."""
    tracemalloc.start()
    tracemalloc.reset_peak()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("head", "block", "match"),
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 314572800\r\n\r\n", BLOCK, "max_answer_bytes", id="declared length"
        ),
        pytest.param(CHUNKED, CHUNK, "max_answer_bytes", id="chunks"),
        pytest.param(UNFRAMED, BLOCK, "max_answer_bytes", id="until the connection ends"),
        pytest.param(
            b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK, "max_answer_bytes", id="an error's body"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: ", BLOCK, "head", id="a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-Many: 1\r\n" * 4096, "head", id="headers"),
        pytest.param(b"", b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n" * 2048, "head", id="forerunners"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\nX-Long: ", BLOCK, "trailer", id="a trailer"),
        pytest.param(CHUNKED + b"2;name=", BLOCK, "trailer", id="a chunk extension"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_answer_without_end_is_cut_and_not_asked_for_again(
    floods, clients, policies, peak, head, block, match, stream
):
    server = await floods(head, block)
    client = await clients(max_answer_bytes=LIMIT, health_check_s=0)
    call = _call(policies.put("p", [server.url]), stream=stream)
    with pytest.raises(ModelRejected, match=match):
        await client.complete(call)
    assert server.requests == 1
    assert peak() < 16 * LIMIT


async def test_a_declared_length_beyond_the_bound_is_refused_before_it_is_read(floods, clients, policies):
    server = await floods(b"HTTP/1.1 200 OK\r\nContent-Length: 314572800\r\n\r\n")
    client = await clients(max_answer_bytes=LIMIT, health_check_s=0)
    with pytest.raises(ModelRejected, match="larger than 1048576 bytes"):
        await client.complete(_call(policies.put("p", [server.url])))


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(BLOCK, id="one line"),
        pytest.param(b"data: " + b"x" * 1000 + b"\n", id="one event of many lines"),
        pytest.param(
            b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"x" * 1000 + b'"}}]}\n\n', id="many events"
        ),
        pytest.param(b": waiting\n\n" * 100, id="comments"),
    ],
)
async def test_a_stream_without_end_is_cut(floods, clients, policies, peak, block):
    framed = b"%x\r\n%b\r\n" % (len(block), block)
    server = await floods(CHUNKED, framed)
    client = await clients(max_answer_bytes=LIMIT, health_check_s=0)
    with pytest.raises(ModelRejected, match="max_answer_bytes"):
        await client.complete(_call(policies.put("p", [server.url]), stream=True))
    assert server.requests == 1
    assert peak() < 16 * LIMIT


async def test_a_compressed_answer_is_refused_at_once_and_not_unpacked(floods, clients, policies, peak):
    packed = gzip.compress(b" " * 32 * 2**20)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    server = await floods(head + packed)
    client = await clients(health_check_s=0)
    tracemalloc.reset_peak()
    with pytest.raises(ModelRejected, match=r"compressed \(gzip\), which was not asked for"):
        await client.complete(_call(policies.put("p", [server.url])))
    assert server.requests == 1
    assert peak() < 4 * 2**20


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -5, "completion_tokens": -1},
        {"prompt_tokens": "many", "completion_tokens": 1.5},
        {"prompt_tokens": 2**63, "completion_tokens": True},
        {"prompt_tokens": 1, "completion_tokens": [], "prompt_tokens_details": {"cached_tokens": 9}},
        {"prompt_tokens": 1, "prompt_tokens_details": 7, "completion_tokens_details": "none"},
        [],
        "unknown",
        7,
    ],
)
async def test_nonsense_in_the_usage_costs_no_answer(server, client, policies, ask, shapes, usage):
    server.script = [shapes.completion("fine", usage=usage)]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.facts.attempts == 1
    counts = reply.facts.usage
    assert 0 <= counts.cached_tokens <= counts.input_tokens < 2**40
    assert counts.output_tokens == 0


@pytest.mark.parametrize("version", ["9" * 5000, 2**63, "step-" + "1" * 400])
async def test_a_version_that_is_no_number_of_sense_costs_no_answer(server, client, policies, ask, shapes, version):
    server.script = [shapes.completion("fine", weight_version=version)]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert (reply.facts.attempts, reply.facts.version_before) == (1, None)


@pytest.mark.parametrize("header", ["inf", "-1", "1e400", "99999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"])
async def test_nonsense_in_retry_after_does_not_end_a_call(server, client, policies, ask, shapes, header):
    def busy(_: Any) -> Any:
        answer = shapes.error(503)
        answer.headers["Retry-After"] = header
        return answer

    server.script = [busy]
    assert (await client.respond(ask(policies.put("p", [server.url])))).facts.attempts == 2


def _call(policy: Any, *, stream: bool = False) -> ChatCall:
    async def ignore(_: list[dict[str, Any]]) -> None:
        return

    return ChatCall(
        policy=policy,
        body=orjson.loads(b'{"messages": [{"role": "user", "content": "hi"}]}'),
        sticky_key="s",
        deadline=asyncio.get_running_loop().time() + 30,
        request_id="r",
        on_chunks=ignore if stream else None,
    )
