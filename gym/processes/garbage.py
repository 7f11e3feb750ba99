"""Garbage collection in processes that run for weeks."""

from __future__ import annotations

import gc

GC_AFTER = 20_000  # objects that hold others, made and not freed


def collect_garbage_less() -> None:
    """What is loaded stays loaded, and conversations are freed by their counts: few look-overs find anything."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER, 20, 50)
