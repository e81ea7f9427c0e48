"""Sets up the C library's memory allocator for training on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of `mallopt`, from glibc's malloc.h."""
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next optimizer step, instead of returning it.

    By default every tensor of more than a few MB is mapped anew, and the kernel zeroes its pages at
    first touch. This takes a third of a training step on the CPU (docs/measurements.md).

    Returns:
        Whether the C library is glibc and accepted the settings.
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
