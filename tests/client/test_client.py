"""The clients against a real Triton with tiny models, and against a real proxy where Triton cannot misbehave."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import grpc
import numpy as np
import onnx
import pytest
import trustme
from PIL import Image

from visard import (
    AsyncClient,
    Client,
    Connection,
    DeadlineExceeded,
    FaceTooSmall,
    NoFace,
    NotHidden,
    Options,
    Overloaded,
    PermissionDenied,
    PhotoError,
    PhotoTooLarge,
    ServerRefused,
    ServerUnavailable,
    UncertainGender,
    UnreadablePhoto,
    UnsupportedFormat,
    calls,
)
from visard.pipeline import prepare
from visard.wire import ENSEMBLES, GENDERS, MODELS, SMALL_CLASSIFIER, build_small_request
from visard_preprocess import MAX_PIXELS
from visard_preprocess.align import finder
from visard_preprocess.geometry import crop
from visard_preprocess.photo import read_photo
from visard_server.triton import TritonServer
from visard_testing.grpc_proxy import GrpcProxy
from visard_testing.tiny_models import (
    expected_gender,
    expected_swap,
    expected_to_female,
    expected_to_male,
    held,
    tiny_repository,
    without_stripe,
)
from visard_testing.typed_outcomes import by_class, by_error, by_match, by_result, many, many_async
from visard_testing.waiting import wait_until


@pytest.fixture
def client(tiny_server):
    with Client(tiny_server.grpc_url, workers=2) as client:
        yield client


@pytest.fixture
def proxy(tiny_server):
    with GrpcProxy(tiny_server.grpc_url) as proxy:
        yield proxy


def gradients(n):
    """Aligned images, every other one dark (female to the tiny classifier) or bright (male)."""
    ramp = np.linspace(0, 60, 512 * 512 * 3).reshape(512, 512, 3)
    return np.stack([ramp + (20 if i % 2 else 170) for i in range(n)]).astype(np.uint8)


# --- one photo ---


def test_anonymize_swaps_the_face_and_nothing_else(client, astronaut):
    result = client.anonymize(astronaut)
    (face,) = result.faces
    assert np.array_equal(face.swapped, expected_swap(face.aligned[None])[0])
    probabilities = expected_gender(face.aligned[None])[0]
    assert face.gender.label == ("female", "male")[int(probabilities.argmax())]
    assert face.gender.confidence == pytest.approx(probabilities.max(), abs=1e-5)
    assert face.flipped
    assert face.target != face.gender.label
    assert (face.outcome, face.reason) == ("swapped", None)

    photo = np.asarray(Image.open(astronaut).convert("RGB"))
    left, top, right, bottom = (round(edge) for edge in face.box)
    changed = np.abs(result.photo.astype(int) - photo)
    assert changed[top:bottom, left:right].mean() > 10
    assert not changed[-20:].any()  # far below the face
    assert set(result.seconds) == {"decode", "find", "align", "swap", "score", "blend"}


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "image", "array"])
def test_every_kind_of_source_gives_the_same_result(client, astronaut, kind):
    array = np.asarray(Image.open(astronaut).convert("RGB"))
    source = {
        "path": astronaut,
        "str": str(astronaut),
        "bytes": astronaut.read_bytes(),
        "image": Image.fromarray(array),
        "array": array,
    }[kind]
    assert np.array_equal(client.anonymize(source).photo, client.anonymize(array).photo)


@pytest.mark.parametrize(("direction", "expected"), [("to_male", expected_to_male), ("to_female", expected_to_female)])
def test_given_direction_asks_for_no_gender(client, astronaut, direction, expected):
    (face,) = client.anonymize(astronaut, Options(direction=direction)).faces
    assert face.gender is None
    assert face.target == direction.removeprefix("to_")
    assert np.array_equal(face.swapped, expected(face.aligned))


def test_uncertain_gender_is_refused_not_guessed(client, astronaut):
    confidence = client.anonymize(astronaut).faces[0].gender.confidence
    assert client.anonymize(astronaut, Options(min_confidence=confidence - 0.001)).faces
    more = Options(min_confidence=min(1.0, confidence + 0.001))
    (face,) = client.anonymize(astronaut, more).others
    assert (face.outcome, face.reason) == ("covered", "uncertain")
    with pytest.raises(UncertainGender, match="withheld"):
        client.anonymize(astronaut, replace(more, unswapped="withhold"))
    assert client.anonymize(astronaut, Options(min_confidence=1.0, direction="to_male")).faces  # nothing was guessed


def test_metadata_stays_where_the_caller_names_it(client, astronaut, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "SECRET"
    exif.get_ifd(0x8769).update({34855: 400, 36867: "2026:11:28 12:00:00"})
    Image.open(astronaut).save(tmp_path / "photo.jpg", quality=95, exif=exif)
    found = client.find(tmp_path / "photo.jpg")
    for keep, expected in (("exposure", {"PhotographicSensitivity": 400}), ("nothing", {})):
        result = client.anonymize_found(found, ["cover"], Options(keep=keep))
        assert result.exif == expected
        assert b"SECRET" not in result.encode("webp")
    result = client.anonymize(tmp_path / "photo.jpg", Options(keep="date"))
    result.save(tmp_path / "anonymised.png")
    with Image.open(tmp_path / "anonymised.png") as saved:
        assert dict(saved.getexif().get_ifd(0x8769)) == {36864: b"0232", 36867: "2026:11:28 12:00:00"}
    assert client.anonymize(astronaut, Options(keep="date", output="crops")).exif == {}


def test_crops_alone_come_without_a_photo(client, astronaut, tmp_path):
    result = client.anonymize(astronaut, Options(output="crops"))
    assert result.photo is None
    with pytest.raises(ValueError, match="faces"):
        result.save(tmp_path / "x.png")
    result.faces[0].save(tmp_path / "face.png")
    with Image.open(tmp_path / "face.png") as saved:
        assert np.array_equal(np.asarray(saved), result.faces[0].swapped)
        assert "digitalsourcetype/trainedAlgorithmicMedia" in str(saved.info)


def test_identity_distance_is_measured_unless_speed_counts(client, astronaut):
    (face,) = client.anonymize(astronaut).faces
    assert face.identity_distance > 0.6
    assert face.same_person is False
    (face,) = client.anonymize(astronaut, Options(identity=False)).faces
    assert face.identity_distance is None
    assert face.same_person is None


def run_with_distances(server, photo, distances, **options):
    """Anonymise with a recogniser that says these distances, one after another."""
    left = list(distances)

    with patch("visard.client.identity_distance", lambda *_: left.pop(0)), Client(server) as client:
        result = client.anonymize(photo, Options(**options))
    assert not left
    return result


def test_a_face_that_is_still_recognised_gets_a_second_persona(writing_server, astronaut):
    with GrpcProxy(writing_server.grpc_url) as proxy:
        (face,) = run_with_distances(proxy.url, astronaut, [0.4, 0.7]).faces
        ((first,), (second,)) = proxy.personas()
    assert (face.outcome, face.identity_distance) == ("swapped", 0.7)
    assert first != second


def test_a_swap_that_is_no_face_is_covered_or_said_to_be_implausible(tmp_path, astronaut):
    repository = tiny_repository(tmp_path / "models")
    for path in repository.glob("generator_*/1/model.onnx"):
        model = onnx.load(path)
        (face,) = (each for each in model.graph.initializer if each.name == "face_and_white")
        face.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(face)[::-1].copy(), face.name))
        onnx.save(model, path)
    with TritonServer(repository) as server, Client(server.grpc_url) as client:
        covered = client.anonymize(astronaut, Options(identity=False))
        shown = client.anonymize(astronaut, Options(identity=False, unswapped="show"))
    assert [(face.outcome, face.reason) for face in covered.others] == [("covered", "implausible")]
    assert [(face.outcome, face.reason, face.flipped) for face in shown.faces] == [("visible", "implausible", True)]


def test_a_face_that_stays_recognised_is_covered_withheld_or_said_to_be_visible(tiny_server, astronaut, monkeypatch):
    monkeypatch.setattr("visard_preprocess.cover.secrets.randbits", lambda bits: 3)  # one cloud of many
    url, same = tiny_server.grpc_url, [0.4, 0.3]
    result = run_with_distances(url, astronaut, same)
    assert result.faces == ()
    (face,) = result.others
    assert (face.outcome, face.reason) == ("covered", "still_recognised")
    assert finder().find(result.photo) == ()
    with pytest.raises(NotHidden, match="still recognised"):
        run_with_distances(url, astronaut, same, unswapped="withhold")
    shown = run_with_distances(url, astronaut, same, unswapped="show")
    assert [(face.outcome, face.reason) for face in shown.faces] == [("visible", "still_recognised")]
    assert (shown.count("visible"), shown.count("swapped")) == (1, 0)
    assert '"outcome": "visible"' in json.dumps(shown.to_dict())


def test_a_covered_face_looks_as_the_caller_wants_it(client, astronaut):
    found = client.find(astronaut, gender=False)
    left, top, right, bottom = (round(edge) for edge in found.faces[0].box)
    colours = {}
    for style in ("soft", "mosaic", "solid"):
        photo = client.anonymize_found(found, ["cover"], Options(cover=style)).photo
        colours[style] = len(np.unique(photo[top:bottom, left:right].reshape(-1, 3), axis=0))
    assert colours["solid"] == 1 < colours["mosaic"] <= 16 < colours["soft"]


def test_two_people_are_both_swapped(client, shared_photos):
    path = shared_photos["53_face_recognition_two_people.jpg"]["path"]
    result = client.anonymize(path, Options(identity=False))  # one negative is not far enough for dlib
    assert result.faces_found == len(result.faces) == 2
    assert all(face.flipped for face in result.faces)
    widths = [face.box[2] - face.box[0] for face in result.faces]
    assert widths == sorted(widths, reverse=True)
    alone = client.anonymize(path, Options(faces="largest"))
    assert alone.faces_found == 2
    assert [(face.index, face.outcome, face.reason) for face in alone.others][-1] == (1, "visible", "chosen")


def test_a_face_too_small_is_covered_or_withheld_or_said_to_be_visible(client, astronaut):
    photo = Image.open(astronaut).convert("RGB")
    small = np.asarray(photo.resize((photo.width * 2 // 5, photo.height * 2 // 5), Image.Resampling.LANCZOS))
    result = client.anonymize(small)
    (face,) = result.others
    assert (face.outcome, face.reason, result.faces) == ("covered", "too_small", ())
    left, top, right, bottom = (round(edge) for edge in face.box)
    assert detail(result.photo[top:bottom, left:right]) < detail(small[top:bottom, left:right]) / 3
    assert result.source_type is None  # nothing in it was generated
    with pytest.raises(FaceTooSmall, match="withheld"):
        client.anonymize(small, Options(unswapped="withhold"))
    shown = client.anonymize(small, Options(unswapped="show"))
    assert shown.count("visible") == 1
    assert np.array_equal(shown.photo, small)


def detail(image):
    """How much of an image is finer than a few pixels: mean difference of neighbours' means of 4 pixels, in levels."""
    grey = np.asarray(Image.fromarray(image).convert("L").reduce(2)).astype(float)
    return np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()


