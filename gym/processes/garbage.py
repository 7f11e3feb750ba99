"""Garbage collection in processes that run for weeks."""

from __future__ import annotations

import gc

GC_AFTER = 20_000  # objects that hold others, made and not freed


def collect_garbage_less() -> None:
    """Collect rarely: loaded modules stay, and reference counts free conversations, so a collection finds little."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER, 20, 50)
