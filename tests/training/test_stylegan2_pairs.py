"""The seven steps end to end: a small generator that renders a real face in many tints, and a classifier of tints."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from visard_cli.train import app
from visard_errors import DataError, OutputError
from visard_export.checkpoints import load_classifier, save_checkpoint
from visard_export.graphs import build_graph
from visard_export.networks.architectures import ResNet18Architecture
from visard_export.networks.resnet18 import ResNet18
from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_testing.stylegan2_files import random_generator, write_nvidia, write_rosinality
from visard_training.pairs.folder import read_pairs
from visard_training.pairs.options import StyleGAN2Options
from visard_training.pairs.stylegan2 import StyleGAN2Architecture, StyleGAN2Generator
from visard_training.pairs.stylegan2_checkpoints import load_stylegan2
from visard_training.pairs.stylegan2_pairs import (
    MULTIPLES,
    choose_versions,
    make_pairs,
    render,
    render_versions,
    sample_outcome,
    sample_w,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, N_WS = 64, 10
OPTIONS = StyleGAN2Options(samples=12, psi=0.9, holdout=0.3)
TRIES = 6


@dataclass(frozen=True)
class Networks:
    generator: Path
    same_generator: Path
    classifier: Path


def face_generator(face):
    """Build a generator whose last noise input is a face in grey, and whose first RGB layer tints it as w says."""
    torch.manual_seed(0)
    generator = StyleGAN2Generator(StyleGAN2Architecture(mapping=(16, 16, 16), channels=(4, 4, 4, 4, 4)))
    grey = torch.from_numpy(face.mean(2)).float() / 127.5
    with torch.no_grad():
        for name, tensor in generator.synthesis.state_dict().items():
            if name.endswith("torgb.weight") and not name.startswith("b4."):
                tensor.zero_()
        last = generator.synthesis.get_submodule(f"b{SIZE}")
        for name, tensor in last.state_dict().items():
            if name == "conv1.weight":
                tensor.zero_()
            elif name == "conv1.noise_const":
                tensor.copy_(grey)
            elif name == "conv1.noise_strength":
                tensor.fill_(2**-0.5)  # the layer's gain is √2
            elif name == "torgb.weight":
                tensor[:, 0] = 2.0  # over the root of four channels
            elif name == "torgb.affine.weight":
                tensor.zero_()
            elif name == "torgb.bias":
                tensor.fill_(-1.0)
        tint = generator.synthesis.get_submodule("b4.torgb").state_dict()
        tint["weight"].copy_(torch.tensor([[0.25], [0.0], [-0.25]]).view(3, 1, 1, 1).expand(3, 4, 1, 1))
    return generator.eval().requires_grad_(False)


def redness(images):
    images = np.asarray(images, np.float64)
    return images[..., 0].mean((-1, -2)) - images[..., 2].mean((-1, -2))


def tint_classifier(images):
    """Fit the last layer of a random network so that it is certain: redder faces are female."""
    torch.manual_seed(0)
    network = ResNet18(ResNet18Architecture(width=8)).eval()
    features = []
    network.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    build_graph(network)(images)  # fold_batch_norms copies the network, hooks included
    seen = torch.cat([torch.cat(features).double(), torch.ones(len(images), 1)], 1)
    red = torch.from_numpy(redness(images))
    red = (red - red.median()) / red.std()
    solution = torch.linalg.solve(seen.T @ seen + 1e-6 * torch.eye(seen.shape[1]), seen.T @ red) * 4
    with torch.no_grad():
        network.fc.weight.copy_(torch.stack([solution[:-1], -solution[:-1]]).float())
        network.fc.bias.copy_(torch.stack([solution[-1], -solution[-1]]).float())
    network.fc._forward_pre_hooks.clear()
    return network


@pytest.fixture(scope="module")
def networks(astronaut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    photo = read_photo(astronaut)
    generator = face_generator(crop(photo, finder().find(photo)[0].quad, SIZE))
    paths = Networks(folder / "g.pkl", folder / "g.pt", folder / "classifier.safetensors")
    write_nvidia(paths.generator, generator)
    write_rosinality(paths.same_generator, generator)
    images = render(generator, sample_w(generator, range(900, 932), 1.0)[:, None].expand(-1, N_WS, -1))
    save_checkpoint(paths.classifier, tint_classifier(images), trained=True, licence="CC0-1.0")
    return paths


@pytest.fixture(scope="module")
def made(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(networks.generator, networks.classifier, folder, OPTIONS, tries=TRIES, suffix=".png")
    return folder


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pairs_are_what_their_rows_say(networks, made):
    pairs = read_pairs(made)
    assert len(pairs) >= 4
    female = np.stack([np.asarray(Image.open(pair.female)) for pair in pairs])
    male = np.stack([np.asarray(Image.open(pair.male)) for pair in pairs])
    assert female.shape == (len(pairs), 512, 512, 3)
    assert (redness(female) > redness(male)).all()  # what gender is to this classifier
    classify = build_graph(load_classifier(networks.classifier).network())
    for i, pair in enumerate(pairs):
        assert classify(torch.from_numpy(female[i : i + 1]))[0, 0] == pytest.approx(pair.p_female, abs=1e-4)
        assert classify(torch.from_numpy(male[i : i + 1]))[0, 1] == pytest.approx(pair.p_male, abs=1e-4)
        assert min(pair.p_female, pair.p_male) >= OPTIONS.min_certainty
        assert pair.female_multiple < pair.male_multiple
        assert {pair.female_multiple, pair.male_multiple} <= set(MULTIPLES)
        assert len(finder().find(female[i])) == len(finder().find(male[i])) == 1
    assert {pair.split for pair in pairs} == {"train", "holdout"}
    assert all(OPTIONS.samples <= int(pair.source) < OPTIONS.samples + TRIES for pair in pairs)  # new samples


def test_the_report_adds_up(made):
    report = json.loads((made / "report.json").read_text())
    samples, outcomes = report["notes"]["samples"], [row["outcome"] for row in rows(made / "samples.csv")]
    assert samples["samples"] == len(outcomes) == OPTIONS.samples
    assert samples["certain"] == samples["samples"] - outcomes.count("certain")
    assert samples["face found"] == samples["female"] + samples["male"]
    assert 0 < samples["female"] < samples["certain"]
    dropped = [row["filter"] for row in rows(made / "dropped.csv")]
    assert report["survival"] == {
        "sources": TRIES,
        "certain": TRIES - dropped.count("certain"),
        "face found": len(read_pairs(made)),
    }
    assert (made / "contact_sheet_1.jpg").is_file()


def test_the_transition_goes_from_mean_to_mean(networks, made):
    generator = load_stylegan2(networks.generator)
    centres = np.load(made / "centres.npz")
    for gender in ("female", "male"):
        seeds = [int(row["seed"]) for row in rows(made / "samples.csv") if row["outcome"] == gender]
        w = np.stack([sample_w(generator, [seed], OPTIONS.psi)[0].numpy() for seed in seeds])
        np.testing.assert_allclose(centres[gender], w.mean(0), atol=1e-5)

    delta = torch.from_numpy(centres["male"] - centres["female"]).float()
    pair = read_pairs(made)[0]
    ws = sample_w(generator, [int(pair.source)], OPTIONS.psi) + pair.male_multiple * delta
    expected = render(generator, ws[:, None].expand(-1, N_WS, -1))[0].numpy().astype(int)
    assert np.abs(np.asarray(Image.open(pair.male)).astype(int) - expected).max() <= 1


def test_versions_move_the_first_layers_only_on_request():
    generator = random_generator()  # in which every layer counts
    delta = torch.randn(16)
    w = sample_w(generator, [5], 0.9)
    of_layers = {}
    for layers in (None, 1, 3):
        versions = render_versions(generator, [5], delta, StyleGAN2Options(psi=0.9, layers=layers))
        assert versions.shape == (1, 5, 512, 512, 3)
        for multiple, version in zip(MULTIPLES, versions[0], strict=True):
            ws = w[:, None].repeat(1, generator.architecture.n_ws, 1)
            ws[:, :layers] += multiple * delta
            assert (version.int() - render(generator, ws)[0].int()).abs().max() <= 1
        of_layers[layers] = versions[0].int()
    assert torch.equal(of_layers[1][2], of_layers[3][2])  # a multiple of 0 moves nothing
    assert (of_layers[1][4] - of_layers[3][4]).abs().max() > 10
    assert (of_layers[3][4] - of_layers[None][4]).abs().max() > 10


def test_a_seed_draws_what_it_draws_in_published_scripts(networks):
    generator = load_stylegan2(networks.generator)
    z = torch.from_numpy(np.random.RandomState(85).randn(1, 16)).float()
    assert torch.equal(sample_w(generator, [85], 1.0), generator.mapping(z))


def test_the_same_settings_make_the_same_pairs_from_either_file_format(networks, made, tmp_path):
    make_pairs(networks.same_generator, networks.classifier, tmp_path, OPTIONS, tries=TRIES, suffix=".png")
    again, before = files(tmp_path), files(made)
    again.pop("report.json"), before.pop("report.json")  # it names the generator's digest
    assert again == before


def test_an_interrupted_run_ends_like_an_uninterrupted_one(networks, made, tmp_path):
    def run(tries):
        make_pairs(networks.generator, networks.classifier, tmp_path, OPTIONS, tries=tries, suffix=".png")

    run(3)
    for table, lost in (("samples.csv", 4), ("pairs.csv", 2)):  # as if killed in the middle of a batch, and of a row
        data = (tmp_path / table).read_bytes().splitlines(keepends=True)
        (tmp_path / table).write_bytes(b"".join(data[:-lost]) + data[-lost][:7])
    run(TRIES)
    assert rows(tmp_path / "samples.csv") == rows(made / "samples.csv")
    assert rows(tmp_path / "pairs.csv") == rows(made / "pairs.csv")
    assert {n: f for n, f in files(tmp_path).items() if n.startswith("images")} == {
        n: f for n, f in files(made).items() if n.startswith("images")
    }


def test_versions_without_a_face_become_no_pair(astronaut):
    certain = np.array([[0.99, 0.01], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.01, 0.99]])
    face = np.asarray(Image.open(astronaut).convert("RGB"))
    grey = np.full_like(face, 128)
    assert choose_versions(np.stack([face] * 5), certain, 0.95) == (0, 4)
    assert choose_versions(np.stack([face, grey, grey, grey, face]), certain, 0.95) == (0, 4)
    assert choose_versions(np.stack([face, face, face, face, grey]), certain, 0.95) == "face found"
    assert choose_versions(np.stack([face] * 5), certain, 0.999) == "certain"


def test_a_sample_counts_for_its_class_where_it_is_certain_and_has_a_face(astronaut):
    face = np.asarray(Image.open(astronaut).convert("RGB"))
    assert sample_outcome(face, np.array([0.96, 0.04]), 0.95) == "female"
    assert sample_outcome(face, np.array([0.04, 0.96]), 0.95) == "male"
    assert sample_outcome(face, np.array([0.06, 0.94]), 0.95) == "certain"
    assert sample_outcome(np.full_like(face, 128), np.array([0.04, 0.96]), 0.95) == "face found"


def test_a_class_without_a_sample_is_told(networks, tmp_path):
    network = load_classifier(networks.classifier).network()
    assert isinstance(network, ResNet18)
    with torch.no_grad():
        network.fc.bias.copy_(torch.tensor([100.0, -100.0]))
    save_checkpoint(tmp_path / "female.safetensors", network, trained=True, licence="CC0-1.0")
    options = StyleGAN2Options(samples=2)
    with pytest.raises(DataError, match="certain male face"):
        make_pairs(networks.generator, tmp_path / "female.safetensors", tmp_path / "pairs", options, tries=1)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"samples": 1}, {"min_certainty": 0.5}, {"psi": 0}, {"holdout": 1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StyleGAN2Options(**wrong)


def test_more_layers_than_the_generator_has_are_refused(networks, tmp_path):
    with pytest.raises(DataError, match=r"layers must be 1\.\.10"):
        make_pairs(networks.generator, networks.classifier, tmp_path, StyleGAN2Options(layers=11), tries=1)


def command(networks, folder, *more):
    networks_ = ["--generator", str(networks.generator), "--classifier", str(networks.classifier)]
    steps = ["--samples", str(OPTIONS.samples), "--psi", str(OPTIONS.psi), "--holdout", str(OPTIONS.holdout)]
    return ["pairs", str(folder), *networks_, *steps, "--tries", str(TRIES), *more]


def test_the_command_goes_on_with_a_folder_and_prints_the_survivors(networks, made, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(made, folder)
    before = (folder / "pairs.csv").read_bytes()
    result = CliRunner().invoke(app, command(networks, folder, "--format", "png", "--device", "cpu"))
    assert result.exit_code == 0, result.output
    assert (folder / "pairs.csv").read_bytes() == before
    n = len(read_pairs(folder))
    assert re.search(rf"face found\W+{n}\W+{n / TRIES:.1%}", result.output)


def test_the_command_refuses_other_settings_and_says_which(networks, made):
    result = CliRunner().invoke(app, command(networks, made, "--min-certainty", "0.8", "--seed", "3"))
    assert isinstance(result.exception, OutputError)
    assert "(min_certainty, seed)" in str(result.exception)


def test_the_command_needs_weights():
    result = CliRunner().invoke(app, ["pairs", "pairs", "--classifier", "c.pth"])
    assert result.exit_code == 2
    assert "--generator" in result.output
