"""A service that is an agent, in a thread of the test: the first word of its task selects its behaviour."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Service(BaseHTTPRequestHandler):
    """`seen` are the requests' bodies and headers, in order."""

    seen: ClassVar[list[tuple[dict[str, Any], dict[str, str]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append((body, headers))
        given = body["input"]
        text = given if isinstance(given, str) else given[0]["content"]
        outputs = [item for item in given if isinstance(item, dict) and item.get("type") == "function_call_output"]
        told = [item["output"] for item in outputs if item["call_id"] != "mine"]
        match text.partition(" ")[0]:
            case "mute":
                self._say("I ask nobody. 42")
            case "solve":
                self._say(self._ask(text))
            case "tool" if len(told) < 2:
                own = [
                    {"type": "function_call", "call_id": "mine", "name": "my_own", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "mine", "output": "known already"},
                ]
                call = {"type": "function_call", "call_id": f"c{len(told)}", "name": "hint", "arguments": "{}"}
                self._answer(200, {"output": [*(own if not told else []), call]}, f"turns={len(told) + 1}")
            case "tool":
                self._say(f"{self._ask(text)} {told[-1]} {headers.get('cookie')}")
            case "busy" if sum(text in str(body) for body, _ in self.seen) < 3:
                self._answer(503, {"error": "later"})
            case "busy":
                self._say("here I am")
            case "broken":
                self._answer(500, {"error": "the service fell over"})
            case "refuse":
                self._answer(422, {"error": "not like this"})
            case "junk":
                self._answer(200, ["no", "object"])
            case "moved":
                self._answer(307, {}, location="http://127.0.0.1:1/")
            case "slow":
                time.sleep(3)
                self._say("too late")

    def _ask(self, text: str) -> str:
        """Return the model's answer in Responses' dialect, from the address and with the key of the request."""
        request = urllib.request.Request(
            f"{self.headers['x-farm-base-url']}/responses",
            json.dumps({"model": "any", "input": text}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {self.headers['x-farm-api-key']}"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            said: str = json.load(response)["output"][-1]["content"][0]["text"]
        return said

    def _say(self, text: str) -> None:
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [part]}
        self._answer(200, {"id": "r", "object": "response", "output": [message]})

    def _answer(self, status: int, body: Any, cookie: str | None = None, location: str | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        if cookie is not None:
            self.send_header("set-cookie", cookie)
        if location is not None:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as http.server has it
        """Log nothing."""


@contextmanager
def served() -> Iterator[str]:
    """Serve in a thread, and give the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
