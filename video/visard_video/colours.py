"""High dynamic range to the standard one: for clips of phones, whose frames models and screens want in eight bits.

Curves of ITU-R BT.2100 (PQ and HLG), primaries of BT.2020 to BT.709 (BT.2087). What is brighter than grey paper is
compressed, what is darker is left as it is.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
_PAPER = 203.0  # cd/m² of diffuse white, BT.2408
_PEAK = 1000.0  # of the screen that HLG is meant for
_SHOULDER = 0.6  # of paper: from here on brightness is compressed


def from_hdr(pixels: NDArray[np.uint16], curve: str) -> NDArray[np.uint8]:
    """Map (H, W, 3) uint16 RGB of BT.2020 in `PQ` or `HLG` to (H, W, 3) uint8 sRGB."""
    linear = _linear(curve)[pixels] @ _TO_BT709.T  # 1 is paper
    np.clip(linear, 0, None, out=linear)
    brightest = linear.max(axis=2, keepdims=True)  # one factor for all three: no other hue
    room = 1 - _SHOULDER
    compressed = _SHOULDER + room * (1 - np.exp((_SHOULDER - brightest) / room))
    linear *= np.where(brightest > _SHOULDER, compressed / np.maximum(brightest, _SHOULDER), 1)
    level = np.rint(np.clip(linear, 0, 1) * 4095).astype(np.uint16)
    mapped: NDArray[np.uint8] = _gamma()[level]
    return mapped


@cache
def _linear(curve: str) -> NDArray[np.float32]:
    signal = np.arange(65536) / 65535
    if curve == "PQ":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        nits = 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        nits = _PEAK * scene**1.2  # the system gamma of a screen of 1,000 cd/m²
    linear: NDArray[np.float32] = (nits / _PAPER).astype(np.float32)
    return linear


@cache
def _gamma() -> NDArray[np.uint8]:
    linear = np.arange(4096) / 4095
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    levels: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    return levels
