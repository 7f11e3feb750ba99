"""The identifiers of the farm and how they nest.

A group is one row of a batch, a rollout one sample of a group: `GROUP = BATCH:ROW`, `ROLLOUT = BATCH:ROW:SAMPLE`,
with ROW and SAMPLE counted from 0. They are read from the right, so a batch id may itself contain colons.
Inside a batch's Redis keys a rollout is called by its member, `ROW:SAMPLE`.
"""

import re
import secrets
from dataclasses import dataclass

ID_PATTERN = r"^\.*[A-Za-z0-9_:-][A-Za-z0-9._:-]*$"  # a segment of dots alone would change the path of a URL
ID_CHARS = 128
_ID = re.compile(ID_PATTERN)
_NUMBER = re.compile(r"^(0|[1-9][0-9]{0,11})$")


def is_id(text: str) -> bool:
    """Return whether a caller may use this text as an id."""
    return len(text) <= ID_CHARS and _ID.fullmatch(text) is not None


def new_id(prefix: str) -> str:
    """Return a fresh random id, `PREFIX-` and 16 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class GroupRef:
    """A group: a row of a batch."""

    batch_id: str
    row: int

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.row}"


@dataclass(frozen=True, slots=True)
class RolloutRef:
    """A rollout: a sample of a group."""

    batch_id: str
    row: int
    sample: int

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.row}:{self.sample}"

    @property
    def group_id(self) -> str:
        """The id of the rollout's group."""
        return f"{self.batch_id}:{self.row}"

    @property
    def member(self) -> str:
        """Name of the rollout inside the keys of its batch."""
        return f"{self.row}:{self.sample}"


def parse_group_id(group_id: str) -> GroupRef | None:
    """Parse a group's id; return `None` for any other text."""
    batch_id, _, row = group_id.rpartition(":")
    if not is_id(batch_id) or not _NUMBER.fullmatch(row):
        return None
    return GroupRef(batch_id, int(row))


def parse_rollout_id(rollout_id: str) -> RolloutRef | None:
    """Parse a rollout's id; return `None` for any other text."""
    group_id, _, sample = rollout_id.rpartition(":")
    group = parse_group_id(group_id)
    if group is None or not _NUMBER.fullmatch(sample):
        return None
    return RolloutRef(group.batch_id, group.row, int(sample))


def parse_member(batch_id: str, member: str) -> RolloutRef:
    """Return the rollout of a member of a batch's keys."""
    row, _, sample = member.partition(":")
    return RolloutRef(batch_id, int(row), int(sample))
