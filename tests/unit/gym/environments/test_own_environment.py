from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gym.environments.hosting.session import EnvironmentSession
from gym.environments.registry import load_registry
from gym.errors import Invalid

pytestmark = pytest.mark.anyio
COIN = Path(__file__).parents[4] / "configs" / "examples" / "coin.py"


def test_an_environment_of_your_own_takes_thirty_lines() -> None:
    assert len(COIN.read_text().splitlines()) <= 30


async def test_an_environment_of_your_own_is_loaded_from_its_file_and_runs(
    open_session: Callable[..., EnvironmentSession], episode: Callable[..., Any]
) -> None:
    registry = load_registry([f"{COIN}:Coin"])
    coin = registry.get("coin")
    assert coin.error is None
    with pytest.raises(Invalid, match="`throws`: Field required"):
        registry.check_row("coin", {}, row=0)
    session = open_session(coin, seed=4)
    await session.setup()
    assert (await session.verify(episode("1"))).value == 0.0
    fell = [(await session.call_tool("throw", "{}")).output for _ in range(3)]
    assert set(fell) <= {"heads", "tails"}
    assert (await session.verify(episode(f"It fell on heads {fell.count('heads')} times."))).value == 1.0
    assert (await session.verify(episode("It fell on heads 9 times."))).value == 0.0
    await session.close()
