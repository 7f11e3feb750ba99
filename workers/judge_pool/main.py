"""`python -m workers.judge_pool.main PLAN`: the pool as a process, under the interpreter of its Ray.

SIGTERM drains, a second one ends it at once. Exit status: 0 drained, 2 impossible plan, 75 try again (a supervisor
does). When the head of the cluster is lost, Ray itself ends the process with status 1. The leases of its replicas
expire, and the next process marks them down and deploys again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from gym.processes.liveness import Heartbeat, serve_liveness_in_thread
from workers.judge_pool.board import Board
from workers.judge_pool.placing import lacking
from workers.judge_pool.plan import PoolPlan
from workers.judge_pool.pool import TICK_S, Pool
from workers.judge_pool.ray_cluster import RayUnusable, connected
from workers.judge_pool.resp import Redis, RedisAway

BAD_INPUT, TRY_AGAIN = 2, 75
LOOK_WITHIN_S = 300.0  # a look may wait for Ray; one that takes longer is stuck


def main(argv: list[str]) -> int:
    """Run the pool of the plan in the file; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    plan = PoolPlan.read(Path(argv[0]))
    stop, now = threading.Event(), threading.Event()

    def on_signal(*_: object) -> None:
        (now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    board = Board(Redis(plan.redis_url), plan.keys)
    try:
        board.mark_down([each.judge for each in plan.deployments])
        if not plan.deployments:
            return _complain("no judge of the settings is to be deployed: list some under pool.judges", BAD_INPUT)
        with connected(plan.cluster) as ray:
            return _serve(ray, plan, board, stop, now)
    except RayUnusable as error:
        return _complain(str(error), BAD_INPUT)
    except RedisAway as error:
        return _complain(str(error), TRY_AGAIN)


def _serve(ray: Any, plan: PoolPlan, board: Board, stop: threading.Event, now: threading.Event) -> int:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    problems = lacking(plan.deployments, nodes)
    if problems:
        return _complain("; ".join(problems), BAD_INPUT)
    described = {
        "pid": os.getpid(),
        "ray": ray.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "address": ray.get_runtime_context().gcs_address,
        "attached": plan.cluster.address is not None,
        "namespace": plan.cluster.namespace,
    }
    pool = Pool(ray, board, plan.deployments, host=plan.host, described=described)
    sys.stdout.write(f"ready {described['address']}\n")
    sys.stdout.flush()
    heartbeat = Heartbeat(LOOK_WITHIN_S)
    serve_liveness_in_thread("judge", heartbeat.problem)
    while not stop.wait(TICK_S):
        heartbeat.turn()
        pool.look()
    pool.drain(now.is_set)
    return 0


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
