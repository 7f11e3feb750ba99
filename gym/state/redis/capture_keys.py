"""Keys in Redis of the calls that the model proxy captured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaptureKeys:
    """The keys of a rollout's captured calls; all of them expire."""

    prefix: str
    rollout_id: str
    attempt: int

    @property
    def current(self) -> str:
        """string: the latest attempt."""
        return f"{self.prefix}:cap:{{{self.rollout_id}}}:attempt"

    @property
    def calls(self) -> str:
        """list: a record for each finished call, msgpack."""
        return f"{self.prefix}:cap:{{{self.rollout_id}}}:{self.attempt}:calls"

    @property
    def failures(self) -> str:
        """list: a record for each of the last calls that failed, msgpack."""
        return f"{self.prefix}:cap:{{{self.rollout_id}}}:{self.attempt}:failures"

    @property
    def index(self) -> str:
        """hash: `d:DIGEST` → a request under way `w:OWNER:UNTIL` or answered `r:PLACE`; `m:DIGEST` → a known beginning
        of the conversation; `s:DIGEST` → known settings; `f:DIGEST` → a request that failed; `began` in ms;
        `turns`; `bytes`.
        """
        return f"{self.prefix}:cap:{{{self.rollout_id}}}:{self.attempt}:index"

    def scripted(self) -> list[str]:
        """Return the keys that the capture scripts take."""
        return [self.current, self.calls, self.index, self.failures]
