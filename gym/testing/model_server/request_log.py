"""Log of the scripted server: a record of each generation call, and counts. Memory is bounded.

With a file, the start and the end of each call are appended to it as JSON lines (`at`, `event`, `number`,
`x_request_id`; `status` at the end), written at once, so that they outlive a killed server.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from gym.jsontypes import JsonObject

TAIL = 200


@dataclass(slots=True)
class RequestRecord:
    """One call. Times are seconds since the epoch; `ended` and `status` are None while it is in flight.

    `prompt_tail` is the end of the last message. `status` stays None if the client disconnected before an answer.
    """

    number: int  # from 1, in order of arrival
    path: str
    started: float
    headers: Mapping[str, str]
    ended: float | None = None
    status: int | None = None
    prompt_tail: str = ""
    model: str | None = None
    messages: int = 0
    stream: bool = False
    disconnected: bool = False  # the client disconnected before the end

    def as_dict(self) -> JsonObject:
        """Return the record for `/admin/requests`; of the headers those that begin with x-."""
        return {
            "number": self.number,
            "path": self.path,
            "started": self.started,
            "ended": self.ended,
            "duration_s": None if self.ended is None else self.ended - self.started,
            "status": self.status,
            "x_request_id": self.headers.get("x-request-id"),
            "headers": {name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-")},
            "model": self.model,
            "messages": self.messages,
            "stream": self.stream,
            "prompt_tail": self.prompt_tail,
            "disconnected": self.disconnected,
        }


class RequestLog:
    """The last calls and the counts of all."""

    def __init__(self, size: int, file: Path | None = None) -> None:
        self._file: BinaryIO | None = None if file is None else file.open("ab", buffering=0)
        self.records: deque[RequestRecord] = deque(maxlen=size)
        self.requests = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.cancelled_by_client = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.finished: dict[str, int] = {}

    def begin(self, path: str, headers: Mapping[str, str]) -> RequestRecord:
        """Record a call's arrival."""
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        record = RequestRecord(self.requests, path, time.time(), headers)
        self.records.append(record)
        self._write(record.started, "begin", record)
        return record

    def end(self, record: RequestRecord) -> None:
        """Record a call's end."""
        record.ended = time.time()
        self.in_flight -= 1
        self.cancelled_by_client += record.disconnected
        self._write(record.ended, "end", record)

    def close(self) -> None:
        """Close the file; no further calls are written to it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, at: float, event: str, record: RequestRecord) -> None:
        if self._file is None:
            return
        line: JsonObject = {
            "at": at, "event": event, "number": record.number, "x_request_id": record.headers.get("x-request-id")
        }  # fmt: skip
        if event == "end":
            line["status"] = record.status
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def count(self, prompt_tokens: int, generated_tokens: int, finish: str) -> None:
        """Count the generated tokens."""
        self.prompt_tokens += prompt_tokens
        self.generated_tokens += generated_tokens
        self.finished[finish] = self.finished.get(finish, 0) + 1

    def after(self, number: int, limit: int) -> list[RequestRecord]:
        """Return up to `limit` remembered calls after one, in order of arrival."""
        first = self.records[0].number if self.records else 0
        skip = max(0, number + 1 - first)
        return [self.records[place] for place in range(skip, min(skip + limit, len(self.records)))]

    def stats(self) -> dict[str, int]:
        """Return the counts for `/admin/stats`."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "cancelled_by_client": self.cancelled_by_client,
        }

    def metrics(self, model: str) -> str:
        """Return the counts in Prometheus's text format, under vLLM's names."""
        labels = f'engine="0",model_name="{model}"'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {self.in_flight}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{{{labels}}} 0",
            "# TYPE vllm:prompt_tokens_total counter",
            f"vllm:prompt_tokens_total{{{labels}}} {self.prompt_tokens}",
            "# TYPE vllm:generation_tokens_total counter",
            f"vllm:generation_tokens_total{{{labels}}} {self.generated_tokens}",
            "# TYPE vllm:request_success_total counter",
            *(
                f'vllm:request_success_total{{{labels},finished_reason="{finish}"}} {count}'
                for finish, count in sorted({"stop": 0, "length": 0, **self.finished}.items())
            ),
            "# TYPE scripted_model:requests_total counter",
            f"scripted_model:requests_total {self.requests}",
            "# TYPE scripted_model:cancelled_by_client_total counter",
            f"scripted_model:cancelled_by_client_total {self.cancelled_by_client}",
        ]
        return "\n".join(lines) + "\n"
