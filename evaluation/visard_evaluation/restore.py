"""An attacker who learns to restore faces: a small network from anonymised pictures to clear ones, at low resolution.

It is trained on the pairs of all folds but one and tried on that one, so that it never saw the people it restores.
Recognisers then look at what it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visard_errors import MissingExtra
from visard_evaluation.folds import FOLDS, folds_of

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("train", "--restore") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

STEPS = 300  # of each training; the pairs there usually are, a hundred or so, teach no more
_BATCH = 8
_RATE = 1e-3
_CHANNELS = (24, 48, 96)


class Restorer(nn.Module):
    """Picture to picture, (N, 3, S, S) in −1..1, S a multiple of 8: a small U-Net that says what to add.

    The first convolution halves the resolution: detail below that tells little about who somebody is at such sizes, and
    a step takes a quarter of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c = _CHANNELS
        self.first = _block(3, a, stride=2)
        self.second = _block(a, b, stride=2)
        self.third = _block(b, c, stride=2)
        self.up_second = _block(c + b, b)
        self.up_first = _block(b + a, a)
        self.last = nn.Conv2d(a, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)  # it begins by changing nothing

    def forward(self, picture: Tensor) -> Tensor:
        """Restore pictures."""
        first = self.first(picture)
        second = self.second(first)
        third = self.third(second)
        up = self.up_second(torch.cat([_doubled(third), second], 1))
        up = self.up_first(torch.cat([_doubled(up), first], 1))
        return (picture + _doubled(self.last(up))).clamp(-1, 1)


def restore(
    published: NDArray[np.uint8],
    clear: NDArray[np.uint8],
    people: Sequence[str],
    progress: Callable[[Iterator[Any]], Iterable[Any]] = lambda steps: steps,
) -> NDArray[np.uint8] | None:
    """Restore every picture by a network that learned from other people alone.

    Args:
        published: (N, S, S, 3) uint8 RGB.
        clear: (N, S, S, 3), what they were made of.
        people: who is in each.
        progress: wraps the steps of all trainings, `FOLDS` times `STEPS`.

    Returns:
        (N, S, S, 3) uint8 RGB; None where there are too few people (`visard_evaluation.folds.FEWEST_PEOPLE`).
    """
    folds = folds_of(people)
    if folds is None:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = (_tensor(each, device) for each in (published, clear))
    restored = np.empty_like(published)
    steps = progress(iter(range(FOLDS * STEPS)))
    counter = iter(steps)
    for fold in range(FOLDS):
        known = torch.from_numpy(np.flatnonzero(folds != fold)).to(device)
        network = _train(x[known], y[known], seed=fold, counter=counter)
        for index in np.flatnonzero(folds == fold):
            with torch.inference_mode():
                made = network(x[index : index + 1])[0]
            restored[index] = ((made + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    next(counter, None)  # lets what counts the steps come to its end
    return restored


def _train(x: Tensor, y: Tensor, *, seed: int, counter: Iterator[Any]) -> Restorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Restorer().to(x.device).train()
        optimiser = torch.optim.AdamW(network.parameters(), _RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=STEPS)
        for _ in range(STEPS):
            next(counter)
            chosen = torch.randint(len(x), (_BATCH,))
            pictures, wanted = x[chosen], y[chosen]
            if torch.rand(()) < 0.5:
                pictures, wanted = pictures.flip(3), wanted.flip(3)
            optimiser.zero_grad()
            functional.l1_loss(network(pictures), wanted).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


def _tensor(pictures: NDArray[np.uint8], device: str) -> Tensor:
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
