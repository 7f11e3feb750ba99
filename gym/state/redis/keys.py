r"""Every key in Redis and its contents.

Keys of a batch (`{B}` is the hash tag, so that all of them are on one node of a cluster):

| key | type | holds |
|---|---|---|
| meta | hash | spec, digest, run, ledger, dispatched, fence, logged, `parked\|ENVIRONMENT`, `owed\|MEMBER` |
| seq | string | the next row number |
| rows | hash | row number → `SAMPLES ENVIRONMENT PUBLISHED_MS TASK_ID\n` and the row as it was sent |
| tasks | hash | task id given by the caller → `ROW DIGEST` |
| backlog | list | `ROW:FROM:TO:ENVIRONMENT`, samples [FROM, TO) that wait, next one at the head |
| later | zset | `ROW:SAMPLE:ENVIRONMENT` that wait for a retry, by the time in ms when they may run |
| live | hash | member → `STATE\|ATTEMPT\|TOKEN\|SINCE\|ENVIRONMENT\|WORKER`, STATE of `d r w s j` |
| done | hash | member → `STATE\|ATTEMPT\|TOKEN\|LOG_ID` |
| log | stream | `MS-NUMBER` → a result, in order of completion: `m` member, and `j` record unless the farm ended it |
| traj | hash | member → trajectory, or a pointer to it; member and `\|replay` → calls of an attempt handed back |
| tries | hash | member → one JSON line for each failed attempt |
| groups | hash | row number → usable rollouts, where `early_stop` counts them |
| stats | hash | `ENVIRONMENT\|FIELD` → sums |
| parked | zset | `ENVIRONMENT\|ROW:FROM:TO` (row in 12 digits), parked until their environment works again |
| suspects | hash | member that was present at several deaths of a worker → token of its last run alone |
| tombs | set | cancelled before submission: `*`, row numbers, members |
| awaiting | zset | `JUDGE\|DUE_MS\|MEMBER` that wait for a judge, in order; `pDUE_MS` if parked |
| judging | hash | member → a line of JSON on its judging, its record so far, then a line for each failed try |
| asks | hash | member → its verifier's questions to a judge, or a pointer to them; kept for rejudging |
| judges | hash | `JUDGE\|waiting`, `\|asked`, `\|parked` → number of waiting, sent and parked rollouts |
| stops | hash | row number → `NEXT\|LETTER\|REASON`: its samples from NEXT on are being ended |
| staging | hash | request → `SINCE_MS FROM:TO …`, row numbers that are in `rows` but not published yet |
| feeds | hash | consumer → when it had acknowledged everything in ms, empty before |
| feed:C | hash | of consumer C: `unit` that it leases, `cursor` in the log up to which it was handed results |
| feed-out:C | zset | unacknowledged results: log id (a group's last) → end of its lease in ms |
| feed-leases:C | hash | lease → its results, `LOG_ID` or `LOG_ID*RESULTS` |
| feed-ends:C | zset | lease → its end in ms |
| publisher | string | the request whose task ids are being compared; expires |
| stage:R | list | rows of request R that are not published yet; `stage:R:tasks` beside it |
"""

from dataclasses import dataclass

from gym.state.redis.capture_keys import CaptureKeys


