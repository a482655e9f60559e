"""Makes the checkout's packages importable where nothing is installed but torch, numpy and what they need.

To be imported before `visard_export`: its networks need two small packages more, for declarations (`annotated_types`)
and for the demo's pictures of personas (Pillow). Where those are missing, names stand in for them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PACKAGES = [str(ROOT / folder) for folder in ("benchmarks", "export", "errors")]
HAS_PILLOW = importlib.util.find_spec("PIL") is not None

sys.path[:0] = PACKAGES  # first: another checkout may be installed


def _stand_in(name: str, **attributes: object) -> None:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


if importlib.util.find_spec("annotated_types") is None:
    _stand_in("annotated_types", Interval=dict)
if not HAS_PILLOW:
    _stand_in("PIL", Image=None)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it has ended, however that ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
