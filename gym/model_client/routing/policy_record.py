"""The record of a policy as a process knows it, and where such records come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, Protocol

import orjson

from gym.policy import PolicySpec

Pause = Literal["hold", "drain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """Where a policy is served at this moment.

    `revision` grows with every change; it is 0 for an inline policy, which has no name of its own and never changes.
    `version` is the one that the trainer has announced.
    """

    name: str
    spec: PolicySpec
    revision: int
    paused: Pause | None
    version: int | None

    @property
    def inline(self) -> bool:
        """Whether a batch brought it along, so that no source knows it."""
        return self.revision == 0


class PolicySource(Protocol):
    """Gives records from a cache that somebody else keeps fresh."""

    def get(self, name: str) -> PolicyRecord | None:
        """The record, or None where there is no such policy; never blocks."""


def inline_record(spec: PolicySpec) -> PolicyRecord:
    """The record of a policy that was given without a name; it is named after its contents."""
    text = orjson.dumps(spec.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    name = f"inline:{hashlib.sha256(text).hexdigest()[:16]}"
    return PolicyRecord(name=name, spec=spec, revision=0, paused=None, version=spec.version)


def newest(source: PolicySource, record: PolicyRecord) -> PolicyRecord | None:
    """The record as it is now; None where the policy has been deleted."""
    return record if record.inline else source.get(record.name)
