"""A farm whose judges are a scripted model that the tests can slow down, take away and count."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from api.local.local_farm import LocalFarm, local_farm
from gym.testing.model_server.server import ScriptedModelServer

WAIT_S = 90.0
EQUALITY = {"kind": "remote", "model": "judge", "template": "{answer}\n{reference}", "cache": False}


class JudgeModel:
    """A scripted model on a loop of its own; it says what a `[[say …]]` in the expected answer tells it to."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self._do(self._start(ScriptedModelServer()))
        self.url = self.server.url

    @staticmethod
    async def _start(server: ScriptedModelServer) -> ScriptedModelServer:
        return await server.__aenter__()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def leave(self) -> None:
        """Stop listening."""
        self._do(self.server.__aexit__(None, None, None))

    def come_back(self) -> None:
        """Listen again at the same address."""
        again = ScriptedModelServer(self.server.options, port=self.server.port)
        self.server = self._do(self._start(again))

    def close(self) -> None:
        self.leave()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class FragileJudge:
    """A judge that says EQUAL, or while it is `away` drops its connections; it notes what it was asked and when."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.away = False
        self.asked: list[tuple[float, str]] = []  # time.monotonic() and the first line of the question
        self._loop = loop
        self._runner: web.AppRunner | None = None
        self.url = asyncio.run_coroutine_threadsafe(self._start(), loop).result(30)

    async def _start(self) -> str:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", self._chat), web.get("/{path:.*}", self._health)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((time.monotonic(), body["messages"][-1]["content"].partition("\n")[0]))
        message = {"role": "assistant", "content": "Verdict: EQUAL"}
        return self._answer(request, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async def _health(self, request: web.Request) -> web.Response:
        return self._answer(request, {})

    def _answer(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if self.away and request.transport is not None:
            request.transport.abort()
        return web.json_response(body)

    def close(self) -> None:
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)


@dataclass(frozen=True, slots=True)
class JudgedFarm:
    """Farm with its judges, and the actions of tests."""

    farm: LocalFarm
    judge: JudgeModel
    fragile: FragileJudge
    http: httpx.Client

    def submit(self, rows: list[dict[str, Any]], **options: Any) -> str:
        """The id of a new batch."""
        answer = self.http.post("/v1/batches", json={"rows": rows, **options})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["batch_id"])

    def ledger(self, batch_id: str) -> dict[str, int]:
        """It balances at every look."""
        found: dict[str, int] = self.http.get(f"/v1/batches/{batch_id}").json()["ledger"]
        assert found["submitted"] == sum(number for state, number in found.items() if state != "submitted"), found
        return found

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """All results, by their ids, once the batch is done."""
        self.until(lambda: self.http.get(f"/v1/batches/{batch_id}").json()["state"] != "running")
        page = self.http.get(f"/v1/batches/{batch_id}/results", params={"limit": 1000}).raise_for_status().json()
        assert page["done"]
        items: list[dict[str, Any]] = page["items"]
        return sorted(items, key=lambda result: [int(part) for part in result["rollout_id"].split(":")[-2:]])

    @staticmethod
    def until(done: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """Wait until `done` returns a true value, and return it."""
        give_up_at = time.monotonic() + timeout_s
        while not (found := done()):
            assert time.monotonic() < give_up_at, "it did not come to pass in time"
            time.sleep(0.05)
        return found

    @staticmethod
    def row(said: str, expected: str, **extra: Any) -> dict[str, Any]:
        """A task that the policy answers with `said`; `expected` is the text that the judge reads after it."""
        return {
            "responses_create_params": {"input": [{"role": "user", "content": f"[[say {said}]]"}]},
            "environment": "equivalence",
            "expected_answer": expected,
            **extra,
        }


@pytest.fixture(scope="session")
def judged_farm() -> Iterator[JudgedFarm]:
    """One farm for all these tests, with one judge worker and 8 slots in one worker."""
    judge = JudgeModel()
    fragile = FragileJudge(judge.loop)
    judges = {
        "fragile": EQUALITY | {"base_urls": [fragile.url], "max_retries": 0},
        "equality": EQUALITY | {"base_urls": [judge.url], "call_timeout_s": 5, "max_retries": 0},
        "other": EQUALITY | {"base_urls": [judge.url], "votes": 3},
        "similarity": {"kind": "embedding", "batch_size": 8},
        "ranked": {
            "kind": "pairwise",
            "model": "judge",
            "base_urls": [judge.url],
            "template": "{first}{second}[[say Verdict: {first}]]",
            "verdict": {"form": "label", "labels": {"good": 1.0, "bad": 0.0}},
        },
        "away": EQUALITY | {"base_urls": ["http://127.0.0.1:9"], "max_retries": 0},
    }
    try:
        with tempfile.TemporaryDirectory(prefix="farm-judging-") as folder:
            folder_here = Path(__file__).parent
            environments = [f"{folder_here / 'contest.py'}:Contest", f"{folder_here / 'asking.py'}:Asking"]
            settings = {
                "FARM_JUDGES": json.dumps(judges),
                "FARM_ENVIRONMENTS": json.dumps(environments),
                "FARM_WORKER_LEASE_TTL_S": "2",
                "FARM_BREAKERS_PROBE_AFTER_S": "0.3",
                "FARM_BREAKERS_MAX_PROBE_AFTER_S": "1",
            }
            options = ["--workers", "1", "--concurrency", "8", "--no-flower"]
            with (
                local_farm(Path(folder), options=options, settings=settings) as farm,
                httpx.Client(base_url=farm.url, timeout=60) as http,
            ):
                judged = JudgedFarm(farm, judge, fragile, http)
                judged.until(lambda: any(w.get("per_judge") for w in http.get("/v1/workers").json()["items"]))
                yield judged
    finally:
        fragile.close()
        judge.close()


@pytest.fixture
def embedding_server(judged_farm: JudgedFarm, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A replica of the judge `similarity`, found through the farm's data directory."""
    command = [sys.executable, "-m", "api.cli.main", "judge-server", "--kind", "embedding", "--judge", "similarity"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(judged_farm.farm.data_dir), "--batch-size", "16"],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(30) == 0, (tmp_path / "log").read_text()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