def test_no_face(client):
    with pytest.raises(NoFace):
        client.anonymize(np.full((300, 300, 3), 128, np.uint8))


def test_result_as_json_has_no_pixels(client, astronaut):
    text = json.dumps(client.anonymize(astronaut).to_dict())
    assert len(text) < 1000
    assert '"flipped": true' in text


# --- many photos ---


def test_many_keep_their_order_and_one_bad_photo_stops_no_other(client, astronaut):
    photos = [astronaut, "nowhere.jpg", b"GIF89a", astronaut, np.zeros((40, 40, 3), np.uint8), astronaut]
    outcomes = list(client.anonymize_many(photos))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3, 4, 5]
    assert [outcome.result is not None for outcome in outcomes] == [True, False, False, True, False, True]
    assert isinstance(outcomes[2].error, UnsupportedFormat)
    assert isinstance(outcomes[4].error, NoFace)
    assert all(isinstance(outcome.error, PhotoError) for outcome in outcomes if outcome.result is None)


def test_an_outcome_tells_itself_apart_in_every_way(client, astronaut):
    good, bad = many(client, [astronaut, "missing.jpg"], [])
    for tell in (by_match, by_class, by_error, by_result):
        assert tell(good) is good.result
        assert tell(bad) is bad.error
    assert isinstance(bad.error, UnreadablePhoto)
    assert (good.error, bad.result) == (None, None)


