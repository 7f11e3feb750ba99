"""Served model (a policy or a judge) as one process knows it, and the source of such records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, Protocol

import orjson

from gym.policy import PolicySpec

Pause = Literal["hold", "drain"]
ModelKind = Literal["policy", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Endpoints and state of a policy or a judge at this moment; errors and logs name it by its kind.

    `revision` grows with every change; it is 0 for an inline policy, which is registered nowhere and never changes.
    `version` is the one that the trainer has announced.
    """

    name: str
    spec: PolicySpec
    revision: int
    paused: Pause | None
    version: int | None
    kind: ModelKind = "policy"

    @property
    def title(self) -> str:
        """Kind and quoted name, as error texts begin with."""
        return f"{self.kind} {self.name!r}"

    @property
    def inline(self) -> bool:
        """Whether a batch brought the policy along, so that no source knows it."""
        return self.revision == 0


class ModelSource(Protocol):
    """Cache of served models by name, refreshed elsewhere."""

    def get(self, name: str) -> ServedModel | None:
        """Return the model, or None if the name is unknown. Never blocks."""


def inline_model(spec: PolicySpec) -> ServedModel:
    """Return the model of a policy that was given without a name; it is named after its contents."""
    text = orjson.dumps(spec.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    name = f"inline:{hashlib.sha256(text).hexdigest()[:16]}"
    return ServedModel(name=name, spec=spec, revision=0, paused=None, version=spec.version)


def newest(source: ModelSource, model: ServedModel) -> ServedModel | None:
    """Return the model as it is now, or None if it has been deleted."""
    return model if model.inline else source.get(model.name)
