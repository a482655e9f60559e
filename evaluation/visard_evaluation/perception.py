"""Features of faces by a network that learned to see pictures, for distances between sets of them.

The trunk of VGG16 (Simonyan and Zisserman, 2015) with blurred pooling, as the package `stlpips-pytorch` ships it
(Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, ECCV 2022): built here, so that torchvision is not
needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_errors import MissingExtra

_FILE = Path("weights", "vST0.0", "vgg_shift_tolerant.pth")
_INPUT_SIZE = 160  # halves the time of 224, and still shows the grain of skin
_FACE = (80, 120, 432, 472)  # of the aligned crop: from hairline to chin, little hair and place
# Names of the convolutions in the file, by resolution; between two resolutions lies a blur that halves.
_BLOCKS = (
    ("slice1.0", "slice1.2"),
    ("slice2.6", "slice2.8"),
    ("slice3.12", "slice3.14", "slice3.16"),
    ("slice4.20", "slice4.22", "slice4.24"),
    ("slice5.28", "slice5.30", "slice5.32"),
)
_BLURS = ("slice2.5", "slice3.11", "slice4.19", "slice5.27")


class Perception:
    """Describes how faces look: the last three resolutions' features, each averaged over the picture.

    Raises:
        MissingExtra: torch or the package with the weights is not installed.
    """

    def __init__(self) -> None:
        package = importlib.util.find_spec("stlpips_pytorch")
        try:
            import torch
        except ImportError:
            package = None
        if package is None or package.submodule_search_locations is None:
            raise MissingExtra("naturalness", "--naturalness")
        file = Path(next(iter(package.submodule_search_locations))) / _FILE
        torch.set_num_threads(1)  # photos are measured on all cores already
        self._weights: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        self._sha256 = hashlib.sha256(file.read_bytes()).hexdigest()

    def features(self, aligned: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Describe (N, 512, 512, 3) uint8 RGB faces: (N, 1280)."""
        import torch
        from torch.nn import functional

        size = _INPUT_SIZE, _INPUT_SIZE
        faces = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.LANCZOS, _FACE)) for each in aligned]
        weights = self._weights
        with torch.inference_mode():
            x = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2) / 127.5 - 1
            x = (x - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
            means = []
            for index, block in enumerate(_BLOCKS):
                if index:
                    # The largest of each 2×2, at every place, then blurred and every second kept (Zhang, 2019).
                    blur = weights[f"net.{_BLURS[index - 1]}.filt"]
                    x = functional.pad(functional.max_pool2d(x, 2, 1), (2, 2, 2, 2), mode="reflect")
                    x = functional.conv2d(x, blur, stride=2, groups=len(blur))
                for name in block:
                    x = functional.conv2d(x, weights[f"net.{name}.weight"], weights[f"net.{name}.bias"], padding=1)
                    x = functional.relu(x)
                # Every place counts alike, whatever its contrast, as in LPIPS; products of features stay below D.
                means.append(functional.normalize(x, dim=1).mean(dim=(2, 3)) * x.shape[1] ** 0.5)
            features: NDArray[np.float64] = torch.cat(means[2:], dim=1).double().numpy()
        return features

    def provenance(self) -> dict[str, Any]:
        """The digest of the weights."""
        return {"network": "VGG16, stlpips-pytorch 0.0.2", "sha256": self._sha256}
