"""The parts of `visard folder` that need no server: find, prove, tell people apart, upload."""

from __future__ import annotations

import io
import itertools
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from visard.connection import Connection
from visard.local import Local
from visard_errors import DataError, OutputError, PhotoTooLarge, UnreadablePhoto, UnsupportedFormat
from visard_folder import FolderJob, Journal, LocalEngine, Watcher
from visard_folder.leaks import prove_clean
from visard_folder.people import HIDE_BELOW, KEEP_BELOW, People, load_people
from visard_folder.photo import NotAPhoto, Settings, advance, steps
from visard_folder.pool import with_cores
from visard_folder.run import Run
from visard_folder.stores import Store
from visard_folder.walk import check_apart, walk
from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_preprocess.machine import cores, free_bytes
from visard_preprocess.photo import encode_photo, photo_format, read_photo, read_photo_and_exif
from visard_testing import HEIC

# --- the machine ---


@pytest.mark.parametrize(
    ("cores", "free", "workers", "processes"),
    [(8, 64e9, None, 4), (8, 2.1e9, None, 2), (8, 0.1e9, None, 0), (3, 64e9, None, 0), (2, 0.1e9, 6, 3)],
)
def test_a_run_takes_the_cores_that_the_memory_is_enough_for(monkeypatch, tmp_path, cores, free, workers, processes):
    divided = []

    async def alone(work):
        divided.append(0)

    monkeypatch.setattr("visard_folder.local_engine.cores", lambda: cores)
    monkeypatch.setattr("visard_folder.local_engine.free_bytes", lambda: int(free))
    monkeypatch.setattr("visard_folder.local_engine.do_in_processes", lambda run, count: divided.append(count))
    monkeypatch.setattr("visard_folder.local_engine._Work.do", alone)
    job = FolderJob(source=tmp_path / "in", target=tmp_path / "out", connections=(Connection(url="127.0.0.1:9"),))
    with Journal(tmp_path / "out", {}) as journal:
        LocalEngine(workers=workers).do(Run(job, {}, journal, Watcher()))
    assert divided == [processes]


def test_models_in_a_process_get_its_share_of_the_cores(tmp_path):
    (tmp_path / "anonymizer").mkdir()
    local, server = Local(models=tmp_path, at_once=64), Connection(url="127.0.0.1:9")
    assert with_cores((local, server), 2) == (Local(models=tmp_path, at_once=2), server)


