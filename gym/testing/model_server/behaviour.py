"""Behaviour of the scripted server: its options, settings that can change while it runs, and its faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from gym.testing.scripted_policy.tokenizer import History

RequiredPrefix = Literal["ignore", "honour", "refuse"]
FaultKind = Literal["error", "rate_limit", "hang"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedModelOptions:
    """Options of a scripted model server that are set before it starts.

    Rates are shares of the calls, drawn in the order in which they arrive, so that the same seed and order give the
    same faults. Without `served_model`, every model name is accepted; vLLM refuses all but its own.
    """

    latency_s: float = 0.0  # seconds before the first token
    token_latency_s: float = 0.0  # seconds for each token, streamed or not
    error_rate: float = 0.0  # answered 500
    rate_limit_rate: float = 0.0  # answered 429 with Retry-After
    retry_after_s: float = 1.0
    hang_rate: float = 0.0  # accepted and never answered
    seed: int = 0
    served_model: str | None = None
    max_model_len: int = 131_072
    lowers_limit: bool = True  # to the rest of the context, as vLLM from 0.32 on; False: such a call is refused
    weight_version: str = "default"
    token_ids: bool = True  # False: a server that does not know `return_token_ids` and ignores it
    generates_text: bool = True  # False: `/inference/v1/generate` of a server that does not know `output_mode`
    history: History = "keep"
    required_prefix: RequiredPrefix = "ignore"  # `required_prefix_token_ids`: a stock vLLM, NeMo RL's, a strict one
    always_reason: bool = False  # reasoning in every turn
    reasoning_field: Literal["reasoning", "reasoning_content"] = "reasoning"  # older servers use the second name
    api_key: str | None = None
    log_size: int = 10_000  # number of calls that `/admin/requests` remembers
    log_file: Path | None = None  # file of each call's start and end, see `gym.testing.model_server.request_log`

    def __post_init__(self) -> None:
        """Check the rates and times."""
        Behaviour.of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Settings that can change while the server runs. `status` answers every call with that HTTP error.

    `fail_next` answers this many of the next calls with `fail_status`; later calls succeed.
    """

    latency_s: float = 0.0
    token_latency_s: float = 0.0
    error_rate: float = 0.0
    rate_limit_rate: float = 0.0
    retry_after_s: float = 1.0
    hang_rate: float = 0.0
    status: int | None = None
    fail_next: int = 0
    fail_status: int = 503

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError."""
        for name in ("error_rate", "rate_limit_rate", "hang_rate"):
            _check_number(name, getattr(self, name), high=1.0)
        if self.error_rate + self.rate_limit_rate + self.hang_rate > 1.0:
            raise ValueError("error_rate, rate_limit_rate and hang_rate add up to more than 1")
        for name in ("latency_s", "token_latency_s", "retry_after_s", "fail_next"):
            _check_number(name, getattr(self, name), high=1e6)
        for name in ("status", "fail_status"):
            value = getattr(self, name)
            if not (value is None and name == "status"):
                _check_number(name, value, low=400, high=599)

    @classmethod
    def of(cls, options: ScriptedModelOptions) -> Behaviour:
        """Return the initial behaviour of a server. Raises ValueError."""
        shared = {field.name for field in fields(options)} & {field.name for field in fields(cls)}
        return cls(**{name: getattr(options, name) for name in shared})

    def changed(self, changes: dict[str, Any]) -> Behaviour:
        """Return a copy with some fields set. Raises ValueError for an unknown field or a bad value."""
        unknown = changes.keys() - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return replace(self, **changes)


class Faults:
    """Faults of calls, drawn in order of arrival."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def draw(self, behaviour: Behaviour) -> FaultKind | None:
        """Draw the fault of the next call; without rates nothing is drawn."""
        if not (behaviour.error_rate or behaviour.rate_limit_rate or behaviour.hang_rate):
            return None
        value = self._random.random()
        shares: tuple[tuple[FaultKind, float], ...] = (
            ("error", behaviour.error_rate),
            ("rate_limit", behaviour.rate_limit_rate),
            ("hang", behaviour.hang_rate),
        )
        for kind, share in shares:
            if value < share:
                return kind
            value -= share
        return None


def _check_number(name: str, value: Any, *, low: float = 0.0, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}")
