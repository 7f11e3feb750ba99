"""Treatment of a request's fields; each dialect lists its fields with `fields()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Fate = Literal["passed", "translated", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field by its path in the request. `note` gives the reason if it is ignored or refused, or its refused part."""

    name: str
    fate: Fate
    note: str = ""


def table(
    *,
    passed: Iterable[str],
    translated: Iterable[str],
    ignored: Mapping[str, str],
    refused: Mapping[str, str],
    limited: Mapping[str, str],
) -> list[Field]:
    """Return the fields by name. `limited` are those whose notes say which values are possible."""
    rows = {name: Field(name, "passed") for name in passed}
    rows |= {name: Field(name, "translated") for name in translated}
    rows |= {name: Field(name, "ignored", note) for name, note in ignored.items()}
    rows |= {name: Field(name, "refused", note) for name, note in refused.items()}
    rows |= {name: Field(name, rows[name].fate if name in rows else "refused", note) for name, note in limited.items()}
    return [rows[name] for name in sorted(rows)]
