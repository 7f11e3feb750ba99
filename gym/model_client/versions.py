"""Policy version that a server reports with its answer.

vLLM and SGLang carry an opaque text that the trainer set (`"default"` until then). It is a version if it is an integer,
alone or after a word, as in `42`, `"42"`, `"step-42"`; anything else is no version.
"""

from __future__ import annotations

import re
from typing import Any

from gym.jsontypes import JsonObject

_VERSION = re.compile(r"(?:[A-Za-z_]+[-_:]?)?([0-9]{1,15})")
_MOST = 10**15


def reported_versions(completion: JsonObject) -> tuple[int, int] | None:
    """Return the first and the last version that generated an answer, or None if the server reports none.

    Read from `weight_versions` (a list in order, vLLM's of spans `{version, start, end}` inside the choice),
    `weight_version`, or `metadata.weight_version` (SGLang).
    """
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    versions = completion.get("weight_versions") or choice.get("weight_versions")
    if isinstance(versions, list) and versions:
        first, last = _version(versions[0]), _version(versions[-1])
        return None if first is None or last is None else (first, last)
    reported: Any = completion.get("weight_version")
    metadata = completion.get("metadata")
    if reported is None and isinstance(metadata, dict):
        reported = metadata.get("weight_version")
    version = _version(reported)
    return None if version is None else (version, version)


def _version(value: Any) -> int | None:
    if isinstance(value, dict):
        value = value.get("version")
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < _MOST else None
    match = _VERSION.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None
