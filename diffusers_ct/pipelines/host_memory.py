"""Memory of this process that is used again, where the C library would give it back and ask for it anew."""

import ctypes
import sys

# Parameters of `mallopt` (man 3 mallopt; their numbers are those of malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, for what it needs next.

    A tile's activations are tens of megabytes each. Of that size glibc maps every tensor anew and unmaps it, and the
    kernel fills each page with zeros when it is first touched: half of the time of restoring a scan of 512 x 512 on a CPU.
    From this call on freed memory stays with the process, until it ends: its size is that of its peak.

    Returns:
        Whether it is so: on Linux with glibc; elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` (man 3 mallinfo); `fordblks` is what is free in the heap."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def kept_bytes() -> int:
    """What this process has freed and not given back; 0 where the C library does not tell (only glibc from 2.33 on does)."""
    if sys.platform != "linux":
        return 0
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo.restype = _MallInfo
    return int(mallinfo().fordblks)
