"""The client against a farm in memory, over HTTP and over Redis."""

import pytest

from gym.client import AsyncFarm, Farm, connect, connect_sync
from gym.client.exchange import RetryPolicy
from gym.client.farm import AsyncFarm as _AsyncFarm
from gym.client.transport import AsyncTransport, SyncTransport
from gym.errors import Conflict, Invalid, NotFound, Unauthorized, Unavailable
from gym.jsontypes import JsonObject
from gym.testing.stand_ins.fake_farm import FakeFarm, Fault, Mishap

QUICK = RetryPolicy(retries=3, first_s=0.001, most_s=0.002)


def row(number: int = 0, **more: object) -> JsonObject:
    return {"responses_create_params": {"input": f"How is the weather in city {number}?"}, **more}


def rows(count: int) -> list[JsonObject]:
    return [row(number) for number in range(count)]


def quick(fake: FakeFarm) -> Farm:
    return Farm(SyncTransport(fake.url, api_key=None, timeout_s=5, policy=QUICK))


def quick_async(fake: FakeFarm) -> AsyncFarm:
    return _AsyncFarm(AsyncTransport(fake.url, api_key=None, timeout_s=5, policy=QUICK))


@pytest.mark.both_carriers
def test_a_small_batch_is_one_request_and_its_results_are_typed(fake: FakeFarm) -> None:
    with quick(fake) as client:
        batch = client.submit(rows(2), environment="weather", run="run-a", num_samples=2)
        results = list(batch.results())
    assert fake.requests[0] == "POST /v1/batches"
    assert "rows" not in "".join(fake.requests)
    assert sorted((result.task_id, result.sample_index, result.reward) for result in results) == [
        ("row-0", 0, 1.0),
        ("row-0", 1, 1.0),
        ("row-1", 0, 1.0),
        ("row-1", 1, 1.0),
    ]
    assert {result.run for result in results} == {"run-a"}
    assert results[0].usage.output_tokens == 5
    assert results[0].raw["model_calls"] == results[0].model_calls == 2


@pytest.mark.both_carriers
def test_a_large_batch_is_streamed_and_then_sealed(fake: FakeFarm) -> None:
    with quick(fake) as client:
        batch = client.submit((row(number) for number in range(1_500)), environment="weather")
        status = batch.status()
    assert [request.rpartition("/")[2] for request in fake.requests] == [
        "batches",
        "rows",
        "seal",
        batch.batch_id,
        batch.batch_id,
    ]
    assert status.ledger.submitted == status.ledger.succeeded == 1_500
    assert status.ended
    assert batch.created is not None
    assert batch.created["submitted"] == 1_500


@pytest.mark.both_carriers
@pytest.mark.parametrize("mishap", ["503", "429", "accept_then_503", "accept_then_drop", "drop"])
@pytest.mark.parametrize("step", ["", "/*/rows", "/*/seal"])
def test_a_retry_never_submits_twice(fake: FakeFarm, mishap: Mishap, step: str) -> None:
    fake.faults += [Fault("POST", f"/v1/batches{step}", mishap)] * 2
    with quick(fake) as client:
        batch = client.submit(rows(1_200 if step else 5), environment="weather")
        status = batch.status()
    assert not fake.faults
    assert list(fake.batches) == [batch.batch_id]
    assert status.ledger.submitted == (1_200 if step else 5)


def test_submitting_the_same_batch_again_changes_nothing(fake: FakeFarm) -> None:
    with quick(fake) as client:
        for count in (3, 1_100):
            for _ in range(2):
                client.submit(rows(count), environment="weather", batch_id=f"mine-{count}")
            assert client.batch(f"mine-{count}").status().ledger.submitted == count


@pytest.mark.parametrize("count", [4, 1_101])
def test_another_body_under_the_same_batch_id_is_a_conflict(fake: FakeFarm, count: int) -> None:
    with quick(fake) as client:
        client.submit(rows(count), environment="weather", batch_id="mine")
        with pytest.raises(Conflict) as caught:
            client.submit(rows(count + 1), environment="weather", batch_id="mine")
    assert caught.value.code == "batch_conflict"
    assert not fake.batches["mine"].cancelled