def test_progress_counts_on_the_callers_thread(client, astronaut):
    came, threads = [], set()

    def progress(each):
        came.append((each.done, each.failed, each.total))
        threads.add(threading.current_thread())
        client.models()  # the client is free to be used

    assert len(list(client.anonymize_many([astronaut, b"", astronaut], progress=progress))) == 3
    assert came == [(1, 0, 3), (2, 1, 3), (3, 1, 3)]
    assert threads == {threading.current_thread()}
    counted = []
    many(client, (each for each in [b"", b""]), counted)
    assert [each.total for each in counted] == [None, None]  # an iterator does not say how many


def test_progress_that_fails_costs_no_photo(client, astronaut, caplog):
    calls = []

    def progress(each):
        calls.append(each)
        raise RuntimeError("no place to draw")

    outcomes = list(client.anonymize_many([astronaut, b"", astronaut], progress=progress))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert len(calls) == 1
    assert "no place to draw" in caplog.text


def test_many_read_no_further_ahead_than_their_window(client, astronaut):
    taken = itertools.count()
    photos = ((next(taken), astronaut.read_bytes())[1] for _ in itertools.count())  # endless
    outcomes = client.anonymize_many(photos, window=3)
    for _ in range(4):
        next(outcomes)
    outcomes.close()
    assert next(taken) <= 4 + 3


