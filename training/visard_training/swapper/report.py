"""The report of a swapper's training: grids of samples, a table of the losses and their curves."""

from __future__ import annotations

import csv
from io import BytesIO, StringIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from visard_preprocess.files import write_atomically

LOSSES_FILE, CURVE_FILE = "losses.csv", "losses.png"
GRID_ROWS = 8


def grey_levels(pictures: Tensor, targets: Tensor) -> float:
    """Mean absolute difference of pictures in −1..1, as levels of 0..255."""
    return 127.5 * float((pictures - targets).abs().mean())


def write_grid(path: Path, pairs: Tensor, swapped: Tensor) -> None:
    """Save rows of photo, result and target."""
    rows = torch.cat((pairs[:, 0], swapped, pairs[:, 1]), 3)[:GRID_ROWS]  # (rows, 3, S, 3·S)
    sheet = ((rows.permute(0, 2, 3, 1).flatten(0, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    buffer = BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=92)
    write_atomically(path, buffer.getvalue())


def write_losses(output: Path, history: list[dict[str, float]]) -> None:
    """Save the losses as a table and as curves."""
    from matplotlib.figure import Figure

    table = StringIO()
    writer = csv.DictWriter(table, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(output / LOSSES_FILE, table.getvalue().encode())
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    for name in list(history[0])[3:]:  # after step, seconds and rate
        axes.plot([row["step"] for row in history], [row[name] for row in history], label=name)
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(output / CURVE_FILE, buffer.getvalue())
