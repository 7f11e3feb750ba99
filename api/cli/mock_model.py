"""`farm mock-model`: a scripted model server, for trying out and testing without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("mock-model")(mock_model)


def mock_model(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    latency_s: Annotated[float, typer.Option(min=0.0, help="Latency of each answer.")] = 0.0,
    error_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of calls answered 500.")] = 0.0,
    hang_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of calls never answered.")] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Seed of the faults: the same seed and order of calls give the same faults.")
    ] = 0,
    log_file: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Append the start and end of each call to this file, as JSON lines."),
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
