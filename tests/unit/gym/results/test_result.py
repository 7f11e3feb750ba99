"""The definition of a result, checked against every module that repeats its fields."""

import dataclasses
import inspect

import orjson

from api.schemas.results import RecordedOutcome, ResultAnswer, ResultError, UnfinishedRollout
from gym.client import connect_sync
from gym.client.records import Result, RolloutFailure, Timing, read_result
from gym.errors import ErrorKind, Stage
from gym.ids import RolloutRef
from gym.results.result import (
    FULL_FIELDS,
    MARKS,
    OPTIONAL,
    RESULT_FIELDS,
    TIMES,
    ResultFailure,
    RolloutIdentity,
    RolloutResult,
    identity,
)
from gym.rollout import Outcome, StopReason
from gym.testing.stand_ins.fake_farm import FakeFarm

ROLLOUT = RolloutRef("b", 3, 1)


def failed() -> RolloutResult:
    return RolloutResult(
        **identity(ROLLOUT, run="r", task_id="t", environment="weather"),
        attempt=2,
        outcome=Outcome.FAILED,
        stop_reason=StopReason.ERROR,
        error=ResultFailure(kind=ErrorKind.INTERNAL, stage=Stage.COMMIT, message="no", retryable=True, attempts=[{}]),
        worker="w",
        judged_by="j",
        finished_at="1970-01-01T00:00:00.000Z",
    )


def names(cls: type) -> set[str]:
    return {each.name for each in dataclasses.fields(cls)}


def test_the_api_schema_has_the_fields_of_every_view_and_no_others() -> None:
    assert set(ResultAnswer.model_fields) == {*RESULT_FIELDS, *FULL_FIELDS, *MARKS, "state"}
    assert set(ResultError.model_fields) == names(ResultFailure)
    assert {*RecordedOutcome.model_fields} <= {*RESULT_FIELDS}


def test_the_api_schema_accepts_a_record() -> None:
    record = failed().as_dict()
    assert ResultAnswer.model_validate(record).model_dump(mode="json", include=set(record)) == record


def test_an_unfinished_rollout_is_identified_as_a_result_is() -> None:
    assert set(RolloutIdentity.__annotations__) <= set(UnfinishedRollout.model_fields) & set(RESULT_FIELDS)


def test_the_client_reads_every_field() -> None:
    properties = {name for name, _ in inspect.getmembers(Result, lambda each: isinstance(each, property))}
    assert names(Result) | properties >= {*RESULT_FIELDS}
    assert names(Result) - {*RESULT_FIELDS} == {"raw"}
    assert names(RolloutFailure) == names(ResultFailure)
    assert [each.name for each in dataclasses.fields(Timing)] == list(TIMES)


def test_the_client_reads_a_record_back() -> None:
    made, read = failed(), read_result(failed().as_dict())
    for name in set(RESULT_FIELDS) - {"error", "timing", "verdicts", "policy_version"}:
        assert getattr(read, name) == getattr(made, name), name
    assert read.error is not None
    assert read.error.attempts == ({},)


def test_the_fake_farm_answers_with_the_fields_of_a_record() -> None:
    with FakeFarm() as farm, connect_sync(farm.url) as client:
        batch = client.submit([{"responses_create_params": {"input": "?"}, "environment": "weather"}])
        [result] = batch.results()
    assert set(result.raw) == set(RESULT_FIELDS) - OPTIONAL


def test_fields_that_a_record_may_lack_are_left_out() -> None:
    bare = dataclasses.replace(failed(), worker=None, judged_by=None)
    assert list(orjson.loads(bare.as_json())) == [name for name in RESULT_FIELDS if name not in OPTIONAL]
