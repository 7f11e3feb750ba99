"""The type of decoded JSON, for code that passes it on without looking inside."""

from typing import Any

JsonObject = dict[str, Any]