def test_a_submission_that_collides_leaves_the_other_batch_alone(fake: FakeFarm) -> None:
    with quick(fake) as client:
        client.submit(rows(1_100), environment="weather", batch_id="mine", sealed=False)
        with pytest.raises(Conflict) as caught:
            client.submit(list(reversed(rows(1_100))), environment="weather", batch_id="mine", sealed=False)
    assert caught.value.code == "task_conflict"
    assert not fake.batches["mine"].cancelled


def test_two_submissions_without_an_id_are_two_batches(fake: FakeFarm) -> None:
    with quick(fake) as client:
        first, second = (client.submit(rows(1), environment="weather") for _ in range(2))
    assert first.batch_id != second.batch_id
    assert set(fake.batches) == {first.batch_id, second.batch_id}


def test_rows_refused_by_the_farm_leave_no_batch_running(fake: FakeFarm) -> None:
    bad = [*rows(1_200), row(environment="no_such_environment")]
    with quick(fake) as client, pytest.raises(Invalid) as caught:
        client.submit(bad, environment="weather")
    assert caught.value.code == "unknown_environment"
    assert caught.value.details["row"] == 1_200
    assert [batch.state for batch in fake.batches.values()] == ["cancelled"]


def test_a_cyclic_row_is_refused_before_anything_is_sent(fake: FakeFarm) -> None:
    cyclic = row(1, data={"inner": []})
    cyclic["data"]["inner"].append(cyclic["data"])
    with quick(fake) as client, pytest.raises(Invalid) as caught:
        client.submit([row(0), cyclic], environment="weather")
    assert caught.value.details == {"row": 1, "field": "data.inner.0"}
    assert "cyclic" in caught.value.message
    assert fake.requests == []


def test_options_that_are_wrong_are_refused_before_anything_is_sent(fake: FakeFarm) -> None:
    with quick(fake) as client, pytest.raises(Invalid, match="num_samples") as caught:
        client.submit(rows(1), environment="weather", num_samples=0)
    assert caught.value.details == {"field": "num_samples"}
    assert fake.requests == []


@pytest.mark.both_carriers
def test_reading_results_goes_on_after_lost_connections(fake: FakeFarm) -> None:
    fake.faults += [Fault("GET", "/v1/batches/b/results", mishap) for mishap in ("accept_then_drop", "503", "drop")]
    with quick(fake) as client:
        batch = client.submit(rows(10), environment="weather", batch_id="b")
        task_ids = [result.task_id for result in batch.results()]
    assert not fake.faults
    assert task_ids == [f"row-{number}" for number in range(10)]


@pytest.mark.both_carriers
def test_a_reader_that_comes_back_with_its_cursor_misses_nothing(fake: FakeFarm) -> None:
    with quick(fake) as client:
        batch = client.submit(rows(7), environment="weather")
        reader = batch.results()
        taken = [result.task_id for result, _ in zip(reader, range(4), strict=False)]
        rest = [result.task_id for result in batch.results(after=reader.after)]
    assert taken == ["row-0", "row-1", "row-2", "row-3"]
    assert rest == ["row-3", "row-4", "row-5", "row-6"]


@pytest.mark.both_carriers
def test_rows_can_be_added_until_the_batch_is_sealed(fake: FakeFarm) -> None:
    with quick(fake) as client:
        batch = client.submit(rows(1), environment="weather", sealed=False)
        assert not batch.status().ended
        assert batch.add_rows(rows(2)).accepted == 2
        assert batch.add_rows(rows(2)).accepted == 2
        batch.seal()
        assert batch.wait(timeout_s=5).ledger.submitted == 5
        with pytest.raises(Conflict):
            batch.add_rows(rows(1))


def test_waiting_for_a_batch_that_does_not_end_is_bounded(fake: FakeFarm) -> None:
    with quick(fake) as client:
        batch = client.submit(rows(1), environment="weather", sealed=False)
        with pytest.raises(TimeoutError, match="1 of 1 rollouts"):
            batch.wait(timeout_s=0)


