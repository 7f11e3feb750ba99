"""Requests are bounded and mean what they say: free objects, numbers, switches, keys, ids."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from api.schemas.leases import LeaseBody
from api.schemas.policies import PauseBody, ResumeBody
from api.schemas.sessions import OpenSessionBody
from gym.agents.settings import RemoteSettings
from gym.batch import BatchSpec, Id
from gym.fields.bounded import FREE_BYTES, STORED
from gym.ids import is_id
from gym.judges.settings import JudgeSettings
from gym.policy import PolicySpec

POLICY: dict[str, Any] = {"base_urls": ["http://127.0.0.1:8000"], "model": "m"}


def _object_of(size: int) -> dict[str, str]:
    return {"x": "y" * (size - len('{"x":""}'))}


@pytest.mark.parametrize(
    ("model", "field", "others"),
    [
        (BatchSpec, "metadata", {}),
        (BatchSpec, "sampling", {}),
        (PolicySpec, "sampling_overrides", POLICY),
    ],
)
def test_an_object_that_is_free_has_64_kib(model: type[BaseModel], field: str, others: dict[str, Any]) -> None:
    model.model_validate({**others, field: _object_of(FREE_BYTES)})
    with pytest.raises(ValidationError, match="at most 65536") as caught:
        model.model_validate({**others, field: _object_of(FREE_BYTES + 1)})
    assert caught.value.errors()[0]["loc"] == (field,)


def test_what_an_older_farm_stored_is_read() -> None:
    large = _object_of(2 * FREE_BYTES)
    assert BatchSpec.model_validate({"metadata": large, "sampling": large}, context=STORED).metadata == large
    key = "sk-\nold"
    assert PolicySpec.model_validate(POLICY | {"api_key": key}, context=STORED).api_key == key


@pytest.mark.parametrize(
    ("model", "given", "field"),
    [
        (BatchSpec, {"num_samples": True}, "num_samples"),
        (BatchSpec, {"num_samples": "9"}, "num_samples"),
        (BatchSpec, {"priority": "9"}, "priority"),
        (BatchSpec, {"weight": True}, "weight"),
        (BatchSpec, {"sealed": "yes"}, "sealed"),
        (BatchSpec, {"sealed": 1}, "sealed"),
        (BatchSpec, {"early_stop": {"min_usable": "1"}}, "early_stop"),
        (BatchSpec, {"limits": {"max_turns": "3"}}, "limits"),
        (BatchSpec, {"limits": {"rollout_timeout_s": True}}, "limits"),
        (BatchSpec, {"limits": {"deadline_s": "60"}}, "limits"),
        (PolicySpec, POLICY | {"version": "3"}, "version"),
        (PolicySpec, POLICY | {"version": True}, "version"),
        (PolicySpec, POLICY | {"version": 2**63}, "version"),
        (PolicySpec, POLICY | {"max_concurrency": "3"}, "max_concurrency"),
        (PolicySpec, POLICY | {"token_ids": "true"}, "token_ids"),
        (PolicySpec, POLICY | {"required_prefix": 1}, "required_prefix"),
        (LeaseBody, {"consumer": "c", "max": "5"}, "max"),
        (LeaseBody, {"consumer": "c", "ttl_s": True}, "ttl_s"),
        (PauseBody, {"timeout_s": "5"}, "timeout_s"),
        (ResumeBody, {"version": "5"}, "version"),
        (OpenSessionBody, {"row": {}, "seed": True}, "seed"),
    ],
)
def test_what_only_looks_like_a_number_or_a_switch_is_refused(
    model: type[BaseModel], given: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(given)
    assert caught.value.errors()[0]["loc"][0] == field


def test_numbers_are_taken_as_json_writes_them() -> None:
    spec = BatchSpec.model_validate({"num_samples": 3.0, "weight": 2, "limits": {"max_turns": 4.0, "deadline_s": None}})
    assert (spec.num_samples, spec.weight, spec.limits.max_turns) == (3, 2.0, 4)


@pytest.mark.parametrize("key", ["sk-\r\nx-evil: 1", "sk-\0", "sk-\x7f", "sk-ключ", "k" * 8193])
def test_a_key_that_no_header_can_carry_is_refused_where_it_enters(key: str) -> None:
    for model, given in (
        (PolicySpec, POLICY),
        (RemoteSettings, {"kind": "remote", "url": "http://agent"}),
    ):
        with pytest.raises(ValidationError, match="api_key"):
            model.model_validate(given | {"api_key": key})
        model.model_validate(given | {"api_key": "sk-0123/+=~ x"})
    with pytest.raises(ValidationError, match="api_key"):
        TypeAdapter(JudgeSettings).validate_python({"kind": "reward_model", "base_urls": ["http://j"], "api_key": key})


@pytest.mark.parametrize(
    "given",
    [
        {"base_urls": ["http://" + "h" * 2100]},
        {"base_urls": [f"http://{'h' * 200}{number:05}" for number in range(1024)]},
        {"model": "m" * 2000},
    ],
)
def test_a_policy_is_bounded_as_a_whole(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicySpec.model_validate(POLICY | given)


def test_a_policy_may_have_a_thousand_servers() -> None:
    urls = [f"http://vllm-{number}.train.svc.cluster.local:8000/v1" for number in range(1024)]
    assert len(PolicySpec.model_validate(POLICY | {"base_urls": urls}).base_urls) == 1024


@pytest.mark.parametrize("name", [".", "..", "...", "", "a" * 129, "a/b", "a b", "a\n"])
def test_a_name_that_no_path_can_carry_is_no_id(name: str) -> None:
    assert not is_id(name)
    with pytest.raises(ValidationError):
        TypeAdapter(Id).validate_python(name)


@pytest.mark.parametrize("name", ["a", ".a", "a.", "..a", "a..b", "-", ":", "_", "a" * 128, "A.b_c:d-9"])
def test_a_name_of_letters_dots_and_the_like_is_an_id(name: str) -> None:
    assert is_id(name)
    assert TypeAdapter(Id).validate_python(name) == name