def test_many_pass_on_the_callers_own_failure(client, astronaut):
    def photos():
        yield astronaut
        raise OSError("the disk is gone")

    outcomes = client.anonymize_many(photos())
    with pytest.raises(OSError, match="disk is gone"):
        list(outcomes)


def test_a_defect_in_one_photo_stops_no_other(client, astronaut, monkeypatch):
    def defective(photo, options):
        if photo == "defect":
            raise RuntimeError("as the test asked")
        return prepare(photo, options)

    monkeypatch.setattr("visard.client.prepare", defective)
    outcomes = list(client.anonymize_many(["defect", astronaut]))
    assert isinstance(outcomes[0].error, RuntimeError)
    assert outcomes[1].result is not None


def test_async_client_is_the_same(tiny_server, astronaut, client):
    async def run():
        async with AsyncClient(tiny_server.grpc_url) as async_client:
            one = await async_client.anonymize(astronaut)
            return one, await many_async(async_client, [astronaut, b""], progress.append)

    progress = []
    one, many = asyncio.run(run())
    assert [(each.done, each.failed, each.total) for each in progress] == [(1, 0, 2), (2, 1, 2)]
    assert np.array_equal(one.photo, client.anonymize(astronaut).photo)
    assert np.array_equal(many[0].result.photo, one.photo)
    assert isinstance(many[1].error, UnsupportedFormat)


