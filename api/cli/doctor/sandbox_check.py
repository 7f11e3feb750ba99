"""What `farm doctor` says of the sandbox for model-written code: one is run."""

from __future__ import annotations

from api.cli.doctor.checks import Check, Level
from gym.config import Settings


def check_sandbox(settings: Settings) -> Check:
    """Whether a sandbox works on this machine, and which."""
    from gym.sandbox.base import SandboxUnavailable
    from gym.sandbox.choose import find_provider

    try:
        provider = find_provider(settings.sandbox)
    except SandboxUnavailable as error:
        advice = "install bubblewrap and allow user namespaces, or have a Docker engine; else code environments are off"
        return Check(name="sandbox", level=Level.WARN, seen=str(error), advice=advice)
    return Check(name="sandbox", level=Level.OK, seen=f"{provider.name} works")
