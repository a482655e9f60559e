from __future__ import annotations

import argparse
import io
import os
import pickle

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, correlate2d
from torch import nn

from visard_errors import CheckpointError
from visard_testing.stylegan2_files import (
    TINY,
    Persistent,
    nvidia_modules,
    persistent,
    random_generator,
    rosinality_tensors,
    write_nvidia,
    write_rosinality,
)
from visard_training.pairs.stylegan2 import StyleGAN2Architecture, StyleGAN2Generator, modulated_convolution, upsample
from visard_training.pairs.stylegan2_checkpoints import load_stylegan2

BLUR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16


def test_ffhq_generator_has_the_published_size():
    architecture = StyleGAN2Architecture(mapping=(512,) * 9, channels=(512, 512, 512, 512, 512, 256, 128, 64, 32))
    with torch.device("meta"):
        generator = StyleGAN2Generator(architecture)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 30_370_060
    assert (architecture.resolution, architecture.n_ws) == (1024, 18)
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    assert StyleGAN2Architecture.from_shapes(shapes) == architecture


# --- the network against a plain reference: one picture, one output channel, one loop at a time


def reference_convolution(x, weight, style, *, up):
    """Modulate, demodulate and convolve (I, H, W) by (O, I, 3, 3) weights of its own."""
    weight = weight * style[None, :, None, None]
    weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    planes = []
    for kernels in weight:
        if up:
            spread = np.zeros((len(x), 2 * x.shape[1] - 1, 2 * x.shape[2] - 1))
            spread[:, ::2, ::2] = x
            plane = sum(convolve2d(plane, kernel) for plane, kernel in zip(spread, kernels, strict=True))
            planes.append(convolve2d(plane, BLUR)[2:-2, 2:-2])
        else:
            planes.append(sum(correlate2d(p, k, mode="same") for p, k in zip(x, kernels, strict=True)))
    return np.stack(planes)


def reference_upsample(picture):
    """Insert zeros after every pixel, pad by 2 before and 1 behind, blur."""
    spread = np.zeros((3, 2 * picture.shape[1], 2 * picture.shape[2]))
    spread[:, ::2, ::2] = picture
    return np.stack([convolve2d(np.pad(plane, (2, 1)), BLUR, mode="valid") for plane in spread])


def reference_render(tensors, ws, clamp=np.inf):
    def style(layer, w):
        return tensors[f"{layer}.affine.weight"] @ w / np.sqrt(len(w)) + tensors[f"{layer}.affine.bias"]

    def styled(x, layer, w, *, up):
        y = reference_convolution(x, tensors[f"{layer}.weight"], style(layer, w), up=up)
        y = y + tensors[f"{layer}.noise_const"] * tensors[f"{layer}.noise_strength"]
        y = y + tensors[f"{layer}.bias"][:, None, None]
        return np.clip(np.where(y > 0, y, 0.2 * y) * np.sqrt(2), -clamp, clamp)

    def to_rgb(x, layer, w):
        weight = tensors[f"{layer}.weight"][:, :, 0, 0] * style(layer, w) / np.sqrt(len(x))
        rgb = np.einsum("oi,ihw->ohw", weight, x) + tensors[f"{layer}.bias"][:, None, None]
        return np.clip(rgb, -clamp, clamp)

    x = styled(tensors["synthesis.b4.const"], "synthesis.b4.conv1", ws[0], up=False)
    picture = to_rgb(x, "synthesis.b4.torgb", ws[1])
    for i, resolution in enumerate((8, 16)):
        block = f"synthesis.b{resolution}"
        x = styled(x, f"{block}.conv0", ws[2 * i + 1], up=True)
        x = styled(x, f"{block}.conv1", ws[2 * i + 2], up=False)
        picture = reference_upsample(picture) + to_rgb(x, f"{block}.torgb", ws[2 * i + 3])
    return picture


@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_agrees_with_the_reference(up):
    torch.manual_seed(0)
    x, weight, styles = torch.randn(2, 5, 6, 7), torch.randn(4, 5, 3, 3), torch.randn(2, 5)
    result = modulated_convolution(x, weight, styles, up=up)
    for i in range(2):
        expected = reference_convolution(x[i].numpy(), weight.numpy(), styles[i].numpy(), up=up)
        np.testing.assert_allclose(result[i], expected, atol=1e-5)


def test_upsample_agrees_with_the_reference_and_keeps_a_flat_picture():
    torch.manual_seed(0)
    picture = torch.randn(1, 3, 5, 6)
    np.testing.assert_allclose(upsample(picture)[0], reference_upsample(picture[0].numpy()), atol=1e-6)
    inner = upsample(torch.ones(1, 3, 5, 6))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.ones_like(inner))


