"""Commands on batches and rollouts: submit, watch, results, show, cancel, requeue, rejudge."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.options import DEFAULT_URL, ApiKey, AsJson, Url, client, console, print_json, progress_console
from gym.private_files import create_private

if TYPE_CHECKING:
    from gym.client import Batch, Result

ViewName = Literal["light", "full", "training"]
SUCCESS_AT = 1.0  # as in api.cli.client.summary, which is imported only where it is used

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="A batch's id.")]
View = Annotated[ViewName, typer.Option(help="light, full (with the conversation) or training (with the tokens).")]
SuccessAt = Annotated[float, typer.Option(help="Reward at which a rollout counts as solved, for pass@k.")]
OutFile = Annotated[
    Path | None, typer.Option(help="Write results to this file, one JSON object per line; - is standard output.")
]

FOLLOW_RETRIES = 12  # about a minute: a command that follows a batch survives a restart of the farm


def register(app: typer.Typer) -> None:
    for command in (submit, watch, results, show, cancel, requeue, rejudge):
        app.command()(command)


def submit(
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="ROWS.jsonl", help="JSONL or Parquet file, or folder of a saved dataset; - is standard input."
        ),
    ],
    environment: Annotated[str | None, typer.Option(help="Environment for rows that name none.")] = None,
    num_samples: Annotated[int, typer.Option(help="Rollouts per row, for rows that do not set it.")] = 1,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME|URL", help="Name of a registered policy, or URL of a model server.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, with a policy URL.")] = None,
    run: Annotated[str | None, typer.Option(help="Training run of the batch.")] = None,
    priority: Annotated[int, typer.Option(help="0 to 9, 9 first.")] = 5,
    batch_id: Annotated[
        str | None, typer.Option(help="Idempotency key: resubmitting the same batch id is a no-op.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N rows.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Draw N rows, after --limit.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample: the same seed draws the same rows.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Submit every row K times, as separate tasks.")] = 1,
    split: Annotated[str | None, typer.Option(help="Dataset split to read.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Field to use as the input, in rows without one.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait until the batch is done, then print a summary.")
    ] = False,
    out: OutFile = None,
    view: View = "light",
    success_at: SuccessAt = SUCCESS_AT,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Submit rows as a batch."""
    from gym.client import BatchOptions
    from gym.client.datasets import read_rows

    if out is not None and not follow:
        raise typer.BadParameter("results come with --follow; later, `farm results BATCH --out FILE` fetches them")
    chosen = _policy(policy, model)
    parsed = read_rows(rows, split=split, prompt=prompt).taken(limit=limit, sample=sample, seed=seed, repeat=repeat)
    options = BatchOptions(num_samples=num_samples, priority=priority)
    if environment is not None:
        options["environment"] = environment
    if chosen is not None:
        options["policy"] = chosen
    if run is not None:
        options["run"] = run
    if batch_id is not None:
        options["batch_id"] = batch_id
    with client(url, api_key, retries=FOLLOW_RETRIES) as farm:
        with parsed.naming_lines():
            batch = farm.submit(parsed.rows, **options)
        created: dict[str, Any] = batch.created or {}
        if follow:
            progress_console().print(f"batch {batch.batch_id}: {created.get('submitted')} rollouts")
            _follow(batch, out=out, view=view, success_at=success_at, as_json=as_json)
        elif as_json:
            print_json(created)
        else:
            console().print(f"batch {batch.batch_id}: {created.get('submitted')} rollouts from {len(parsed.rows)} rows")
            console().print(f"farm watch {batch.batch_id}", style="dim")