def test_client_is_shared_by_threads(client):
    images = gradients(1)
    results = []
    threads = [threading.Thread(target=lambda: results.append(client.swap(images))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(swap.swapped, expected_swap(images)[0]) for (swap,) in results)


# --- aligned faces ---


def test_swap_answers_in_order(client):
    images = gradients(7)
    swaps = client.swap(images)
    assert np.array_equal(np.stack([swap.swapped for swap in swaps]), expected_swap(images))
    assert np.allclose(np.stack([swap.gender for swap in swaps]), expected_gender(images), atol=1e-5)


def test_a_message_is_written_when_a_slot_is_free(tiny_server, monkeypatch):
    """Each has 0.8 MB: of a thousand faces that wait, only as many may exist as are under way."""
    under_way, most = 0, 0

    def count(name, step):
        real = getattr(calls, name)

        def counted(*args, **kwargs):
            nonlocal under_way, most
            under_way += step
            most = max(most, under_way)
            return real(*args, **kwargs)

        monkeypatch.setattr(calls, name, counted)

    count("build_request", 1)
    count("parse_swap", -1)
    count("parse_response", -1)
    with Client(Connection(url=tiny_server.grpc_url, max_in_flight=2)) as client:
        client.swap(gradients(6))
        assert (under_way, most) == (0, 2)
        client.genders(gradients(6))
        assert (under_way, most) == (0, 2)


def test_swap_of_a_wrong_shape_is_the_callers_error(client):
    with pytest.raises(ValueError, match="512"):
        client.swap(np.zeros((2, 256, 256, 3), np.uint8))


def test_a_closed_client_says_so(tiny_server):
    client = Client(tiny_server.grpc_url)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.swap(gradients(1))


def test_models_and_provenance(client):
    assert all(client.models().values())
    assert client.provenance() == {}  # tiny models were not exported


# --- the server misbehaves ---


def test_no_server():
    with Client("127.0.0.1:9") as client, pytest.raises(ServerUnavailable, match="visard serve"):
        client.swap(gradients(1))


def test_transient_fault_is_retried(proxy):
    proxy.faults = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    with Client(proxy.url) as client:
        (swap,) = client.swap(gradients(1))
    assert np.array_equal(swap.swapped, expected_swap(gradients(1))[0])
    assert len(proxy.inferences()) == 3


def test_retries_end(proxy):
    proxy.faults = [grpc.StatusCode.UNAVAILABLE] * 9
    with Client(Connection(url=proxy.url, max_attempts=3)) as client, pytest.raises(ServerUnavailable):
        client.swap(gradients(1))
    assert len(proxy.inferences()) == 3


def test_a_full_server_is_asked_until_the_deadline(proxy):
    proxy.faults = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 5
    with Client(Connection(url=proxy.url, max_attempts=3)) as client:
        assert client.swap(gradients(1))
    assert len(proxy.inferences()) == 6
    proxy.faults = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 99
    with Client(Connection(url=proxy.url, deadline_s=2)) as client, pytest.raises(Overloaded):
        client.swap(gradients(1))
    asked = len(proxy.inferences())
    with Client(Connection(url=proxy.url, max_attempts=1)) as client, pytest.raises(Overloaded):
        client.swap(gradients(1))
    assert len(proxy.inferences()) == asked + 1


def test_refusals_do_not_count_as_attempts_on_a_lost_server(proxy):
    proxy.faults = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    with Client(Connection(url=proxy.url, max_attempts=4)) as client:
        assert client.swap(gradients(1))
    assert len(proxy.inferences()) == 7


def test_a_full_server_is_not_pressed_on_and_on(tmp_path):
    repository = tiny_repository(tmp_path / "models", slow_s=0.03, max_queue_size=2)
    with TritonServer(repository) as server, GrpcProxy(server.grpc_url) as proxy, Client(proxy.url) as client:
        swaps = client.swap(np.repeat(gradients(1), 60, axis=0))
    assert len(swaps) == 60
    refused = len(proxy.inferences()) - 60
    assert 0 < refused < 40  # ninety and more where a refused face comes again beside as many others as before


@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL])
def test_refusal_is_not_retried(proxy, status):
    proxy.faults = [status] * 2
    with Client(proxy.url) as client, pytest.raises(ServerRefused):
        client.swap(gradients(1))
    assert len(proxy.inferences()) == 1


def test_token(proxy):
    proxy.token = "right"
    with Client(Connection(url=proxy.url, token="right")) as client:
        assert client.swap(gradients(1))
    for token in ("wrong", None):
        with Client(Connection(url=proxy.url, token=token)) as client, pytest.raises(PermissionDenied, match="token"):
            client.swap(gradients(1))


def test_api_key_is_sent(proxy):
    with Client(Connection(url=proxy.url, api_key="k")) as client:
        client.swap(gradients(1))
    assert proxy.inferences()[0][1]["x-api-key"] == "k"


def test_tls(tiny_server, tmp_path):
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())])
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with GrpcProxy(tiny_server.grpc_url, credentials=credentials) as proxy:
        with Client(Connection(url=proxy.url, root_certificates=tmp_path / "ca.pem", token="t")) as client:
            assert client.swap(gradients(1))
        distrusting = Connection(url=proxy.url, root_certificates=tmp_path / "other.pem")
        with Client(distrusting) as client, pytest.raises(ServerRefused, match="certificate"):
            client.swap(gradients(1))


