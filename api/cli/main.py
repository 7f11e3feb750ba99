"""The command `farm`: one family of commands per module; an error is one clear line.

Only the modules that the help text needs are imported here; a command imports its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

import typer

from gym.errors import FarmError, Overloaded, RequestError, SettingsError, Unavailable

FAILED = 1
BAD_INPUT = 2

FAMILIES = (
    "api.cli.processes",
    "api.cli.client.batches",
    "api.cli.client.environments",
    "api.cli.play",
    "api.cli.client.rows",
    "api.cli.settings",
    "api.cli.redis_acl",
    "api.cli.doctor.command",
    "api.cli.judges",
    "api.cli.judge_pool",
    "api.cli.mock_model",
    "api.cli.bench",
)


def build() -> typer.Typer:
    """Return the app with all its commands."""
    app = typer.Typer(
        name="farm",
        help="Run reinforcement-learning rollouts for language-model agents as a service.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for family in FAMILIES:
        if importlib.util.find_spec(family) is not None:
            importlib.import_module(family).register(app)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; ends in SystemExit: 0 success, 1 failure, 2 invalid request, 130 interrupted."""
    mask = os.umask(0o077)  # files are private to the user: trajectories, keys, logs
    try:
        build()(args=list(argv) if argv is not None else None)
    except FarmError as error:
        _complain(str(error))
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # the reader of our output has closed it; Python would report the broken pipe once more at exit
        sys.stderr.close()
        sys.exit(FAILED)
    finally:
        os.umask(mask)


def exit_code(error: FarmError) -> int:
    """Return 2 if the caller must change something, 1 if a later retry may succeed."""
    if isinstance(error, SettingsError) or (
        isinstance(error, RequestError) and not isinstance(error, Unavailable | Overloaded)
    ):
        return BAD_INPUT
    return FAILED


def _complain(message: str) -> None:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)


if __name__ == "__main__":
    main()
