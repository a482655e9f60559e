"""Weights files: the published forms load, and everything else is refused with a message that helps."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from visard_errors import CheckpointError
from visard_export import checkpoints
from visard_export.checkpoints import load_classifier, load_generator, save_checkpoint
from visard_export.networks.architectures import Pix2PixHDArchitecture
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18
from visard_testing.small_models import SMALL_CLASSIFIER, small_checkpoints, small_generator


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Pix2PixHDGenerator(small_generator())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "to_male_net_G.pth"


def refused(path, *words):
    """Load a generator that must be refused; the message names the file and says `words`."""
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    return message


# What must load


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_loads_the_same_weights(generator, path, zipped):
    torch.save(generator.state_dict(), path, _use_new_zipfile_serialization=zipped)
    checkpoint = load_generator(path)
    assert checkpoint.architecture == small_generator()
    assert checkpoint.trained is None
    assert checkpoint.licence is None
    assert checkpoint.file_name == "to_male_net_G.pth"
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network()(x), generator(x), rtol=0, atol=0)


@pytest.mark.parametrize("head", ["image", "persona"])
def test_our_own_file_keeps_what_shapes_do_not_tell(tmp_path, head):
    paths = small_checkpoints(tmp_path, head)
    checkpoint = load_generator(paths.to_male)
    trunk = checkpoint.architecture if head == "image" else checkpoint.architecture.trunk
    assert trunk == small_generator(head)
    assert (checkpoint.trained, checkpoint.licence) == (False, "Apache-2.0")
    classifier = load_classifier(paths.classifier)
    assert classifier.architecture == SMALL_CLASSIFIER
    assert isinstance(classifier.network(), ResNet18)
    assert not classifier.network().training


def test_trained_flag_survives(generator, path):
    save_checkpoint(path, generator, trained=True, licence="CC-BY-NC-4.0")
    assert (load_generator(path).trained, load_generator(path).licence) == (True, "CC-BY-NC-4.0")


def test_content_decides_not_the_name(generator, path):
    save_file(generator.state_dict(), path)  # safetensors in a .pth
    assert load_generator(path).architecture == small_generator()


def test_data_parallel_prefix_and_stale_statistics_are_tolerated(generator, path):
    weights = {f"module.{name}": tensor for name, tensor in generator.state_dict().items()}
    for name in ("model.2", "model.10.conv_block.2"):
        weights |= {f"module.{name}.running_mean": torch.zeros(4), f"module.{name}.running_var": torch.ones(4)}
        weights[f"module.{name}.num_batches_tracked"] = torch.tensor(7)
    torch.save(weights, path)
    assert load_generator(path).tensors.keys() == generator.state_dict().keys()


def test_half_precision_weights_become_float32(generator, path):
    torch.save(generator.half().state_dict(), path)
    assert {tensor.dtype for tensor in load_generator(path).tensors.values()} == {torch.float32}


def test_full_size_checkpoint_is_read(path):
    with torch.device("meta"):
        weights = Pix2PixHDGenerator(Pix2PixHDArchitecture()).state_dict()
    torch.save({name: torch.empty_like(tensor, device="cpu").fill_(0.01) for name, tensor in weights.items()}, path)
    assert path.stat().st_size > 700_000_000
    checkpoint = load_generator(path)
    assert checkpoint.architecture == Pix2PixHDArchitecture()
    assert sum(tensor.numel() for tensor in checkpoint.tensors.values()) == 182_443_267
    path.unlink()


# What must not execute


class Exploit:
    """Touches a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_executed(path, tmp_path, zipped):
    witness = tmp_path / "executed"
    torch.save({"model.1.weight": Exploit(witness)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "was not executed", "safetensors")
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the exploit is a real one
    assert witness.exists()


def test_code_in_a_plain_pickle_is_not_executed(path, tmp_path):
    path.write_bytes(pickle.dumps(Exploit(tmp_path / "executed")))
    refused(path, "was not executed")
    assert not (tmp_path / "executed").exists()


# What is damaged or too much


def test_missing_file(path):
    refused(path, "cannot be read", "No such file")


def test_folder_instead_of_a_file(path):
    path.mkdir()
    refused(path, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0 a photo", b"{" * 100])
def test_other_content(path, content):
    path.write_bytes(content)
    refused(path, "neither a safetensors file nor a torch checkpoint")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_file(generator, path, kind, share):
    if kind == "safetensors":
        save_file(generator.state_dict(), path)
    else:
        torch.save(generator.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path)


def test_file_over_the_limit_is_not_opened(path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 10)
    path.write_bytes(b"\x80" * 11)
    refused(path, "11 bytes", "more than the 10")


def test_compressed_bomb(generator, path):
    torch.save({"model.1.weight": torch.zeros(10_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 100_000
    refused(path, "would unpack to")


def test_huge_tensor_of_a_few_bytes(path):
    torch.save({"model.1.weight": torch.zeros(1).expand(1 << 40)}, path)
    refused(path, "more numbers than it has bytes")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(generator, path, value):
    generator.model[1].bias.data[0] = value
    torch.save(generator.state_dict(), path)
    refused(path, "NaN or infinite", "model.1.bias")


def test_numbers_beyond_float32(generator, path):
    weights = generator.double().state_dict()
    weights["model.1.bias"][0] = 1e300
    torch.save(weights, path)
    refused(path, "NaN or infinite", "model.1.bias")


# What is another network


def test_missing_and_left_over_tensors_are_listed(generator, path):
    weights = generator.state_dict()
    weights["model.4.weights"] = weights.pop("model.4.weight")
    torch.save(weights, path)
    refused(path, "missing: model.4.weight;", "left over: model.4.weights")


def test_other_shape_is_listed(generator, path):
    weights = generator.state_dict()
    weights["model.4.bias"] = torch.zeros(9)
    torch.save(weights, path)
    refused(path, "model.4.bias (9,) instead of (8,)")


def test_long_lists_are_cut(path):
    torch.save({f"layer.{i}": torch.zeros(1) for i in range(5000)}, path)
    assert len(refused(path)) < 1000


def test_other_number_of_output_channels(generator, path):
    weights = generator.state_dict()
    last = max((name for name in weights if name.count(".") == 2), key=lambda name: int(name.split(".")[1]))
    index = last.split(".")[1]
    weights |= {f"model.{index}.weight": torch.zeros(4, 4, 7, 7), f"model.{index}.bias": torch.zeros(4)}
    torch.save(weights, path)
    refused(path, "3 output channels (image)", "found 4")


def test_other_number_of_classes(path):
    weights = ResNet18(SMALL_CLASSIFIER).state_dict()
    weights |= {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"fc\.weight \(1000, 64\) instead of \(2, 64\)"):
        load_classifier(path)


@pytest.mark.parametrize("as_safetensors", [True, False])
def test_classifier_is_no_generator(tmp_path, path, as_safetensors):
    network = ResNet18(SMALL_CLASSIFIER)
    if as_safetensors:
        save_checkpoint(path, network, trained=True, licence="MIT")
    else:
        torch.save(network.state_dict(), path)
    refused(path, "is not a pix2pixhd checkpoint")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": torch.zeros(1)}}, {"a": "text"}, torch.zeros(3)])
def test_more_than_a_state_dict(path, content):
    torch.save(content, path)
    refused(path, "does not hold a state dict")


def test_integers_are_no_weights(generator, path):
    weights = generator.state_dict()
    weights["model.1.bias"] = torch.zeros(4, dtype=torch.int64)
    torch.save(weights, path)
    refused(path, "model.1.bias", "int64")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"size": "-1"}, "working size '-1'"),
        ({"network": "persona"}, "call it 'persona'"),
        ({"network": "resnet18"}, "call it 'resnet18'"),
    ],
)
def test_metadata_that_contradict_the_weights(generator, path, metadata, words):
    save_file(generator.state_dict(), path, metadata)
    refused(path, words)


@pytest.fixture
def persona(tmp_path):
    """The tensors of a persona generator."""
    return dict(load_generator(small_checkpoints(tmp_path).to_male).tensors)


@pytest.mark.parametrize(("size", "words"), [("129", "size must divide 512"), ("512", "work at one of")])
def test_persona_generator_of_another_size(persona, path, size, words):
    save_file(persona, path, {"size": size})
    refused(path, words)


def test_placement_without_a_scale(persona, path):
    persona["placement"] = torch.tensor([100.0, 90.0, 0.0])
    save_file(persona, path, {"size": "128"})
    refused(path, "scale above zero")


def test_trunk_of_a_persona_generator_alone_is_no_generator(persona, path):
    trunk = {name.removeprefix("trunk."): t for name, t in persona.items() if name.startswith("trunk.")}
    save_file(trunk, path, {"size": "128"})
    refused(path, "without traits and atlas")


@pytest.mark.parametrize("missing", ["traits.last.weight", "placement"])
def test_persona_generator_needs_all_its_parts(persona, path, missing):
    del persona[missing]
    save_file(persona, path, {"size": "128"})
    refused(path, f"missing: {missing}")


def test_atlas_must_be_bytes(persona, path):
    persona["atlas_to_male"] = torch.zeros(2, 3, dtype=torch.uint8)
    save_file(persona, path, {"size": "128"})
    refused(path, "should be bytes")


def test_atlas_that_is_no_picture_of_tiles_is_refused(persona, path):
    picture = BytesIO()
    Image.new("RGB", (480, 481)).save(picture, "WEBP")
    for data, words in ((b"no picture", "no WebP picture"), (picture.getvalue(), "480×481")):
        persona["atlas_to_male"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        save_file(persona, path, {"size": "128"})
        refused(path, words)


def test_message_of_a_refused_generator_is_short(path):
    torch.save({"a" * 10_000: torch.zeros(1)}, path)
    assert len(refused(path)) < 1000
