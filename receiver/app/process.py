"""How the process keeps its memory, which it wants again at once, and which of its threads goes first."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from typing import Final

# glibc's numbers for mallopt (malloc.h), and its environment variables for the same, which go first.
_TRIM_THRESHOLD: Final = (-1, 64 << 20, "MALLOC_TRIM_THRESHOLD_")
_TOP_PAD: Final = (-2, 4 << 20, "MALLOC_TOP_PAD_")
_MMAP_THRESHOLD: Final = (-3, 4 << 20, "MALLOC_MMAP_THRESHOLD_")
_ARENA_MAX: Final = (-8, 1, "MALLOC_ARENA_MAX")


def keep_what_is_freed() -> None:
    """One heap that grows in large steps and is seldom trimmed; before any thread has one of its own.

    Each thread gets an arena from glibc, which grows and shrinks it by a page or two with a system call each time: the
    writer made one for every second callback (a tenth of what one costs). A body of a megabyte is of the heap, too: its
    pages are not asked for and cleared anew. Elsewhere than on glibc nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value, name in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX):
            if name not in os.environ:
                mallopt(parameter, value)


def freeze() -> None:
    """What is here now stays: the collector need not walk through it again and again (15 us of each callback)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def give_way() -> None:
    """Have this thread, the loop's, not interrupt another of the process that is at work on the same core (Linux).

    What the loop is woken for in a COMMIT is then done while that waits for the disk, and not before it has asked it.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
