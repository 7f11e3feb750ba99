"""A real vLLM on this machine's CPU, with a small model of ours; `make test-vllm` installs the one and makes the other.

The server is started once for the session, on a free port of the loopback, in a process group of its own that is killed
at the end. With `VLLM_URL` in the environment, one that runs already is taken instead: for whoever writes tests here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gym.model_client.client import PolicyClient
from gym.model_client.routing.served_model import ServedModel, inline_model
from gym.model_client.settings import ModelSettings
from gym.policy import PolicySpec
from gym.processes.process_tree import end_with_parent

VENV = Path(__file__).parents[2] / ".venv-vllm"
MODEL = VENV / "model"
MODEL_NAME = "weatherman"
CONTEXT_TOKENS = 2048
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
OPTIONS = (
    *("--served-model-name", MODEL_NAME, "--dtype", "bfloat16", "--max-model-len", str(CONTEXT_TOKENS)),
    *("--max-num-seqs", "64", "--enforce-eager", "--distributed-executor-backend", "uni"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-scale-out"),
    *("--enable-prompt-tokens-details", "--no-enable-log-requests", "--disable-uvicorn-access-log"),
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",  # two collapse on a busy machine
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """A server that answers; `http` speaks to it directly."""

    url: str
    http: httpx.Client

    @property
    def policy(self) -> PolicySpec:
        """The model as a policy."""
        return PolicySpec(base_urls=[f"{self.url}/v1"], model=MODEL_NAME)

    @property
    def record(self) -> ServedModel:
        """The policy as model calls carry it."""
        return inline_model(self.policy)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """An answer that has to be 200."""
        answer = self.http.post(path, json={"model": MODEL_NAME, **body})
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def prompt_ids(self, chat: dict[str, Any]) -> list[int]:
        """What `/tokenize` makes of a chat request's messages and tools."""
        body = {name: chat[name] for name in ("messages", "tools") if name in chat}
        ids: list[int] = self.post("/tokenize", {**body, "add_generation_prompt": True})["tokens"]
        return ids

    def text_of(self, ids: list[int]) -> str:
        """What `/detokenize` makes of token ids, special tokens included."""
        text: str = self.post("/detokenize", {"tokens": ids})["prompt"]
        return text

    def logprobs_of(self, prompt_ids: list[int], token_ids: list[int]) -> list[float]:
        """The log-probabilities of tokens behind a prompt, read as a prompt, in one pass."""
        body = {"prompt": [*prompt_ids, *token_ids], "max_tokens": 1, "prompt_logprobs": 0}
        read = self.post("/v1/completions", body)["choices"][0]["prompt_logprobs"][len(prompt_ids) :]
        return [entry[str(token)]["logprob"] for entry, token in zip(read, token_ids, strict=True)]


class NoPolicies:
    """No registered policies: the tests' policy is an inline one."""

    def get(self, name: str) -> ServedModel | None:
        return None


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """The server, shared by the session's tests."""
    with contextlib.ExitStack() as running:
        url = os.environ.get("VLLM_URL")
        if url is None:
            if not (VENV / ".installed").exists():
                pytest.skip("there is no vLLM in .venv-vllm: `make test-vllm` installs it")
            url = running.enter_context(_served(tmp_path_factory.mktemp("vllm") / "vllm.log"))
        http = running.enter_context(httpx.Client(base_url=url, timeout=60))
        yield Vllm(url=url, http=http)


@pytest.fixture(scope="session")
def vllm_on_this_cpu() -> dict[str, Any]:
    """Interpreter, model, options and environment, for whoever starts a vLLM of his own."""
    if not (VENV / ".installed").exists():
        pytest.skip("there is no vLLM in .venv-vllm: `make test-vllm` installs it")
    named = OPTIONS[OPTIONS.index("--dtype") :]  # a judge's model goes by its path
    return {"python": str(VENV / "bin/python"), "model": str(MODEL), "args": named, "environment": ENVIRONMENT}


@pytest.fixture
async def client() -> AsyncIterator[PolicyClient]:
    """The model-call library as a worker has it."""
    async with PolicyClient(ModelSettings(), NoPolicies()) as opened:
        yield opened


@contextlib.contextmanager
def _served(log: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [VENV / "bin/vllm", "serve", MODEL, "--host", "127.0.0.1", "--port", str(port), *OPTIONS],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url, log)
        yield url
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_at = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up_at:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
    pytest.fail(f"vLLM did not get ready within {READY_TIMEOUT_S:g} s:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then kill whatever is left of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
