"""The swapper's training: what it draws, what a step does, how it goes on after a kill, what it leaves behind."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from visard_cli.train import app
from visard_errors import CheckpointError, DataError, OutputError
from visard_export.checkpoints import load_generator, save_checkpoint
from visard_export.graphs import build_graph
from visard_export.networks.architectures import Head, Pix2PixHDArchitecture, ResNet18Architecture
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18
from visard_testing.small_models import aligned_faces
from visard_training.pairs.folder import PairWriter, read_pairs
from visard_training.runs import run as training_run
from visard_training.runs.state import load_state, save_state
from visard_training.swapper.batches import PairImages, Sampler, vary
from visard_training.swapper.generator import SwapModel
from visard_training.swapper.options import DiscriminatorArchitecture, LossWeights, SwapperOptions
from visard_training.swapper.training import rate_factor, train_swapper

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
SMALL = Pix2PixHDArchitecture(ngf=4, n_downsampling=1, n_blocks=1)
RECONSTRUCTION = LossWeights(adversarial=0, feature_matching=0, perceptual=0, reconstruction=1)
OPTIONS = SwapperOptions(
    direction="to_male", generator=SMALL, photo_size=SIZE, weights=RECONSTRUCTION, batch_size=2, epochs=3, save_every=2
)


def write_pairs(folder, n=4, holdout=1):
    """Write faces whose male side is darker; the last ones are held out."""
    faces = np.ascontiguousarray(aligned_faces()[:, ::8, ::8])
    with PairWriter(folder, settings={}, filters=(), suffix=".png") as writer:
        for index in range(n + holdout):
            female = np.roll(faces[index % 2], index, axis=1)
            male = female // 2
            split = "train" if index < n else "holdout"
            probabilities = {"p_female": 1.0, "p_male": 1.0, "female_multiple": 0.0, "male_multiple": 1.0}
            writer.add(female, male, source=str(index), split=split, **probabilities)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def random_generator(seed=0):
    torch.manual_seed(seed)
    return Pix2PixHDGenerator(SMALL)


# What is drawn


def test_both_sides_of_a_pair_are_mirrored_together():
    photo = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    batch = torch.stack((photo, photo + 0.25), 1)
    drawn = vary(batch, 0, 7, strong=False)
    torch.testing.assert_close(drawn[:, 1], drawn[:, 0] + 0.25)
    mirrored = [torch.equal(after, before.flip(-1)) for after, before in zip(drawn[:, 0], photo, strict=True)]
    kept = [torch.equal(after, before) for after, before in zip(drawn[:, 0], photo, strict=True)]
    assert sum(mirrored) + sum(kept) == 64
    assert 16 <= sum(mirrored) <= 48


def test_both_sides_of_a_pair_are_varied_alike_and_every_step_otherwise():
    photo = torch.from_numpy(aligned_faces()[:, ::8, ::8].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = torch.stack((photo, photo), 1)
    first, second, again = (vary(batch, 0, step, strong=True) for step in (1, 2, 1))
    torch.testing.assert_close(first[:, 0], first[:, 1])
    assert torch.equal(first, again)
    assert (first - second).abs().mean() > 0.05
    assert (first - batch).abs().mean() > 0.05
    assert first.abs().max() <= 1


def test_an_epoch_shows_every_pair_once_in_an_order_of_its_own():
    sampler = Sampler(7, 3, seed=5)
    assert sampler.steps_per_epoch == 2
    epochs = [sampler.batch(2 * epoch) + sampler.batch(2 * epoch + 1) for epoch in range(8)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert set().union(*epochs) == set(range(7))  # whom one epoch leaves out, another shows
    assert Sampler(7, 3, seed=5).batch(5) == sampler.batch(5)
    assert Sampler(2, 16, seed=0).steps_per_epoch == 1


def test_pictures_are_means_of_pixels_photo_first(pairs, tmp_path):
    images = PairImages(read_pairs(pairs), "to_female", SIZE, tmp_path)
    assert images.pictures.shape == (5, 2, SIZE, SIZE, 3)
    faces = np.ascontiguousarray(aligned_faces()[0, ::8, ::8])
    mean = faces.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    assert np.abs(images.pictures[0, 1] - mean).max() <= 1  # the female side is the target
    assert images.pictures[0, 0, 16, 16].mean() < images.pictures[0, 1, 16, 16].mean()  # darker: male
    taken = images.take([0])
    assert taken.shape == (1, 2, 3, SIZE, SIZE)
    torch.testing.assert_close(taken[0, 1, :, 3, 4], torch.from_numpy(images.pictures[0, 1, 3, 4] / 127.5 - 1).float())


def test_broken_images_are_left_out_and_counted(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    broken = read_pairs(folder)[1].male
    broken.write_bytes(broken.read_bytes()[:100])
    told = StringIO()
    done = train_swapper(folder, tmp_path / "out", replace(OPTIONS, epochs=1), console=Console(file=told))
    assert (done.pairs, done.broken) == (3, 1)
    assert f"left out, cannot be read: {broken}" in told.getvalue()
    again = train_swapper(folder, tmp_path / "out", replace(OPTIONS, epochs=1))
    assert again.broken == 1  # also where the pictures are decoded already
    for pair in read_pairs(folder):
        pair.male.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 4 pairs can be read"):
        train_swapper(folder, tmp_path / "other", OPTIONS)


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"pairs\.csv' cannot be read"):
        train_swapper(tmp_path, tmp_path / "out", OPTIONS)
    folder = write_pairs(tmp_path / "pairs", n=0, holdout=2)
    with pytest.raises(DataError, match="holds no pair of the split 'train'"):
        train_swapper(folder, tmp_path / "out", OPTIONS)


# What a step does


def test_one_step_on_a_fixed_batch_decreases_its_loss(tmp_path):
    folder = write_pairs(tmp_path / "pairs", n=2, holdout=0)  # looked at where none is held out
    still, moved = (
        train_swapper(folder, tmp_path / str(rate), replace(OPTIONS, epochs=1, learning_rate=rate))
        for rate in (1e-12, 1e-5)
    )
    assert still.steps == moved.steps == 1
    assert moved.holdout_l1 < still.holdout_l1 - 0.01


def test_training_learns_to_swap_faces_it_has_not_seen(pairs, tmp_path):
    done = train_swapper(
        pairs, tmp_path / "out", replace(OPTIONS, epochs=100, learning_rate=1e-3, save_every=1000, sample_every=1000)
    )
    assert done.steps == 200
    assert done.holdout_l1 < 0.2 * done.unchanged_l1  # the mean of the targets everywhere would be at a third
    state = load_state(tmp_path / "out" / "state.pt")
    assert state is not None
    rates = {row["step"]: row["rate"] for row in state["history"]}
    assert rates[100] == 1e-3
    assert rates[200] == pytest.approx(1e-5)  # the last of 100 falling steps


def test_the_rate_is_constant_then_falls_linearly_to_zero():
    assert [rate_factor(progress, 0.5) for progress in (0, 0.25, 0.5)] == [1, 1, 1]
    assert [rate_factor(progress, 0.5) for progress in (0.75, 1)] == [0.5, 0]
    assert rate_factor(0.5, 0) == 0.5


def test_all_losses_train_together_in_half_precision(pairs, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", ResNet18(ResNet18Architecture(width=4)), trained=False, licence="MIT")
    options = replace(
        OPTIONS,
        direction="to_female",
        discriminator=DiscriminatorArchitecture(ndf=4),
        weights=LossWeights(reconstruction=10),
        epochs=2,
        augmentation="strong",
        mixed_precision="bf16",
        gradient_checkpointing=True,
        sample_every=4,
        licence="MIT",
    )
    done = train_swapper(pairs, tmp_path / "out", options, classifier=tmp_path / "c.safetensors")
    with (tmp_path / "out" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[3:] == ["reconstruction", "perceptual", "adversarial", "feature_matching", "discriminator"]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(value) > 0 for row in rows for value in row.values())
    checkpoint = load_generator(done.checkpoint)
    assert (checkpoint.architecture, checkpoint.trained, checkpoint.licence) == (options.generator, True, "MIT")
    assert (tmp_path / "out" / "samples" / "step_000004.jpg").is_file()
    assert (tmp_path / "out" / "losses.png").is_file()
    published = load_generator(tmp_path / "out" / "to_female_net_G.pth").tensors
    assert all(torch.equal(published[name], tensor) for name, tensor in checkpoint.tensors.items())


def test_a_weight_of_zero_leaves_the_discriminator_out(pairs, tmp_path):
    train_swapper(pairs, tmp_path, replace(OPTIONS, epochs=1))
    state = load_state(tmp_path / "state.pt")
    assert state is not None
    assert set(state["networks"]) == {"generator", "average"}


def test_checkpointing_computes_the_same_gradients():
    photo = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients = []
    for checkpointing in (False, True):
        network = random_generator()
        SwapModel(network, gradient_checkpointing=checkpointing).train()(photo).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for kept, computed_again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, computed_again)


# What is trained is what is served


def test_the_trained_model_does_what_the_served_graph_does():
    network = random_generator().eval()
    faces = torch.from_numpy(aligned_faces())
    with torch.no_grad():
        trained = SwapModel(network, gradient_checkpointing=False)(faces.permute(0, 3, 1, 2).float() / 127.5 - 1)
        served = build_graph(network)(faces, torch.zeros(len(faces), 1, dtype=torch.int32)).float()
    levels = ((trained + 1) * 127.5).permute(0, 2, 3, 1)
    assert (levels - served).abs().max() <= 1.01  # cut to whole levels
    assert (served - faces).abs().mean() > 1  # it does something


# Interrupted, gone on


def _killed_after_step_six(pairs, output):
    """Run in a process of its own: dies after the sixth step's work, before its state is on the disk."""
    torch.set_num_threads(1)

    def save_or_die(path, state):
        if state["step"] == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        save_state(path, state)

    training_run.save_state = save_or_die
    train_swapper(Path(pairs), Path(output), ADVERSARIAL)


