"""How far half is from float32 on faces, and how near its convolutions come to what half cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from figures import Figures
from networks import Images, Layout, Norm, faces, generator, placed
from offline import MODELS, NORMS
from visard_export.graphs import build_graph
from visard_export.options import Precision

HALF_LIMIT = 65504.0  # the largest number that half can hold
FACES, DRY_FACES = 8, 1
NEEDED_S = 3.0


def parity(figures: Figures, device: str, dry: bool) -> None:
    """Compare each model in half, with every norm, and in tf32 with float32 on this device."""
    images, what = faces()
    images = images[: DRY_FACES if dry else FACES]
    for model in MODELS:
        network = generator(model, "to_male", tiny=dry)

        def run(precision: Precision, norm: Norm, layout: Layout, tf32: bool = False) -> tuple[Images, dict[str, Any]]:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            graph = placed(build_graph(network, precision, "to_male"), device, norm, layout)  # noqa: B023 -- called here
            with largest_convolution_output(graph) as largest:
                return _answers(graph, images, device), largest

        reference, largest = run("fp32", "cast", "nchw")
        figures.add(model=model, precision="fp32", faces=what, half_limit=HALF_LIMIT, **largest)
        cases: list[tuple[str, Precision, Norm]] = [("fp16", "fp16", norm) for norm in NORMS]
        for name, precision, norm in [*cases, ("tf32", "fp32", "cast")]:
            which = {"model": model, "precision": name, "norm": norm}
            if not figures.has_time(NEEDED_S, **which):
                continue
            try:
                answers, largest = run(precision, norm, "nhwc", tf32=name == "tf32")
            except Exception as error:  # every library has its own; the reason goes into the file
                figures.failed(error, **which)
                continue
            difference = np.abs(answers.astype(np.int16) - reference)
            figures.add(
                **which,
                n_faces=len(images),
                mean_grey=float(difference.mean()),
                max_grey=int(difference.max()),
                share_equal=float((difference == 0).mean()),
                half_limit=HALF_LIMIT,
                **largest,
            )


def _answers(graph: nn.Module, images: Images, device: str) -> Images:
    """Run one face after the other; each gets the persona of its own number."""
    answers = []
    with torch.no_grad():
        for index, image in enumerate(images):
            persona = torch.tensor([[index]], dtype=torch.int32, device=device)
            answers.append(graph(torch.from_numpy(image[None]).to(device), persona).cpu().numpy())
    return np.concatenate(answers)


@contextmanager
def largest_convolution_output(graph: nn.Module) -> Iterator[dict[str, Any]]:
    """Note the largest absolute output of any convolution in the block, its layer, and whether all are finite."""
    found: dict[str, Any] = {"largest_convolution_output": 0.0, "in_layer": "", "finite": True}

    def hook_of(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            largest = float(output.float().abs().amax())
            if not np.isfinite(largest):
                found["finite"] = False
            elif largest > found["largest_convolution_output"]:
                found.update(largest_convolution_output=largest, in_layer=name)

        return note

    layers = [(n, m) for n, m in graph.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
