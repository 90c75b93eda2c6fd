"""Have the C allocator keep freed memory: training frees and takes the same megabytes again and again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # numbers of glibc's mallopt


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed memory in this process instead of returning it to the system.

    By default glibc returns every large block at once, and the system hands out the next one page by page,
    filled with zeros, which costs small networks a sixth of their time. Without effect, and False, elsewhere
    than on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # 32 MiB is the largest threshold that glibc accepts.
    return all(
        mallopt(option, value) == 1
        for option, value in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 29), (_TOP_PAD, 1 << 24))
    )