@dataclass(frozen=True, slots=True)
class BatchKeys:
    """The keys of one batch."""

    prefix: str
    batch_id: str

    def _key(self, name: str) -> str:
        return f"{self.prefix}:b:{{{self.batch_id}}}:{name}"

    @property
    def meta(self) -> str:
        return self._key("meta")

    @property
    def seq(self) -> str:
        return self._key("seq")

    @property
    def rows(self) -> str:
        return self._key("rows")

    @property
    def tasks(self) -> str:
        return self._key("tasks")

    @property
    def backlog(self) -> str:
        return self._key("backlog")

    @property
    def later(self) -> str:
        return self._key("later")

    @property
    def live(self) -> str:
        return self._key("live")

    @property
    def done(self) -> str:
        return self._key("done")

    @property
    def log(self) -> str:
        return self._key("log")

    @property
    def traj(self) -> str:
        return self._key("traj")

    @property
    def tries(self) -> str:
        return self._key("tries")

    @property
    def groups(self) -> str:
        return self._key("groups")

    @property
    def stats(self) -> str:
        return self._key("stats")

    @property
    def tombs(self) -> str:
        return self._key("tombs")

    @property
    def awaiting(self) -> str:
        return self._key("awaiting")

    @property
    def judging(self) -> str:
        return self._key("judging")

    @property
    def asks(self) -> str:
        return self._key("asks")

    @property
    def judges(self) -> str:
        return self._key("judges")

    @property
    def staging(self) -> str:
        return self._key("staging")

    @property
    def feeds(self) -> str:
        return self._key("feeds")

    def feed(self, consumer: str) -> list[str]:
        """Return the keys of a consumer, in the order in which `feed.lua` names it after `feeds`."""
        return [self._key(f"{name}:{consumer}") for name in ("feed", "feed-out", "feed-leases", "feed-ends")]

    @property
    def parked(self) -> str:
        return self._key("parked")

    @property
    def suspects(self) -> str:
        return self._key("suspects")

    @property
    def stops(self) -> str:
        return self._key("stops")

    def stage(self, request_id: str) -> str:
        """Rows of a request that is still being read."""
        return self._key(f"stage:{request_id}")

    def stage_tasks(self, request_id: str) -> str:
        """The task ids of `stage`, element by element."""
        return self._key(f"stage:{request_id}:tasks")

    def stage_progress(self, request_id: str) -> str:
        """Number of rows of a large `stage` that were compared with the batch's tasks."""
        return self._key(f"stage:{request_id}:progress")

    @property
    def publisher(self) -> str:
        return self._key("publisher")

    def stage_done(self, request_id: str) -> str:
        """Answer of the publication, so that a repeated script call answers the same."""
        return self._key(f"stage:{request_id}:done")

    def scripted(self) -> list[str]:
        """Return the keys that every script takes, in the order in which `lib.lua` names them."""
        return [
            self.meta,
            self.rows,
            self.tasks,
            self.backlog,
            self.later,
            self.live,
            self.done,
            self.log,
            self.traj,
            self.tries,
            self.groups,
            self.stats,
            self.tombs,
            self.staging,
            self.parked,
            self.suspects,
            self.awaiting,
            self.judging,
            self.asks,
            self.judges,
            self.stops,
        ]

    def everything(self) -> list[str]:
        """Return all lasting keys of the batch but those of its consumers (`feed`, by the names in `feeds`)."""
        return [*self.scripted(), self.seq, self.feeds]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a farm."""

    prefix: str = "farm"

    def batch(self, batch_id: str) -> BatchKeys:
        return BatchKeys(self.prefix, batch_id)

    def capture(self, rollout_id: str, attempt: int) -> CaptureKeys:
        return CaptureKeys(self.prefix, rollout_id, attempt)

    @property
    def agent_secret(self) -> str:
        """string: the secret that signs the keys of agents (`gym.agents.outside.keys`)."""
        return f"{self.prefix}:agent-secret"

    @property
    def batches(self) -> str:
        """zset: every batch by its creation in ms."""
        return f"{self.prefix}:batches"

    @property
    def active(self) -> str:
        """zset: batches that have not ended, by their creation in ms."""
        return f"{self.prefix}:active"

    @property
    def kept(self) -> str:
        """zset: ended batches that are still kept, by their end in ms."""
        return f"{self.prefix}:kept"

    @property
    def stored(self) -> str:
        """hash: those of `kept` that have trajectories → their bytes."""
        return f"{self.prefix}:stored"

    @property
    def tombstoned(self) -> str:
        """zset: batches cancelled, wholly or in part, before submission, by the expiry of that in ms."""
        return f"{self.prefix}:tombstoned"

    @property
    def staged(self) -> str:
        """zset: batches with staged rows, by the time in ms of the last of them."""
        return f"{self.prefix}:staged"

    @property
    def wake(self) -> str:
        """List of at most one element: wakes the dispatcher."""
        return f"{self.prefix}:wake"

    @property
    def share(self) -> str:
        """hash: run → its virtual time in the fair share."""
        return f"{self.prefix}:share"

    @property
    def dispatcher(self) -> str:
        """String with a time to live: name of the leading dispatcher."""
        return f"{self.prefix}:dispatcher"

    @property
    def dispatcher_tick(self) -> str:
        """String with a time to live: the leading dispatcher's last tick, or its failure, JSON."""
        return f"{self.prefix}:dispatcher-tick"

    @property
    def format(self) -> str:
        """string: the version of the stored data (`gym.state.redis.format`)."""
        return f"{self.prefix}:format"

    @property
    def unreadable_messages(self) -> str:
        """List with a time to live: the last broker messages that were not jobs, newest first, JSON."""
        return f"{self.prefix}:unreadable-messages"

    @property
    def workers(self) -> str:
        """zset: worker → end of its lease in ms of the server's clock."""
        return f"{self.prefix}:workers"

    @property
    def worker_info(self) -> str:
        """hash: worker → its kind and load, JSON."""
        return f"{self.prefix}:worker-info"

    def assigned(self, worker: str) -> str:
        """String with a time to live: the rollouts assigned to a worker, JSON (`gym.state.assignments`)."""
        return f"{self.prefix}:assigned:{worker}"

    @property
    def judge_replicas(self) -> str:
        """zset: `JUDGE REPLICA` → end of its lease in ms of the server's clock."""
        return f"{self.prefix}:judge-replicas"

    @property
    def judge_replica_info(self) -> str:
        """hash: `JUDGE REPLICA` → URL, capacity, state and more, JSON (`gym.state.replicas`)."""
        return f"{self.prefix}:judge-replica-info"

    @property
    def judge_pool(self) -> str:
        """String with a time to live: state of the judge pool, JSON."""
        return f"{self.prefix}:judge-pool"

    @property
    def judge_pool_orders(self) -> str:
        """list: orders of `farm judge drain` and `scale` to the pool, JSON."""
        return f"{self.prefix}:judge-pool-orders"

    def verdict(self, judge: str, version: str, digest: str) -> str:
        """String with a time to live: a verdict, by judge, its version and digest of the question, JSON."""
        return f"{self.prefix}:verdict:{judge}:{version}:{digest}"

    @property
    def policies(self) -> str:
        """hash: policy → its spec, JSON."""
        return f"{self.prefix}:policies"

    @property
    def policies_paused(self) -> str:
        """hash: policy → `hold` or `drain`, while it is paused."""
        return f"{self.prefix}:policies-paused"

    @property
    def policies_version(self) -> str:
        """hash: policy → the version last announced."""
        return f"{self.prefix}:policies-version"

    @property
    def policies_load(self) -> str:
        """hash: process → the revision that it has seen, and its calls in flight and held, JSON."""
        return f"{self.prefix}:policies-load"

    @property
    def policies_revision(self) -> str:
        """string: grows with every change of a policy."""
        return f"{self.prefix}:policies-revision"

    @property
    def policies_changes(self) -> str:
        """stream: an entry for the newest change of a policy, which wakes waiting processes."""
        return f"{self.prefix}:policies-changes"

    @property
    def breakers(self) -> str:
        """hash: `KIND|NAME` → consecutive failures of a policy, environment or judge, JSON; mostly empty."""
        return f"{self.prefix}:breakers"

    @property
    def configured_policies(self) -> str:
        """hash: policy → digest of the settings' spec that was registered last."""
        return f"{self.prefix}:configured-policies"

    def row_job(self, address: str) -> str:
        """string: the job that rows from an address belong to (`POST /run`); expires."""
        return f"{self.prefix}:row-job:{address}"

    @property
    def sessions(self) -> str:
        """zset: every environment session by its expiry in ms."""
        return f"{self.prefix}:sessions"

    def sessions_of(self, owner: str) -> str:
        """zset: the sessions that were opened with one API key, by their expiry in ms."""
        return f"{self.prefix}:sessions-of:{owner}"

    def session(self, session_id: str) -> str:
        """hash: a session's `worker`, `environment`, `owner`, `created_at`, `expires_at`; expires."""
        return f"{self.prefix}:session:{session_id}"

    def session_calls(self, worker: str) -> str:
        """list: calls of sessions for a worker, JSON."""
        return f"{self.prefix}:session-calls:{worker}"

    def session_answers(self, asker: str) -> str:
        """list: answers to the calls of one api process, JSON."""
        return f"{self.prefix}:session-answers:{asker}"

    @property
    def totals(self) -> str:
        """hash: counters of the whole farm since its first start."""
        return f"{self.prefix}:totals"

    @property
    def ends(self) -> str:
        """hash: outcome → number of rollouts; `again|OUTCOME` → those taken back (`gym.state.ledger.ends`)."""
        return f"{self.prefix}:{{ends}}:farm"

    @property
    def ends_folded(self) -> str:
        """hash: batch → `CREATED_MS|NAME=VALUE …`, its counts that are in `ends`."""
        return f"{self.prefix}:{{ends}}:folded"

    @property
    def alarms_standing(self) -> str:
        """hash: `KIND|BATCH|WORKER` → the standing alarm, JSON."""
        return f"{self.prefix}:{{alarms}}:standing"

    @property
    def alarms_log(self) -> str:
        """stream: `event` raised or cleared, and `alarm`, JSON; capped."""
        return f"{self.prefix}:{{alarms}}:log"
