"""A farm in memory behind a real socket, for tests of programs that use the client.

Every rollout succeeds at once with reward 1.0, unless `outcome` overrides it. Repeating a submission is idempotent, as
in API.md. Faults are played once each, in the order given.

    with FakeFarm() as farm:
        farm.faults.append(Fault("POST", "/v1/batches", "accept_then_503"))
        connect_sync(farm.url).submit(rows)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from gym.errors import Conflict, Invalid, NotFound, RequestError
from gym.ids import RolloutRef
from gym.jsontypes import JsonObject
from gym.results.result import RolloutResult, RolloutTiming, identity, rfc3339
from gym.rollout import Outcome, StopReason
from gym.task import read_header
from gym.trajectory import Usage

Mishap = Literal["503", "429", "accept_then_503", "accept_then_drop", "drop"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Fault of the next request with this method whose path fits this shell pattern."""

    method: str
    path: str
    mishap: Mishap


@dataclass(slots=True)
class FakeBatch:
    """A batch of the fake; `rows` by task id, `log` in the order of completion."""

    body: JsonObject
    sealed: bool
    cancelled: bool = False
    rows: dict[str, JsonObject] = field(default_factory=dict)
    log: list[JsonObject] = field(default_factory=list)

    @property
    def state(self) -> str:
        """State under the farm's name."""
        return "cancelled" if self.cancelled else "done" if self.sealed else "open"


def succeeded(_row: JsonObject, _sample: int) -> JsonObject:
    """Return the default outcome of a rollout."""
    return {"outcome": "succeeded", "stop_reason": "completed", "reward": 1.0, "model_calls": 2, "tool_calls": 1}


