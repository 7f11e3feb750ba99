"""The Celery app: a carrier of jobs that hold ids only.

Jobs are acknowledged early and have no Celery results: the farm does recovery and results itself. The queue's name
carries a version, since a worker of another version would drop jobs that it does not know.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from gym.config import Settings, broker_url
from workers.process.broker import TRANSPORT

QUEUE_VERSION = 2
URGENT, USUAL = 0, 5
"""Priorities of jobs; in Redis 0 is the highest, and each has a list of its own."""
RUN_JOB = "farm.run_rollouts"
JUDGE_JOB = "farm.judge_rollouts"


def queue_name(prefix: str) -> str:
    """Return the name of the queue of rollouts that wait for a worker."""
    return f"{prefix}.rollouts.v{QUEUE_VERSION}"


def judging_queue_name(prefix: str) -> str:
    """Return the name of the queue of rollouts that wait for a judge worker."""
    return f"{prefix}.judging.v{QUEUE_VERSION}"


def queue_lists(queue: str, global_prefix: str) -> list[str]:
    """Return the keys of a queue in the broker's Redis, that of urgent jobs first."""
    return [f"{global_prefix}{queue}", f"{global_prefix}{queue}\x06\x16{USUAL}"]


def create_celery(settings: Settings, **changes: Any) -> Celery:
    """Create the app of workers, dispatcher and Flower; `workers.jobs` registers jobs. `changes`: of its settings."""
    app = Celery("farm", broker=broker_url(settings.redis), set_as_current=False)
    app.conf.update(celery_config(settings) | changes)
    return app


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings."""
    return {
        "broker_transport": TRANSPORT,
        "result_backend": None,
        "result_backend_thread_safe": True,  # else each new thread looks through all installed packages for one
        "task_ignore_result": True,
        "task_default_queue": queue_name(settings.redis.prefix),
        "task_acks_late": False,
        "task_default_priority": USUAL,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_track_started": False,
        "task_send_sent_event": False,
        "worker_send_task_events": True,
        "worker_pool": "threads",
        # a thread for each slot, made when it is needed: slices may be as small as one rollout
        "worker_concurrency": settings.worker.concurrency,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_remote_control": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            # recovery is the farm's: no copies of delivered jobs in Redis, whose failed write would end the worker
            "ack_emulation": False,
            "priority_steps": [URGENT, USUAL],
            "global_keyprefix": f"{settings.redis.prefix}.",
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    }
