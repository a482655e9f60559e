"""The served graphs: uint8 photographs in, uint8 photographs or probabilities out, all arithmetic inside.

Casting, scaling, resizing, normalisation and rounding belong to the graph: a quarter of the bytes travel and the server
runs no Python for them. Casts from and to uint8 stand first and last because TensorRT computes nothing else in it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visard_export.networks.architectures import CLASSIFIER_SIZE, IMAGE_SIZE
from visard_export.networks.atlas import DIRECTIONS, Direction
from visard_export.networks.persona import PersonaGenerator
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18
from visard_export.options import Precision
from visard_export.persona_graph import PersonaGraph
from visard_export.precision import dtype_of, in_precision

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
Generator = Pix2PixHDGenerator | PersonaGenerator
_BANDS = 28  # of 8 rows each: 2.9 instead of 7.1 ms for both resizings on one core; 8 to 56 bands are about as good


class ClassifierGraph(nn.Module):
    """`gender_classifier`: (N, 512, 512, 3) uint8 RGB → (N, 2) float32 probabilities (female, male).

    In `fp16` the network runs in half; resizing, normalisation and softmax stay in float32.
    """

    inputs = ("image",)
    outputs = ("gender",)
    size = IMAGE_SIZE

    resize: Tensor
    bands: Tensor
    band_rows: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, network: ResNet18, precision: Precision = "fp32") -> None:
        super().__init__()
        self.network = in_precision(fold_batch_norms(network), precision)
        deviation = torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1)
        self.register_buffer("resize", resize_matrix(IMAGE_SIZE, CLASSIFIER_SIZE))
        bands, rows = resize_bands(self.resize, _BANDS)
        self.register_buffer("bands", bands)
        self.register_buffer("band_rows", rows)
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("shift", -torch.tensor(IMAGENET_MEAN).view(3, 1, 1) / deviation)

    def forward(self, image: Tensor) -> Tensor:
        """Classify bytes."""
        return self.classify(image.float())

    def classify(self, levels: Tensor) -> Tensor:
        """Resize rows band by band, then columns by one matrix; decide.

        Args:
            levels: (N, 512, 512, 3) float32 in 0..255, RGB.
        """
        wanted = torch.index_select(levels.flatten(2), 1, self.band_rows.flatten())  # (N, _, 512 · 3)
        rows = self.bands @ wanted.reshape(-1, *self.band_rows.shape, 3 * IMAGE_SIZE)
        return self.decide(rows.reshape(-1, CLASSIFIER_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2) @ self.resize.T)

    def decide(self, small: Tensor) -> Tensor:
        """Normalise; classify.

        Args:
            small: (N, 3, 224, 224) float32 in 0..255, RGB.
        """
        logits = self.network((small * self.scale + self.shift).to(dtype_of(self.network)))
        return torch.softmax(logits.float(), 1)


class SmallClassifierGraph(ClassifierGraph):
    """`gender_classifier_224`: (N, 224, 224, 3) uint8 RGB → as above, for callers who have resized the face."""

    size = CLASSIFIER_SIZE

    def forward(self, image: Tensor) -> Tensor:
        """Classify bytes."""
        return self.decide(image.float().permute(0, 3, 1, 2))


class GeneratorGraph(nn.Module):
    """`generator_to_*` of an image head: (N, 512, 512, 3) uint8 RGB → the same, swapped.

    In `fp16` the network runs in half; instance norms sum in float32.
    """

    inputs = ("image", "persona")
    outputs = ("swapped",)
    size = IMAGE_SIZE

    def __init__(self, network: Pix2PixHDGenerator, precision: Precision = "fp32") -> None:
        super().__init__()
        self.network = in_precision(network, precision)

    def forward(self, image: Tensor, persona: Tensor) -> Tensor:
        """Swap bytes."""
        return self.draw(image.float(), persona).to(torch.uint8)

    def draw(self, levels: Tensor, persona: Tensor) -> Tensor:
        """Scale to −1..1, generate, scale back, cut to 0..255.

        Args:
            levels: (N, 512, 512, 3) float32 in 0..255, RGB.
            persona: the contract's; it changes nothing here. (N, 1) int32.

        Returns:
            The same shape and range; what is behind the point is to be dropped.
        """
        photo = levels.permute(0, 3, 1, 2)
        # Used, because onnxruntime leaves other inputs out of an engine, which it then never finds in its cache again.
        minus_one = (0 * persona - 1).float()[:, :, None, None]
        output: Tensor = self.network((photo / 127.5 + minus_one).to(dtype_of(self.network))).float()
        swapped = (output + 1) * 127.5  # (y + 1) / 2 · 255, to the last bit
        return swapped.clamp(0, 255).permute(0, 2, 3, 1)


class AnonymizerGraph(nn.Module):
    """`anonymizer` as one graph without branches: a face and the number of a persona in, swapped and judged out.

    The same as the classifier, the generator of the other apparent gender and the classifier again, one after the
    other. Of two generators both are computed for every face, so this is for small ones; a persona generator has one
    trunk for both directions.

    Args:
        classifier: gives both judgements.
        to_male: draws the apparently female.
        to_female: draws the others; the same network where it is a persona generator.
        precision: of all layers.
    """

    inputs = ("image", "persona")
    outputs = ("swapped", "gender", "swapped_gender")
    size = IMAGE_SIZE

    def __init__(
        self,
        classifier: ResNet18,
        to_male: Generator,
        to_female: Generator,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.classifier = ClassifierGraph(classifier, precision)
        self.network = self.classifier.network
        self.both: PersonaGraph | None = None
        if isinstance(to_male, PersonaGenerator) and to_male is to_female:
            self.both = PersonaGraph(to_male, DIRECTIONS, precision)
        else:
            self.to_male = _generator_graph(to_male, precision, "to_male")
            self.to_female = _generator_graph(to_female, precision, "to_female")

    def forward(self, image: Tensor, persona: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge, swap, judge again."""
        levels = image.float()
        gender = self.classifier.classify(levels)
        is_male = gender[:, 1] > gender[:, 0]  # a tie counts as female, as the router has it
        if self.both is not None:
            drawn = self.both.draw(levels, persona, is_male.long())
        else:
            to_male, to_female = self.to_male.draw(levels, persona), self.to_female.draw(levels, persona)
            drawn = torch.where(is_male.view(-1, 1, 1, 1), to_female, to_male)
        # The second judgement is of whole levels, as in a picture; TensorRT has bytes at the borders alone.
        return drawn.to(torch.uint8), gender, self.classifier.classify(drawn.floor())


