"""Settings of stored results: the section `results`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gym.limits import Seconds
from gym.section import Section


class ResultSettings(Section):
    """Location and retention of finished trajectories."""

    inline_bytes: Annotated[int, Field(ge=0, description="larger trajectories go to files in the data directory")] = (
        16_384
    )
    keep_s: Annotated[Seconds, Field(description="a batch that has ended, with its results")] = 7 * 24 * 3600.0
    keep_acknowledged_s: Annotated[
        Seconds | None, Field(description="trajectories that every consumer of their ended batch has acknowledged")
    ] = None
    max_bytes: Annotated[
        int | None, Field(ge=1, description="of trajectories; above, those of the oldest ended batches go first")
    ] = None
