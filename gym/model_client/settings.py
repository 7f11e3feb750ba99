"""Settings of the model client: the section `model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gym.limits import Seconds
from gym.section import Section


class ModelSettings(Section):
    """Limits of a model call."""

    connect_timeout_s: Seconds = 5.0
    call_timeout_s: Seconds = 300.0
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    unhealthy_wait_s: Annotated[
        Seconds, Field(description="for an endpoint to come back; a server that restarts within costs no turn")
    ] = 60.0
    connections_per_endpoint: Annotated[int, Field(ge=1, le=65536)] = 1024
    max_answer_bytes: Annotated[
        int, Field(ge=2**16, le=2**30, description="of one answer, whole or streamed; a larger one ends the call")
    ] = 32 * 2**20
    health_check_s: Annotated[
        float, Field(ge=0, le=3600, description="between checks of an endpoint that answers no calls; 0: none")
    ] = 1.0
