"""ACL of a Redis user that may only be a client of the farm. No I/O."""

from __future__ import annotations

import hashlib

from gym.errors import Invalid
from gym.relay.frames import NAME, Asker, AskScope, Channels


def acl_line(channels: Channels, name: str, *, scope: AskScope, password: str) -> str:
    """Return the command that creates the user, with a digest of the password. Raises Invalid for an invalid name.

    The user has no keys: publish/subscribe needs none. `read` may follow batches, `submit` may do everything in the
    API.
    """
    if not NAME.fullmatch(name) or name == "default":
        raise Invalid(
            "invalid_name",
            f"{name!r} cannot be a client's name; use letters, digits and _.- (64 at most), and not `default`, "
            "which is the user of connections without a name",
            {"field": "name"},
        )
    digest = hashlib.sha256(password.encode()).hexdigest()
    ask = channels.ask(Asker(scope=scope, name=name), "*")
    tell = channels.tell(name, "*")
    rights = "-@all +publish +subscribe"
    return f"ACL SETUSER {name} reset on #{digest} resetkeys resetchannels &{ask} &{tell} {rights}"
