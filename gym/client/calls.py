"""Every call of the API as a flow: the requests that it makes and the record that it returns. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

import orjson
from pydantic import BaseModel, ValidationError

from gym.batch import BatchSpec, EarlyStop
from gym.client.exchange import NDJSON, Flow, Request
from gym.client.records import (
    Added,
    BatchStatus,
    Created,
    EnvironmentInfo,
    Event,
    Lease,
    Page,
    Readiness,
    Unit,
    View,
    read_added,
    read_created,
    read_environment,
    read_events,
    read_lease,
    read_page,
    read_status,
)
from gym.client.rows import EncodedRows, encode_rows, refused
from gym.errors import Conflict, FarmError, Invalid, NotFound, TooLarge
from gym.ids import new_id, parse_group_id, parse_rollout_id
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.policy import PolicySpec

Kind = Literal["batch", "group", "rollout"]
ModelT = TypeVar("ModelT", bound=BaseModel)

POLL_FIRST_S = 0.2
POLL_MOST_S = 2.0
PAGE_LIMIT: dict[View, int] = {"light": 500, "full": 50, "training": 50}


class BatchOptions(TypedDict, total=False):
    """Options of a batch, as in `gym.batch.BatchSpec`; plain dictionaries are accepted in place of models."""

    batch_id: str | None
    run: str | None
    policy: str | PolicySpec | JsonObject | None
    environment: str | None
    agent: str | None
    num_samples: int
    priority: int
    weight: float
    limits: Limits | JsonObject
    sampling: JsonObject
    early_stop: EarlyStop | JsonObject | None
    metadata: JsonObject
    sealed: bool


def submit(rows: Iterable[JsonObject], options: BatchOptions) -> Flow[Created]:
    """Create a batch with its rows; more than 1,000 rows are sent as NDJSON in separate requests.

    Without a `batch_id` one is generated here, so repeating a request can never create a second batch. If a later
    request of a large submission is refused, the batch is cancelled before the error is raised.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given.setdefault("batch_id", new_id("batch"))
    spec = _checked(BatchSpec, given, "invalid_batch")
    batch_id = str(spec.batch_id)
    encoded = encode_rows(rows, id_prefix="row", environment=spec.environment, num_samples=spec.num_samples)
    header = spec.model_dump(mode="json", exclude_unset=True)
    if encoded.fit_one_request:
        body = orjson.dumps(header)[:-1] + b',"rows":' + encoded.as_list() + b"}"
        response = yield Request(method="POST", path="/v1/batches", body=[body])
        return read_created(response.json())
    response = yield Request(method="POST", path="/v1/batches", body=[orjson.dumps(header | {"sealed": False})])
    created = read_created(response.json())
    ours = response.status == 201 or "batch_id" not in options
    if response.status == 200:
        current = yield from status(batch_id)
        if current.state != "open":
            return _repeat(created, current, encoded)
    try:
        yield from _send_rows(batch_id, encoded)
    except (Conflict, Invalid, TooLarge):
        if ours:
            yield from _cancel_quietly(batch_id)
        raise
    if spec.sealed:
        yield from seal(batch_id)
    return _now(created, (yield from status(batch_id)))


def add_rows(batch_id: str, rows: Iterable[JsonObject]) -> Flow[Added]:
    """Append rows to a batch that was submitted with `sealed=False`. Raises Conflict once it is sealed.

    A row without `task_id` is a new task in every call; give ids if your program may repeat the call.
    """
    # the farm applies the batch's defaults: a placeholder passes the check of rows that name no environment
    encoded = encode_rows(rows, id_prefix=new_id("row"), environment="default", num_samples=1)
    return (yield from _send_rows(batch_id, encoded))


def seal(batch_id: str) -> Flow[None]:
    """Seal the batch: no more rows follow, so that it can end."""
    yield Request(method="POST", path=_path("batches", batch_id, "seal"))


def status(batch_id: str) -> Flow[BatchStatus]:
    """Return the batch's state and ledger. Raises NotFound."""
    response = yield Request(method="GET", path=_path("batches", batch_id))
    return read_status(response.json())


