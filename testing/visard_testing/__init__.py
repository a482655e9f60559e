"""What the tests and the benchmarks share: tiny models, servers and gateways on this machine, and small photographs.

It is not part of the wheel. Nothing that is may import it.
"""

from pathlib import Path

HEIC = Path(__file__).with_name("astronaut.heic")  # the sample photo as a phone writes it; Pillow cannot
