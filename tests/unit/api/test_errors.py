"""Translation of Redis errors for clients."""

from __future__ import annotations

import pytest
from redis import exceptions

from api.errors import error_response, redis_error
from gym.errors import Overloaded


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("refused"),
        exceptions.TimeoutError("slow"),
        exceptions.BusyLoadingError("loading"),
        exceptions.MaxConnectionsError("too many"),
        exceptions.ReadOnlyError("replica"),
        exceptions.ClusterDownError("down"),
        exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        exceptions.ResponseError("BUSY Redis is busy running a script"),
    ],
)
def test_a_redis_that_cannot_serve_is_503_with_retry_after(error: exceptions.RedisError) -> None:
    known = redis_error(error, submitting=True)
    assert known is not None
    assert (known.status, known.code) == (503, "redis_unavailable")
    assert int(error_response(known).headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "error",
    [exceptions.OutOfMemoryError("command not allowed"), exceptions.ResponseError("OOM command not allowed")],
)
def test_a_full_redis_refuses_submissions_with_429_and_the_rest_with_503(error: exceptions.RedisError) -> None:
    submitting, other = redis_error(error, submitting=True), redis_error(error, submitting=False)
    assert submitting is not None
    assert other is not None
    assert (submitting.status, other.status) == (429, 503)


def test_a_mistake_of_the_farm_is_not_hidden_behind_503() -> None:
    assert redis_error(exceptions.ResponseError("ERR unknown command"), submitting=False) is None


def test_an_error_has_the_shape_of_the_contract() -> None:
    response = error_response(Overloaded("backlog_full", "wait", {"queued": 1}, retry_after_s=1.2))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.body == b'{"error":{"code":"backlog_full","message":"wait","details":{"queued":1}}}'
