"""The models in this process: byte for byte the server's answers, and its errors."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import onnx
import pytest

from visard import AsyncClient, Client, Local, Options, RepositoryError, ServerRefused
from visard_testing.small_models import aligned_faces
from visard_testing.tiny_models import classifier, expected_swap, tiny_repository, written_personas


def faces(*brightness):
    """Aligned images, dark ones female to the tiny classifier."""
    ramp = np.linspace(0, 20, 512 * 512 * 3).reshape(512, 512, 3)
    return np.stack([ramp + level for level in brightness]).astype(np.uint8)


def same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.swapped, other.swapped)
        np.testing.assert_array_equal(mine.swapped_gender, other.swapped_gender)
        assert (mine.gender is None) == (other.gender is None)
        if mine.gender is not None:
            np.testing.assert_array_equal(mine.gender, other.gender)
    return True


@pytest.fixture(scope="module")
def local(tiny_server):
    with Client(Local(models=tiny_server.repository, at_once=2)) as client:
        yield client


@pytest.mark.parametrize("direction", ["opposite", "to_male", "to_female"])
def test_faces_come_back_as_from_a_server(local, tiny_server, direction):
    images = faces(40, 200, 60, 190)
    with Client(tiny_server.grpc_url) as client:
        assert same(local.swap(images, direction), client.swap(images, direction))
        assert local.genders(images) == client.genders(images)
    if direction == "opposite":
        np.testing.assert_array_equal(np.stack([swap.swapped for swap in local.swap(images)]), expected_swap(images))


def test_a_photo_comes_back_as_from_a_server(local, tiny_server, astronaut):
    options = Options(persona_key="the same for both", identity=False)
    with Client(tiny_server.grpc_url) as client:
        ours, theirs = (each.anonymize(astronaut, options) for each in (local, client))
    np.testing.assert_array_equal(np.asarray(ours.photo), np.asarray(theirs.photo))
    assert [face.to_dict() for face in ours.faces] == [face.to_dict() for face in theirs.faces]


def test_each_face_keeps_its_persona(tmp_path):
    repository = tiny_repository(tmp_path / "models", writes_persona=True)
    numbers = [0, 7, 2**31 - 1]
    with Client(Local(models=repository)) as client:
        swapped = np.stack([swap.swapped for swap in client.swap(faces(40, 200, 60), personas=numbers)])
    assert written_personas(swapped) == numbers


def test_one_graph_answers_as_its_parts(exported, tmp_path):
    parts = shutil.copytree(exported, tmp_path / "parts", ignore=shutil.ignore_patterns("anonymizer/1/model.onnx"))
    (parts / "anonymizer" / "1" / "model.onnx").unlink()
    images, numbers = aligned_faces(), [0, 1]
    with Client(Local(models=exported)) as one, Client(Local(models=parts)) as routed:
        assert same(one.swap(images, personas=numbers), routed.swap(images, personas=numbers))
        assert all(one.models().values())
        assert all(routed.models().values())
        assert one.provenance()["anonymizer"]["network"] == "resnet18 + persona"
        assert routed.provenance()["gender_classifier"]["trained"] is False


def test_what_is_no_repository_is_refused_at_once(tmp_path):
    with pytest.raises(RepositoryError, match="`visard export` makes one"):
        Local(models=tmp_path)
    with pytest.raises(ValueError, match="at_once"):
        Local(models=tmp_path, at_once=0)


def test_broken_models_say_what_is_wrong(tmp_path):
    repository = tiny_repository(tmp_path / "models")
    images = faces(40)
    other = tiny_repository(tmp_path / "other", size=256)
    with Client(Local(models=other)) as client, pytest.raises(ServerRefused, match=r"this client needs UINT8 \[512"):
        client.swap(images)
    onnx.save(classifier(unknown_below=255.0), repository / "gender_classifier" / "1" / "model.onnx")
    with Client(Local(models=repository)) as client, pytest.raises(ServerRefused, match="no probabilities as 'gender'"):
        client.swap(images)
    (repository / "gender_classifier" / "1" / "model.onnx").write_bytes(b"no graph")
    with Client(Local(models=repository)) as client, pytest.raises(ServerRefused, match="cannot be loaded"):
        client.swap(images)
    (repository / "gender_classifier" / "1" / "model.onnx").unlink()
    with Client(Local(models=repository)) as client:
        assert client.models()["gender_classifier"] is False
        assert client.models()["generator_to_male"] is True
        assert client.models()["anonymizer"] is False
        with pytest.raises(ServerRefused, match="lacks the model 'gender_classifier'"):
            client.swap(images)


def test_the_newest_version_answers(tmp_path):
    repository = tiny_repository(tmp_path / "models")
    newer = repository / "generator_to_male" / "10"
    shutil.copytree(repository / "generator_to_female" / "1", newer)
    (repository / "generator_to_male" / "9").mkdir()
    with Client(Local(models=repository)) as client:
        to_male, to_female = (client.swap(faces(40), each)[0].swapped for each in ("to_male", "to_female"))
    np.testing.assert_array_equal(to_male, to_female)


def test_a_closed_client_computes_nothing_more(tiny_server):
    async def closed():
        client = AsyncClient(Local(models=tiny_server.repository))
        await client.close()
        with pytest.raises(RuntimeError, match="shutdown"):
            await client.swap(faces(40))

    asyncio.run(closed())
