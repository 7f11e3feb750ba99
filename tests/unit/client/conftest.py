"""A farm in memory behind a real socket."""

from collections.abc import Iterator

import pytest

from gym.testing.fake_farm import FakeFarm


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    """Entered; its results come in pages of three."""
    with FakeFarm(page_limit=3) as fake:
        yield fake