def test_giving_up_reaches_the_server(slow_server):
    async def run(proxy):
        async with AsyncClient(proxy.url) as client:
            task = asyncio.ensure_future(client.swap(gradients(1)))
            while not proxy.inferences():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with GrpcProxy(slow_server.grpc_url) as proxy:
        asyncio.run(run(proxy))
        assert proxy.cancelled.wait(60)


def test_deadline(slow_server):
    with Client(slow_server.grpc_url) as client:
        client.swap(gradients(1))  # answered only when the faces that others gave up have left its queue of one
    with (
        held(slow_server.repository),
        Client(Connection(url=slow_server.grpc_url, deadline_s=0.2)) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.swap(gradients(1))


def test_overloaded(slow_server):
    connection = Connection(url=slow_server.grpc_url, max_attempts=1, max_in_flight=64)
    with Client(connection) as client, pytest.raises(Overloaded, match="queue"):
        client.swap(np.repeat(gradients(1), 48, axis=0))


def test_server_dies_between_request_and_answer(tmp_path):
    repository = tiny_repository(tmp_path / "models", slow_s=0.1)
    with (
        TritonServer(repository) as server,
        Client(server.grpc_url) as client,
        ThreadPoolExecutor(1) as pool,
        held(repository) as begun,
    ):
        asked = pool.submit(client.swap, np.repeat(gradients(1), 4, axis=0))
        wait_until(begun)
        server._process.kill()
        with pytest.raises(ServerUnavailable):
            asked.result()


def test_encoded_faces_come_back_as_without_but_for_the_files(writing_server):
    images = np.stack([np.full((512, 512, 3), level, np.uint8) for level in (60, 190)])
    with Client(Connection(url=writing_server.grpc_url, encoded=True)) as client:
        female, male = client.swap(images)
        (given,) = client.swap(images[0], "to_female")
    for swap, image, expected in ((female, images[:1], expected_to_male), (male, images[1:], expected_to_female)):
        off = np.abs(without_stripe(swap.swapped[None]).astype(int) - without_stripe(expected(image)))
        assert (off.mean() < 1, off.max() < 20) == (True, True)
    assert (female.gender.argmax(), male.gender.argmax(), given.gender) == (0, 1, None)


def test_a_server_without_encoded_faces_says_so(tiny_server):
    client = Client(Connection(url=tiny_server.grpc_url, encoded=True))
    with client, pytest.raises(ServerRefused, match="encoded_anonymizer"):
        client.swap(gradients(1))


# --- who asks for the direction ---


def test_beside_a_router_the_client_asks_for_the_direction_with_a_small_picture(tmp_path, tiny_server):
    repository = tiny_repository(tmp_path / "models", small_classifier=True)
    images = gradients(4)  # bright and dark in turn
    asked = [SMALL_CLASSIFIER, *ENSEMBLES.values()]
    with TritonServer(repository, shared_memory=True) as server, GrpcProxy(server.grpc_url) as proxy:
        for connection in (Connection(url=proxy.url), Connection(url=proxy.url, shared_memory=True)):
            with Client(connection) as client:
                swaps = client.swap(images)
                given = client.swap(images[:1], "to_male")
            assert np.array_equal(np.stack([swap.swapped for swap in swaps]), expected_swap(images))
            genders = np.stack([swap.gender for swap in swaps])
            assert genders == pytest.approx(expected_gender(images), abs=0.01)  # resized, a level more or less
            assert given[0].gender is None
            counts = [proxy.models().count(model) for model in asked]
            assert counts == [4, 0, 3, 2]  # one more to male, whose caller knew
            proxy.sent.clear()
        sizes = [len(build_small_request(images[:1]).raw_input_contents[0]), images[0].nbytes]
        assert sizes == [150_528, 786_432]

        proxy.lost = [grpc.StatusCode.UNAVAILABLE] * 2  # answers, not questions: what was said once is not asked again
        with Client(proxy.url) as client:
            assert np.array_equal(client.swap(images[:1])[0].swapped, expected_swap(images[:1])[0])
        assert proxy.models() == [SMALL_CLASSIFIER, *[ENSEMBLES["to_female"]] * 3]
        proxy.lost = [grpc.StatusCode.UNAVAILABLE] * 99
        with Client(Connection(url=proxy.url, deadline_s=2, max_attempts=99)) as client:
            with pytest.raises(ServerUnavailable):  # both questions under one deadline
                client.swap(images[:1])
            # It is started again with other models, while the client lives.
            proxy.lost, proxy.upstream = [], tiny_server.grpc_url
            proxy.connect()
            proxy.sent.clear()
            for _ in range(2):
                assert np.array_equal(client.swap(images[:1])[0].swapped, expected_swap(images[:1])[0])
        assert proxy.models() == [SMALL_CLASSIFIER, *[ENSEMBLES["opposite"]] * 2]


def test_model_missing(tmp_path):

    repository = tiny_repository(tmp_path / "models", only=MODELS.keys() - {"anonymizer"})
    with TritonServer(repository) as server, Client(server.grpc_url) as client:
        with pytest.raises(ServerRefused, match="anonymizer"):
            client.swap(gradients(1))
        assert client.swap(gradients(1), "to_male")
        assert client.models()["anonymizer"] is False


def test_model_of_another_shape(tmp_path):

    repository = tiny_repository(tmp_path / "models", size=256)
    refused = pytest.raises(ServerRefused, match=r"256.*512")
    with TritonServer(repository) as server, Client(server.grpc_url) as client, refused:
        client.swap(gradients(1))


# --- values that cannot work ---


@pytest.mark.parametrize(
    "values",
    [
        {"url": "http://host:8001"},
        {"url": "host"},
        {"url": "host:8001", "token": "secret"},  # would travel unencrypted
        {"url": "127.example.org:8001", "token": "secret"},  # no loopback address
        {"url": "host:8001", "tls": True, "client_key": "key.pem"},
        {"deadline_s": 0},
        {"max_attempts": 0},
    ],
)
def test_connection_refuses(values):
    with pytest.raises(ValueError, match=r"\w"):
        Connection(**values)


def test_secrets_are_not_shown():
    assert "secret" not in repr(Connection(token="secret", api_key="secret"))


@pytest.mark.parametrize(
    "values", [{"faces": "some"}, {"direction": "up"}, {"min_confidence": 0.2}, {"detector_threshold": 0.0}]
)
def test_options_refuse(values):
    with pytest.raises(ValueError, match="must"):
        Options(**values)


def test_saved_photo_keeps_nothing_of_the_original(client, astronaut, tmp_path):
    photo = Image.open(astronaut)
    exif = photo.getexif()
    exif[0x010E] = "SECRET-DESCRIPTION"
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif, comment=b"SECRET-COMMENT", quality=95)
    result = client.anonymize(buffer.getvalue())
    for suffix in ("jpg", "png", "webp"):
        path = Path(tmp_path / f"saved.{suffix}")
        result.save(path)
        content = path.read_bytes()
        assert b"SECRET" not in content
        assert b"compositeWithTrainedAlgorithmicMedia" in content
        with Image.open(path) as saved:
            assert saved.size == photo.size