def wait(
    batch_id: str, timeout_s: float | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Flow[BatchStatus]:
    """Wait until the batch has ended. Raises TimeoutError after `timeout_s`; the batch keeps running."""
    ends_at = None if timeout_s is None else clock() + timeout_s
    pause_s = 0.0
    while True:
        response = yield Request(method="GET", path=_path("batches", batch_id), after_s=pause_s)
        current = read_status(response.json())
        if current.ended:
            return current
        pause_s = min(max(POLL_FIRST_S, pause_s * 1.5), POLL_MOST_S)
        if ends_at is not None:
            left_s = ends_at - clock()
            if left_s <= 0:
                raise TimeoutError(
                    f"batch {batch_id} has not ended within {timeout_s} s: {current.ledger.ended} of "
                    f"{current.ledger.submitted} rollouts have"
                )
            pause_s = min(pause_s, left_s)


def results_page(
    batch_id: str, *, view: View = "light", after: str | None = None, wait_s: float = 0.0, limit: int | None = None
) -> Flow[Page]:
    """Return a page of the completion log after a cursor; the farm waits up to `wait_s` (≤ 60) for a result."""
    query: dict[str, str | int | float] = {"view": view, "limit": limit or PAGE_LIMIT[view]}
    if after is not None:
        query["after"] = after
    if wait_s > 0:
        query["wait"] = wait_s
    response = yield Request(method="GET", path=_path("batches", batch_id, "results"), query=query, wait_s=wait_s)
    return read_page(response.json())


def lease(
    batch_id: str,
    *,
    consumer: str,
    most: int = 64,
    ttl_s: float = 300.0,
    unit: Unit = "rollout",
    view: View = "light",
    wait_s: float = 0.0,
    lease_id: str | None = None,
    position: str | None = None,
) -> Flow[Lease]:
    """Lease up to `most` results, or whole groups, that this consumer has not acknowledged.

    Results that are not acknowledged within `ttl_s` are handed out again. The farm waits up to `wait_s` (≤ 60) for one.
    Repeating a lease by its id, while it lasts, returns the same results for another `ttl_s`. With the `position` of
    the previous lease ("0-0" at first), Conflict `log_went_back` is raised if Redis has lost results handed out since.
    """
    body: JsonObject = {"consumer": consumer, "max": most, "ttl_s": ttl_s, "unit": unit}
    body["lease_id"] = lease_id or new_id("lease")
    if position is not None:
        body["position"] = position
    query: dict[str, str | int | float] = {"view": view}
    if wait_s > 0:
        query["wait"] = wait_s
    response = yield Request(
        method="POST",
        path=_path("batches", batch_id, "lease"),
        query=query,
        body=[orjson.dumps(body)],
        wait_s=wait_s,
    )
    return read_lease(response.json())


def ack(
    batch_id: str, *, consumer: str, lease_id: str | None = None, rollout_ids: Sequence[str] | None = None
) -> Flow[int]:
    """Acknowledge used results, a whole lease or by name. Return how many were newly acknowledged."""
    asked = {"consumer": consumer, "lease_id": lease_id, "rollout_ids": None if rollout_ids is None else [*rollout_ids]}
    body = orjson.dumps({name: value for name, value in asked.items() if value is not None})
    answer = yield from _json(Request(method="POST", path=_path("batches", batch_id, "ack"), body=[body]))
    return int(answer["acknowledged"])


def events_page(batch_id: str, *, after: str | None = None, wait_s: float = 0.0) -> Flow[list[Event]]:
    """Return the state of the batch and the events after a cursor; the farm waits up to `wait_s` for one."""
    query: dict[str, str | int | float] = {"wait": wait_s}
    if after is not None:
        query["after"] = after
    response = yield Request(method="GET", path=_path("batches", batch_id, "events"), query=query, wait_s=wait_s)
    return read_events(response.body)


def requeue(
    batch_id: str, *, error_kinds: Sequence[str] | None = None, rollout_ids: Sequence[str] | None = None
) -> Flow[JsonObject]:
    """Run failed rollouts again as new attempts; by default all that failed."""
    asked = {"error_kinds": error_kinds, "rollout_ids": rollout_ids}
    body = orjson.dumps({name: list(value) for name, value in asked.items() if value is not None})
    return (
        yield from _json(
            Request(method="POST", path=_path("batches", batch_id, "requeue"), body=[body], repeatable=False)
        )
    )


def rejudge(batch_id: str, *, rollout_ids: Sequence[str] | None = None, judge: str | None = None) -> Flow[JsonObject]:
    """Score stored trajectories again, optionally by another judge; by default all that were judged."""
    asked = {"rollout_ids": None if rollout_ids is None else list(rollout_ids), "judge": judge}
    body = orjson.dumps({name: value for name, value in asked.items() if value is not None})
    return (
        yield from _json(
            Request(method="POST", path=_path("batches", batch_id, "rejudge"), body=[body], repeatable=False)
        )
    )


def cancel_batch(batch_id: str) -> Flow[JsonObject]:
    """Cancel unfinished rollouts; existing results are kept.

    No rollout of the batch starts any more. `left` in the answer counts rollouts that are still being ended; the status
    of the batch says when they have.
    """
    return (yield from _json(Request(method="DELETE", path=_path("batches", batch_id))))


def cancel(item_id: str, *, kind: Kind | None = None) -> Flow[JsonObject]:
    """Cancel a batch, group or rollout, distinguished by the form of the id (`gym.ids`); answers as `cancel_batch`.

    Give `kind` if your own batch ids end in `:NUMBER`.
    """
    if kind is None:
        kind = "rollout" if parse_rollout_id(item_id) else "group" if parse_group_id(item_id) else "batch"
    family = {"batch": "batches", "group": "groups", "rollout": "rollouts"}[kind]
    return (yield from _json(Request(method="DELETE", path=_path(family, item_id))))


def rollout(rollout_id: str, *, view: View = "full") -> Flow[JsonObject]:
    """Return a rollout with trajectory, attempts and timings; `read_result` reads one that has ended."""
    return (yield from _json(Request(method="GET", path=_path("rollouts", rollout_id), query={"view": view})))


def batches(*, run: str | None = None, state: str | None = None, limit: int = 100) -> Flow[list[BatchStatus]]:
    """Return batches, newest first."""
    query: dict[str, str | int | float] = {"limit": limit}
    if run is not None:
        query["run"] = run
    if state is not None:
        query["state"] = state
    return [read_status(item) for item in (yield from _items(Request(method="GET", path="/v1/batches", query=query)))]


def judges() -> Flow[list[JsonObject]]:
    """Return the judges with their replicas, their load, and how many rollouts wait for each."""
    return (yield from _items(Request(method="GET", path="/v1/judges")))


def environments() -> Flow[list[EnvironmentInfo]]:
    """Return the environments."""
    return [read_environment(item) for item in (yield from _items(Request(method="GET", path="/v1/environments")))]


def environment(name: str) -> Flow[EnvironmentInfo]:
    """Return one environment. Raises NotFound."""
    response = yield Request(method="GET", path=_path("environments", name))
    return read_environment(response.json())


def put_policy(name: str, policy: PolicySpec | JsonObject) -> Flow[JsonObject]:
    """Register or replace a policy; takes effect for the next model call."""
    spec = policy if isinstance(policy, PolicySpec) else _checked(PolicySpec, policy, "invalid_policy")
    body = orjson.dumps(spec.model_dump(mode="json", exclude_unset=True))
    return (yield from _json(Request(method="PUT", path=_path("policies", name), body=[body])))


def policies() -> Flow[list[JsonObject]]:
    """Return the registered policies, without their keys."""
    return (yield from _items(Request(method="GET", path="/v1/policies")))


def delete_policy(name: str) -> Flow[None]:
    """Delete a policy; deleting a missing one is not an error."""
    yield Request(method="DELETE", path=_path("policies", name), accept=frozenset({404}))


def workers() -> Flow[list[JsonObject]]:
    """Return the workers and their load."""
    return (yield from _items(Request(method="GET", path="/v1/workers")))


def queues() -> Flow[JsonObject]:
    """Return queued and running rollouts of each active batch."""
    return (yield from _json(Request(method="GET", path="/v1/queues")))


def ready() -> Flow[Readiness]:
    """Return whether the farm can run rollouts; requested once, since "not yet" is an answer."""
    response = yield Request(method="GET", path="/readyz", accept=frozenset({503}))
    data = response.json()
    return Readiness(ready=response.status == 200, raw=data if isinstance(data, dict) else {})


def _send_rows(batch_id: str, encoded: EncodedRows) -> Flow[Added]:
    accepted = repeated = submitted = first_row = 0
    for body in encoded.requests():
        try:
            response = yield Request(
                method="POST", path=_path("batches", batch_id, "rows"), body=body, content_type=NDJSON
            )
        except Invalid as error:
            raise refused(error, first_row=first_row) from None
        added = read_added(response.json())
        accepted, repeated, submitted = accepted + added.accepted, repeated + added.repeated, added.submitted
        first_row += sum(piece.count(b"\n") for piece in body)
    return Added(accepted=accepted, repeated=repeated, submitted=submitted)


def _cancel_quietly(batch_id: str) -> Flow[None]:
    """Cancel without raising, while a clearer error is on its way to the caller."""
    try:
        yield Request(method="DELETE", path=_path("batches", batch_id))
    except FarmError:
        return


def _repeat(created: Created, current: BatchStatus, encoded: EncodedRows) -> Created:
    """Return the result of a repeated submission whose rows are already there."""
    if current.ledger.submitted != encoded.rollouts:
        raise Conflict(
            "batch_conflict",
            f"batch {created.batch_id} has {current.ledger.submitted} rollouts and accepts no more rows, this "
            f"submission has {encoded.rollouts}; choose another batch_id",
            {"batch_id": created.batch_id},
        )
    return _now(created, current)


def _now(created: Created, current: BatchStatus) -> Created:
    state, submitted = current.state, current.ledger.submitted
    raw = created.raw | {"state": state, "submitted": submitted}
    return replace(created, state=state, submitted=submitted, raw=raw)


def _json(request: Request) -> Flow[JsonObject]:
    response = yield request
    data = response.json() if response.body else {}
    if not isinstance(data, dict):
        raise FarmError(f"{request.method} {request.path} was answered with {type(data).__name__}, not a JSON object")
    return data


def _items(request: Request) -> Flow[list[JsonObject]]:
    """Return the items of a list response, bare or as the one list of an object such as `{"workers": […]}`."""
    response = yield request
    data: Any = response.json()
    if isinstance(data, dict):
        data = next((value for value in data.values() if isinstance(value, list)), None)
    if not isinstance(data, list):
        raise FarmError(f"{request.method} {request.path} was not answered with a list")
    return data


def _checked(model: type[ModelT], given: Any, code: str) -> ModelT:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise Invalid(code, f"field `{field}`: {first['msg']}", {"field": field}) from None


def _path(*parts: str) -> str:
    for part in parts:
        if part in ("", ".", ".."):
            raise NotFound("not_an_id", f"{part!r} is not an id")
    return "/v1/" + "/".join(quote(part, safe=":") for part in parts)
