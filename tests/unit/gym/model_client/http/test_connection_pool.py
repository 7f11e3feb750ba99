"""HTTP/1.1 as servers speak it, well and badly, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from gym.model_client.http.connection import UNREAD_BYTES
from gym.model_client.http.connection_pool import ConnectFailed, Connections, HttpError

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CERTIFICATE = Path(__file__).parent / "localhost.pem"  # of no authority, for 127.0.0.1, until 2126
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request on a connection by the next of its answers, the last one again and again."""

    def __init__(self, *answers: bytes | Script, scheme: str = "http") -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = 0  # connections that the client has closed
        self.scheme = scheme
        self.url = URL()

    async def serve(self, stack: AsyncExitStack, tls: ssl.SSLContext | None = None) -> Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=tls)
        stack.callback(server.close)
        self.url = URL(f"{self.scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions")
        return self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(reader, writer)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended += 1
        finally:
            writer.close()


def then_close(*parts: bytes, pause_s: float = 0.0) -> Script:
    """Send these parts and close."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.close()

    return answer


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing more until the client leaves."""
    raise asyncio.IncompleteReadError(await reader.read(1), 1)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    async with AsyncExitStack() as stack:

        async def make(*answers: bytes | Script) -> Server:
            return await Server(*answers).serve(stack)

        yield make


