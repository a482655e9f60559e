"""Becomes another program that ends with its parent: `python _launch.py PARENT_PID PROGRAM [ARGUMENT…]`.

A process of its own because the alternative, code between fork and exec of the parent, is unsafe beside threads.
It runs isolated, before any environment is set up, and imports the standard library only.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; the setting survives exec

ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):  # it ended before the line above: no signal will come
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 -- without a shell is the point