ADVERSARIAL = replace(
    OPTIONS,
    epochs=5,
    discriminator=DiscriminatorArchitecture(ndf=4),
    weights=LossWeights(perceptual=0, reconstruction=10),
    augmentation="strong",
)


def test_after_a_kill_it_goes_on_to_the_same_weights(pairs, tmp_path):
    train_swapper(pairs, tmp_path / "whole", ADVERSARIAL)
    code = "import sys, test_swapper as t; t._killed_after_step_six(*sys.argv[1:])"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(pairs), str(tmp_path / "killed")],
        cwd=Path(__file__).parent,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    interrupted = load_state(tmp_path / "killed" / "state.pt")
    assert interrupted is not None
    assert interrupted["step"] == 4
    told = StringIO()
    train_swapper(pairs, tmp_path / "killed", ADVERSARIAL, console=Console(file=told))
    assert "Going on after step 4" in told.getvalue()
    whole, resumed = (load_state(tmp_path / run / "state.pt") for run in ("whole", "killed"))
    assert whole is not None
    assert resumed is not None
    assert resumed["step"] == whole["step"] == 10
    for network, tensors in whole["networks"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, resumed["networks"][network][name]), f"{network} {name}"
    exported = [load_generator(tmp_path / run / "to_male.safetensors").tensors for run in ("whole", "killed")]
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())
    strip = [[{**row, "seconds": 0} for row in state["history"]] for state in (whole, resumed)]
    assert strip[0] == strip[1]


