"""The small pure rules: URLs, pinned sampling, reported versions, Retry-After, back-off, names of inline policies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gym.errors import ModelUnreachable
from gym.model_client.http.urls import EndpointUrl
from gym.model_client.retry import UNHEALTHY_WAIT_S, AttemptFailure, CallProgress, retry_after_s
from gym.model_client.routing.endpoint_pool import EndpointPool
from gym.model_client.routing.served_model import inline_model, newest
from gym.model_client.sampling import pinned
from gym.model_client.versions import reported_versions
from gym.policy import PolicySpec

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("base", "chat", "tokenize"),
    [
        ("http://h:8000", "http://h:8000/v1/chat/completions", "http://h:8000/tokenize"),
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions", "http://h:8000/tokenize"),
        ("https://h/a/b", "https://h/a/b/v1/chat/completions", "https://h/a/b/tokenize"),
        ("https://h/a/v3", "https://h/a/v3/chat/completions", "https://h/a/tokenize"),
        ("http://u:p@h", "http://h/v1/chat/completions", "http://h/tokenize"),
        ("http://[::1]:80", "http://[::1]/v1/chat/completions", "http://[::1]/tokenize"),
    ],
)
def test_addresses_under_a_base_url(base, chat, tokenize):
    url = EndpointUrl.parse(base)
    assert (str(url.chat), str(url.tokenize)) == (chat, tokenize)


def test_the_policys_word_on_sampling_is_the_last():
    spec = PolicySpec(
        base_urls=["http://h"], model="m", sampling_overrides={"temperature": 1.0, "top_k": None, "model": "other"}
    )
    body = {"model": "mine", "temperature": 0.1, "top_k": 5, "stream": True, "stream_options": {}, "messages": []}
    assert pinned(body, spec) == {"model": "m", "temperature": 1.0, "messages": []}
    assert body["temperature"] == 0.1


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_pinned_limit_replaces_the_limit_under_every_name(name):
    spec = PolicySpec(base_urls=["http://h"], model="m", sampling_overrides={name: 7})
    request = pinned({"max_tokens": 1, "max_completion_tokens": 2}, spec)
    wire_name = "max_tokens" if name == "max_output_tokens" else name
    assert request == {"model": "m", wire_name: 7}


@pytest.mark.parametrize(
    ("completion", "versions"),
    [
        ({}, None),
        ({"weight_version": "default"}, None),
        ({"weight_version": None}, None),
        ({"weight_version": True}, None),
        ({"weight_version": 4}, (4, 4)),
        ({"weight_version": "42"}, (42, 42)),
        ({"weight_version": "step-42"}, (42, 42)),
        ({"weight_version": "v1.2"}, None),
        ({"weight_version": "2026-05-01"}, None),
        ({"weight_versions": ["step-3", "step-4", "step-5"]}, (3, 5)),
        ({"weight_versions": ["default", "step-1"]}, None),
        ({"weight_versions": []}, None),
        ({"metadata": {"weight_version": "7"}}, (7, 7)),
        ({"metadata": None}, None),
    ],
)
def test_versions_are_read_where_they_are_integers(completion, versions):
    assert reported_versions(completion) == versions


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("nan", 0),
        ("soon", 0),
        ("", 0),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30),
        (format_datetime(NOW - timedelta(seconds=30), usegmt=True), 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after_s(header, now=NOW) == seconds


def progress(pool: EndpointPool, *, deadline: float = 1000.0, max_retries: int = 20) -> CallProgress:
    assert pool.endpoints
    return CallProgress("policy 'p'", began=0.0, deadline=deadline, max_retries=max_retries)


def pool_of(count: int) -> EndpointPool:
    return EndpointPool([f"http://e{n}" for n in range(count)], clock=lambda: 0.0)


def test_back_off_doubles_to_its_limit_and_is_jittered_in_full():
    pool = pool_of(1)
    call = progress(pool)
    waits = [call.retry_in_s(AttemptFailure("x"), pool.endpoints[0], pool, now=0, jitter=1.0) for _ in range(8)]
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 8, 8]
    assert call.retry_in_s(AttemptFailure("x"), pool.endpoints[0], pool, now=0, jitter=0.0) == 0.0


def test_retry_after_counts_only_where_there_is_no_other_endpoint():
    for count, wait_s in ((1, 9.0), (2, 0.0)):
        pool = pool_of(count)
        failure = AttemptFailure("busy", retry_after_s=9.0)
        assert progress(pool).retry_in_s(failure, pool.endpoints[0], pool, now=0, jitter=0.0) == wait_s


def test_a_retry_avoids_every_endpoint_that_has_failed_the_call_until_all_have():
    pool = pool_of(3)
    call = progress(pool)
    first, second, third = pool.endpoints
    for endpoint, avoid in ((first, [first]), (second, [first, second]), (third, [third])):
        call.retry_in_s(AttemptFailure("x"), endpoint, pool, now=0, jitter=0.0)
        assert call.avoid == avoid


def test_a_refused_question_is_no_retry():
    pool = pool_of(1)
    call = progress(pool, max_retries=0)
    assert call.retry_in_s(AttemptFailure("x", free=True), pool.endpoints[0], pool, now=0, jitter=1.0) == 0.0
    with pytest.raises(ModelUnreachable):
        call.retry_in_s(AttemptFailure("x"), pool.endpoints[0], pool, now=0, jitter=1.0)


def test_the_wait_for_an_endpoint_is_bounded():
    pool = pool_of(1)
    (endpoint,) = pool.endpoints
    for _ in range(3):
        endpoint.in_flight += 1
        pool.release(endpoint, "failed", began=0.0, error="refused")
    call = progress(pool)
    assert 0 < call.look_again_in_s(pool, now=0.0) <= 0.25
    assert call.look_again_in_s(pool, now=UNHEALTHY_WAIT_S - 0.1) <= 0.1 + 1e-9
    with pytest.raises(
        ModelUnreachable, match=r"no endpoint was healthy for 60.0 s \(http://e0/v1 is half_open: refused"
    ):
        call.look_again_in_s(pool, now=UNHEALTHY_WAIT_S)


def test_an_inline_policy_is_named_after_its_contents():
    first = inline_model(PolicySpec(base_urls=["http://h"], model="m", sampling_overrides={"a": 1, "b": 2}))
    same = inline_model(PolicySpec(base_urls=["http://h/"], model="m", sampling_overrides={"b": 2, "a": 1}))
    other = inline_model(PolicySpec(base_urls=["http://h"], model="m", api_key="k"))
    assert first.name == same.name != other.name
    assert newest({}, other) is other  # type: ignore[arg-type]  # a dict gives records too
