"""Prepared faces: what a source is read as, who is held out, what alignment leaves, and what survives a fault."""

from __future__ import annotations

import json
import os
import pickle
import resource
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from visard_errors import CheckpointError, DataError, OutputError
from visard_preprocess.align import finder
from visard_preprocess.files import write_atomically
from visard_training.data.faces import Photo, hold_out, prepare_faces, read_faces, read_source
from visard_training.data.options import PrepareOptions
from visard_training.runs import progress
from visard_training.runs.state import generator, load_state, save_state


def photo(gender="female", person="a", split=None):
    return Photo(path=Path(f"{person}.jpg"), gender=gender, split=split, person=person)


@pytest.fixture(scope="module")
def source(astronaut, tmp_path_factory):
    """Three photos with a face, one without, one broken; two people."""
    folder = tmp_path_factory.mktemp("source")
    face = Image.open(astronaut).convert("RGB")
    for name in ("female", "male"):
        (folder / name).mkdir()
    face.save(folder / "female" / "25_1_3_20170116171504554.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((600, 600)).save(folder / "male" / "mirrored.png")
    face.crop((150, 50, 300, 200)).save(folder / "female" / "tight.png")
    Image.new("RGB", (300, 300), "grey").save(folder / "male" / "nobody.png")
    (folder / "male" / "broken.jpg").write_bytes(astronaut.read_bytes()[:4000])
    return folder


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return prepare_faces(source, cache, PrepareOptions(workers=1))


def aligned(sample):
    return np.asarray(Image.open(sample.path))


def test_faces_are_aligned_and_what_cannot_be_is_counted(prepared):
    assert prepared.n_faces == 3
    assert prepared.skipped == {"CorruptPhoto": 1, "NoFace": 1}
    samples = {sample.path.name.partition("-")[0]: sample for sample in read_faces(prepared.cache)}
    assert {sample.split for sample in samples.values()} == {"train"}
    original, mirrored, tight = (samples[name] for name in ("25_1_3_20170116171504554", "mirrored", "tight"))
    assert (original.gender, mirrored.gender) == ("female", "male")
    assert original.groups == {"age": "25", "ethnicity": "indian"}
    assert mirrored.groups == {"age": "", "ethnicity": ""}
    # Alignment undoes mirroring and size: but for landmarks that are a few pixels off, it is one picture.
    difference = np.abs(aligned(original)[:, ::-1].astype(int) - aligned(mirrored)).mean()
    assert difference < 12
    assert mirrored.side_px == pytest.approx(original.side_px * 600 / 512, rel=0.05)
    assert original.inside > 0.99
    assert 0.5 < tight.inside < 0.95


def test_landmarks_are_those_of_the_aligned_picture(prepared):
    for sample in read_faces(prepared.cache):
        again = finder().find(aligned(sample))[0].landmarks
        assert sample.landmarks.shape == (68, 2)
        assert np.abs(again - sample.landmarks).mean() < 8  # 1.5 % of the picture: the detector's box differs


def test_a_second_call_aligns_only_what_is_left(source, prepared, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    entries = (prepared.cache / "journal.jsonl").read_text().splitlines()
    kept = [line for line in entries if "mirrored" not in line]
    cut_short = next(line for line in entries if "mirrored" in line)[:40]
    (cache / "journal.jsonl").write_text("\n".join([*kept, cut_short]))
    assert prepare_faces(source, cache, PrepareOptions(workers=1)) == prepare_faces(
        source, cache, PrepareOptions(workers=1)
    )
    # One was aligned again, the others were taken from the journal: their pictures are not even there.
    assert [path.name.partition("-")[0] for path in (cache / "images").iterdir()] == ["mirrored"]
    assert sorted(map(json.loads, entries), key=str) == sorted(
        (json.loads(line) for line in (cache / "journal.jsonl").read_text().splitlines()), key=str
    )
    assert (cache / "faces.csv").read_bytes() == (prepared.cache / "faces.csv").read_bytes()
    assert (cache / "landmarks.npy").read_bytes() == (prepared.cache / "landmarks.npy").read_bytes()


def test_folders_are_read_with_their_splits(tmp_path):
    for part in ("Training", "Validation"):
        for name in ("female", "Men", "unrelated"):
            (tmp_path / part / name / "deeper").mkdir(parents=True)
            (tmp_path / part / name / "deeper" / "a.JPG").touch()
            (tmp_path / part / name / "notes.txt").touch()
    photos = read_source(tmp_path)
    assert [(p.gender, p.split) for p in photos] == [
        ("male", "train"),
        ("female", "train"),
        ("male", "validation"),
        ("female", "validation"),
    ]
    assert len({p.person for p in photos}) == 4


def test_manifests_bring_people_splits_and_groups(tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "file,gender,split,person,hair\nsub/a.jpg,Female,train,p1,long\nb.jpg,male,,p2,\nc.jpg,man,test,p3,short\n"
    )
    first, second, third = read_source(tmp_path)
    assert read_source(manifest) == (first, second, third)
    assert first == Photo(
        path=tmp_path / "sub" / "a.jpg", gender="female", split="train", person="p1", groups={"hair": "long"}
    )
    assert (second.split, second.groups, third.split) == (None, {}, "test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,sex\na.jpg,male\n", "no column gender"),
        ("file,gender\na.jpg,male\nb.jpg,cat\n", "line 3: gender 'cat'"),
        ("file,gender,split\na.jpg,male,later\n", "line 2: .*split 'later'"),
        ("file,gender\na.jpg,male\n", "0 female, 1 male: no 'female'"),
        ("file,gender\n", "0 female, 0 male"),
        ("", "no column file or gender"),
    ],
)
def test_a_bad_manifest_says_what_is_wrong(tmp_path, text, words):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_source(tmp_path)


