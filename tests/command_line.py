"""The command line as a process of its own."""

import os
import subprocess
import sys


def visard(*arguments, env=None, timeout=120):
    return subprocess.run(
        [sys.executable, "-m", "visard_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(env or {})},
    )