def test_what_the_machine_and_a_container_have(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("visard_preprocess.machine._CONTAINER_LIMIT", limit)
    assert 1 <= cores() <= os.cpu_count()
    assert 2**20 < free_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit.write_text("1048576\n", encoding="ascii")
    assert free_bytes() == 2**20
    limit.write_text("max\n", encoding="ascii")
    assert free_bytes() > 2**20


# --- walk ---


def test_walk_finds_every_file_once_whatever_its_name(tmp_path):
    names = [
        "a.jpg",
        "A.jpg",
        "deep/er/b.png",
        "写真/фото.jpg",
        "new\nline.jpg",
        "spa ce/ü.webp",
        "-x.jpg",
        ".hidden.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    raw = os.fsencode(tmp_path) + b"/bytes\xff\xfe.jpg"
    os.close(os.open(raw, os.O_CREAT))
    (tmp_path / ".visard").mkdir()
    (tmp_path / ".visard" / "journal.sqlite").write_bytes(b"x")
    found = [found.path for found in walk(tmp_path)]
    assert sorted(found) == sorted([*names, os.fsdecode(b"bytes\xff\xfe.jpg")])
    assert all(found.problem is None for found in walk(tmp_path))


@pytest.mark.parametrize("name", ["._a.jpg", "sub/._b.JPG", ".hidden.jpg", ".AppleDouble/a.jpg", "__MACOSX/._a.jpg"])
def test_what_systems_hide_beside_photos_is_no_photo(tmp_path, name):
    for path in (tmp_path / name, tmp_path / "a.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ")  # AppleDouble
    (hidden,) = [found for found in walk(tmp_path) if found.path == name]
    with pytest.raises(NotAPhoto):
        hidden.read()
    with pytest.raises(UnsupportedFormat):
        next(found for found in walk(tmp_path) if found.path == "a.jpg").read()


def test_walk_lists_nothing_ahead(tmp_path, monkeypatch):
    """Memory must not grow with the folder: of an endless one, no more is looked at than is asked for."""
    (tmp_path / "photo.jpg").touch()
    with os.scandir(tmp_path) as entries:
        (entry,) = entries
    looked_at = itertools.count()
    endless = ((next(looked_at) and entry) or entry for _ in itertools.count())
    monkeypatch.setattr(os, "scandir", lambda path: endless)
    assert len(list(itertools.islice(walk(tmp_path), 10))) == 10
    assert next(looked_at) == 10


def test_links_are_followed_to_files_only(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "photo.jpg").write_bytes(b"x")
    (tmp_path / "file.jpg").symlink_to(tmp_path / "sub" / "photo.jpg")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = {found.path: found.problem for found in walk(tmp_path)}
    assert set(found) == {"sub/photo.jpg", "file.jpg", "sub/loop", "self.jpg", "nowhere.jpg", "pipe.jpg"}
    assert found["file.jpg"] is None
    assert "link to a folder" in found["sub/loop"]
    assert found["self.jpg"] is not None
    assert found["nowhere.jpg"] is not None
    assert "neither a file" in found["pipe.jpg"]
    assert not any(str(tmp_path) in problem for problem in found.values() if problem)


def test_unreadable_folder_is_reported(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "open.jpg").touch()
    scandir = os.scandir

    def refuse(path):  # root may list everything, so that a mode of 0 shows nothing here
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {found.path: found.problem for found in walk(tmp_path)}
    assert found["open.jpg"] is None
    assert "cannot be listed" in found["locked"]
    with pytest.raises(UnreadablePhoto, match="cannot list"):
        next(walk(tmp_path / "locked"))


def test_read_says_what_a_file_is(tmp_path, monkeypatch):
    def read(name, data):
        (tmp_path / name).write_bytes(data)
        (found,) = (found for found in walk(tmp_path) if found.path == name)
        return found.read()

    photo = encode_photo(np.zeros((8, 8, 3), np.uint8), "PNG", source_type=None)
    assert read("no_suffix", photo) == photo  # the content decides
    for name in ("text.jpg", "a.GIF", "empty.png"):
        with pytest.raises(UnsupportedFormat):
            read(name, b"" if name.startswith("empty") else b"GIF89a and so on")
    with pytest.raises(NotAPhoto):
        read("notes.txt", b"words")
    monkeypatch.setattr("visard_preprocess.photo.MAX_BYTES", 50)
    with pytest.raises(PhotoTooLarge):
        read("large.png", photo)


def test_what_is_not_written_becomes_a_jpeg(astronaut):
    png = io.BytesIO()
    Image.new("RGB", (40, 60), "gray").save(png, "PNG")
    for data, format_ in ((HEIC.with_name("sideways.heic").read_bytes(), "JPEG"), (png.getvalue(), "PNG")):
        with pytest.raises(StopIteration) as done:
            next(steps(lambda data=data: data, "a.heic", Settings(no_face="clean")))
        assert done.value.value.record.outcome == "cleaned"
        assert photo_format(done.value.value.encoded) == format_


def test_folders_within_each_other_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for source, target in (("photos", "photos"), ("photos", "photos/out"), ("photos", "."), ("link", "photos/out")):
        with pytest.raises(OutputError, match="lie in each other"):
            check_apart(tmp_path / source, tmp_path / target)
    check_apart(tmp_path / "photos", tmp_path / "photos2")


# --- leaks ---


@pytest.mark.parametrize("source_type", [None, "compositeWithTrainedAlgorithmicMedia"])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_our_files_are_clean(format_, source_type):
    noise = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    for exif in ({}, {"FNumber": Fraction(14, 5), "DateTimeOriginal": "2026:11:28 12:00:00"}):
        prove_clean(encode_photo(noise, format_, source_type=source_type, exif=exif), format_, source_type, exif)


def leaking(format_):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif.get_ifd(0x8825)[1] = "N"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Alice")
    for extra in (
        {"exif": exif.tobytes()},
        {"icc_profile": b"profile of Alice"},
        {"pnginfo": text} if format_ == "PNG" else {"xmp": b"<x:xmpmeta>Alice</x:xmpmeta>"},
        {"comment": b"Alice"} if format_ == "JPEG" else {"exif": b"Exif\0\0Alice"},
    ):
        buffer = io.BytesIO()
        image.save(buffer, format_, **extra)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, format_)
    yield buffer.getvalue() + b"Alice"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_any_metadata_is_noticed(format_):
    for data in leaking(format_):
        with pytest.raises(RuntimeError):
            prove_clean(data, format_, None, {})


def test_a_packet_of_another_kind_is_noticed():
    data = encode_photo(np.zeros((9, 9, 3), np.uint8), "JPEG", source_type="trainedAlgorithmicMedia")
    for expected in (None, "compositeWithTrainedAlgorithmicMedia"):
        with pytest.raises(RuntimeError):
            prove_clean(data, "JPEG", expected, {})


def test_other_tags_than_those_that_were_to_be_kept_are_noticed():
    data = encode_photo(np.zeros((9, 9, 3), np.uint8), "JPEG", source_type=None, exif={"FNumber": Fraction(14, 5)})
    for expected in ({}, {"FNumber": Fraction(8)}, {"FNumber": Fraction(14, 5), "Flash": 1}):
        with pytest.raises(RuntimeError):
            prove_clean(data, "JPEG", None, expected)


def test_a_run_keeps_what_its_settings_name():
    exif = {"PhotographicSensitivity": 400, "DateTimeOriginal": "2026:11:28 12:00:00"}
    data = encode_photo(np.full((64, 64, 3), 90, np.uint8), "WEBP", source_type=None, exif=exif)
    for keep, expected in (("nothing", {}), ("date", {"DateTimeOriginal": "2026:11:28 12:00:00"})):
        product = advance(steps(lambda: data, "a.webp", Settings(keep=keep, no_face="clean")))
        assert product.record.outcome == "cleaned"
        assert read_photo_and_exif(product.encoded)[1] == expected


# --- people ---


def test_people_are_told_by_distance():
    known = np.zeros((2, 128))
    known[1, 0] = 10

    def at(distance):
        return np.eye(128)[1] * distance

    keep, only = People(mode="keep", descriptors=known), People(mode="only", descriptors=known)
    assert keep.stays_visible(at(KEEP_BELOW - 0.01))
    assert not keep.stays_visible(at(KEEP_BELOW + 0.01))
    assert not only.stays_visible(at(HIDE_BELOW - 0.01))
    assert only.stays_visible(at(HIDE_BELOW + 0.01))
    assert keep.stays_visible(known[1] + at(0.1))  # the nearest of the list counts


def test_people_list_with_a_gap_is_refused(tmp_path, astronaut):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no photo of people"):
        load_people(tmp_path, "keep")
    (tmp_path / "a" / "me.jpg").write_bytes(astronaut.read_bytes())
    people = load_people(tmp_path, "keep")
    photo = read_photo(astronaut)
    (face,) = finder().find(photo)
    assert people.stays_visible(finder().descriptor(crop(photo, face.quad)))
    assert "0." not in repr(people)  # descriptors are biometric data
    Image.new("RGB", (64, 64)).save(tmp_path / "nobody.png")
    with pytest.raises(DataError, match="0 faces"):
        load_people(tmp_path, "keep")


# --- settings ---


@pytest.mark.parametrize(
    "wrong", [{"unswapped": "pass"}, {"no_face": "copy"}, {"direction": "up"}, {"min_confidence": 0.1}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


# --- stores ---


@pytest.fixture
def store(monkeypatch):
    """A store in memory, which is asked again without a pause."""
    monkeypatch.setattr("visard_folder.stores._PAUSE_S", 0)
    store = Store("memory://visard-test")
    yield store
    store._fs.store.clear()


def test_an_upload_is_tried_again_until_it_reads_back(store, monkeypatch):
    put, kept = store._fs.pipe_file, []

    def unsteady(key, data):
        kept.append(data)
        if len(kept) == 1:
            raise ConnectionResetError
        put(key, data if len(kept) == 3 else data[:-1])

    monkeypatch.setattr(store._fs, "pipe_file", unsteady)
    store.write("a/photo.jpg", b"whole")
    assert len(kept) == 3
    assert store._fs.cat_file("/visard-test/a/photo.jpg") == b"whole"


def test_an_upload_that_never_reads_back_is_an_error_and_leaves_nothing(store, monkeypatch):
    put = store._fs.pipe_file
    monkeypatch.setattr(store._fs, "pipe_file", lambda key, data: put(key, data[:-1]))
    with pytest.raises(OutputError, match="reads back differently"):
        store.write("photo.jpg", b"whole")
    assert store.is_empty()
    monkeypatch.setattr(store._fs, "pipe_file", lambda key, data: (_ for _ in ()).throw(PermissionError("s3cret key")))
    with pytest.raises(OutputError, match="PermissionError") as caught:
        store.write("photo.jpg", b"whole")
    assert "s3cret" not in str(caught.value)
