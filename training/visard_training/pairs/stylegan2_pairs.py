"""Pairs made with StyleGAN2, in seven steps: the same generated face, moved in w until it is of the other class.

    1  sample z, map it to w, render g(w)                                  `judge_samples`
    2  classify every picture                                              `judge_samples`
    3  keep those of a certain class in which a face is found              `sample_outcome`
    4  C_k = mean of w over class k; Δ = C_male − C_female                 `class_transition`
    5  for new samples render g(w − Δ), g(w − Δ/2), g(w), … g(w + Δ)       `render_versions`
    6  classify all five                                                   `make_pairs`
    7  keep the two that are certain of their classes, or none             `choose_versions`

Everything follows from the seeds: sample number s is drawn by a generator seeded with s, and the same batches are
rendered however often a run is interrupted. `stylegan2_checkpoints.py` reads the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from visard_errors import DataError
from visard_export.checkpoints import load_classifier, sha256_of
from visard_export.graphs import build_graph
from visard_preprocess.align import finder
from visard_preprocess.geometry import CROP_SIZE
from visard_preprocess.machine import cores
from visard_training.pairs.folder import AppendedCsv, PairWriter, Split, Suffix, choose_pair
from visard_training.pairs.options import StyleGAN2Options
from visard_training.pairs.stylegan2 import StyleGAN2Generator
from visard_training.pairs.stylegan2_checkpoints import load_stylegan2
from visard_training.runs.progress import track

MULTIPLES = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of Δ, from female to male
FILTERS = ("certain", "face found")
SAMPLES_FILE, CENTRES_FILE = "samples.csv", "centres.npz"

Classify = Callable[[Tensor], Tensor]  # (N, 512, 512, 3) uint8 RGB → (N, 2) probabilities (female, male)


def make_pairs(
    generator: Path,
    classifier: Path,
    folder: Path,
    options: StyleGAN2Options,
    *,
    tries: int,
    batch_size: int = 10,
    device: str = "cpu",
    suffix: Suffix = ".jpg",
    console: Console | None = None,
) -> dict[str, Any]:
    """Make a folder of pairs; a second call with the same settings resumes where the first ended.

    Args:
        generator: StyleGAN2 weights of either published family, trained on FFHQ-aligned faces.
        classifier: checkpoint of the gender classifier, the judge of every step.
        folder: the pairs, see `pairs.folder`; `samples.csv` and `centres.npz` of steps 1 to 4 lie beside them.
        options: see there.
        tries: how many new samples step 5 starts from; may be raised to add to a finished folder.
        batch_size: pictures rendered at once; five belong to one face in step 5.
        device: of the two networks, as torch names it.
        suffix: of the images.
        console: where the progress bars are drawn.

    Returns:
        The report: how many samples and pairs survive each filter.

    Raises:
        CheckpointError: one of the two networks cannot be used.
        OutputError: the folder cannot be written, or was begun with other settings.
        DataError: the folder is damaged, or the samples of one class are too few for a centre.
    """
    network = load_stylegan2(generator).to(device)
    n_ws = network.architecture.n_ws
    if options.layers is not None and not 1 <= options.layers <= n_ws:
        raise DataError(f"layers must be 1..{n_ws} for '{generator}', not {options.layers}")
    judge = load_classifier(classifier)
    classify = build_graph(judge.network()).to(device)
    settings = {"generator": sha256_of(generator), "classifier": judge.sha256, **asdict(options)}

    with (
        PairWriter(folder, settings=settings, filters=FILTERS, suffix=suffix) as writer,
        ThreadPoolExecutor(cores()) as pool,  # for the face detector, which leaves Python's lock
        torch.inference_mode(),
    ):
        samples = judge_samples(network, classify, folder / SAMPLES_FILE, options, batch_size, pool, console)
        writer.note("samples", samples.survival)
        delta = class_transition(network, samples, options, folder / CENTRES_FILE)

        first = options.seed + options.samples
        batches = list(_batches(range(first, first + tries), max(1, batch_size // len(MULTIPLES))))
        for seeds in track(batches, "Making pairs (steps 5–7)", len(batches), console):
            if all(str(seed) in writer.done for seed in seeds):
                continue
            versions = render_versions(network, seeds, delta, options)  # step 5
            judged = classify(versions.flatten(0, 1)).view(*versions.shape[:2], 2).cpu().numpy()  # step 6
            images = versions.cpu().numpy()
            chosen = pool.map(partial(choose_versions, min_certainty=options.min_certainty), images, judged)  # step 7
            for seed, of_seed, p, sides in zip(seeds, images, judged, chosen, strict=True):
                if str(seed) in writer.done:
                    continue
                if isinstance(sides, str):
                    writer.drop(str(seed), sides)
                    continue
                female, male = sides
                writer.add(
                    of_seed[female],
                    of_seed[male],
                    source=str(seed),
                    female_multiple=MULTIPLES[female],
                    male_multiple=MULTIPLES[male],
                    p_female=float(p[female, 0]),
                    p_male=float(p[male, 1]),
                    split=_split(seed, options.holdout),
                )
        return {"samples": samples.survival, "pairs": writer.survival}


@dataclass(frozen=True)
class Samples:
    """What steps 1 to 3 found.

    Attributes:
        seeds: class → the seeds of its certain samples with a face in them.
        survival: how many samples there were, and how many are left after each filter.
    """

    seeds: dict[str, list[int]]
    survival: dict[str, int]


def judge_samples(
    network: StyleGAN2Generator,
    classify: Classify,
    path: Path,
    options: StyleGAN2Options,
    batch_size: int,
    pool: ThreadPoolExecutor,
    console: Console | None,
) -> Samples:
    """Do steps 1 to 3; one row per sample is kept in `path`, and those that are there are not rendered again."""
    journal = AppendedCsv(path, ["seed", "p_female", "p_male", "outcome"])
    outcomes = {int(row["seed"]): row["outcome"] for row in journal.rows}
    batches = list(_batches(range(options.seed, options.seed + options.samples), batch_size))
    for seeds in track(batches, "Judging samples (steps 1–3)", len(batches), console):
        if all(seed in outcomes for seed in seeds):
            continue
        w = sample_w(network, seeds, options.psi)  # step 1
        images = render(network, w[:, None].expand(-1, network.architecture.n_ws, -1))
        probabilities = classify(images).cpu().numpy()  # step 2
        judged = pool.map(
            partial(sample_outcome, min_certainty=options.min_certainty), images.cpu().numpy(), probabilities
        )
        for seed, p, outcome in zip(seeds, probabilities, judged, strict=True):
            if seed not in outcomes:
                outcomes[seed] = outcome
                journal.append((seed, f"{p[0]:.6f}", f"{p[1]:.6f}", outcome))
    seeds_of = {
        gender: [seed for seed, outcome in outcomes.items() if outcome == gender] for gender in ("female", "male")
    }
    counts = Counter(outcomes.values())
    certain = counts.total() - counts["certain"]
    survival = {"samples": counts.total(), "certain": certain, "face found": certain - counts["face found"]}
    return Samples(seeds_of, survival | {gender: len(seeds) for gender, seeds in seeds_of.items()})


def sample_outcome(image: NDArray[np.uint8], probabilities: NDArray[np.floating[Any]], min_certainty: float) -> str:
    """Do step 3: name the class of a sample, or the filter that it failed.

    Args:
        image: (512, 512, 3) uint8 RGB.
        probabilities: (2,) of (female, male).
        min_certainty: what one of them must reach.
    """
    if probabilities.max() < min_certainty:
        return "certain"
    if not finder().find_frontal(image):
        return "face found"
    return "female" if probabilities[0] > probabilities[1] else "male"


def class_transition(network: StyleGAN2Generator, samples: Samples, options: StyleGAN2Options, path: Path) -> Tensor:
    """Do step 4: from the mean w of women to the mean w of men.

    Args:
        network: maps the seeds to w once more, which costs next to nothing.
        samples: of steps 1 to 3.
        options: the truncation must be the one that the samples were judged with.
        path: a `.npz` for the two centres, to look at.

    Returns:
        Δ, (w_dim,) float32 on the network's device.

    Raises:
        DataError: a class has no sample.
    """
    centres = {}
    for gender, seeds in samples.seeds.items():
        if not seeds:
            raise DataError(
                f"none of {samples.survival['samples']} samples is a certain {gender} face: take more samples, a lower "
                "min_certainty, or look whether the classifier fits these faces"
            )
        sums = [sample_w(network, some, options.psi).double().sum(0) for some in _batches(seeds, 1024)]
        centres[gender] = torch.stack(sums).sum(0) / len(seeds)
    np.savez(path, **{gender: centre.cpu().numpy() for gender, centre in centres.items()})
    return (centres["male"] - centres["female"]).float()


def sample_w(network: StyleGAN2Generator, seeds: Sequence[int], psi: float) -> Tensor:
    """Draw z for every seed and map it to w.

    The draw is the one of NVIDIA's own scripts, so that a seed shows the same face there and here.

    Returns:
        (N, w_dim) float32 on the network's device.
    """
    z_dim = network.architecture.mapping[0]
    z = np.stack([np.random.RandomState(seed).randn(z_dim) for seed in seeds])
    w: Tensor = network.mapping(torch.from_numpy(z).float().to(network.mapping.w_avg.device), psi)
    return w


def render_versions(
    network: StyleGAN2Generator, seeds: Sequence[int], delta: Tensor, options: StyleGAN2Options
) -> Tensor:
    """Do step 5: render each face at all multiples of Δ.

    Returns:
        (N, 5, 512, 512, 3) uint8 RGB, from female to male.
    """
    n_ws = network.architecture.n_ws
    moved = (torch.arange(n_ws, device=delta.device) < (options.layers or n_ws)).view(-1, 1)  # of each picture's w
    multiples = torch.tensor(MULTIPLES, device=delta.device).view(-1, 1, 1)
    ws = sample_w(network, seeds, options.psi)[:, None, None] + multiples * moved * delta  # (N, 5, n_ws, w_dim)
    return render(network, ws.flatten(0, 1)).view(len(seeds), len(MULTIPLES), CROP_SIZE, CROP_SIZE, 3)


def render(network: StyleGAN2Generator, ws: Tensor) -> Tensor:
    """Render pictures as the classifier and the swapper take them.

    Faces generated by an FFHQ network are aligned as FFHQ is: they are resized and not aligned again.

    Args:
        network: at any resolution.
        ws: (N, n_ws, w_dim).

    Returns:
        (N, 512, 512, 3) uint8 RGB.
    """
    picture = network.synthesis(ws)
    if picture.shape[-1] != CROP_SIZE:
        picture = functional.interpolate(
            picture, size=(CROP_SIZE, CROP_SIZE), mode="bilinear", antialias=True, align_corners=False
        )
    images: Tensor = (picture * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous()


def choose_versions(
    images: NDArray[np.uint8], probabilities: NDArray[np.floating[Any]], min_certainty: float
) -> tuple[int, int] | str:
    """Do step 7: choose the female and the male version of one face.

    Args:
        images: (5, 512, 512, 3) uint8 RGB.
        probabilities: (5, 2) of (female, male).
        min_certainty: what both must reach.

    Returns:
        The indices of the two, or the name of the filter that the face failed.
    """
    chosen = choose_pair(probabilities, min_certainty)
    if chosen is None:
        return "certain"
    return chosen if all(finder().find_frontal(images[side]) for side in chosen) else "face found"


def _split(seed: int, holdout: float) -> Split:
    """Decide by the seed alone, so that more tries never move a pair from one split to the other."""
    return "holdout" if np.random.default_rng(seed).random() < holdout else "train"


def _batches(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]
