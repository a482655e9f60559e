"""Attacks on results whose truth is known: the originals themselves, and faces that are painted over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from visard import Client
from visard_evaluation import restore
from visard_evaluation.brief import brief
from visard_evaluation.judges import Judges
from visard_evaluation.keyed import describe_keyed
from visard_evaluation.labels import find_photos
from visard_evaluation.recognisers import DlibRecogniser
from visard_evaluation.run import evaluate
from visard_evaluation.sentences import sentences
from visard_testing.people_photos import write_painted, write_people


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people") / "photos")


@pytest.fixture(scope="module")
def unchanged_evaluation(people, tiny_server):
    """An anonymiser that returns the original, and an attacker who restores without having learned anything yet."""
    judges = Judges(restore=True)
    with Client(tiny_server.grpc_url) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "STEPS", 1)
        return evaluate(find_photos(people), client, results=people, judges=judges, groups=["light"])


@pytest.fixture(scope="module")
def painted_evaluation(people, tiny_server, tmp_path_factory):
    """An anonymiser that paints every face over."""
    results = write_painted(people, tmp_path_factory.mktemp("painted") / "photos")
    with Client(tiny_server.grpc_url) as client:
        return evaluate(find_photos(people), client, results=results, groups=["light"])


@pytest.fixture(scope="module")
def unchanged(unchanged_evaluation):
    return unchanged_evaluation.to_dict()


@pytest.fixture(scope="module")
def painted(painted_evaluation):
    return painted_evaluation.to_dict()


# --- search, verification, and the control ---


def test_an_unchanged_face_is_found_and_the_control_is_not(unchanged):
    identity, control = unchanged["identity"]["dlib"], unchanged["control"]["dlib"]
    assert identity["rank1"] == identity["verification"] == unchanged["identity_full"]["dlib"]["rank1"] == 1.0
    assert control["rank1"] < 0.6
    assert identity["rank1_minus_control"] == pytest.approx(1 - control["rank1"], abs=1e-3)
    for attack in ("identity", "identity_full"):
        assert unchanged["intervals"][attack]["dlib"]["rank1_minus_control"][0] > 0
    assert unchanged["groups"]["light"]["bright"]["intervals"]["identity"]["dlib"]["rank1_minus_control"][0] > 0


def test_a_painted_face_lands_at_the_control(painted, unchanged):
    for attack in ("identity", "identity_full"):
        low, high = painted["intervals"][attack]["dlib"]["rank1_minus_control"]
        assert low <= 0 <= high, attack
    assert painted["identity"]["dlib"]["rank1"] < unchanged["identity"]["dlib"]["rank1"] - 0.4
    # The whole crop is looked at without landmarks: the painted photo and the painted crop are one picture there.
    assert abs(painted["identity_full"]["dlib"]["rank1_minus_control"]) <= 2 / 24
    assert painted["control"] == unchanged["control"]  # it is made of the originals alone


def test_sentences_say_who_is_found(unchanged_evaluation, painted_evaluation):
    found, hidden = (" ".join(sentences(evaluation)) for evaluation in (unchanged_evaluation, painted_evaluation))
    assert "finds the right person for 24 of 24 (100.0 %" in found
    assert "the faces give away more than their surroundings do" in found
    assert "no difference to the surroundings alone" in hidden


def test_the_beginning_says_who_is_found_and_what_that_means(unchanged_evaluation, painted_evaluation):
    found, hidden = (list(brief(evaluation)) for evaluation in (unchanged_evaluation, painted_evaluation))
    first = unchanged_evaluation.measures[0].photo.name
    assert found[0].startswith(
        f"After anonymising, 24 of 24 faces are still recognised by dlib, a program that compares faces: “{first}”"
    )
    assert " and 19 more." in found[0]
    assert "it may be 86 to 100 of 100" in found[0]  # Wilson's interval of 24 of 24
    assert "so the faces themselves still give people away" in found[0]
    assert "runs the swap backwards" in found[0]
    assert "Do not treat the results as anonymous" in found[-1]
    # Painted faces are found by their surroundings alone, which is no proof of anything.
    identity = painted_evaluation.identities["dlib"].matches
    recognised = [sum(match.verified or match.rank1 for match in identity[kind]) for kind in ("anonymised", "control")]
    assert 0 < recognised[0] < 24
    assert f"{recognised[0]} of 24 faces are still recognised" in hidden[0]
    assert f"with the faces painted over, it recognises {recognised[1]} of 24." in hidden[0]
    assert "does not show that the faces themselves give anybody away" in hidden[0]
    assert "can still find some of them" in hidden[-1]
    assert "no proof" in hidden[-1]


# --- attackers who learn, and links between photos ---


def test_an_attacker_who_learns_finds_the_unchanged_and_no_more_than_context_in_the_painted(unchanged, painted):
    assert unchanged["learned"]["dlib"]["rank1"] > 0.9
    assert unchanged["intervals"]["learned"]["dlib"]["rank1_minus_control"][0] > 0
    low, high = painted["intervals"]["learned"]["dlib"]["rank1_minus_control"]
    assert low <= 0 <= high


def test_restored_pictures_are_searched_with(unchanged, painted):
    """A network that learned nothing hands on what it is given: unchanged faces, and painted ones as its control."""
    restored = unchanged["restored"]["dlib"]
    assert restored["rank1"] == restored["rank1_of_reduced_originals"] > 0.9
    assert restored["rank1_minus_control"] == pytest.approx(restored["rank1"] - restored["control_rank1"], abs=1e-3)
    assert restored["control_rank1"] < 0.6
    assert painted["restored"]["dlib"] == {}  # nobody asked


def test_photos_of_one_person_are_linked_by_faces_but_hardly_by_context(unchanged, painted):
    assert unchanged["settings"]["linkable"] == 24
    assert unchanged["settings"]["linked_chance"] == pytest.approx(1 / 23, abs=1e-4)
    links = unchanged["linkability"]["dlib"]
    assert links["random"] == links["originals"] == 1.0
    assert unchanged["intervals"]["linkability"]["dlib"]["random_minus_control"][0] > 0
    low, high = painted["intervals"]["linkability"]["dlib"]["random_minus_control"]
    assert low <= 0 <= high


def test_two_detectors_tell_a_painted_face_from_one(unchanged, painted):
    for key in ("detection_preserved", "detection_preserved_yunet", "detection_preserved_both"):
        assert unchanged[key] == 1.0
        assert painted[key] < 0.2


def test_what_an_unchanged_face_keeps(unchanged, painted):
    assert set(unchanged["expression_drift_percent"].values()) == {0.0}
    assert unchanged["skin_delta_e"] == unchanged["light"]["levels"] == 0.0
    assert painted["light"]["levels"] > 1


def test_every_photo_of_a_person_gets_one_key_and_every_person_another(people, tiny_server):
    photos = find_photos(people)[:5]  # two photos each of two people, one of a third
    measures, names = [SimpleNamespace(photo=photo) for photo in photos], [photo.person for photo in photos]
    keys = {}
    with Client(tiny_server.grpc_url) as client:

        class Listener:
            def anonymize(self, photo, options):
                keys[photo] = options.persona_key
                return client.anonymize(photo, options)

        described = list(describe_keyed(measures, names, Listener(), [DlibRecogniser()]))
    assert [each is None for each in described] == [False] * 4 + [True]
    assert all(each["dlib"].shape == (128,) for each in described[:4])
    by_photo = [keys.get(photo.path) for photo in photos]
    assert by_photo[0] == by_photo[1] != by_photo[2] == by_photo[3]
    assert by_photo[4] is None
    assert names[0] not in (by_photo[0], None)  # a name alone is no secret