def watch(
    batch: BatchId,
    success_at: SuccessAt = SUCCESS_AT,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show a batch's progress until it is done, then its summary."""
    with client(url, api_key, retries=FOLLOW_RETRIES) as farm:
        _follow(farm.batch(batch), out=None, view="light", success_at=success_at, as_json=as_json)


def results(
    batch: BatchId,
    view: View = "light",
    out: OutFile = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print the results that are available now; with --json one per line."""
    from api.cli.client.tables import results_table
    from gym.plain import exact_json

    if as_json and out is None:
        out = Path("-")
    with client(url, api_key) as farm:
        reader = farm.batch(batch).results(view=view)
        if out is None:
            found: list[Result] = []
            while items := reader.page(wait_s=0):
                found.extend(items)
            console().print(results_table(found))
            return
        count = 0
        with _opened(out) as file:
            while items := reader.page(wait_s=0):
                file.writelines(exact_json.dumps(result.raw) + b"\n" for result in items)
                count += len(items)
    end = "complete: the batch is done" if reader.done else "incomplete: the batch is not done"
    progress_console().print(f"{count} results in {out}; {end}")


def show(
    rollout: Annotated[str, typer.Argument(metavar="ROLLOUT", help="A rollout's id, BATCH:ROW:SAMPLE.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show one rollout with its conversation."""
    with client(url, api_key) as farm:
        found = farm.rollout(rollout, view="full")
    if as_json:
        print_json(found)
        return
    from api.cli.client.conversation import conversation

    console().print(conversation(found))


def cancel(
    item: Annotated[
        str, typer.Argument(metavar="ID", help="ID of a batch, group (BATCH:ROW) or rollout (BATCH:ROW:SAMPLE).")
    ],
    kind: Annotated[
        Literal["batch", "group", "rollout"] | None, typer.Option(help="Kind of the ID, if its form is ambiguous.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Cancel unfinished rollouts. Existing results are kept, and no rollout starts after this command returns.

    An unknown ID is an error and changes nothing.
    """
    from gym.ids import parse_group_id, parse_rollout_id

    part = None if kind == "batch" else parse_rollout_id(item) or parse_group_id(item)
    with client(url, api_key) as farm:
        farm.batch(part.batch_id if part else item).status()  # cancelling in advance is for programs
        answer = farm.cancel(item, kind=kind)
    if answer.get("tombstone"):
        console().print(f"there is no {item} yet; it will be cancelled if it is added")
        raise typer.Exit(1)
    if as_json:
        print_json(answer)
    elif answer.get("left"):
        console().print(f"{item} is being cancelled{_counted(answer)}")
    else:
        console().print(f"cancelled {item}{_counted(answer)}")


def requeue(
    batch: BatchId,
    error_kind: Annotated[
        list[str] | None, typer.Option(help="Requeue only failures of this kind, such as worker_lost; may be repeated.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Run a batch's failed rollouts again, as new attempts."""
    with client(url, api_key) as farm:
        answer = farm.batch(batch).requeue(error_kinds=error_kind or None)
    if as_json:
        print_json(answer)
    else:
        console().print(f"running again in {batch}{_counted(answer)}")


def rejudge(
    batch: BatchId,
    judge: Annotated[str | None, typer.Option(help="Ask this judge instead of the verifier's.")] = None,
    rollout: Annotated[list[str] | None, typer.Option(help="Judge only this rollout; may be repeated.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Judge stored trajectories again. No policy is called, and rewards are kept until the new verdicts."""
    with client(url, api_key) as farm:
        answer = farm.batch(batch).rejudge(rollout_ids=rollout or None, judge=judge)
    if as_json:
        print_json(answer)
    else:
        console().print(f"judged again in {batch}{_counted(answer)}")


def _follow(batch: Batch, *, out: Path | None, view: ViewName, success_at: float, as_json: bool) -> None:
    from api.cli.client.follow import follow, print_summary, summary_json
    from api.cli.client.summary import Summary

    summary = Summary(success_at=success_at)
    try:
        with _opened(out) if out is not None else contextlib.nullcontext() as file:
            status = follow(batch, summary, console=progress_console(), out=file, view=view)
    except KeyboardInterrupt:
        progress_console().print(
            f"\nthe batch is still running: `farm watch {batch.batch_id}` follows it again, "
            f"`farm cancel {batch.batch_id}` cancels it"
        )
        raise typer.Exit(130) from None
    if as_json:
        print_json({"batch": status.raw} | summary_json(summary))
    else:
        print_summary(summary, console())
        if out is not None and str(out) != "-":
            console().print(f"results: {out}")


@contextlib.contextmanager
def _opened(out: Path) -> Iterator[IO[bytes]]:
    """Return the file to write, or standard output for `-`."""
    if str(out) == "-":
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    try:
        file = create_private(out)
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written: {error.strerror}") from None
    with file:
        yield file


def _policy(policy: str | None, model: str | None) -> str | dict[str, Any] | None:
    is_url = policy is not None and "://" in policy
    if is_url and model is None:
        raise typer.BadParameter("a policy URL needs --model, the model name on that server")
    if model is not None and not is_url:
        raise typer.BadParameter("--model needs a policy URL; a registered policy has its own model")
    return {"base_urls": [policy], "model": model} if is_url else policy


def _counted(answer: dict[str, Any]) -> str:
    counts = [f"{name} {value}" for name, value in answer.items() if type(value) is int]
    return f" ({', '.join(counts)})" if counts else ""
