"""Errors in each dialect's shape."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api.proxy.errors import ContextTooLong, problem_of
from gym.errors import Conflict, Malformed, ModelRejected, ModelUnreachable, Unauthorized
from gym.wire.errors import WireError


@pytest.mark.parametrize(
    ("error", "status", "openai_type", "anthropic_type"),
    [
        (Malformed("c", "m"), 400, "invalid_request_error", "invalid_request_error"),
        (Unauthorized("c", "m"), 401, "authentication_error", "authentication_error"),
        (Conflict("c", "m"), 409, "invalid_request_error", "invalid_request_error"),
        (WireError("tools.0", "m"), 422, "invalid_request_error", "invalid_request_error"),
        (ModelRejected("m"), 400, "invalid_request_error", "invalid_request_error"),
        (ModelRejected("m", upstream_status=413), 413, "invalid_request_error", "request_too_large"),
        (ModelRejected("m", upstream_status=422), 422, "invalid_request_error", "invalid_request_error"),
        (ModelRejected("m", upstream_status=401), 502, "server_error", "api_error"),
        (ModelRejected("m", upstream_status=307), 502, "server_error", "api_error"),
        (ModelUnreachable("m"), 503, "server_error", "overloaded_error"),
        (RedisConnectionError("m"), 503, "server_error", "overloaded_error"),
        (ValueError("m"), 500, "server_error", "api_error"),
    ],
)
def test_an_error_has_its_status_and_the_type_of_each_dialect(error, status, openai_type, anthropic_type):
    problem = problem_of(error)
    assert problem.status == status
    assert problem.body("openai")["error"]["type"] == openai_type
    assert problem.body("anthropic")["type"] == "error"
    assert problem.body("anthropic")["error"]["type"] == anthropic_type


def test_what_cannot_be_translated_names_its_field():
    assert problem_of(WireError("tools.0.type", "m")).body("openai")["error"]["param"] == "tools.0.type"


@pytest.mark.parametrize("error", [ModelUnreachable("m"), RedisConnectionError("m")])
def test_what_may_pass_says_when_to_come_back(error):
    assert problem_of(error).headers["retry-after"] == "2"


def test_an_overflow_is_said_in_the_words_that_clients_know():
    problem = problem_of(ContextTooLong("too many"))
    assert problem.body("openai")["error"]["code"] == "context_length_exceeded"
    assert problem.body("anthropic")["error"]["message"] == "prompt is too long: too many"


def test_a_fault_of_the_farm_and_redis_say_nothing_of_themselves():
    for error in (ValueError("secret"), RedisConnectionError("redis://:secret@host")):
        assert "secret" not in str(problem_of(error).body("openai"))
