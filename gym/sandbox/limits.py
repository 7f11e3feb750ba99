"""Limits on the resources of programs in a sandbox, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gym.jsontypes import JsonObject

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Limits of one call, for all its processes together unless noted; the sandbox's disk is `work_bytes` of memory."""

    cpu_s: float = 10.0
    wall_s: float = 20.0
    memory_bytes: int = 512 * MIB  # address space of each process; of all together: memory, files and buffers
    processes: int = 32
    file_bytes: int = 32 * MIB  # of each file
    work_bytes: int = 64 * MIB  # of /work, and the same again for /tmp
    output_bytes: int = 64 * 1024
    open_files: int = 64  # of each process
    files: int = 16_384  # files, directories and links in it
    pending_signals: int = 256  # queued signals and timers

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError for an invalid limit."""
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; a limit is above 0")

    def as_json(self) -> JsonObject:
        """Return the limits as the sandbox reads them."""
        return asdict(self)
