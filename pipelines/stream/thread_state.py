"""Python's state of a thread that a C++ library started.

Such a thread has none of its own: each call into Python makes one for it and deletes it after, with memory mapped and
unmapped for its stack. For a callback of one line that costs several times the callback.
"""

from __future__ import annotations

import ctypes
import threading

_here = threading.local()


def keep_thread_state() -> None:
    """Let the calling thread keep its state until it ends; to be called from inside a callback.

    The state is counted once more and never given back (`PyGILState_Ensure` of Python's C API), so some 5 kB stay
    for each such thread after its end: for threads with many calls only.
    """
    if not hasattr(_here, "kept"):
        ctypes.pythonapi.PyGILState_Ensure()
        _here.kept = True
