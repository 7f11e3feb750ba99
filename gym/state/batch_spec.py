"""Reader of a batch's options, which `meta` holds as JSON and which never change."""

from __future__ import annotations

from gym.batch import BatchSpec
from gym.fields.bounded import STORED
from gym.jsontypes import JsonObject
from gym.state.redis.store import Store
from gym.state.redis.unreadable import read_object

SPEC_FIELD = "spec"
"""Field of `meta` that `read_spec` and `read_options` take."""


def read_spec(text: bytes | None) -> BatchSpec:
    """Return stored options; bounds that were drawn later do not apply. Raises a decode error."""
    return BatchSpec.model_validate(read_object(text or b""), context=STORED)


def read_options(text: bytes | None) -> JsonObject:
    """Return stored options as JSON, to be shown. Raises a decode error."""
    return read_object(text or b"")


async def spec_of(store: Store, batch_id: str) -> BatchSpec | None:
    """Return the options of a batch, None if it is gone. Raises a decode error, or RedisError."""
    text = await store.redis.hget(store.keys.batch(batch_id).meta, SPEC_FIELD)
    return None if text is None else read_spec(text)
