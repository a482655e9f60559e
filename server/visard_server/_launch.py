"""Runs a program that ends with its parent: `python _launch.py PARENT_PID FOLDER SHARED_MEMORY PROGRAM [ARGUMENT…]`.

It stays beside the program and passes SIGTERM on to it. When the program crashes it is started anew, because Triton up
to 25.03 now and then does while callers give up (triton-inference-server/server, pull requests 7840 and 8078). When it
is killed it is started anew once. When the parent is gone, however that ended, nobody is left to end the program or to
tidy up: then it kills the program and all that this started, and removes FOLDER and the shared memory whose names begin
with SHARED_MEMORY. Triton's own end is not enough: a model's process that is still starting may then wait for Triton
for ever.

It runs isolated, before any environment is set up, and imports the standard library only.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS}
KILLED = -signal.SIGKILL  # by the kernel, where memory is short: once may be an accident
MAX_CRASHES, WITHIN_S = 3, 60.0  # more of them are no race but a fault that a new start does not mend
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>; the first survives exec

prctl = ctypes.CDLL(None).prctl
parent, folder, segments, *command = sys.argv[1:]
# Not SIGTERM for the parent's death: it comes when the first thread of a dying parent ends, and then nothing else tells
# it from the parent's own wish.
PARENT_DIED = signal.SIGUSR1
signals = {PARENT_DIED, signal.SIGTERM, signal.SIGCHLD}


def before_exec() -> None:
    """End the program with this process, and let it have its signals."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def start() -> subprocess.Popen[bytes]:
    """Start the program."""
    return subprocess.Popen(command, preexec_fn=before_exec)  # noqa: S603 -- there is no thread for it to disturb


def tidy_up() -> None:
    """Kill all that was started, and leave nothing of it in shared memory."""
    program.kill()
    program.wait()
    with suppress(ChildProcessError):  # until there are no more: what the program started is this process's own now
        while True:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split():
                os.kill(int(child), signal.SIGKILL)
            os.wait()
    for segment in Path("/dev/shm").glob(f"{segments}*"):  # noqa: S108 -- where Linux keeps POSIX shared memory
        segment.unlink(missing_ok=True)


signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # they are waited for
prctl(_PR_SET_PDEATHSIG, PARENT_DIED)
prctl(_PR_SET_CHILD_SUBREAPER, 1)
program = start()
orphaned = os.getppid() != int(parent)  # before the lines above, so that no signal will come
asked = False
crashes: list[float] = []
kills = 0
while not orphaned:
    if program.poll() is not None:
        crashes = [at for at in crashes if time.monotonic() - at < WITHIN_S]
        kills += program.returncode == KILLED
        mendable = program.returncode in CRASHES or (program.returncode == KILLED and kills == 1)
        if asked or not mendable or len(crashes) >= MAX_CRASHES:
            break
        crashes.append(time.monotonic())
        tidy_up()
        with suppress(OSError):  # nobody reads the log any more
            print(f"Triton ended ({signal.Signals(-program.returncode).name}) and is started anew", flush=True)
        program = start()
    received = signal.sigwait(signals)
    if received == signal.SIGTERM:
        asked = True
        program.terminate()
    orphaned = received == PARENT_DIED
if orphaned or PARENT_DIED in signal.sigpending():
    tidy_up()
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(program.wait())
