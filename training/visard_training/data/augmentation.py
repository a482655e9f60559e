"""Variety for few faces: what ordinary photographs differ in, drawn anew for every picture of every batch.

Pictures are (N, 3, S, S) float32 RGB in 0..1, parameters come from a generator on the CPU, so that one seed draws the
same for every device.
"""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

MAX_ANGLE = math.radians(15)
MAX_LOG_SCALE = 0.18  # 0.84 to 1.2 times
MAX_SHIFT = 0.06  # of the picture's edge
MAX_LIGHT = 0.35  # how much brighter one side may be than the middle
BLUR_SHARE, MAX_REDUCTION = 0.35, 4.0
NOISE_SHARE, MAX_NOISE = 0.35, 0.06
JPEG_SHARE, JPEG_QUALITY = 0.3, (20, 80)
GREY_SHARE = 0.08
ERASE_SHARE, MAX_ERASE = 0.25, 0.4  # of the picture's edge
SURROUND_SHARE = 0.35
FACE_CENTRE, FACE_RADII = (0.5, 0.58), (0.28, 0.37)  # x, y of the oval from jaw to hairline in an aligned face

_LUMA = (0.299, 0.587, 0.114)


def flip(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every second picture, on average: the published recipe's only augmentation."""
    mirrored = torch.rand(len(pictures), generator=generator).to(pictures.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(-1), pictures)


def strong(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, change hair; turn, scale and shift; change light and colour; reduce, add noise, compress; cover a part."""
    pictures = surround(flip(pictures, generator), generator)
    pictures = turn(pictures, generator)
    pictures = relight(pictures, generator)
    pictures = degrade(pictures, generator)
    return erase(pictures, generator)


def surround(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Put some faces into the hair and before the background of the batch's next one: they say little about a face."""
    size = pictures.shape[-1]
    struck = torch.rand(len(pictures), generator=generator) < SURROUND_SHARE
    at = (torch.arange(size) + 0.5) / size
    (x, y), (across, along) = FACE_CENTRE, FACE_RADII
    distance = torch.hypot((at - x) / across, (at[:, None] - y) / along)  # 1 on the oval's rim
    face = torch.sigmoid((1 - distance) / 0.04).to(pictures.device)
    mixed = pictures * face + pictures.roll(-1, 0) * (1 - face)
    return torch.where(struck.view(-1, 1, 1, 1).to(pictures.device), mixed, pictures)


def turn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift in one resampling; beyond the edge the picture continues as its reflection."""
    n = len(pictures)
    angle, log_scale, x, y = _between(-1, 1, (4, n), generator)
    scale = torch.exp(-MAX_LOG_SCALE * log_scale)
    cosine, sine = torch.cos(MAX_ANGLE * angle) * scale, torch.sin(MAX_ANGLE * angle) * scale
    matrices = torch.stack([cosine, -sine, 2 * MAX_SHIFT * x, sine, cosine, 2 * MAX_SHIFT * y], 1).view(n, 2, 3)
    grid = functional.affine_grid(matrices.to(pictures.device), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def relight(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Change gamma, contrast, brightness, tint, saturation, and light that falls in from one side."""
    n, device = len(pictures), pictures.device
    gamma, contrast, brightness, saturation, strength, direction = (
        row.view(n, 1, 1, 1).to(device) for row in _between(-1, 1, (6, n), generator)
    )
    tint = _between(0.88, 1.12, (n, 3, 1, 1), generator).to(device)
    grey_only = (torch.rand((n, 1, 1, 1), generator=generator) < GREY_SHARE).to(device)
    axis = torch.linspace(-1, 1, pictures.shape[-1], device=device)
    towards = axis * torch.cos(math.pi * direction) + axis[:, None] * torch.sin(math.pi * direction)
    pictures = pictures.clamp(0, 1) ** torch.exp(0.35 * gamma)
    pictures = pictures * (1 + MAX_LIGHT * strength * towards) * tint
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * torch.exp(0.35 * contrast) + 0.12 * brightness
    grey = (pictures * torch.tensor(_LUMA, device=device).view(3, 1, 1)).sum(1, keepdim=True)
    kept = torch.where(grey_only, torch.zeros_like(saturation), torch.exp(0.5 * saturation))
    return (grey + (pictures - grey) * kept).clamp(0, 1)


def degrade(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Lose detail as small, dark and much-compressed photographs do; each loss strikes some pictures."""
    n, size = len(pictures), pictures.shape[-1]
    strikes = torch.rand((3, n), generator=generator) < torch.tensor([[BLUR_SHARE], [NOISE_SHARE], [JPEG_SHARE]])
    reduction, deviation, quality = torch.rand((3, n), generator=generator)
    pictures = pictures.clone()
    for i in strikes[0].nonzero().flatten().tolist():
        smaller = max(8, round(size / MAX_REDUCTION ** float(reduction[i])))
        small = functional.interpolate(pictures[i : i + 1], smaller, mode="bilinear", antialias=True)
        pictures[i : i + 1] = functional.interpolate(small, size, mode="bicubic")
    noisy = strikes[1].nonzero().flatten()
    noise = torch.randn((len(noisy), *pictures.shape[1:]), generator=generator)
    noise *= MAX_NOISE * deviation[noisy].view(-1, 1, 1, 1)
    pictures[noisy.to(pictures.device)] += noise.to(pictures.device)
    pictures = pictures.clamp(0, 1)
    low, high = JPEG_QUALITY
    for i in strikes[2].nonzero().flatten().tolist():
        pictures[i] = _compress(pictures[i], round(low + (high - low) * float(quality[i])))
    return pictures


def erase(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Cover a rectangle of some pictures with one colour, so that no single feature decides."""
    n, size = len(pictures), pictures.shape[-1]
    struck = torch.rand(n, generator=generator) < ERASE_SHARE
    width, height, x, y = torch.rand((4, n), generator=generator)
    colours = torch.rand((n, 3, 1, 1), generator=generator).to(pictures.device)
    pictures = pictures.clone()
    for i in struck.nonzero().flatten().tolist():
        w, h = (1 + int(MAX_ERASE * size * float(edge[i])) for edge in (width, height))
        left, top = int(float(x[i]) * (size - w)), int(float(y[i]) * (size - h))
        pictures[i, :, top : top + h, left : left + w] = colours[i]
    return pictures


def _between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _compress(picture: Tensor, quality: int) -> Tensor:
    """Send one (3, S, S) picture through JPEG and back."""
    pixels = (picture.permute(1, 2, 0) * 255).round().to("cpu", torch.uint8).numpy()
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(buffer)))
    return (decoded.permute(2, 0, 1).float() / 255).to(picture.device)
