"""A judge server of the standard library: `/health`, `/v1/judge` and the GPUs that it was given."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOAD = {"in_flight": 0, "waiting": 0, "version": "1", "model": "stub"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({**LOAD, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
