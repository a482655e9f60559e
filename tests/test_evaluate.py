"""The evaluation on photos whose outcome is known: dark faces are female to the tiny models, bright ones male."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from command_line import visard
from visard import Client, DataError
from visard.evaluate import LabelledPhoto, evaluate, find_photos


@pytest.fixture(scope="module")
def labelled(astronaut, tmp_path_factory):
    """The astronaut darkened twice and brightened once, one of them with a label that the classifier contradicts."""
    folder = tmp_path_factory.mktemp("labelled")
    photo = np.asarray(Image.open(astronaut).convert("RGB")).astype(float)
    for name, picture in {
        "dark.png": photo * 0.6,
        "dark2.png": photo * 0.55,
        "bright.png": 120 + photo * 0.5,
        "nobody.png": photo * 0,
    }.items():
        Image.fromarray(picture.astype(np.uint8)).save(folder / name)
    rows = ["file,gender,split", "dark.png,female,a", "dark2.png,male,a", "bright.png,male,a", "nobody.png,male,a"]
    (folder / "manifest.csv").write_text("\n".join([*rows, "gone.png,male,b"]))
    return folder


def test_figures(labelled, tiny_server):
    photos = find_photos(labelled, "a")
    with Client(tiny_server.grpc_url) as client:
        figures = evaluate(photos, client.anonymize_many)
    assert figures["n"] == 3
    assert figures["classifier_accuracy"] == {"female": 1.0, "male": 0.5}
    assert figures["swap_success"] == {"female": 1.0, "male": 1.0}
    assert figures["errors"] == {"NoFace": 1}
    assert 0 <= figures["detection_preserved"] <= 1
    assert 0 <= figures["identity"]["dlib"]["verification"] <= 1
    assert 0 < figures["similarity_percent"]["female"] < 100


def test_command(labelled, tiny_server):
    run = visard("evaluate", labelled, "--split", "a", "--json", "--server", tiny_server.grpc_url)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["n"] == 3
    run = visard("evaluate", labelled, "--split", "a", "--server", tiny_server.grpc_url)
    assert "swap success" in run.stdout


def test_folders_are_labels(tmp_path):
    for name in ("female/a.jpg", "male/b.PNG", "others/c.webp", "male/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_photos(tmp_path) == [
        LabelledPhoto(tmp_path / "female/a.jpg", "female"),
        LabelledPhoto(tmp_path / "male/b.PNG", "male"),
        LabelledPhoto(tmp_path / "others/c.webp", None),
    ]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [("file\na.jpg", "columns"), ("file,gender\ngone.jpg,male", "gone.jpg"), ("file,gender\n", "columns")],
)
def test_unusable_manifest(tmp_path, manifest, words):
    (tmp_path / "manifest.csv").write_text(manifest)
    with pytest.raises(DataError, match=words):
        find_photos(tmp_path)


def test_nothing_to_evaluate(tmp_path, labelled):
    with pytest.raises(DataError, match="no photo"):
        find_photos(tmp_path)
    with pytest.raises(DataError, match="split 'c'"):
        find_photos(labelled, "c")
    with pytest.raises(DataError, match="not a folder"):
        find_photos(tmp_path / "nowhere")
