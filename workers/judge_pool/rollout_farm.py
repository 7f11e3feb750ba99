"""The farm inside a trainer's Ray cluster: `RolloutFarm`, an actor that runs `farm up`, and the trainer's handle of it.

    ray.init(...)
    async with rollout_farm(ray, config="configs/single_ray_cluster.yaml", python="/opt/farm/bin/python") as farm:
        await farm.call("PUT", "/v1/policies/policy", {"base_urls": [...], "model": "..."})
        async for result in farm.results(rows, num_samples=8, view="training"):
            ...

The actor is made of the standard library and is sent to the cluster by value; the farm runs in an environment of its
own (`python`). Its judge pool attaches to this very cluster, under the actor's interpreter, which has the cluster's
Ray and Python. Invariant: the farm ends with its actor, and the actor with the trainer; nothing else is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

READY_S = 300.0
STOP_S = 120.0
CALL_S = 60.0
LONG_POLL_S = 20
PAGE = 256
PAGES_AHEAD = 4
STREAMS = 64
TAIL_BYTES = 4000
_KEPT = ("RAY_AUTH_", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED")
_PR_SET_PDEATHSIG = 1


class FarmFailed(Exception):
    """The farm did not start, ended, or refused a call; the text is the farm's."""


class RolloutFarm:
    """The actor of one farm, whose API it calls over loopback. Use `rollout_farm` to get one."""

    def __init__(
        self,
        *,
        python: str | None = None,
        config: str | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        data_dir: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self._temporary = data_dir is None
        self._data_dir = Path(data_dir or tempfile.mkdtemp(prefix="rollout-farm-"))
        self._log = self._data_dir / "up.log"
        self._python = python or sys.executable
        words = ["up", "--data-dir", str(self._data_dir), "--api-port", "0", "--proxy-port", "0", "--no-flower"]
        self._words = [*words, *(("--config", config) if config else ()), *options]
        self._environment = dict(environment or {})
        self._api_key = api_key
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._threads = ThreadPoolExecutor(STREAMS, thread_name_prefix="farm-calls")

    async def start(self) -> str:
        """Start the farm, wait until it takes work, and return its URL. Raises FarmFailed with the farm's output."""
        import ray

        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FARM_", "RAY_", "PYTHONPATH")) or name.startswith(_KEPT)
        }
        given = {
            "FARM_POOL_RAY_HEAD_NODE_ADDRESS": ray.get_runtime_context().gcs_address,
            "FARM_POOL_PYTHON": sys.executable,
            **self._environment,
        }
        libc = ctypes.CDLL(None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603  it returns at once; the trainer gives the command
                [self._python, "-m", "api.cli.main", *self._words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**kept, **given},
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0),  # noqa: PLW1509
            )
        line = b""
        with contextlib.suppress(TimeoutError):
            line = await self._in_thread(self._process.stdout.readline, READY_S)  # type: ignore[union-attr]  # a pipe
        word, _, self._url = line.decode().strip().partition(" ")
        if word != "ready":
            await self._end()
            said = self._tail()
            self._forget()
            raise FarmFailed(f"the farm did not start:\n{said}")
        return self._url

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the farm's API and return its JSON answer. Raises FarmFailed with the error that the farm gave."""
        return await self._in_thread(lambda: self._call(method, path, body), CALL_S + LONG_POLL_S)

    async def results(self, batch_id: str, view: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield pages of results in the order in which they finish, until the batch is done."""
        after = ""
        while True:
            query = f"view={view}&limit={PAGE}&wait={LONG_POLL_S}" + (f"&after={after}" if after else "")
            page = await self.call("GET", f"/v1/batches/{batch_id}/results?{query}")
            if page["items"]:
                yield page["items"]
            if page["done"]:
                return
            after = page["next_after"]

    async def stop(self) -> int | None:
        """Drain the farm and end it; return its exit status, 0 after a drain."""
        status = await self._end()
        self._forget()
        return status

    async def _end(self) -> int | None:
        if self._process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            status: int = await self._in_thread(lambda: self._process.wait(STOP_S), STOP_S + CALL_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            status = await self._in_thread(self._process.wait, CALL_S)
        return status

    def _forget(self) -> None:
        if self._temporary:
            shutil.rmtree(self._data_dir, ignore_errors=True)

    async def _in_thread(self, work: Any, seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _call(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)  # noqa: S310  our own farm
        request.add_header("Content-Type", "application/json")
        if self._api_key:
            request.add_header("Authorization", f"Bearer {self._api_key}")
        try:
            with urllib.request.urlopen(request, timeout=CALL_S + LONG_POLL_S) as answer:  # noqa: S310  likewise
                text = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise FarmFailed(f"{method} {path.partition('?')[0]} answered {error.code}: {said[:2000]}") from None
        except OSError as error:
            raise FarmFailed(f"the farm does not answer ({error}); it last said:\n{self._tail()}") from None
        return json.loads(text) if text else None

    def _tail(self) -> str:
        try:
            return self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return "(nothing)"


class FarmInCluster:
    """The trainer's handle of a farm: calls go through the actor, so no port of the farm need be reachable."""

    def __init__(self, ray: Any, actor: Any, url: str) -> None:
        self._ray = ray
        self.actor = actor
        self.url = url
        """As the actor's node sees it."""

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the farm's API. Raises FarmFailed."""
        return await self.actor.call.remote(method, path, body)

    async def results(
        self, rows: Sequence[Mapping[str, Any]], *, view: str = "light", **options: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Submit the rows as one batch and yield each result when it has finished; `options` are the batch's.

        Leaving the loop early cancels unfinished rollouts. At most a few pages are read ahead of the trainer.
        """
        batch = await self.call("POST", "/v1/batches", {"rows": list(rows), **options})
        stream = self.actor.results.options(
            num_returns="streaming", _generator_backpressure_num_objects=PAGES_AHEAD
        ).remote(batch["batch_id"], view)
        done = False
        try:
            async for page in stream:
                for result in await page:
                    yield result
            done = True
        finally:
            if not done:
                self._ray.cancel(stream)
                self.actor.call.remote("DELETE", f"/v1/batches/{batch['batch_id']}")


@contextlib.asynccontextmanager
async def rollout_farm(
    ray: Any, *, actor_options: Mapping[str, Any] | None = None, **farm: Any
) -> AsyncIterator[FarmInCluster]:
    """Start a farm as an actor of the cluster that `ray` is connected to; it is drained and ended at the end.

    `farm` are RolloutFarm's arguments: `python` (the interpreter that has the farm, on the actor's node), `config` (a
    path there), `options` of `farm up`, `environment` (`FARM_…` variables), `data_dir` (kept; without one, state is
    dropped at the end), `api_key`. `actor_options` are Ray's, such as `num_cpus`: the farm's resources.
    Raises FarmFailed.
    """
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    options = {"num_cpus": 1, "max_concurrency": 2 * STREAMS, **(actor_options or {})}
    actor = ray.remote(RolloutFarm).options(**options).remote(**farm)
    try:
        url = await actor.start.remote()
        try:
            yield FarmInCluster(ray, actor, url)
        finally:
            await actor.stop.remote()
    finally:
        ray.kill(actor)
