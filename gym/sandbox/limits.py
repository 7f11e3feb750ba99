"""How much what runs in a sandbox may use, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gym.jsontypes import JsonObject

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Of one call, all its processes together unless said; the sandbox's disk is `work_bytes` of memory."""

    cpu_s: float = 10.0
    wall_s: float = 20.0
    memory_bytes: int = 512 * MIB  # of address space for each process; for all together of memory, files and buffers
    processes: int = 32
    file_bytes: int = 32 * MIB  # of each file
    work_bytes: int = 64 * MIB  # of /work, and as much again of /tmp
    output_bytes: int = 64 * 1024
    open_files: int = 64  # of each process
    files: int = 16_384  # files, directories and links that there are in it
    pending_signals: int = 256  # queued signals and timers

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that is none."""
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; a limit is above 0")

    def as_json(self) -> JsonObject:
        """As the sandbox reads them."""
        return asdict(self)