def test_on_two_processes_a_step_has_as_many_pairs(pairs, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_swapper import *\n"
        "torch.set_num_threads(1)\n"
        f"train_swapper(Path({str(pairs)!r}), Path({str(tmp_path)!r}), replace(ADVERSARIAL, epochs=1))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    state = load_state(tmp_path / "state.pt")
    assert state is not None
    assert state["step"] == 2  # four pairs, two at a time: one for each process


def test_a_folder_of_another_training_is_refused(pairs, tmp_path):
    options = replace(OPTIONS, epochs=1)
    train_swapper(pairs, tmp_path, options)
    with pytest.raises(OutputError, match=r"begun with other settings \(direction, pairs, seed\)"):
        train_swapper(pairs, tmp_path, replace(options, seed=1, direction="to_female"))
    save_checkpoint(tmp_path / "initial.safetensors", random_generator(), trained=True, licence="MIT")
    with pytest.raises(OutputError, match=r"other settings \(initial\)"):
        train_swapper(pairs, tmp_path, replace(options, initial=tmp_path / "initial.safetensors"))
    train_swapper(pairs, tmp_path, replace(options, licence="MIT", save_every=1))  # they decide nothing that is learned
    torch.save({"step": 1}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is not a state of this training"):
        train_swapper(pairs, tmp_path, options)


def test_a_finished_training_exports_again_in_half(pairs, tmp_path):
    first = load_generator(train_swapper(pairs, tmp_path, OPTIONS).checkpoint)
    done = train_swapper(pairs, tmp_path, replace(OPTIONS, half=True))
    again = load_generator(done.checkpoint)
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-3, atol=1e-6)
    assert done.checkpoint.stat().st_size < 0.6 * sum(4 * tensor.numel() for tensor in first.tensors.values()) + 4096


def test_a_training_starts_from_given_weights(pairs, tmp_path):
    save_checkpoint(tmp_path / "g.safetensors", random_generator(3), trained=True, licence="MIT")
    options = replace(OPTIONS, epochs=1, learning_rate=1e-9, initial=tmp_path / "g.safetensors")
    done = train_swapper(pairs, tmp_path / "out", options)
    result = load_generator(done.checkpoint)
    torch.testing.assert_close(dict(result.tensors), dict(random_generator(3).state_dict()), rtol=0, atol=1e-6)
    wider = replace(options, generator=replace(SMALL, ngf=8))
    with pytest.raises(CheckpointError, match="give the same sizes"):
        train_swapper(pairs, tmp_path / "other", wider)


def test_what_cannot_be_trained_is_refused(pairs, tmp_path):
    with pytest.raises(CheckpointError, match="give one of them, or a weight of 0"):
        train_swapper(pairs, tmp_path, replace(OPTIONS, weights=LossWeights()))
    with pytest.raises(ValueError, match="must not be all zero"):
        LossWeights(adversarial=0, feature_matching=0, perceptual=0)
    for head in set(get_args(Head)) - {"image"}:
        with pytest.raises(ValueError, match="only an image head learns from pairs"):
            replace(OPTIONS, generator=replace(SMALL, head=head, size=128))
    for size in (24, 16, 1024):  # at 16 a residual block would have nothing to reflect
        with pytest.raises(ValueError, match=r"photo_size must be a multiple of 16 in 32\.\.512"):
            replace(OPTIONS, generator=replace(SMALL, n_downsampling=4), photo_size=size)
    with pytest.raises(CheckpointError, match=r"diverged in step \d+"):
        train_swapper(pairs, tmp_path / "fast", replace(OPTIONS, learning_rate=1e30))


# On the command line


def test_the_command_trains_and_says_where_the_generator_is(pairs, tmp_path):
    arguments = [
        *("swapper", str(pairs), "--direction", "to_female", "-o", str(tmp_path / "out")),
        *("--ngf", "4", "--downsamplings", "1", "--blocks", "1", "--photo-size", "32", "--reconstruction", "1"),
        *("--adversarial", "0", "--feature-matching", "0", "--perceptual", "0", "--epochs", "1", "--batch-size", "4"),
        *("--licence", "MIT", "--half"),
    ]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert f"Generator ready: {tmp_path / 'out' / 'to_female.safetensors'}" in result.output
    assert "held-out error" in result.output
    assert load_generator(tmp_path / "out" / "to_female.safetensors").architecture == SMALL
    wrong = CliRunner().invoke(app, [*arguments, "--photo-size", "33"])
    assert wrong.exit_code == 2
    assert "photo_size must be a multiple of 2" in wrong.output
