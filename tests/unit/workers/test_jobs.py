from gym.state.ledger.breakers import BreakerKey, BreakerKind
from gym.state.ledger.rollouts import TakenRollout
from workers.dispatch.publisher import Job, describe
from workers.dispatch.suspects import jobs_of


def test_each_environment_has_a_job_and_the_suspects_one_of_their_own() -> None:
    taken = [
        TakenRollout("sql", "0:0", 1),
        TakenRollout("weather", "1:0", 2),
        TakenRollout("sql", "2:0", 3, suspect=True),
        TakenRollout("sql", "0:1", 1),
        TakenRollout("weather", "3:0", 3, suspect=True),
    ]
    assert jobs_of("b", taken) == [
        Job(batch_id="b", environment="sql", members=[("0:0", 1), ("0:1", 1)]),
        Job(batch_id="b", environment="weather", members=[("1:0", 2)]),
        Job(batch_id="b", environment="sql,weather", members=[("2:0", 3), ("3:0", 3)], alone=True),
    ]


def test_a_probe_says_what_it_probes_and_flower_shows_it() -> None:
    key = BreakerKey(BreakerKind.POLICY, "a:b")
    job = Job(batch_id="b", environment="sql", members=[("0:0", 1)], probe=key)
    arguments = job.arguments()
    assert BreakerKey.parse(arguments["probe"]) == key
    assert describe(arguments) == "{'environment': 'sql', 'batch': 'b', 'rollouts': ['b:0:0'], 'probe': 'policy|a:b'}"