@pytest.mark.parametrize("clamp", [None, 0.7])
def test_synthesis_agrees_with_the_reference(clamp):
    architecture = StyleGAN2Architecture(mapping=TINY.mapping, channels=TINY.channels, clamp=clamp)
    generator = random_generator(architecture)
    ws = torch.randn(2, architecture.n_ws, 16)  # another w in each layer: their order counts
    tensors = {name: tensor.double().numpy() for name, tensor in generator.state_dict().items()}
    for picture, w in zip(generator.synthesis(ws), ws.double().numpy(), strict=True):
        np.testing.assert_allclose(picture, reference_render(tensors, w, clamp or np.inf), atol=1e-4)


def test_mapping_agrees_with_the_reference():
    generator = random_generator()
    z = torch.randn(3, 12)
    x = z.double().numpy()
    x = x / np.sqrt((x**2).mean(1, keepdims=True))
    for i in range(3):
        weight, bias = (generator.state_dict()[f"mapping.fc{i}.{kind}"].double().numpy() for kind in ("weight", "bias"))
        x = x @ (weight * 0.01 / np.sqrt(x.shape[1])).T + bias * 0.01
        x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
    np.testing.assert_allclose(generator.mapping(z), x, atol=1e-5)
    w_avg = generator.mapping.w_avg
    torch.testing.assert_close(generator.mapping(z, 0.0), w_avg.expand(3, -1))
    torch.testing.assert_close(generator.mapping(z, 0.5), (w_avg + generator.mapping(z)) / 2)


def test_synthesis_refuses_another_number_of_w():
    with pytest.raises(ValueError, match="takes 6 w"):
        random_generator().synthesis(torch.zeros(1, 18, 16))


# --- the two published formats


def write_pt(path, generator):
    write_rosinality(path, generator)


def write_old_pt(path, generator):
    write_rosinality(path, generator, legacy=True)


def write_training_pt(path, generator):
    write_rosinality(path, generator, args=argparse.Namespace(size=16), g_optim={"state": {}}, ada_aug_p=0.1)


def write_pkl(path, generator):
    write_nvidia(path, generator)


def write_new_pkl(path, generator):
    write_nvidia(path, generator, protocol=5)


@pytest.mark.parametrize("write", [write_pt, write_old_pt, write_training_pt, write_pkl, write_new_pkl])
def test_every_format_renders_the_same_picture_from_the_same_w(tmp_path, write):
    generator = random_generator()
    write(tmp_path / "weights", generator)
    loaded = load_stylegan2(tmp_path / "weights")
    assert loaded.architecture == TINY
    z = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    w = generator.mapping(z, 0.7)
    assert torch.equal(loaded.mapping(z, 0.7), w)
    ws = w[:, None].expand(-1, 6, -1)
    assert torch.equal(loaded.synthesis(ws), generator.synthesis(ws))


def test_nvidia_networks_trained_in_half_keep_their_clamp_and_memory_layout(tmp_path):
    generator = random_generator()
    name = "synthesis.b16.conv1.weight"
    weight = generator.state_dict()[name].to(memory_format=torch.channels_last)
    write_nvidia(tmp_path / "g.pkl", generator, clamp=256, **{name: weight})
    loaded = load_stylegan2(tmp_path / "g.pkl")
    assert loaded.architecture.clamp == 256
    assert torch.equal(loaded.state_dict()[name], weight)


# --- hostile and damaged files