# --- a choice for each face ---


@pytest.fixture
def two_faces(astronaut):
    """The same person twice, side by side."""
    return np.hstack([read_photo(astronaut)[:300]] * 2)


def test_each_face_goes_the_way_that_was_chosen(client, two_faces):
    found = client.find(two_faces)
    assert len(found.faces) == 2
    crops = np.stack([read_photo(found.encode_face(index)) for index in range(2)])
    assert [gender.label for gender in found.genders] == [GENDERS[i] for i in expected_gender(crops).argmax(axis=1)]
    result = client.anonymize_found(found, ["to_female", "to_male"])
    assert [face.target for face in result.faces] == ["female", "male"]
    assert [face.gender for face in result.faces] == list(found.genders)
    assert np.array_equal(result.faces[0].swapped, expected_to_female(crops[:1])[0])
    assert np.array_equal(result.faces[1].swapped, expected_to_male(crops[1:])[0])


@pytest.mark.parametrize("left", [0, 1])
def test_a_face_left_alone_stays_as_it_is_and_is_said_to_be_visible(client, two_faces, left):
    found = client.find(two_faces)
    choices = ["opposite", "opposite"]
    choices[left] = "leave"
    result = client.anonymize_found(found, choices)
    assert (len(result.faces), result.faces_found) == (1, 2)
    assert result.faces[0].box == found.faces[1 - left].box
    for face, changed in ((found.faces[left], False), (found.faces[1 - left], True)):
        x0, y0, x1, y1 = map(int, face.box)
        assert np.array_equal(result.photo[y0:y1, x0:x1], two_faces[y0:y1, x0:x1]) is not changed


