"""Commands on judges: `farm judge-server`, and what other commands read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_judges(path: Path) -> dict[str, Any]:
    """The judges in a YAML file: a mapping of their names, at the top or under `judges`. Raises SettingsError."""
    import yaml

    from gym.errors import SettingsError

    try:
        read = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if isinstance(read, dict) and set(read) == {"judges"}:
        read = read["judges"]
    if not isinstance(read, dict) or not read:
        raise SettingsError(f"{path} lists no judges; expected is a mapping such as `similarity: {{kind: embedding}}`")
    return read