Graph = ClassifierGraph | GeneratorGraph | PersonaGraph | AnonymizerGraph


def build_graph(
    network: ResNet18 | Generator,
    precision: Precision = "fp32",
    direction: Direction = "to_male",
    *,
    small: bool = False,
) -> ClassifierGraph | GeneratorGraph | PersonaGraph:
    """Put a network into the graph that serves it; the network itself is left as it is.

    Args:
        network: any of the three.
        precision: of its layers.
        direction: of a persona generator, which has both.
        small: of a classifier, for faces that their callers have resized.
    """
    if isinstance(network, ResNet18):
        return (SmallClassifierGraph if small else ClassifierGraph)(network, precision)
    return _generator_graph(network, precision, direction)


def _generator_graph(network: Generator, precision: Precision, direction: Direction) -> GeneratorGraph | PersonaGraph:
    if isinstance(network, PersonaGenerator):
        return PersonaGraph(network, [direction], precision)
    return GeneratorGraph(network, precision)


def resize_matrix(size_in: int, size_out: int) -> Tensor:
    """Antialiased bilinear resizing along one axis, as Pillow does it.

    Every output sample is a weighted mean under a triangle of half-width `size_in / size_out` around its centre.
    ONNX's Resize has this as `antialias`, which TensorRT does not support.

    Returns:
        (size_out, size_in) float32 whose rows sum to one.
    """
    scale = size_in / size_out
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    sample = torch.arange(size_in, dtype=torch.float64) + 0.5
    weight = (1 - (sample - centre[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    return (weight / weight.sum(1, keepdim=True)).float()


def resize_bands(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cut a resizing matrix, nearly all zeros, into bands of rows with the few columns that they look at.

    Args:
        matrix: (rows, columns) float32.
        count: of the bands; divides the rows.

    Returns:
        (count, rows / count, width) float32, and (count, width) int64: which columns those are.
    """
    parts = matrix.chunk(count)
    used = [part.any(0).nonzero().flatten() for part in parts]
    width = max(int(columns[-1] - columns[0]) + 1 for columns in used)
    starts = torch.stack([columns[0].clamp(max=matrix.shape[1] - width) for columns in used])
    columns = starts[:, None] + torch.arange(width)
    return torch.stack([part[:, chosen] for part, chosen in zip(parts, columns, strict=True)]), columns


def fold_batch_norms(network: ResNet18) -> ResNet18:
    """Multiply every batch norm into the convolution before it, in float32: in half its variances may overflow."""
    network = copy.deepcopy(network).float().eval()
    for module in network.modules():
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):  # the last pair is a shortcut's
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())
    return network
