"""Training the classifier: what one step does, what resuming keeps, what the report says, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.nn import functional

from visard_errors import CheckpointError, DataError, OutputError
from visard_export.checkpoints import load_classifier, save_checkpoint
from visard_export.graphs import build_graph
from visard_export.networks.architectures import ResNet18Architecture
from visard_export.networks.resnet18 import ResNet18
from visard_training.classifier.options import ClassifierOptions
from visard_training.classifier.pixels import Pixels, classifier_pixels, normalise
from visard_training.classifier.report import Epoch, calibrate, served_probabilities, split_report
from visard_training.classifier.training import _face_weights, train_classifier
from visard_training.data import augmentation
from visard_training.data.faces import read_faces
from visard_training.runs.state import generator, load_state, save_state

TOY = ClassifierOptions(width=2, size=33, epochs=2, batch_size=4, learning_rate=0.05)
SILENT = Console(quiet=True)


def write_toy_faces(cache, n=12, genders=("female", "male")):
    """Dark women, bright men, before noise: a cache as `prepare_faces` leaves it, but for the faces."""
    (cache / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    with (cache / "faces.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "gender", "split", "person", "side_px", "inside", "hair"])
        for i in range(n):
            gender = genders[i % len(genders)]
            coarse = random.integers(0, 90, (8, 8, 3), np.uint8) + (140 if gender == "male" else 20)
            Image.fromarray(coarse).resize((512, 512)).save(cache / "images" / f"{i}.jpg", quality=95)
            split = "test" if i >= n - 2 else "validation" if i >= n - 6 else "train"
            rows.writerow([f"images/{i}.jpg", gender, split, i, 400, 1, "long" if i % 4 < 2 else "short"])
    np.save(cache / "landmarks.npy", np.zeros((n, 68, 2), np.float32))
    return cache


@pytest.fixture(scope="module")
def toy_faces(tmp_path_factory):
    return write_toy_faces(tmp_path_factory.mktemp("toy") / "faces")


def train(cache, output, options=TOY):
    return train_classifier([cache], output, options, console=SILENT)


def altered(**changes):
    return replace(TOY, **changes)


def assert_same_weights(first, second):
    """The tensors alone: safetensors writes its metadata in any order."""
    first, second = (load_classifier(path).tensors for path in (first, second))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def toy_run(toy_faces, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    return output, train(toy_faces, output)


def test_the_defaults_are_the_published_recipe():
    options = ClassifierOptions()
    assert (options.width, options.size, options.epochs, options.batch_size) == (64, 224, 3, 16)
    assert (options.learning_rate, options.momentum, options.schedule) == (0.001, 0.9, "constant")
    assert (options.weight_decay, options.label_smoothing, options.balance) == (0.0, 0.0, "none")
    assert options.augmentation == "flip"


@pytest.mark.parametrize("change", [{"width": 0}, {"epochs": 0}, {"size": 225}, {"learning_rate": 0.0}])
def test_impossible_options_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        altered(**change)


def test_training_separates_what_can_be_separated(toy_faces, tmp_path):
    report = train(toy_faces, tmp_path, altered(epochs=8, batch_size=6, learning_rate=0.02))  # one batch, always
    assert report.epochs[-1].train_loss < 0.5 * report.epochs[0].train_loss
    assert report.epochs[-1].train_accuracy == 1.0
    assert len(report.epochs) == 8


def test_a_run_leaves_everything_it_promises(toy_run):
    output, report = toy_run
    written = json.loads((output / "report.json").read_text())
    assert written["options"]["width"] == 2
    assert len(written["epochs"]) == 2
    assert {name: split["n"] for name, split in written["splits"].items()} == {"validation": 4, "test": 2}
    assert written["splits"]["test"]["by_group"]["hair"].keys() <= {"long", "short"}
    for name in ("curves.png", "confusion.png"):
        with Image.open(output / name) as picture:
            assert picture.format == "PNG"
    checkpoint = load_classifier(output / "classifier.safetensors")
    assert checkpoint.trained
    assert checkpoint.licence == TOY.licence
    # The result is the best epoch with another certainty: the answers are the same, the last layer is scaled.
    best = load_classifier(output / "best.safetensors").tensors
    ratio = best["fc.weight"] / checkpoint.tensors["fc.weight"]
    assert torch.allclose(ratio, torch.full_like(ratio, report.temperature), rtol=1e-4)
    assert torch.equal(best["conv1.weight"], checkpoint.tensors["conv1.weight"])


def test_started_again_a_finished_run_only_reports(toy_run, toy_faces, tmp_path):
    output, report = toy_run
    before = Path(shutil.copy(output / "classifier.safetensors", tmp_path))
    assert train(toy_faces, output) == report
    assert_same_weights(output / "classifier.safetensors", before)


def test_a_killed_run_comes_to_the_same_weights(toy_run, toy_faces, tmp_path):
    """SIGKILL strikes in the middle of an epoch, whatever the run is doing then."""
    output, report = toy_run
    options = "ClassifierOptions(width=2, size=33, epochs=2, batch_size=4, learning_rate=0.05, save_every=1)"
    script = (
        "from pathlib import Path; from visard_training.classifier.training import *; import torch, time;"
        "from visard_training.data import augmentation as a; flip = a.flip;"
        "a.flip = lambda *given: (time.sleep(0.5), flip(*given))[1];"  # time enough to be killed in
        f"torch.set_num_threads({torch.get_num_threads()});"
        f"train_classifier([Path({str(toy_faces)!r})], Path({str(tmp_path)!r}), {options})"
    )
    state = tmp_path / "state.pt"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert torch.load(state, weights_only=True)["step"] < 4
    assert not (tmp_path / "classifier.safetensors").exists()
    resumed = train(toy_faces, tmp_path, altered(save_every=1))
    for name in ("classifier.safetensors", "best.safetensors", "last.safetensors"):
        assert_same_weights(tmp_path / name, output / name)
    losses = [(epoch.train_loss, epoch.validation_loss) for epoch in report.epochs]
    assert [(epoch.train_loss, epoch.validation_loss) for epoch in resumed.epochs] == losses


def test_half_precision_halves_the_file_and_is_what_was_measured(toy_faces, tmp_path):
    report = train(toy_faces, tmp_path, altered(half=True))
    full, half = ((tmp_path / name).stat().st_size for name in ("best.safetensors", "classifier.safetensors"))
    assert half < 0.65 * full  # names and shapes take their part in so small a network
    network = load_classifier(tmp_path / "classifier.safetensors").network()
    faces = [sample for sample in read_faces(toy_faces) if sample.split == "validation"]
    again = split_report(faces, served_probabilities(network, faces, console=SILENT))
    assert again.loss == pytest.approx(report.splits["validation"].loss, rel=1e-6)


def test_a_folder_keeps_one_run(toy_run, toy_faces):
    with pytest.raises(OutputError, match=r"other settings \(seed\)"):
        train(toy_faces, toy_run[0], altered(seed=1))


def test_a_state_of_an_earlier_version_goes_on(toy_run, toy_faces, tmp_path):
    """Its settings were one line of text; see `_ClassifierRun.of_earlier_version`."""
    train(toy_faces, tmp_path)
    (tmp_path / "last.safetensors").unlink()
    state = load_state(tmp_path / "state.pt")
    options = {**vars(TOY), "initial": None}
    state["run"] = json.dumps([options, 1, state.pop("settings")["faces"]], sort_keys=True)
    state["network"] = state.pop("networks")["classifier"]
    state["optimizer"] = state.pop("optimisers")["classifier"]
    save_state(tmp_path / "state.pt", state)
    with pytest.raises(CheckpointError, match="not a state of this training"):
        train(toy_faces, tmp_path, altered(seed=1))
    assert train(toy_faces, tmp_path).epochs == [Epoch(**epoch) for epoch in state["epochs"]]
    assert not (tmp_path / "last.safetensors").exists()  # it was finished


def test_training_starts_from_given_weights(toy_faces, tmp_path):
    network = ResNet18(ResNet18Architecture(width=2))
    save_checkpoint(tmp_path / "initial.safetensors", network, trained=True, licence="MIT")
    options = altered(initial=tmp_path / "initial.safetensors", learning_rate=1e-12, epochs=1)
    train(toy_faces, tmp_path / "run", options)
    last = load_classifier(tmp_path / "run" / "last.safetensors").tensors
    assert torch.allclose(last["layer4.1.conv2.weight"], network.state_dict()["layer4.1.conv2.weight"])
    with pytest.raises(CheckpointError, match="set the width"):
        train(toy_faces, tmp_path / "other", altered(initial=tmp_path / "initial.safetensors", width=3))


def test_a_full_disk_keeps_the_last_state(toy_faces, tmp_path):
    train(toy_faces, tmp_path, altered(epochs=1))
    (tmp_path / "state.pt").unlink()
    before = (tmp_path / "last.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OutputError, match="make room"):
            train(toy_faces, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert not (tmp_path / "state.pt").exists()
    train(toy_faces, tmp_path)


def test_divergence_is_told_and_not_kept(toy_faces, tmp_path):
    with pytest.raises(CheckpointError, match="diverged in epoch 1"):
        train(toy_faces, tmp_path, altered(learning_rate=1e30))
    assert not (tmp_path / "best.safetensors").exists()


def test_bad_faces_are_refused(tmp_path):
    with pytest.raises(DataError, match="no 'male'"):
        train(write_toy_faces(tmp_path / "one class", genders=("female",)), tmp_path / "run")
    cache = write_toy_faces(tmp_path / "damaged")
    (cache / "images" / "3.jpg").write_bytes(b"\xff\xd8\xff cut")
    with pytest.raises(DataError, match=r"3\.jpg' is damaged"):
        train(cache, tmp_path / "run")
    faces = (cache / "faces.csv").read_text()
    (cache / "faces.csv").write_text(faces.replace("validation", "train"))
    with pytest.raises(DataError, match="split 'validation'"):
        train(cache, tmp_path / "run")


def test_bf16_trains(toy_faces, tmp_path):
    report = train(toy_faces, tmp_path, altered(mixed_precision="bf16", epochs=1))
    assert math.isfinite(report.epochs[0].train_loss)
    assert load_classifier(tmp_path / "last.safetensors").tensors["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("balance", ["sampler", "weights"])
def test_the_rarer_class_counts_as_much(toy_faces, tmp_path, balance, monkeypatch):
    """With nothing to see, the network can only learn how often each class counts: equally often."""
    cache = write_toy_faces(tmp_path / "faces", n=26, genders=("female", "female", "female", "male"))
    monkeypatch.setattr(augmentation, "flip", lambda pictures, random: torch.zeros_like(pictures))
    options = altered(epochs=30, learning_rate=0.02, schedule="cosine", batch_size=20)
    shares = {}
    for name in ("none", balance):
        train(cache, tmp_path / name, altered(**{**vars(options), "balance": name}))
        network = load_classifier(tmp_path / name / "last.safetensors").network().train()
        with torch.no_grad():  # batch statistics: what the last layer learned, whatever the running ones are
            shares[name] = float(torch.softmax(network(normalise(torch.zeros(20, 3, 33, 33))), 1)[:, 0].mean())
    assert shares["none"] == pytest.approx(0.75, abs=0.05)
    assert shares[balance] == pytest.approx(0.5, abs=0.08)


def test_rarer_groups_weigh_more_within_their_class(tmp_path):
    samples = read_faces(write_toy_faces(tmp_path / "faces", n=9))  # 3 and 2 women, 2 and 2 men
    weights = _face_weights(samples, "hair").numpy()
    assert [sample.groups["hair"] for sample in samples[:4:2]] == ["long", "short"]
    assert weights[2] / weights[0] == pytest.approx((3 / 2) ** 0.5)
    assert weights[3] / weights[1] == pytest.approx(1)
    assert weights[0::2].sum() == pytest.approx(4.5)
    assert weights[1::2].sum() == pytest.approx(4.5)
    with pytest.raises(DataError, match="'size' to balance by"):
        _face_weights(samples, "size")


def test_the_network_sees_what_the_served_graph_sees(astronaut, tmp_path):
    cache = write_toy_faces(tmp_path / "faces")
    Image.open(astronaut).save(cache / "images" / "0.jpg", quality=95)
    pixels = classifier_pixels(cache, SILENT)
    assert pixels.shape == (12, 224, 224, 3)
    torch.manual_seed(0)
    network = ResNet18(ResNet18Architecture(width=4)).eval()
    batch = normalise(Pixels([pixels]).batch(np.arange(12)))
    with torch.no_grad():  # as uncertain as can be, so that a small difference would show
        network.fc.weight /= network(batch).diff(dim=1).std()
        network.fc.bias[0] += network(batch).diff(dim=1).mean()
        trained_on = torch.softmax(network(batch), 1).numpy()
    served = served_probabilities(network, read_faces(cache), console=SILENT)
    face = np.asarray(Image.open(cache / "images" / "0.jpg"))
    assert np.allclose(served[0], build_graph(network)(torch.tensor(face)[None]).detach().numpy()[0], atol=1e-5)
    assert np.ptp(served[:, 0]) > 0.2  # the pictures differ to this network, so agreeing says something
    assert np.abs(served - trained_on).max() < 0.003


def test_several_caches_are_one_row_of_pictures():
    first, second = (np.full((n, 224, 224, 3), n, np.uint8) for n in (3, 5))
    batch = Pixels([first, second]).batch(np.array([7, 0, 2, 3]))
    assert (batch[:, 0, 0, 0] * 255).round().tolist() == [5, 3, 3, 5]
    assert Pixels([first]).batch(np.array([0]), 64).shape == (1, 3, 64, 64)


def test_calibration_finds_the_temperature_of_the_highest_likelihood():
    """Right three times in four at a logit difference of 8: the honest difference is log 3."""
    network = ResNet18(ResNet18Architecture(width=1))
    before = network.fc.weight.detach().clone()
    logits = torch.tensor([[4.0, -4.0]] * 40)
    labels = torch.tensor([0] * 30 + [1] * 10)
    temperature = calibrate(network, logits, labels)
    assert temperature == pytest.approx(8 / math.log(3), rel=1e-3)
    assert torch.allclose(network.fc.weight * temperature, before)
    assert functional.cross_entropy(logits / temperature, labels) < functional.cross_entropy(logits, labels)
    assert calibrate(network, logits, torch.zeros(40, dtype=torch.int64)) == pytest.approx(1 / 3, rel=1e-3)


def test_the_report_counts(toy_faces):
    samples = read_faces(toy_faces)[:8]  # female, male, female, …; hair long, long, short, short, …
    female = np.array([0.9, 0.2, 0.4, 0.7, 0.8, 0.1, 0.6, 0.3], np.float32)
    report = split_report(samples, np.stack([female, 1 - female], 1))
    assert report.confusion == {"female": {"female": 3, "male": 1}, "male": {"female": 1, "male": 3}}
    assert report.accuracy == 0.75
    assert report.by_gender == {"female": 0.75, "male": 0.75}
    assert report.by_group == {"hair": {"long": {"n": 4, "accuracy": 1.0}, "short": {"n": 4, "accuracy": 0.5}}}
    certainty = [0.9, 0.8, 0.4, 0.3, 0.8, 0.9, 0.6, 0.7]  # given to the label
    assert report.loss == pytest.approx(-np.mean(np.log(certainty)), rel=1e-5)
    # bins of certainty: 0.6 (wrong, right), 0.7 (wrong, right), 0.8 (both right), 0.9 (both right)
    assert report.calibration_error == pytest.approx((0.2 + 0.4 + 0.4 + 0.2) / 8, abs=1e-5)


def test_ages_are_counted_in_tens(tmp_path):
    cache = write_toy_faces(tmp_path / "faces", n=30)
    text = (cache / "faces.csv").read_text().splitlines()
    rows = [line.rsplit(",", 1)[0] + f",{20 + i}" for i, line in enumerate(text[1:])]
    (cache / "faces.csv").write_text("\n".join([text[0].replace("hair", "age"), *rows]))
    report = split_report(read_faces(cache), np.full((30, 2), 0.5, np.float32))
    assert {age: figures["n"] for age, figures in report.by_group["age"].items()} == {
        "20–29": 10,
        "30–39": 10,
        "40–49": 10,
    }


def test_augmentation_is_drawn_from_the_seed_and_differs_between_pictures():
    pictures = torch.rand(1, 3, 64, 64).repeat(16, 1, 1, 1)
    first, again, other = (augmentation.strong(pictures, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == pictures.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert len({float(picture.sum()) for picture in first}) == 16


def test_flipping_mirrors_half_and_changes_nothing_else():
    pictures = torch.rand(200, 3, 4, 4)
    flipped = augmentation.flip(pictures, generator(0))
    mirrored = (flipped == pictures.flip(-1)).all(-1).all(-1).all(-1)
    same = (flipped == pictures).all(-1).all(-1).all(-1)
    assert (mirrored ^ same).all()
    assert 70 < int(mirrored.sum()) < 130


def test_some_faces_get_the_surroundings_of_the_next_and_all_keep_their_middle():
    pictures = torch.arange(200.0).view(200, 1, 1, 1).expand(200, 3, 64, 64)
    surrounded = augmentation.surround(pictures, generator(0))
    nose = (..., slice(34, 40), slice(30, 34))
    assert torch.allclose(surrounded[nose], pictures[nose], atol=0.01)
    shift = (surrounded - pictures)[:, 0, 2, 2].round()
    assert set(shift.tolist()) <= {0.0, 1.0, -199.0}  # each next one is one brighter, the last one's next is the first
    assert 0.25 < float((shift != 0).float().mean()) < 0.45


def test_turning_is_small_and_keeps_a_smooth_picture():
    """A ramp stays a ramp: the middle moves by no more than shift and scale allow."""
    ramp = torch.linspace(0, 1, 64).expand(50, 3, 64, 64)
    turned = augmentation.turn(ramp, generator(0))[:, 0, 31:33, 31:33].mean((1, 2))
    assert (turned - 0.5).abs().max() <= augmentation.MAX_SHIFT * 2**0.5 + 0.01
    assert (turned - 0.5).abs().max() > 0.02


def test_on_two_processes_the_weights_stay_one(toy_faces, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from visard_training.classifier.training import *\n"
        "options = ClassifierOptions(width=2, size=33, epochs=1, batch_size=4, learning_rate=0.05)\n"
        f"train_classifier([Path({str(toy_faces)!r})], Path({str(tmp_path / 'run')!r}), options)\n"
        "options = ClassifierOptions(width=2, size=33, batch_size=3)\n"
        "try:\n"
        f"    train_classifier([Path({str(toy_faces)!r})], Path({str(tmp_path / 'odd')!r}), options)\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("a batch of 3 cannot be shared by 2 processes alike") == 2
    state = torch.load(Path(tmp_path / "run" / "state.pt"), weights_only=True)
    assert state["step"] == 2  # six faces: two for each process, then one
    assert float(state["epochs"][0]["train_accuracy"]) in [i / 6 for i in range(7)]
