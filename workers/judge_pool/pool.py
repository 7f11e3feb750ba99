"""The pool: keeps the replicas of every judge running, publishes them, and changes their number.

One loop, one look a second. Invariants: a dead replica is not published as ready from the next look on, and never
after its lease. A replica that is to be removed is `draining` first and ends when its calls are answered. A judge whose
replicas die again and again is `failed` and is left alone until it is scaled by hand; other judges are unaffected.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.judge_pool import replica as replica_module
from workers.judge_pool.board import OURS, Board
from workers.judge_pool.placing import Load, restart_pause_s, wanted_replicas
from workers.judge_pool.plan import Deployment
from workers.judge_pool.resp import RedisAway

TICK_S = 1.0
REPORT_S = 6.0
UNHEALTHY_LOOKS = 5
SEEN_S = 2.0  # judge workers have read within this time that a replica drains
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Member:
    """The pool's view of a replica."""

    name: str
    actor: Any
    born: float
    state: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    missed: int = 0
    draining_since: float | None = None
    asked: Any = None
    asked_at: float = 0.0


@dataclass(slots=True)
class JudgeDeployment:
    """A judge and its replicas."""

    spec: Deployment
    least: int
    most: int
    wanted: int
    members: list[Member] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    calm_since: float = 0.0
    next_start: float = 0.0
    failed: str = ""
    drained: bool = False
    queued: int = 0

    @property
    def running(self) -> list[Member]:
        """The replicas that are not draining."""
        return [member for member in self.members if member.state != "draining"]


