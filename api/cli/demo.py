"""`farm demo`: run a farm on free ports, a mock model, and real rows of every built-in environment."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from api.cli.client.follow import follow, print_summary
from api.cli.client.summary import Summary
from api.cli.options import client, console, progress_console
from api.local.local_farm import LocalFarm, local_farm
from gym.environments.registry import load_registry
from gym.errors import SettingsError
from gym.jsontypes import JsonObject
from gym.private_files import create_private, make_private
from gym.sandbox.base import SandboxUnavailable

RUN = "demo"


def run(*, rows: int, num_samples: int, data_dir: Path, seed: int) -> int:
    """Run the demo; return 0 if every rollout completed.

    The results stay in `data_dir/results.jsonl`; the farm's own state is kept only after a failure.
    """
    progress = progress_console()
    make_private(data_dir)
    state_dir = Path(tempfile.mkdtemp(prefix="state-", dir=data_dir))
    results_file = data_dir / "results.jsonl"
    tasks = demo_tasks(rows, seed)
    progress.print("starting a farm (Redis, api, dispatcher, 2 workers, Flower) and a mock model …")
    with local_farm(state_dir) as farm:
        progress.print(f"ready at {farm.url}, Flower at {farm.flower_url}")
        complete = _submit_and_follow(farm, tasks, num_samples, results_file)
        progress.print("stopping …")
    out = console()
    out.print(f"results  {results_file}  (one JSON object per line)", soft_wrap=True)
    out.print("Flower   runs with the farm: `make up` leaves one running and says where (http://127.0.0.1:5555)")
    if not complete:
        out.print(f"[red]not everything succeeded[/]; the farm's state and logs are in {state_dir}", soft_wrap=True)
        return 1
    shutil.rmtree(state_dir)
    return 0


def demo_tasks(count: int, seed: int) -> list[JsonObject]:
    """Return `count` rows of each built-in environment that can run here without a judge.

    Raises SettingsError if an environment cannot be loaded for another reason than a missing sandbox. Environments that
    need an extra package come last, since importing it takes a worker seconds.
    """
    tasks: list[JsonObject] = []
    later: list[JsonObject] = []
    registry = load_registry()
    for name in registry.names():
        environment = registry.get(name)
        if environment.judges:
            continue  # a judge is another model, which the demo does not start
        if environment.cls is None:
            if (environment.error or "").startswith(SandboxUnavailable.__name__):
                continue
            raise SettingsError(f"the environment {name} cannot be run: {environment.error}")
        rows = [row | {"environment": name} for row in environment.cls.demo_rows(count, seed)]
        if environment.cls.requires:
            later += rows
        else:
            tasks += rows
    return tasks + later


def _submit_and_follow(farm: LocalFarm, tasks: list[JsonObject], num_samples: int, results_file: Path) -> bool:
    """Submit the rows and follow the batch. Return whether every rollout succeeded."""
    summary = Summary()
    with client(farm.url, None) as connected, create_private(results_file) as out:
        batch = connected.submit(tasks, run=RUN, num_samples=num_samples)
        status = follow(batch, summary, console=progress_console(), out=out, view="full")
    print_summary(summary, console())
    return status.ledger.succeeded == status.ledger.submitted == len(tasks) * num_samples
