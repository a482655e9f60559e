"""Who becomes whom: what is drawn, that it arrives at the generators, and that nothing tells it afterwards."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from hashlib import blake2b

import grpc
import numpy as np
import pytest
from PIL import Image

from visard import Client, Connection, NoFace, Options
from visard.personas import draw
from visard_folder import FolderJob, Journal, LocalEngine, anonymise_folder
from visard_folder.receipt import make_keys
from visard_preprocess.photo import read_photo
from visard_testing.command_line import visard
from visard_testing.folder_trees import face_photo, outputs
from visard_testing.grpc_proxy import GrpcProxy
from visard_testing.tiny_models import written_personas

KEY = "a key that nobody guesses"
BASE = int.from_bytes(blake2b(KEY.encode(), digest_size=4, person=b"visard persona").digest(), "big") >> 1
TRANSPORTS = pytest.mark.parametrize(
    "transport", [{}, {"shared_memory": True}, {"encoded": True}], ids=["grpc", "shm", "encoded"]
)


@pytest.fixture
def client(writing_server):
    with Client(writing_server.grpc_url, workers=2) as client:
        yield client


@pytest.fixture
def proxy(writing_server):
    with GrpcProxy(writing_server.grpc_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def two_faces(astronaut):
    """The same person twice, side by side."""
    return np.hstack([read_photo(astronaut)[:300]] * 2)


def levels(*brightness):
    """Aligned faces of one grey level each; below 128 is female to the tiny classifier."""
    return np.stack([np.full((512, 512, 3), level, np.uint8) for level in brightness])


def written(result):
    return written_personas(np.stack([face.swapped for face in result.faces]))


# --- what is drawn ---


def test_a_key_gives_the_same_numbers_for_ever():
    assert draw(3, KEY) == (BASE, BASE + 1, BASE + 2) == draw(3, KEY.encode())
    assert draw(1, "Zürich") == draw(1, "Zürich".encode())
    assert draw(0, KEY) == draw(0) == ()


def test_another_process_draws_the_same():
    program = f"from visard.personas import draw; print(draw(2, {KEY!r})); print(draw(2))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    keyed, unkeyed = run.stdout.splitlines()
    assert keyed == str(draw(2, KEY))
    assert unkeyed != str(draw(2))


def test_other_keys_and_no_key_give_other_numbers():
    keys = [None, None, None, KEY, KEY + " ", "x", b"\xff", "\udcff"]
    bases = [draw(1, key)[0] for key in keys]
    assert len(set(bases)) == len(keys)
    assert all(0 <= base < 2**31 for base in bases)


def test_numbers_spread_over_their_whole_range():
    drawn = np.array([draw(1)[0] for _ in range(4000)] + [draw(1, str(i))[0] for i in range(4000)])
    for half in (drawn[:4000], drawn[4000:]):
        counts = np.bincount(half >> 28, minlength=8)  # 500 expected in each eighth, ± 21
        assert len(counts) == 8
        assert (abs(counts - 500) < 130).all()


def test_after_the_last_number_comes_the_first(monkeypatch):
    monkeypatch.setattr("secrets.randbelow", lambda below: below - 2)
    assert draw(4) == (2**31 - 2, 2**31 - 1, 0, 1)


def test_an_empty_key_is_refused():
    for empty in ("", b""):
        with pytest.raises(ValueError, match="empty"):
            Options(persona_key=empty)


# --- what arrives ---


@TRANSPORTS
def test_personas_arrive_unchanged_over_every_transport(writing_server, transport):
    numbers = [2**31 - 1, 0, 1_234_567_890, 42]
    with Client(Connection(url=writing_server.grpc_url, **transport)) as client:
        for direction in ("opposite", "to_male", ["to_female", "opposite", "to_male", "opposite"]):
            swaps = client.swap(levels(60, 190, 40, 200), direction, numbers)
            assert written_personas(np.stack([swap.swapped for swap in swaps])) == numbers


def test_aligned_faces_without_personas_get_their_own_at_every_call(client):
    calls = [client.swap(levels(60, 190)) for _ in range(2)]
    numbers = [number for call in calls for number in written_personas(np.stack([swap.swapped for swap in call]))]
    assert len(set(numbers)) == 4
    assert min(numbers) >= 0  # chosen here, not by the graph: another attempt asks for the same


def test_personas_that_do_not_fit_are_the_callers_error(client):
    for personas in ([1], [1, 2**31], [1, -2]):
        with pytest.raises(ValueError, match="persona"):
            client.swap(levels(60, 190), "to_male", personas)


def test_the_faces_of_a_photo_differ_and_every_photo_is_drawn_anew(client, two_faces):
    first, second = written(client.anonymize(two_faces)), written(client.anonymize(two_faces))
    assert second != first
    for one, other in (first, second):
        assert other == (one + 1) % 2**31


def test_the_same_key_gives_the_same_personas_in_every_photo(client, two_faces, astronaut):
    options = Options(persona_key=KEY)
    outcomes = list(client.anonymize_many([two_faces, astronaut, two_faces], options))
    assert [written(outcome.result) for outcome in outcomes] == [[BASE, BASE + 1], [BASE], [BASE, BASE + 1]]
    assert written(client.anonymize(astronaut, Options(persona_key=b"another"))) != [BASE]


def test_a_face_keeps_its_persona_whatever_is_chosen_for_the_others(client, two_faces):
    options = Options(persona_key=KEY)
    found = client.find(two_faces)
    assert written(client.anonymize_found(found, ["to_male", "to_female"], options)) == [BASE, BASE + 1]
    assert written(client.anonymize_found(found, ["leave", "to_female"], options)) == [BASE + 1]
    assert written(client.anonymize(two_faces, dataclasses.replace(options, faces="largest"))) == [BASE]
    assert written(client.anonymize_found(found, ["opposite"] * 2)) != [BASE, BASE + 1]


@TRANSPORTS
def test_another_attempt_sends_the_same_persona(proxy, transport):
    proxy.faults = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    proxy.lost = [grpc.StatusCode.UNAVAILABLE]
    with Client(Connection(url=proxy.url, **transport)) as client:
        (swap,) = client.swap(levels(60))
    sent = proxy.personas()
    assert len(sent) == 4
    assert sent == [written_personas(swap.swapped[None])] * 4


# --- what tells it afterwards: nothing ---

TELLS = (KEY.encode(), str(BASE).encode(), str(BASE + 1).encode(), BASE.to_bytes(4, "little"))


def assert_silent(data, *, where):
    assert not [tell for tell in TELLS if tell in data], where


def test_no_result_word_or_log_holds_key_or_number(client, two_faces, astronaut, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    options = Options(persona_key=KEY, identity=True)
    result = client.anonymize(two_faces, options)
    assert written(result) == [BASE, BASE + 1]
    with pytest.raises(NoFace) as no_face:
        client.anonymize(np.full((300, 300, 3), 128, np.uint8), options)
    with pytest.raises(ValueError, match="persona") as refused:
        client.swap(levels(60, 60), "to_male", [BASE])
    for value in (options, result, client.find(two_faces), no_face.value, refused.value):
        assert_silent(repr(value).encode(), where=type(value))
    assert_silent(json.dumps(result.to_dict()).encode(), where="JSON")
    assert_silent(caplog.text.encode(), where="log")
    for suffix in ("jpg", "png", "webp"):
        result.save(tmp_path / f"photo.{suffix}")
        assert_silent((tmp_path / f"photo.{suffix}").read_bytes(), where=suffix)


def test_calls_carry_the_number_as_a_tensor_and_nothing_else_of_it(proxy, astronaut):
    with Client(proxy.url) as client:
        client.anonymize(astronaut, Options(persona_key=KEY))
    assert proxy.personas() == [[BASE]]
    assert_silent(repr(proxy.calls).encode(), where="metadata")
    assert KEY.encode() not in b"".join(proxy.sent)


# --- the command line ---


def crop_numbers(folder):
    return written_personas(np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]))


def test_swap_draws_from_the_key_of_the_environment_or_the_command_line(writing_server, two_faces, tmp_path):
    Image.fromarray(two_faces).save(tmp_path / "two.png")
    command = ("swap", tmp_path / "two.png", "--server", writing_server.grpc_url, "--crops", "--json", "-o")
    runs = {
        "environment": visard(*command, tmp_path / "environment", env={"VISARD_PERSONA_KEY": KEY}),
        "option": visard(*command, tmp_path / "option", "--persona-key", KEY),
        "none": visard(*command, tmp_path / "none"),
    }
    for name, run in runs.items():
        assert run.returncode == 0, run.stderr
        assert_silent((run.stdout + run.stderr).encode(), where=name)
    numbers = {name: crop_numbers(tmp_path / name) for name in runs}
    assert numbers["environment"] == numbers["option"] == [BASE, BASE + 1]
    assert BASE not in numbers["none"]


def test_an_empty_key_is_wrong_usage(tmp_path):
    (tmp_path / "photos").mkdir()
    for command in (("swap", "a.jpg", "-o", "b.jpg"), ("folder", tmp_path / "photos", tmp_path / "out")):
        run = visard(*command, "--persona-key", "", "--server", "127.0.0.1:9")
        assert run.returncode == 2, run.stderr
        assert "must not be empty" in run.stderr


def test_help_says_why_the_key_belongs_into_the_environment():
    for command in ("swap", "folder"):
        words = " ".join(visard(command, "--help").stdout.replace("│", " ").split())
        assert "VISARD_PERSONA_KEY" in words
        assert "list of processes" in words


# --- whole folders ---


@pytest.fixture(scope="module")
def photos(tmp_path_factory, astronaut):
    source = tmp_path_factory.mktemp("photos")
    for index in range(4):
        face_photo(astronaut, brightness=0.5 + 0.2 * index).save(source / f"{index}.png")
    return source


def run_folder(source, target, server, **options):
    connection = server if isinstance(server, Connection) else Connection(url=server.grpc_url)
    job = FolderJob(source=source, target=target, connections=(connection,), **options)
    return anonymise_folder(job, LocalEngine(workers=1))


@pytest.mark.parametrize(("key", "same"), [(KEY, True), ("another key", False), (None, False)])
def test_a_photo_that_is_done_again_gets_the_same_face_with_the_same_key_only(
    photos, writing_server, tmp_path, key, same
):
    run_folder(photos, tmp_path / "out", writing_server, persona_key=KEY)
    before = outputs(tmp_path / "out")
    (tmp_path / "out" / "2.png").unlink()
    assert run_folder(photos, tmp_path / "out", writing_server, persona_key=key)["done_before"] == len(before) - 1
    after = outputs(tmp_path / "out")
    assert (after.pop("2.png") == before.pop("2.png")) is same
    assert after == before


def test_a_folder_s_photos_are_drawn_apart_and_a_second_try_draws_again(photos, writing_server, tmp_path, monkeypatch):
    monkeypatch.setattr("visard.judgement.scoring.identity_distance", lambda *_: 0.1)  # so all is tried twice
    with GrpcProxy(writing_server.grpc_url) as proxy:
        run_folder(photos, tmp_path / "out", Connection(url=proxy.url))
    numbers = [number for sent in proxy.personas() for number in sent]
    assert len(numbers) == len(set(numbers)) == 8
    assert sum((number + 1) % 2**31 in numbers for number in numbers) == 4  # the second try of each


def test_a_server_that_goes_away_gets_the_same_persona_again(photos, writing_server, tmp_path):
    with GrpcProxy(writing_server.grpc_url, lost=[grpc.StatusCode.UNAVAILABLE] * 3) as proxy:
        run_folder(photos, tmp_path / "out", Connection(url=proxy.url, max_attempts=1))
    numbers = [number for sent in proxy.personas() for number in sent]
    assert len(numbers) == 7
    assert len(set(numbers)) == 4


def test_nothing_in_the_output_folder_holds_key_or_number(photos, writing_server, tmp_path):
    private, _ = make_keys(tmp_path / "signing")
    target = tmp_path / "out"
    command = ("folder", photos, target, "--server", writing_server.grpc_url, "--json", "--receipt", private)
    run = visard(*command, env={"VISARD_PERSONA_KEY": KEY})
    assert run.returncode == 0, run.stderr
    assert_silent((run.stdout + run.stderr).encode(), where="output")
    run_folder(photos, tmp_path / "expected", writing_server, persona_key=KEY)
    assert outputs(target) == outputs(tmp_path / "expected")  # it did reach the generators
    files = [path for path in target.rglob("*") if path.is_file()]
    assert {"journal.sqlite", "manifest.csv", "manifest.parquet", "receipt.json"} <= {path.name for path in files}
    for path in files:
        assert_silent(path.read_bytes(), where=path)
    with Journal(target, {}, force=True) as journal:
        assert_silent(repr(journal.settings()).encode(), where="journal")