def test_sources_without_anything_to_learn_from_are_refused(tmp_path):
    with pytest.raises(DataError, match="0 female, 0 male"):
        read_source(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor"):
        read_source(tmp_path / "missing")
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_source(tmp_path)
    with pytest.raises(DataError, match="visard train prepare"):
        read_faces(tmp_path)


def test_people_are_held_out_whole_and_whatever_the_order():
    photos = [photo("female" if i % 3 else "male", f"person {i}") for i in range(60) for _ in range(2)]
    splits = [p.split for p in hold_out(photos, 0.2, seed=1)]
    assert splits[::2] == splits[1::2]
    held_out = [p for p, split in zip(photos, splits, strict=True) if split == "validation"]
    assert [sum(p.gender == gender for p in held_out) for gender in ("female", "male")] == [16, 8]
    backwards = [p.split for p in hold_out(photos[::-1], 0.2, seed=1)][::-1]
    assert backwards == splits
    assert [p.split for p in hold_out(photos, 0.2, seed=2)] != splits


def test_a_source_that_has_splits_keeps_them():
    photos = [photo(person="a", split="test"), photo(person="b"), photo(person="c", split="validation")]
    assert [p.split for p in hold_out(photos, 0.9, seed=0)] == ["test", "train", "validation"]
    assert [p.split for p in hold_out(photos[:2], 1.0, seed=0)] == ["test", "validation"]


@contextmanager
def tiny_disk():
    """Let no file grow beyond 1,000 bytes; within a test only, since the limit holds for pytest's own log too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_older_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with tiny_disk(), pytest.raises(OSError, match="too large"):
        write_atomically(path, bytes(2000))
    with tiny_disk(), pytest.raises(OutputError, match="make room"):
        save_state(path, {"step": torch.zeros(1000)})
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_states_come_back_as_they_were(tmp_path):
    state = {"step": 3, "weights": {"a": torch.arange(3.0)}, "epochs": [{"loss": 0.5}]}
    assert load_state(tmp_path / "state.pt") is None
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert loaded is not None
    assert torch.equal(loaded["weights"].pop("a"), state["weights"].pop("a"))
    assert loaded == state


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_that_runs_code_is_refused(tmp_path, zipped):
    path, proof = tmp_path / "state.pt", tmp_path / "executed"
    if zipped:
        torch.save({"step": Command(proof)}, path)
    else:
        path.write_bytes(pickle.dumps(Command(proof), protocol=2))
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"junk"])
def test_a_damaged_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="remove it"):
        load_state(tmp_path / "state.pt")


def test_random_numbers_belong_to_their_place():
    def draw(*position):
        return torch.rand(4, generator=generator(*position)).tolist()

    assert draw(1, "step", 5) == draw(1, "step", 5)
    assert len({tuple(draw(*p)) for p in ((1, "step", 5), (1, "step", 6), (2, "step", 5), (1, "order", 5))}) == 4


def told(drawn, monkeypatch):
    """What is said of three pieces that take 20 s each."""
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    file = StringIO()
    console = Console(file=file, force_terminal=drawn, width=120)
    with progress.Progress("Learning", 4, done=1, console=console) as bar:
        for loss in (3, 2, None):
            bar.advance(loss and f"loss {loss}")
    return file.getvalue()


def test_in_a_file_progress_is_a_line_now_and_then_and_at_the_end(monkeypatch):
    assert told(False, monkeypatch).splitlines() == ["Learning: 3 of 4 · loss 2", "Learning: 4 of 4 · loss 2"]


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = told(True, monkeypatch)
    assert "4/4" in shown
    assert "loss 2" in shown
    assert "4 of 4" not in shown


def test_work_that_is_broken_off_says_how_far_it_came():
    file = StringIO()
    pieces = progress.track(range(5), "Learning", 5, Console(file=file))
    assert [next(pieces) for _ in range(3)] == [0, 1, 2]
    pieces.close()
    assert file.getvalue() == "Learning: 2 of 5\n"
