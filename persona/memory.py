"""The C library's memory, set up for training on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""malloc.h of glibc."""
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes glibc keep what is freed for the next step instead of giving it back to the kernel.

    By default every tensor of more than a few MB is mapped afresh, and its pages are zeroed by the
    kernel at first touch, again and again: a third of a training step on the CPU
    (docs/measurements.md).

    Returns whether this is a glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 64 << 20))
    taken = [bool(mallopt(name, value)) for name, value in settings]
    return all(taken)