def test_every_face_left_alone_is_the_photo_and_claims_nothing_generated(client, astronaut, tmp_path):
    found = client.find(astronaut)
    result = client.anonymize_found(found, ["leave"])
    assert (result.faces, result.faces_found) == ((), 1)
    assert np.array_equal(result.photo, read_photo(astronaut))
    assert b"trainedAlgorithmicMedia" not in result.encode("png")
    assert b"compositeWithTrainedAlgorithmicMedia" in client.anonymize(astronaut).encode("png")
    result.save(tmp_path / "same.webp")
    assert b"lgorithmicMedia" not in (tmp_path / "same.webp").read_bytes()


def test_faces_that_were_aligned_to_ask_for_their_genders_are_not_aligned_again(client, two_faces, monkeypatch):
    crops = []

    def counted(photo, quad):
        crops.append(quad)
        return crop(photo, quad)

    monkeypatch.setattr("visard_preprocess.geometry.crop", counted)
    found = client.find(two_faces)
    result = client.anonymize_found(found, ["opposite", "opposite"])
    assert [read_photo(found.encode_face(index)).shape for index in range(2)] == [(512, 512, 3)] * 2
    assert crops == [face.quad for face in found.faces]
    for face in result.faces:
        assert np.array_equal(face.aligned, crop(two_faces, face.quad))
    unasked = client.find(two_faces, gender=False)
    assert np.array_equal(client.anonymize_found(unasked, ["opposite"] * 2).photo, result.photo)


def test_a_choice_of_another_kind_or_number_is_the_callers_error(client, astronaut):
    found = client.find(astronaut, gender=False)
    assert found.genders == (None,)
    with pytest.raises(ValueError, match="1 faces, not 2"):
        client.anonymize_found(found, ["leave", "leave"])
    with pytest.raises(ValueError, match="a choice is one of"):
        client.anonymize_found(found, ["blur"])
    with pytest.raises(NoFace):
        client.anonymize_found(client.find(np.zeros((64, 64, 3), np.uint8)), [])


def test_a_face_too_small_can_be_covered_or_left_visible(client, astronaut):
    small = Image.open(astronaut)
    found = client.find(small.resize((205, 205), Image.Resampling.LANCZOS))
    assert [face.too_small for face in found.faces] == [True]
    assert found.genders == (None,)
    for choice, outcome, reason in [("to_male", "covered", "too_small"), ("leave", "visible", "chosen")]:
        (face,) = client.anonymize_found(found, [choice]).others
        assert (face.outcome, face.reason) == (outcome, reason)


def test_a_face_is_covered_by_choice_and_the_other_one_swapped(client, two_faces):
    found = client.find(two_faces)
    result = client.anonymize_found(found, ["cover", "opposite"], Options(identity=False))
    assert [(face.index, face.outcome, face.reason) for face in result.all_faces] == [
        (0, "covered", "chosen"),
        (1, "swapped", None),
    ]


def test_pixels_above_the_callers_limit_are_not_decoded(client, astronaut):
    with pytest.raises(PhotoTooLarge):
        client.anonymize(astronaut, Options(max_pixels=512 * 512 - 1))
    assert client.anonymize(astronaut, Options(max_pixels=512 * 512)).faces
    assert Options().max_pixels == MAX_PIXELS


def test_warming_up_reaches_every_worker(tiny_server, astronaut):
    async def run():
        async with AsyncClient(tiny_server.grpc_url, workers=3) as client:
            await client.warm_up(Options(identity=True))
            return await client.find(astronaut), {thread.name for thread in threading.enumerate()}

    found, threads = asyncio.run(run())
    assert len(found.faces) == 1
    assert sum(name.startswith("visard_") for name in threads) >= 3