def test_an_api_key_is_sent_with_every_request() -> None:
    with FakeFarm(api_key="a-key-for-this-test") as farm:
        with quick(farm) as client, pytest.raises(Unauthorized):
            client.environments()
        with connect_sync(farm.url, api_key=farm.api_key) as client:
            assert client.environments()


@pytest.mark.both_carriers
def test_errors_of_the_farm_come_as_the_errors_of_the_tree(fake: FakeFarm) -> None:
    with quick(fake) as client, pytest.raises(NotFound) as caught:
        client.batch("nowhere").status()
    assert (caught.value.code, caught.value.details) == ("batch_not_found", {"batch_id": "nowhere"})


def test_retries_are_bounded(fake: FakeFarm) -> None:
    fake.faults += [Fault("GET", "/v1/environments", "503")] * 10
    with quick(fake) as client, pytest.raises(Unavailable) as caught:
        client.environments()
    assert len(fake.faults) == 10 - 1 - QUICK.retries
    assert caught.value.retry_after_s == 0


def test_a_requeue_that_may_have_been_done_is_not_asked_again(fake: FakeFarm) -> None:
    fake.faults += [Fault("POST", "/v1/batches/b/requeue", "accept_then_drop")]
    with quick(fake) as client:
        client.submit(rows(1), environment="weather", batch_id="b")
        with pytest.raises(Unavailable):
            client.batch("b").requeue(error_kinds=["timeout"])
    assert fake.requests.count("POST /v1/batches/b/requeue") == 1


def test_an_address_where_nobody_listens_is_named_as_such() -> None:
    with FakeFarm() as gone:
        url = gone.url
    transport = SyncTransport(url, api_key=None, timeout_s=1, policy=QUICK)
    with Farm(transport) as client, pytest.raises(Unavailable, match="tried 4 times") as caught:
        client.ready()
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("url", ["redis://127.0.0.1/zero", "redis:///0", "127.0.0.1:8700", "ftp://farm"])
def test_an_address_that_cannot_be_a_farm_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        connect_sync(url)
    assert caught.value.code == "unsupported_url"


def test_an_id_is_cancelled_by_its_form(fake: FakeFarm) -> None:
    with quick(fake) as client:
        for item in ("b", "b:0", "b:0:1"):
            client.cancel(item)
        client.cancel("b:7", kind="batch")
    assert fake.requests == [
        "DELETE /v1/batches/b",
        "DELETE /v1/groups/b:0",
        "DELETE /v1/rollouts/b:0:1",
        "DELETE /v1/batches/b:7",
    ]


def test_what_the_farm_offers_can_be_asked(fake: FakeFarm) -> None:
    with quick(fake) as client:
        assert [environment.name for environment in client.environments()] == ["weather"]
        assert client.environment("weather").tools[0]["name"] == "get_weather"
        client.put_policy("p", {"base_urls": ["http://127.0.0.1:1/v1"], "model": "m"})
        assert [policy["name"] for policy in client.policies()] == ["p"]
        client.delete_policy("p")
        client.delete_policy("p")
        assert client.policies() == []
        assert client.workers() == []
        assert client.queues() == {"queues": []}
        assert client.ready().ready
        client.submit(rows(1), environment="weather", batch_id="b")
        assert client.rollout("b:0:0")["task_id"] == "row-0"


@pytest.mark.both_carriers
@pytest.mark.anyio
async def test_the_async_client_does_the_same(fake: FakeFarm) -> None:
    fake.faults += [
        Fault("POST", "/v1/batches/b/rows", "accept_then_drop"),
        Fault("GET", "/v1/batches/b/results", "accept_then_drop"),
    ]
    async with quick_async(fake) as client:
        batch = await client.submit(rows(1_001), environment="weather", batch_id="b")
        count = 0
        async for result in batch.results():
            count += result.reward == 1.0
        status = await batch.wait(timeout_s=5)
    assert count == 1_001
    assert status.ledger.balanced


@pytest.mark.anyio
async def test_the_async_client_reads_environments(fake: FakeFarm) -> None:
    async with connect(fake.url) as client:
        assert (await client.environment("weather")).name == "weather"