class FakeFarm:
    """The farm; `url` is its address while it is entered. `requests` are `METHOD PATH` in order of arrival."""

    def __init__(
        self, *, outcome: Callable[[JsonObject, int], JsonObject] = succeeded, page_limit: int = 1000, api_key: str = ""
    ) -> None:
        self.batches: dict[str, FakeBatch] = {}
        self.policies: dict[str, JsonObject] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.rejudges: list[JsonObject] = []  # arguments of each rejudge
        self.api_key = api_key
        self._outcome = outcome
        self._page_limit = page_limit
        self._lock = threading.Lock()

    def __enter__(self) -> FakeFarm:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def fault_for(self, method: str, path: str) -> Mishap | None:
        """Take the fault for this request."""
        with self._lock:
            for number, fault in enumerate(self.faults):
                if fault.method == method and fnmatchcase(path, fault.path):
                    return self.faults.pop(number).mishap
        return None

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, object]:
        """Return status and JSON for a request. Raises RequestError."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            parts = tuple(unquote(part) for part in path.strip("/").split("/"))
            return self._route(method, parts, query, body)

    def _route(self, method: str, parts: tuple[str, ...], query: dict[str, str], body: bytes) -> tuple[int, object]:
        match method, parts:
            case "GET", ("readyz",):
                return 200, {"status": "ready"}
            case "POST", ("v1", "batches"):
                return self._create(orjson.loads(body))
            case "POST", ("v1", "batches", batch_id, "rows"):
                rows = [orjson.loads(line) for line in body.splitlines()]
                return 200, self._append(batch_id, rows)
            case "POST", ("v1", "batches", batch_id, "seal"):
                self._batch(batch_id).sealed = True
                return 200, self._status(batch_id)
            case "POST", ("v1", "batches", batch_id, "requeue"):
                self._batch(batch_id)
                return 200, {"requeued": 0}
            case "POST", ("v1", "batches", batch_id, "rejudge"):
                self._batch(batch_id)
                self.rejudges.append(orjson.loads(body))
                return 200, {"rejudging": 0, "skipped": 0}
            case "GET", ("v1", "batches", batch_id):
                return 200, self._status(batch_id)
            case "GET", ("v1", "batches", batch_id, "results"):
                return 200, self._results(batch_id, query)
            case "DELETE", ("v1", "batches" | "groups" | "rollouts" as family, item):
                return 200, self._cancel(family, item)
            case "GET", ("v1", "rollouts", rollout_id):
                return 200, self._rollout(rollout_id)
            case "GET", ("v1", "environments"):
                return 200, {"environments": [WEATHER]}
            case "GET", ("v1", "environments", "weather"):
                return 200, WEATHER
            case "PUT", ("v1", "policies", name):
                self.policies[name] = orjson.loads(body)
                return 200, {"name": name} | self.policies[name]
            case "GET", ("v1", "policies"):
                return 200, {"policies": [{"name": name} | spec for name, spec in self.policies.items()]}
            case "DELETE", ("v1", "policies", name) if self.policies.pop(name, None):
                return 200, {}
            case "GET", ("v1", "workers"):
                return 200, {"workers": []}
            case "GET", ("v1", "queues"):
                return 200, {"queues": []}
        raise NotFound("not_found", f"there is no {method} /{'/'.join(parts)}")

    def _create(self, body: JsonObject) -> tuple[int, object]:
        batch_id = body["batch_id"]
        known = self.batches.get(batch_id)
        if known is not None and known.body != body:
            raise Conflict("batch_conflict", f"batch {batch_id} exists with another body")
        if known is None:
            rows = body.get("rows", [])
            self.batches[batch_id] = FakeBatch(body=body, sealed=body.get("sealed", True))
            try:
                self._add(batch_id, rows)
            except RequestError:
                del self.batches[batch_id]
                raise
        status = self._status(batch_id)
        answer = {name: status[name] for name in ("batch_id", "run", "state")}
        return (200 if known else 201), answer | {"submitted": status["ledger"]["submitted"], "links": {}}

    def _append(self, batch_id: str, rows: list[JsonObject]) -> JsonObject:
        if self._batch(batch_id).sealed:
            raise Conflict("batch_sealed", f"batch {batch_id} takes no more rows")
        return self._add(batch_id, rows)

    def _add(self, batch_id: str, rows: list[JsonObject]) -> JsonObject:
        batch = self._batch(batch_id)
        fresh: dict[str, tuple[JsonObject, int]] = {}
        default = batch.body.get("environment")
        for number, row in enumerate(rows):
            header = read_header(
                row, row=number, default_environment=default, default_samples=batch.body.get("num_samples", 1)
            )
            if header.environment != "weather":
                raise Invalid("unknown_environment", f"row {number}: no {header.environment}", {"row": number})
            task_id = header.task_id or f"farm-{len(batch.rows) + len(fresh)}"
            if task_id in batch.rows and batch.rows[task_id] != row:
                raise Conflict("task_conflict", f"task {task_id} comes again with another body")
            if task_id not in batch.rows:
                fresh[task_id] = (row, header.num_samples)
        for task_id, (row, samples) in fresh.items():
            number = len(batch.rows)
            run = batch.body.get("run") or batch_id
            batch.rows[task_id] = row
            for sample in range(samples):
                result = RolloutResult(
                    **identity(RolloutRef(batch_id, number, sample), run=run, task_id=task_id, environment="weather"),
                    attempt=1,
                    outcome=Outcome.SUCCEEDED,
                    stop_reason=StopReason.COMPLETED,
                    error=None,
                    usage=Usage(10, 5),
                    timing=RolloutTiming(total_s=0.5),
                    finished_at=rfc3339(0),
                )
                batch.log.append(result.as_dict() | self._outcome(row, sample))
        return {"accepted": len(fresh), "repeated": len(rows) - len(fresh), "submitted": len(batch.log)}

    def _batch(self, batch_id: str) -> FakeBatch:
        if batch_id not in self.batches:
            raise NotFound("batch_not_found", f"there is no batch {batch_id}", {"batch_id": batch_id})
        return self.batches[batch_id]

    def _status(self, batch_id: str) -> JsonObject:
        batch = self._batch(batch_id)
        ledger = dict.fromkeys(("queued", "running", "judging", "succeeded", "failed", "cancelled", "expired"), 0)
        for result in batch.log:
            ledger[result["outcome"]] += 1
        run = batch.body.get("run", batch_id)
        ledger["submitted"] = len(batch.log)
        return {"batch_id": batch_id, "run": run, "state": batch.state, "ledger": ledger, "environments": {}}

    def _results(self, batch_id: str, query: dict[str, str]) -> JsonObject:
        batch = self._batch(batch_id)
        start = int(query.get("after", "0"))
        end = min(start + min(int(query.get("limit", "100")), self._page_limit), len(batch.log))
        done = batch.state != "open" and end == len(batch.log)
        return {"items": batch.log[start:end], "next_after": str(end), "done": done}

    def _rollout(self, rollout_id: str) -> JsonObject:
        for batch in self.batches.values():
            for result in batch.log:
                if result["rollout_id"] == rollout_id:
                    return result
        raise NotFound("rollout_not_found", f"there is no rollout {rollout_id}")

    def _cancel(self, family: str, item: str) -> JsonObject:
        if family == "batches" and item in self.batches:
            self.batches[item].cancelled = True
        return {"cancelled": 0}


WEATHER: JsonObject = {
    "name": "weather",
    "description": "Ask for the weather in a city and report it.",
    "tools": [{"type": "function", "name": "get_weather", "description": "The weather in a city."}],
    "row_schema": {"type": "object"},
    "example_row": {"responses_create_params": {"input": "How is the weather in Paris?"}, "environment": "weather"},
}


def _handler(farm: FakeFarm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self._body()
            parts = urlsplit(self.path)
            mishap = farm.fault_for(self.command, parts.path)
            if mishap in ("503", "429"):
                self._send(int(mishap), _error_body(mishap), retry_after="0")
                return
            if mishap != "drop":
                status, answer = self._answer(parts.path, dict(parse_qsl(parts.query)), body)
            if mishap in ("drop", "accept_then_drop"):
                self.close_connection = True
                return
            if mishap == "accept_then_503":
                self._send(503, _error_body("503"), retry_after="0")
                return
            self._send(status, answer)

        def _answer(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, object]:
            if farm.api_key and self.headers["authorization"] != f"Bearer {farm.api_key}":
                return 401, _error_body("unauthorized")
            try:
                return farm.answer(self.command, path, query, body)
            except RequestError as error:
                shape = {"code": error.code, "message": error.message, "details": error.details}
                return error.status, {"error": shape}

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", "0")))
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def _send(self, status: int, answer: object, *, retry_after: str | None = None) -> None:
            payload = orjson.dumps(answer)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            if retry_after is not None:
                self.send_header("retry-after", retry_after)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            """Suppress the log."""

    for method in ("GET", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._serve)
    return Handler


def _error_body(code: str) -> JsonObject:
    return {"error": {"code": code, "message": f"played by the fake farm: {code}", "details": {}}}
