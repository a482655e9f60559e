"""What the tests of training share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small are faster on one thread than on several, and their sums stay in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
