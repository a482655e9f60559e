"""In which precision a served network computes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from visard_export.options import Precision


def in_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """Copy a network for serving, its weights in a precision."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    return network.half() if precision == "fp16" else network.float()


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type that a network's weights have, and its inputs must have."""
    return next(network.parameters()).dtype
