"""Flower in its own process, configured by the farm's settings only.

Without a login it is read-only, since any user of the machine can open it and must not stop workers; it then answers
loopback names and `api.trusted_hosts` only. It sends no header that would let other web sites read it. `/healthcheck`
needs no login and returns only OK.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from types import FrameType

from gym.config import FlowerSettings, Settings, is_loopback
from gym.errors import SettingsError

INSPECT_TIMEOUT_MS = 2000.0


def check(settings: Settings) -> None:
    """Raise SettingsError if Flower would be open to other machines."""
    if not is_loopback(settings.host) and settings.flower.basic_auth is None:
        raise SettingsError(
            f"host is {settings.host}, which other machines can reach, and Flower has no login: set flower.basic_auth "
            "(FARM_FLOWER_BASIC_AUTH=user:password), or leave Flower out with --no-flower"
        )


def url_prefix(flower: FlowerSettings) -> str:
    """Return the path that Flower is served under: empty, or with a leading slash."""
    stripped = flower.url_prefix.strip("/")
    return f"/{stripped}" if stripped else ""


def run(settings: Settings) -> int:
    """Serve Flower until SIGTERM or SIGINT."""
    check(settings)
    # Flower reads from the environment, at each request, whether programs may use its API without a login.
    os.environ["FLOWER_UNAUTHENTICATED_API"] = "false" if settings.flower.basic_auth else "true"

    from flower.app import Flower
    from flower.options import options
    from flower.urls import settings as pages
    from flower.views import monitor
    from tornado.httputil import HTTPHeaders
    from tornado.web import HTTPError, OutputTransform, RequestHandler

    from workers.process.app import create_celery

    class SameOriginOnly(OutputTransform):
        """Mixin that drops the headers by which Flower opens its API to every web site."""

        def transform_first_chunk(
            self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
        ) -> tuple[int, HTTPHeaders, bytes]:
            for name in [name for name in headers if name.lower().startswith("access-control-")]:
                del headers[name]
            return super().transform_first_chunk(status_code, headers, chunk, finishing)

    class Metrics(monitor.Metrics):  # type: ignore[misc]  # Flower has no types
        """Flower's metrics, which name workers and jobs, behind its login."""

        async def get(self) -> None:
            if not self.current_user:
                raise HTTPError(401)
            await super().get()

    class NotTrusted(RequestHandler):
        """Response to a host name that another site could resolve to this machine."""

        def prepare(self) -> None:
            self.set_status(421)
            self.finish("without flower.basic_auth Flower answers loopback names and api.trusted_hosts only")

    prefix = url_prefix(settings.flower)
    options.address = settings.host
    options.port = settings.flower.port
    options.max_tasks = settings.flower.max_tasks
    options.tasks_columns = "name,kwargs,state,received,runtime,worker,uuid"  # kwargs hold the rollouts
    options.inspect_timeout = INSPECT_TIMEOUT_MS
    options.basic_auth = [settings.flower.basic_auth] if settings.flower.basic_auth else []
    options.read_only = settings.flower.basic_auth is None
    options.url_prefix = prefix.lstrip("/") or None
    served = pages | {name: prefix + pages[name] for name in ("login_url", "static_url_prefix")}

    flower = Flower(options=options, capp=create_celery(settings), transforms=[SameOriginOnly], **served)
    if settings.flower.basic_auth is None:
        known = [re.escape(name.lower()) for name in (settings.host, *settings.api.trusted_hosts)]
        loopback = ["localhost", r"127\.[0-9.]+", "::1", r"\[::1\]"]
        flower.add_handlers(f"(?!(?:{'|'.join(loopback + known)})$).*", [(".*", NotTrusted)])
    flower.add_handlers(".*", [(f"{prefix}/metrics", Metrics)])
    flower.start_http_server()

    def end(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        flower.start()
    finally:
        flower.stop()
    return 0
