"""`farm up --reload`: restart the farm's processes when Python code changes.

For development only. A worker hands its work back within `RESTART_S`, or its lease expires.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path

from api.local.supervisor import Supervisor
from gym.config import Settings
from gym.errors import SettingsError

PACKAGES = ("gym", "workers", "api")
RESTART_S = 3.0
_LOG = logging.getLogger(__name__)


def watched(settings: Settings) -> list[Path]:
    """Return the folders of the farm's packages, and the files of environments that the settings name by path.

    Raises SettingsError if the package that watches files is missing.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise SettingsError("--reload needs the package watchfiles: `make setup` installs it")

    folders = [Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES]
    sources = [entry if isinstance(entry, str) else entry.use or "" for entry in settings.environments]
    files = [Path(source.rpartition(":")[0]) for source in sources if ".py:" in source]
    return [*folders, *(file.resolve() for file in files if file.exists())]


async def restart_on_change(supervisor: Supervisor, paths: Iterable[Path]) -> None:
    """Restart every child but Redis whenever a Python or Lua file under `paths` changes. Never returns."""
    from watchfiles import awatch

    def of_code(_: object, path: str) -> bool:
        return path.endswith((".py", ".lua"))

    async for changes in awatch(*paths, watch_filter=of_code, step=200):
        names = sorted({Path(path).name for _, path in changes})
        _LOG.info("changed: %s; starting again", ", ".join(names), extra={"action": "reload"})
        await supervisor.restart([name for name in supervisor.children if name != "redis"], within_s=RESTART_S)