@pytest.fixture
async def unread() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Makes servers that read heads only; each connection gets an answer, where that is empty the end of sending."""
    over = asyncio.Event()
    handlers: set[asyncio.Task[None]] = set()
    async with AsyncExitStack() as stack:

        async def make(*answers: bytes) -> Server:
            left = list(answers)

            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(left[0])
                if not left.pop(0):
                    writer.write_eof()
                await over.wait()
                writer.transport.abort()

            def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                handlers.add(asyncio.create_task(connected(reader, writer)))

            listening = await asyncio.start_server(begin, "127.0.0.1", 0)
            stack.callback(listening.close)
            server = Server()
            server.url = URL(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/")
            return server

        yield make
        over.set()
        await asyncio.gather(*handlers)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Connections]]:
    made: list[Connections] = []

    def make(**options: Any) -> Connections:
        made.append(Connections(**{"per_server": 8, "connect_timeout_s": 2.0, "idle_s": 4.0} | options))
        return made[-1]

    yield make
    for connections in made:
        connections.close()


async def post(connections: Connections, server: Server, body: bytes = b"{}", **headers: str) -> tuple[int, bytes]:
    async with connections.post(server.url, body, headers) as answer:
        return answer.status, await answer.read()


async def test_a_request_is_as_it_was_meant(serve, connect):
    server = await serve(OK)
    assert await post(connect(), server, b'{"a": 1}', Authorization="Bearer k") == (200, b"ok")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert {"Host: " + server.url.authority, "Authorization: Bearer k", "Content-Length: 8"} <= set(headers)
    assert body == b'{"a": 1}'


async def test_a_connection_is_used_again(serve, connect):
    server, connections = await serve(OK), connect()
    for _ in range(5):
        await post(connections, server)
    assert (server.connections, len(server.requests)) == (1, 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more than was announced",
    ],
    ids=["close", "http 1.0", "an answer to nothing", "garbage behind it"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(serve, connect, answer):
    server, connections = await serve(answer), connect()
    assert await post(connections, server) == (200, b"ok")
    assert await post(connections, server) == (200, b"ok")
    assert server.connections == 2


async def test_a_body_in_chunks_is_put_together_and_its_connection_used_again(serve, connect):
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nX-Trailer: 1\r\n\r\n"
    server, connections = await serve(chunks), connect()
    assert [await post(connections, server) for _ in range(2)] == [(200, b"ok")] * 2
    assert server.connections == 1


async def test_a_body_without_a_length_ends_with_the_connection(serve, connect):
    server = await serve(then_close(b"HTTP/1.1 200 OK\r\n\r\nfirst ", b"second", pause_s=0.01))
    assert await post(connect(), server) == (200, b"first second")


async def test_an_answer_that_comes_byte_by_byte_is_read(serve, connect):
    server = await serve(then_close(*(bytes([byte]) for byte in OK)))
    assert await post(connect(), server) == (200, b"ok")


async def test_what_goes_before_the_answer_is_passed_over(serve, connect):
    early = b"HTTP/1.1 104 X\r\nContent-Length: 4\r\n\r\nJUNK"
    early += b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n"
    server = await serve(early + b"HTTP/1.1 429 Too Many\r\nRETRY-AFTER: 3\r\nContent-Length: 0\r\n\r\n")
    async with connect().post(server.url, b"{}", {}) as answer:
        assert (answer.status, answer.header("retry-after"), await answer.read()) == (429, "3", b"")
        assert answer.header("x-other") is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (then_close(), "Server disconnected"),
        (then_close(b"HTTP/1.1 200 OK\r\nContent-"), "Server disconnected"),
        (then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"), "Server disconnected"),
        (then_close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), "Server disconnected"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000, "larger than 65536 bytes"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "another protocol"),
    ],
    ids=["nothing", "half a head", "short", "cut chunks", "ssh", "bad length", "bad chunk", "long head", "upgrade"],
)
async def test_an_answer_that_breaks_off_or_is_no_http_is_an_error(serve, connect, answer, text):
    server, connections = await serve(answer, OK), connect()
    with pytest.raises(HttpError, match=text):
        await asyncio.wait_for(post(connections, server), 5)
    assert await post(connections, server) == (200, b"ok")


async def test_nobody_there_is_said_at_once(connect, serve):
    async with AsyncExitStack() as stack:
        server = await Server(OK).serve(stack)
    with pytest.raises(ConnectFailed, match=r"Cannot connect to host 127\.0\.0\.1:\d+"):
        await post(connect(), server)
    server.url = URL("http://no-such-host.invalid:80/")
    with pytest.raises(ConnectFailed, match=r"no-such-host\.invalid:80"):
        await post(connect(), server)


async def test_a_connection_that_does_not_come_about_is_given_up(connect):
    server = Server()
    server.url = URL("http://127.0.0.1:9/")
    connections = connect(connect_timeout_s=0.0)
    with pytest.raises(ConnectFailed, match="timeout"):
        await post(connections, server)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], ids=["head", "body"])
async def test_an_exchange_that_is_cancelled_closes_its_connection(serve, connect, eventually, head):
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await hang(reader, writer)

    server, connections = await serve(begin, OK), connect()
    call = asyncio.create_task(post(connections, server))
    await eventually(lambda: bool(server.requests))
    call.cancel()
    await eventually(lambda: server.ended == 1)
    assert await post(connections, server) == (200, b"ok")


async def test_an_answer_that_is_left_unread_closes_its_connection(serve, connect, eventually):
    server, connections = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), connect()
    async with connections.post(server.url, b"{}", {}) as answer:
        assert await anext(aiter(answer.iter_any())) == b"half"
    await eventually(lambda: server.ended == 1)


async def test_who_waits_for_a_connection_is_served_in_order(serve, connect, eventually):
    server, connections = await serve(OK), connect(per_server=1)
    done: list[int] = []

    async def call(number: int) -> None:
        await post(connections, server)
        done.append(number)

    await asyncio.gather(*(call(number) for number in range(20)))
    assert server.connections == 1
    assert done == sorted(done)


async def test_a_caller_that_stops_waiting_takes_no_place_with_it(serve, connect, eventually):
    server, connections = await serve(hang, OK), connect(per_server=1)
    first = asyncio.create_task(post(connections, server))
    await eventually(lambda: bool(server.requests))
    waiting = [asyncio.create_task(post(connections, server)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.cancel()
    await asyncio.sleep(0)
    waiting[1].cancel()  # perhaps it has been handed the place already
    assert await asyncio.wait_for(waiting[2], 5) == (200, b"ok")
    assert await post(connections, server) == (200, b"ok")


async def test_who_is_cancelled_with_the_one_before_is_cancelled_and_nothing_else(serve, connect, eventually):
    server, connections = await serve(hang, OK), connect(per_server=1)
    calls = [asyncio.create_task(post(connections, server)) for _ in range(3)]
    await eventually(lambda: bool(server.requests))
    for call in calls:
        call.cancel()
    assert [type(each) for each in await asyncio.gather(*calls, return_exceptions=True)] == [asyncio.CancelledError] * 3
    assert await post(connections, server) == (200, b"ok")


async def test_a_connection_whose_request_is_still_being_sent_is_not_used_again(unread, connect):
    early = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    server, connections = await unread(early, OK), connect()
    assert await post(connections, server, bytes(2**25)) == (413, b"no")
    assert await asyncio.wait_for(post(connections, server), 4) == (200, b"ok")


async def test_a_server_that_stops_sending_before_it_has_the_request_is_not_waited_for(unread, connect):
    server = await unread(b"")
    with pytest.raises(HttpError, match="Server disconnected"):
        await asyncio.wait_for(post(connect(), server, bytes(2**25)), 4)


@pytest.mark.parametrize("host", ["a" * 64 + ".com", "a..b"])
async def test_a_host_that_no_name_server_takes_cannot_be_connected_to(connect, host):
    server = Server()
    server.url = URL.build(scheme="http", host=host, port=80, path="/")
    with pytest.raises(ConnectFailed):
        await post(connect(), server)


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(serve, connect, eventually):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    server, connections = await serve(answer), connect()
    await post(connections, server)
    for _ in range(3):
        await asyncio.sleep(0.02)
        assert await post(connections, server) == (200, b"ok")
    assert server.connections == 4


async def test_idle_connections_are_closed_before_the_server_does_it(serve, connect, eventually):
    server, connections = await serve(OK), connect(idle_s=0.05)
    await asyncio.gather(*(post(connections, server) for _ in range(3)))
    await eventually(lambda: server.ended == 3)


async def test_a_slow_reader_makes_the_server_wait(serve, connect, eventually):
    size, sent = 64 * UNREAD_BYTES, 0

    async def much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(bytes(UNREAD_BYTES))
            await writer.drain()
            sent += UNREAD_BYTES

    server, connections = await serve(much), connect()
    async with connections.post(server.url, b"{}", {}) as answer:
        pieces = answer.iter_any()
        got = len(await anext(pieces))
        await asyncio.sleep(0.2)
        assert sent < size
        async for piece in pieces:
            got += len(piece)
    assert got == size


async def test_a_large_request_arrives_whole(serve, connect):
    server, body = await serve(OK), bytes(range(256)) * 2**15
    assert await post(connect(), server, body) == (200, b"ok")
    assert server.requests[0].endswith(body)


async def test_a_header_cannot_break_out_of_its_line(serve, connect):
    server = await serve(OK)
    with pytest.raises(ValueError, match="line breaks"):
        await post(connect(), server, Authorization="Bearer k\r\nX-Other: 1")
    assert not server.requests


async def test_a_certificate_is_checked(connect):
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(CERTIFICATE)
    async with AsyncExitStack() as stack:
        server = await Server(OK, scheme="https").serve(stack, own)
        with pytest.raises(ConnectFailed, match=r"(?i)certificate"):
            await post(connect(), server)
        connections = connect(tls=ssl.create_default_context(cafile=str(CERTIFICATE)))
        for _ in range(2):
            assert await post(connections, server) == (200, b"ok")
        assert len(server.requests) == 2


async def test_nothing_is_sent_after_the_end(serve, connect):
    server, connections = await serve(OK), connect()
    await post(connections, server)
    connections.close()
    with pytest.raises(RuntimeError):
        await post(connections, server)
