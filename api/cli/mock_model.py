"""`farm mock-model`: a scripted model server, for trying and testing without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("mock-model")(mock_model)


def mock_model(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    latency_s: Annotated[float, typer.Option(min=0.0, help="How long each answer takes.")] = 0.0,
    error_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of calls answered 500.")] = 0.0,
    hang_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of calls never answered.")] = 0.0,
    seed: Annotated[int, typer.Option(help="What goes wrong, and when, follows from it.")] = 0,
    log_file: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Append each call's beginning and end to this file, as JSON lines."),
    ] = None,
) -> None:
    """Serve a scripted model with vLLM's API: tools, token ids, log-probabilities, streaming."""
    from gym.errors import SettingsError
    from gym.testing.model_server.server import ScriptedModelOptions, run_model_server

    options = ScriptedModelOptions(
        latency_s=latency_s, error_rate=error_rate, hang_rate=hang_rate, seed=seed, log_file=log_file
    )
    try:
        run_model_server(options, host, port)
    except OSError as error:
        raise SettingsError(f"{host}:{port} cannot be listened on: {error.strerror}; give another --port") from None
