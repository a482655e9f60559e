"""The command `visard`, also `python -m visard_cli`."""

import os
import signal


def main() -> None:
    """Load the commands, which takes long enough to be interrupted, and run them."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # nothing is there yet that would have to be unwound
        signal.signal(signal_number, lambda number, _: os._exit(128 + number))
    from visard_cli import app

    app.main()


if __name__ == "__main__":
    main()