class Pool:
    """The replicas of all judges on one cluster."""

    def __init__(
        self,
        ray: Any,
        board: Board,
        deployments: Iterable[Deployment],
        *,
        host: str,
        described: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ray = ray
        self._board = board
        self._host = host
        self._described = described
        self._clock = clock
        self._judges = {
            each.judge: JudgeDeployment(each, each.min_replicas, each.max_replicas, each.min_replicas)
            for each in deployments
        }
        # by value, so that nodes of the cluster need not have the farm installed
        ray.cloudpickle.register_pickle_by_value(replica_module)
        self._actor = ray.remote(replica_module.ReplicaServer)

    def look(self) -> None:
        """Take one look: reports, deaths, orders, scaling, then publishing."""
        now = self._clock()
        for judge in self._judges.values():
            self._collect(judge, now)
        with contextlib.suppress(RedisAway):
            for order in self._board.orders():
                self._obey(order, now)
            queued = self._board.queued(list(self._judges))
            for name, number in queued.items():
                self._judges[name].queued = number
        for judge in self._judges.values():
            self._scale(judge, now)
        self.publish()

    def drain(self, stopping: Callable[[], bool]) -> None:
        """Let every replica finish its calls, then end it; `stopping` tells that time is too short for that."""
        for judge in self._judges.values():
            judge.wanted, judge.drained = 0, True
            for member in judge.running:
                self._retire(member, self._clock())
        self.publish()
        while any(judge.members for judge in self._judges.values()) and not stopping():
            time.sleep(TICK_S / 4)
            for judge in self._judges.values():
                self._collect(judge, self._clock())
            self.publish()

    def publish(self) -> None:
        """Renew the leases; without Redis they expire, and no worker asks the replicas."""
        try:
            self._board.publish(
                [self._entry(judge, member) for judge in self._judges.values() for member in judge.members],
                self.status(),
            )
        except RedisAway as error:
            _LOG.warning("leases not renewed: %s", error, extra={"action": "lease_failed"})

    def status(self) -> dict[str, Any]:
        """Return the status that `farm judge status` shows."""
        return {
            **self._described,
            "judges": {
                name: {
                    "wanted": judge.wanted,
                    "min_replicas": judge.least,
                    "max_replicas": judge.most,
                    "queued": judge.queued,
                    "restarts": len(judge.deaths),
                    "failed": judge.failed,
                    "replicas": [
                        {
                            "replica": member.name,
                            "state": member.state,
                            "url": member.report.get("url"),
                            "pid": member.report.get("pid"),
                            "gpus": member.report.get("gpus"),
                            "in_flight": member.report.get("in_flight", 0),
                            "waiting": member.report.get("waiting", 0),
                        }
                        for member in judge.members
                    ],
                }
                for name, judge in self._judges.items()
            },
        }

    def _collect(self, judge: JudgeDeployment, now: float) -> None:
        """Read and judge the reports that have arrived, and request new ones; never waits for a replica."""
        for member in list(judge.members):
            if member.asked is None:
                member.asked, member.asked_at = member.actor.report.remote(), now
                continue
            done, _ = self._ray.wait([member.asked], timeout=0)
            if done:
                try:
                    member.report = self._ray.get(member.asked, timeout=1.0)
                except Exception as error:  # noqa: BLE001  Ray's errors and the actor's own
                    self._died(judge, member, f"its actor ended: {_first_line(error)}", now)
                    continue
                member.asked, member.asked_at = member.actor.report.remote(), now
                self._judge_report(judge, member, now)
            elif member.state == "ready" and now - member.asked_at > REPORT_S:
                self._died(judge, member, f"its actor did not answer for {REPORT_S:.0f} s", now)
            elif member.state == "starting" and now - member.born > judge.spec.ready_timeout_s:
                self._died(judge, member, "it found no place on the cluster in time, or did not start", now)
            if member.state == "draining":
                self._end_when_idle(judge, member, now)

    def _judge_report(self, judge: JudgeDeployment, member: Member, now: float) -> None:
        report = member.report
        if report["ended"] is not None:
            tail = report.get("tail", "").strip()
            self._died(judge, member, f"its server ended with status {report['ended']}: {tail[-600:]}", now)
        elif report["ready"]:
            member.missed = 0
            if member.state == "starting":
                member.state = "ready"
                _LOG.info("%s is ready at %s", member.name, report["url"], extra={"action": "replica_ready"})
        elif member.state == "starting":
            if now - member.born > judge.spec.ready_timeout_s:
                self._died(judge, member, f"it was not ready after {judge.spec.ready_timeout_s:.0f} s", now)
        else:
            member.missed += 1
            if member.missed >= UNHEALTHY_LOOKS:
                self._died(judge, member, f"/health failed {member.missed} times", now)

    def _died(self, judge: JudgeDeployment, member: Member, why: str, now: float) -> None:
        self._remove(judge, member)
        if member.draining_since is not None:
            return
        _LOG.warning("%s died: %s", member.name, why, extra={"action": "replica_died"})
        judge.deaths.append(now)
        pause = restart_pause_s(judge.deaths, now, window_s=judge.spec.restart_window_s, most=judge.spec.max_restarts)
        if pause is None:
            judge.failed = f"replicas died {len(judge.deaths)} times, the last one since {why}"
            _LOG.error("judge %s has failed: %s", judge.spec.judge, judge.failed, extra={"action": "judge_failed"})
        else:
            judge.next_start = now + pause

    def _remove(self, judge: JudgeDeployment, member: Member) -> None:
        judge.members.remove(member)
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor, no_restart=True)
        with contextlib.suppress(RedisAway):
            self._board.strike_off(judge.spec.judge, member.name)

    def _retire(self, member: Member, now: float) -> None:
        member.state, member.draining_since = "draining", now

    def _end_when_idle(self, judge: JudgeDeployment, member: Member, now: float) -> None:
        assert member.draining_since is not None  # noqa: S101  set with the state
        drained_for = now - member.draining_since
        idle = not (member.report.get("in_flight") or member.report.get("waiting"))
        if (idle and drained_for > SEEN_S) or drained_for > judge.spec.drain_s or not member.report.get("ready"):
            self._remove(judge, member)

    def _scale(self, judge: JudgeDeployment, now: float) -> None:
        running = judge.running
        load = Load(
            queued=judge.queued,
            in_flight=sum(member.report.get("in_flight", 0) for member in running),
            waiting=sum(member.report.get("waiting", 0) for member in running),
        )
        if not judge.drained:
            if -(-(load.queued + load.in_flight + load.waiting) // judge.spec.target_load) >= len(running):
                judge.calm_since = now
            wanted = wanted_replicas(
                load,
                now_running=len(running),
                least=judge.least,
                most=judge.most,
                target=judge.spec.target_load,
                calm_for_s=now - judge.calm_since,
                down_after_s=judge.spec.scale_down_after_s,
            )
            if wanted < len(running):
                judge.calm_since = now  # the next one is removed after an equally long calm
            judge.wanted = wanted
        for member in running[judge.wanted :]:
            self._retire(member, now)
        if judge.failed or now < judge.next_start:
            return
        for _ in range(judge.wanted - len(judge.running)):
            judge.members.append(self._start(judge.spec, now))

    def _start(self, spec: Deployment, now: float) -> Member:
        name = f"{OURS}{secrets.token_hex(4)}"
        actor = self._actor.options(
            name=f"{spec.judge} {name}",
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            resources=dict(spec.resources),
            max_restarts=0,  # the pool counts deaths and starts the next one itself
            max_concurrency=2,
        ).remote(
            spec.command,
            dict(spec.environment),
            host=self._host,
            load_path=spec.load_path,
            hides_gpus=not spec.num_gpus and not any("gpu" in each.lower() for each in spec.resources),
        )
        return Member(name, actor, now)

    def _obey(self, order: Mapping[str, Any], now: float) -> None:
        judge = self._judges.get(str(order.get("judge")))
        if judge is None:
            return
        _LOG.info("order %s", dict(order), extra={"action": "pool_order"})
        if order["do"] == "drain":
            judge.drained, judge.wanted = True, 0
        elif order["do"] == "scale":
            judge.least, judge.most = int(order["min_replicas"]), int(order["max_replicas"])
            judge.drained, judge.failed, judge.next_start = False, "", now
            judge.deaths.clear()

    def _entry(self, judge: JudgeDeployment, member: Member) -> dict[str, Any]:
        """Return the record in the form of gym.state.replicas.Replica."""
        report = member.report
        return {
            "judge": judge.spec.judge,
            "replica": member.name,
            "url": report.get("url") or "",
            "kind": judge.spec.kind,
            "model": str(report.get("model") or judge.spec.model),
            "version": str(report.get("version") or ""),
            "capacity": int(report.get("capacity") or judge.spec.capacity),
            "state": member.state,
            "in_flight": int(report.get("in_flight", 0)),
            "waiting": int(report.get("waiting", 0)),
        }


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
