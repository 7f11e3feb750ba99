"""A whole farm without keys, as a hostile page or a hostile neighbour on its network meets it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import httpx
import psutil
import pytest

from api.cli.local_farm import LocalFarm

SENT = 50 * 2**20
MOST_MORE = 64 * 2**20


@pytest.fixture(params=["api", "proxy"])
def server(request: pytest.FixtureRequest, farm: LocalFarm) -> httpx.URL:
    """Each of the two servers that others reach."""
    return httpx.URL(farm.url if request.param == "api" else farm.proxy_url)


def test_a_header_of_50_mb_holds_up_nobody_and_costs_no_memory(server):
    process = _listening(server.port or 0)
    before = process.memory_info().rss
    attack = threading.Thread(target=_send_header, args=(server,))
    attack.start()
    slowest = 0.0
    with httpx.Client(base_url=server, timeout=30) as client:
        while attack.is_alive():
            began = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            slowest = max(slowest, time.perf_counter() - began)
    attack.join()
    assert process.memory_info().rss - before < MOST_MORE
    assert slowest < 5  # unbounded, one such header took 14 s


def test_hundreds_of_half_requests_hold_up_nobody(server):
    halves = [socket.create_connection((server.host, server.port)) for _ in range(300)]
    try:
        for half in halves:
            half.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert httpx.get(server.join("/healthz"), timeout=10).status_code == 200
    finally:
        for half in halves:
            half.close()


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/batches", "/docs"])
def test_a_name_that_resolves_to_loopback_is_not_answered(server, path):
    answer = httpx.get(server.join(path), headers={"host": "rebound.example:8700"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_trusted")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_page_of_another_site_is_not_answered(server, method):
    url = server.join("/v1/batches/b/events")
    answer = httpx.request(method, url, headers={"origin": "https://evil.example", "accept": "text/event-stream"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_trusted")


def _send_header(url: httpx.URL) -> None:
    with contextlib.suppress(OSError), socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        for _ in range(SENT // 2**16):
            connection.sendall(b"x" * 2**16)
        connection.recv(1)


def _listening(port: int) -> psutil.Process:
    found = next(
        each.pid for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port
    )
    assert found is not None
    return psutil.Process(found)
