"""The command line against a farm in memory."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from api.cli.main import main
from gym.jsontypes import JsonObject
from gym.testing.stand_ins.fake_farm import FakeFarm


@dataclass(frozen=True, slots=True)
class Ran:
    """Outcome of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFarm]:
    """A farm in memory that the commands find through FARM_URL; its results come in pages of three."""
    with FakeFarm(page_limit=3) as fake:
        monkeypatch.setenv("FARM_URL", fake.url)
        yield fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `farm` with arguments, in a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith("FARM_") and name != "FARM_URL"]:
        monkeypatch.delenv(name)

    def call(*args: str | Path) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        captured = capfd.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows, or invalid lines, into a file."""

    def write(*rows: JsonObject | str) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else orjson.dumps(row).decode()) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def closed_url() -> str:
    """An address of this machine at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    return f"http://127.0.0.1:{port}"