class Runs:
    """Pickles as a call of os.system that leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def attack_at_the_top(marker):
    return pickle.dumps({"G_ema": Runs(marker)})


def attack_inside_a_tensor(marker):
    file = io.BytesIO()
    torch.save(Runs(marker), file, _use_new_zipfile_serialization=False)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (file.getvalue(),)

    return pickle.dumps({"G_ema": Storage()})


def attack_in_an_attribute(marker):
    with nvidia_modules():
        return pickle.dumps({"G_ema": Persistent(nn.Module(), {"activation": Runs(marker)}, "")})


def attack_of_a_state_dict(marker):
    file = io.BytesIO()
    torch.save({"g_ema": Runs(marker), "latent_avg": torch.zeros(1)}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "attack", [attack_at_the_top, attack_inside_a_tensor, attack_in_an_attribute, attack_of_a_state_dict]
)
def test_a_file_that_tries_to_run_something_is_refused(tmp_path, attack):
    path, marker = tmp_path / "weights.pkl", tmp_path / "executed"
    path.write_bytes(attack(marker))
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_stylegan2(path)
    assert not marker.exists()


def test_the_attack_works_on_an_ordinary_unpickler(tmp_path):
    pickle.loads(attack_at_the_top(tmp_path / "executed"))
    assert (tmp_path / "executed").exists()


def test_the_source_code_in_a_published_file_is_not_run(tmp_path):
    marker = tmp_path / "executed"
    write_nvidia(tmp_path / "g.pkl", random_generator(), source=f"open({str(marker)!r}, 'w')")
    assert load_stylegan2(tmp_path / "g.pkl").architecture == TINY
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "torch load", "torch.hub load", "collections Counter", "os system"]
)
def test_no_other_name_is_looked_up(tmp_path, name):
    path = tmp_path / "g.pkl"
    path.write_bytes(b"\x80\x03c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(CheckpointError, match=rf"asks for '{name.replace(' ', '.')}'"):
        load_stylegan2(path)


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "builtins\nset"])
def test_a_pickle_cannot_change_the_functions_it_names(tmp_path, name):
    # the function itself, then BUILD with the slot state (None, {"__defaults__": (1,), "evil": 1})
    path = tmp_path / "g.pkl"
    state = b"(N}(U\x0c__defaults__(K\x01tU\x04evilK\x01ut"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(CheckpointError):
        load_stylegan2(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def test_a_tensorflow_network_is_told_apart(tmp_path):
    (tmp_path / "g.pkl").write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\n.")
    with pytest.raises(CheckpointError, match=r"TensorFlow.*legacy\.py"):
        load_stylegan2(tmp_path / "g.pkl")


def test_modules_that_hold_each_other_are_refused(tmp_path):
    inner = nn.Module()
    with nvidia_modules():
        for _ in range(40):  # 2⁴⁰ paths to the innermost
            shared, outer = Persistent(inner, {}, ""), nn.Module()
            outer._modules["a"] = outer._modules["b"] = shared
            inner = outer
        (tmp_path / "g.pkl").write_bytes(pickle.dumps({"G_ema": Persistent(inner, {}, "")}))
    with pytest.raises(CheckpointError, match="two places"):
        load_stylegan2(tmp_path / "g.pkl")


def test_tensors_larger_than_the_file_are_refused(tmp_path):
    write_nvidia(tmp_path / "g.pkl", random_generator(), **{"mapping.w_avg": torch.zeros(1).expand(1 << 40)})
    with pytest.raises(CheckpointError, match="more numbers than it has bytes"):
        load_stylegan2(tmp_path / "g.pkl")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    write_nvidia(tmp_path / "g.pkl", random_generator())
    data = (tmp_path / "g.pkl").read_bytes()
    shape = data.index(b"K\x10\x85", data.index(b"w_avg"))  # (16,) as a pickle writes it
    (tmp_path / "g.pkl").write_bytes(data[:shape] + b"K\xff\x85" + data[shape + 3 :])
    with pytest.raises(CheckpointError, match="out of bounds"):
        load_stylegan2(tmp_path / "g.pkl")


@pytest.mark.parametrize("write", [write_pt, write_old_pt, write_pkl])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, write, share):
    path = tmp_path / "weights"
    write(path, random_generator())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError):
        load_stylegan2(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_stylegan2(tmp_path / "missing.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convs.0.conv.weight": None}, "missing: synthesis.b8.conv0.weight"),
        ({"convs.9.conv.weight": torch.ones(1, 2, 2, 3, 3)}, "left over: synthesis.b128.conv1.weight|gaps"),
        ({"convs.1.activate.bias": torch.ones(5)}, "of another shape: synthesis.b8.conv1.bias"),
        ({"style.1.bias": torch.full((16,), torch.nan)}, "no finite numbers: mapping.fc0.bias"),
        ({"convs.0.conv.blur.kernel": torch.ones(4, 4)}, "not the kernel"),
        ({"something": torch.ones(1)}, "left over: something"),
    ],
)
def test_another_network_is_refused_with_the_difference(tmp_path, change, message):
    generator = random_generator()
    tensors = {name: tensor for name, tensor in (rosinality_tensors(generator) | change).items() if tensor is not None}
    torch.save({"g_ema": tensors, "latent_avg": generator.mapping.w_avg}, tmp_path / "g.pt")
    with pytest.raises(CheckpointError, match=message):
        load_stylegan2(tmp_path / "g.pt")


def test_a_conditional_network_is_refused(tmp_path):
    write_nvidia(tmp_path / "g.pkl", random_generator(), **{"mapping.embed.weight": torch.ones(16, 3)})
    with pytest.raises(CheckpointError, match=r"left over: mapping\.embed\.weight"):
        load_stylegan2(tmp_path / "g.pkl")


def test_a_pickle_without_an_averaged_generator_is_refused(tmp_path):
    with nvidia_modules():
        (tmp_path / "g.pkl").write_bytes(pickle.dumps({"G": persistent({}, None)}))
    with pytest.raises(CheckpointError, match="no network 'G_ema'"):
        load_stylegan2(tmp_path / "g.pkl")
