"""Masking of secrets, by the type of a field and never by its name.

Invariant: a model that derives from `MaskedModel` shows no secret in `repr`, in `str` and in `masked`. A field is
declared with one of the types below; a field of free content (`Any` in it) is masked as `Options` is, without a mark.
The values themselves stay plain text, since policies are stored and sent on as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MASK = "********"


class Masking(Enum):
    """The secret part of a value."""

    ALL = "all"
    ADDRESS = "address"
    ARGUMENTS = "arguments"
    OPTIONS = "options"


Secret = Annotated[str, Masking.ALL]
Address = Annotated[str, Masking.ADDRESS]
"""A URL, shown without user, password and the values of its query."""
Argument = Annotated[str, Masking.ARGUMENTS]
"""A word of a command line: an option is shown by its name, another word not at all."""
Option = Annotated[str, Masking.OPTIONS]
"""A text of free content, shown by its place alone."""


class MaskedModel(BaseModel):
    """Base model for settings with secrets, which it never shows."""

    def masked(self) -> dict[str, Any]:
        """Return the model as JSON, without secrets."""
        return mask_model(self)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from ((name, value) for name, value in mask_model(self).items() if self._is_shown(name))

    def _is_shown(self, name: str) -> bool:
        field = type(self).model_fields.get(name)
        return field is None or bool(field.repr)


def mask_model(model: BaseModel) -> dict[str, Any]:
    """Return a model as JSON, without secrets."""
    plain = model.model_dump(mode="json")
    shown: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        shown[name] = _mask_value(getattr(model, name), plain[name], masking_of(field))
    for name in model.model_extra or {}:
        shown[name] = _mask_plain(plain[name], Masking.OPTIONS)
    return shown


def mask_address(url: str) -> str:
    """Return a URL without user, password and the values of its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    place = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{place}" if "@" in parts.netloc else place
    if not parts.netloc and "@" in parts.path:
        return MASK  # not a URL: the text before the @ may be a password
    query = "&".join(f"{item.partition('=')[0]}={MASK}" if "=" in item else MASK for item in parts.query.split("&"))
    return urlunsplit(parts._replace(netloc=netloc, query=query if parts.query else "", fragment=""))


def masking_of(field: FieldInfo) -> Masking | None:
    """Return which part of a field is masked, by the marks in its type."""
    marks = [*field.metadata, *_marks(field.annotation)]
    found = next((mark for mark in marks if isinstance(mark, Masking)), None)
    return found or (Masking.OPTIONS if Any in marks else None)


def _marks(annotation: Any) -> Iterator[Any]:
    if annotation is Any:
        yield Any
    for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
        if isinstance(part, Masking):
            yield part
        else:
            yield from _marks(part)


def _mask_value(value: Any, plain: Any, masking: Masking | None) -> Any:
    if isinstance(value, BaseModel):
        return mask_model(value)
    if isinstance(value, dict) and masking is None:
        names = (str(getattr(name, "value", name)) for name in value)
        return {name: _mask_value(inner, plain[name], None) for name, inner in zip(names, value.values(), strict=True)}
    if isinstance(value, tuple | list) and any(isinstance(inner, BaseModel) for inner in value):
        return [_mask_value(inner, told, masking) for inner, told in zip(value, plain, strict=True)]
    return _mask_plain(plain, masking)


def _mask_plain(plain: Any, masking: Masking | None) -> Any:
    if masking is None or plain is None:
        return plain
    if isinstance(plain, dict):
        return {name: _mask_plain(inner, masking) for name, inner in plain.items()}
    if isinstance(plain, list):
        return [_mask_plain(inner, masking) for inner in plain]
    if masking is Masking.ADDRESS:
        return mask_address(plain)
    if masking is Masking.ARGUMENTS:
        return f"{plain.partition('=')[0]}={MASK}" if plain.startswith("-") and "=" in plain else _word(plain)
    if masking is Masking.OPTIONS and not isinstance(plain, str):
        return plain
    return MASK


def _word(plain: str) -> str:
    return plain if plain.startswith("-") else MASK
