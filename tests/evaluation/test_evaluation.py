"""The evaluation on photos whose outcome is known: dark faces are female to the tiny models, bright ones male."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from visard import Client, DataError, ServerUnavailable
from visard_cli.app import app
from visard_cli.evaluate import figures_table
from visard_evaluation.brief import brief
from visard_evaluation.html import write_html
from visard_evaluation.judges import Judges
from visard_evaluation.labels import LabelledPhoto, choose_groups, find_photos
from visard_evaluation.markdown import write_markdown
from visard_evaluation.recognisers import DlibRecogniser, OnnxRecogniser
from visard_evaluation.rows import rows
from visard_evaluation.run import evaluate
from visard_evaluation.second_classifier import SecondClassifier
from visard_evaluation.wording import caveats, cell
from visard_testing.command_line import visard
from visard_testing.tiny_models import classifier
from visard_testing.tiny_recogniser import mean_colour_recogniser

ROWS = (
    "file,gender,split,light,note",
    "dark.png,female,a,low,$1 <i>",
    "dark2.png,male,a,low,二",
    "<b>bright.png,male,a,high,three",
    "nobody.png,male,a,high,four",
    "gone.png,male,b,,",
    "dark.png,,solo,low,one",
)


@pytest.fixture(scope="module")
def labelled(astronaut, tmp_path_factory):
    """The astronaut darkened twice and brightened once, one of them with a label that the classifier contradicts."""
    folder = tmp_path_factory.mktemp("labelled")
    photo = np.asarray(Image.open(astronaut).convert("RGB")).astype(float)
    for name, picture in {
        "dark.png": photo * 0.6,
        "dark2.png": photo * 0.55,
        "<b>bright.png": 120 + photo * 0.5,
        "nobody.png": photo * 0,
    }.items():
        Image.fromarray(picture.astype(np.uint8)).save(folder / name)
    (folder / "manifest.csv").write_text("\n".join(ROWS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return mean_colour_recogniser(tmp_path_factory.mktemp("recogniser") / "mean.onnx", size=64)


@pytest.fixture(scope="module")
def second_classifier(tmp_path_factory):
    file = tmp_path_factory.mktemp("second") / "classifier.onnx"
    onnx.save(classifier(), file)
    return SecondClassifier(file)


@pytest.fixture(scope="module")
def evaluation(labelled, tiny_server, recogniser, second_classifier):
    photos = find_photos(labelled, "a")
    judges = Judges(
        recognisers=(DlibRecogniser(), OnnxRecogniser("mean", recogniser, input_size=64, threshold=0.1)),
        second_classifier=second_classifier,
        pictures=True,
    )
    with Client(tiny_server.grpc_url) as client:
        found = evaluate(photos, client, judges=judges, groups=["light", "note"])
    models = {"generator_to_male": {"trained": False, "checkpoint_sha256": None}}
    return replace(found, settings=replace(found.settings, visard="0.0", created="now", models=models))


# --- figures ---


def test_published_figures(evaluation):
    figures = evaluation.to_dict()
    assert figures["n"] == 3
    assert figures["classifier_accuracy"] == {"female": 1.0, "male": 0.5}
    assert figures["swap_success"] == {"female": 1.0, "male": 1.0}
    assert figures["overall"]["classifier_accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["errors"] == {"NoFace": 1}
    assert 0 < figures["similarity_percent"]["female"] < 100
    assert figures["intervals"]["swap_success"]["female"] == pytest.approx([0.2065, 1.0], abs=1e-4)  # Wilson, 1 of 1
    json.dumps(figures)


def test_privacy_figures(evaluation):
    for name in ("dlib", "mean"):
        identity, attacked = evaluation.to_dict()["identity"][name], evaluation.to_dict()["swap_back"][name]
        assert all(0 <= share[key] <= 1 for share in (identity, attacked) for key in ("verification", "rank1"))
        assert identity["rank1_chance"] == pytest.approx(1 / 3, abs=1e-4)
    # The tiny generators draw one face, and bring the brightness back: that is all the tiny recogniser looks at.
    assert evaluation.to_dict()["swap_back"]["dlib"]["verification"] == 0.0
    for result, attacked in zip(
        *(evaluation.identities["mean"].matches[kind] for kind in ("anonymised", "swapped_back")), strict=True
    ):
        assert attacked.distance < result.distance / 2


def test_a_second_classifier_is_reported_beside_the_first(evaluation):
    """It is the same model here, so that it has the same opinion of originals."""
    figures = evaluation.to_dict()
    assert figures["second_classifier"]["classifier_accuracy"] == figures["overall"]["classifier_accuracy"]
    assert figures["settings"]["second_classifier"]["file"] == "classifier.onnx"


def test_too_few_people_to_learn_from_are_said_to_be(evaluation):
    assert evaluation.to_dict()["learned"]["dlib"]["rank1"] is None
    assert evaluation.to_dict()["settings"]["linkable"] == 0
    assert "3 people are too few for an attacker to learn from" in write_markdown(evaluation, "title")


def test_a_group_is_a_part_of_the_whole(evaluation):
    groups = evaluation.to_dict()["groups"]
    assert set(groups) == {"gender", "light", "note"}
    assert {name: part["n"] for name, part in groups["light"].items()} == {"low": 2, "high": 1}
    assert groups["gender"]["male"]["overall"]["swap_success"] == evaluation.to_dict()["swap_success"]["male"]
    low, everybody = groups["light"]["low"]["intervals"], evaluation.to_dict()["intervals"]
    width = [np.diff(part["detection_preserved_yunet"])[0] for part in (low, everybody)]
    assert width[0] > width[1]


def test_only_what_should_change_does(evaluation):
    outside = evaluation.to_dict()["outside_face"]
    assert outside["levels_beyond_crop"] == 0
    assert 0 < outside["levels"] < 100  # the blend brings colours at the edge back to the photo's


def test_worst_cases_have_names_and_no_more(evaluation):
    worst = evaluation.to_dict()["worst"]
    names = [case["file"] for case in worst["identity"]["dlib"]]
    assert sorted(names) == ["<b>bright.png", "dark.png", "dark2.png"]
    assert names == [
        each.photo.name
        for _, each in sorted(
            zip(evaluation.identities["dlib"].matches["anonymised"], evaluation.measures, strict=True),
            key=lambda pair: pair[0].distance,
        )
    ]
    assert worst["not_swapped"] == []


# --- finished results ---


def test_results_that_are_the_originals_change_nothing(labelled, tiny_server):
    photos = find_photos(labelled, "a")[:2]
    with Client(tiny_server.grpc_url) as client:
        figures = evaluate(photos, client, results=labelled).to_dict()
    assert figures["n"] == 2
    assert figures["identity"]["dlib"]["verification"] == figures["identity"]["dlib"]["rank1"] == 1.0
    assert figures["identity"]["dlib"]["distance"] == figures["landmark_drift_percent"] == 0.0
    assert set(figures["pose_drift_degrees"].values()) == {0.0}
    assert set(figures["outside_face"].values()) == {0.0}
    assert figures["overall"]["swap_success"] == 0.0
    assert figures["detection_preserved"] == 1.0


def test_missing_and_foreign_results_are_named(labelled, tiny_server, tmp_path):
    (tmp_path / "dark2.png").write_bytes((labelled / "dark2.png").read_bytes())
    Image.new("RGB", (200, 200)).save(tmp_path / "<b>bright.png")
    with Client(tiny_server.grpc_url) as client:
        figures = evaluate(find_photos(labelled, "a"), client, results=tmp_path).to_dict()
    assert figures["n"] == 1
    assert figures["errors"] == {"Withheld": 2, "PhotoError": 1}


def test_finished_results_are_judged_like_fresh_ones(labelled, tiny_server, second_classifier, tmp_path):
    (photo,) = find_photos(labelled, "solo")
    judges = Judges(second_classifier=second_classifier)
    with Client(tiny_server.grpc_url) as client:
        client.anonymize(photo.path).save(tmp_path / photo.name)
        finished, fresh = (
            evaluate([photo], client, results=results, judges=judges).to_dict() for results in (tmp_path, None)
        )
    assert finished["overall"]["swap_success"] == fresh["overall"]["swap_success"] == 1.0
    # The attack and the surroundings are measured on what is published in either case.
    assert finished["swap_back"] == fresh["swap_back"]
    assert finished["outside_face"] == fresh["outside_face"]
    assert finished["identity"] == fresh["identity"]
    # The second classifier, the same model here, sees what is published; so does the first where results are finished.
    assert finished["second_classifier"] == fresh["second_classifier"]
    assert finished["second_classifier"]["swap_success"] == finished["overall"]["swap_success"]
    assert 0.6 < finished["identity"]["dlib"]["distance"] < 1.0  # a negative


def test_results_are_found_by_relative_names_alone(labelled, tiny_server):
    with Client(tiny_server.grpc_url) as client:
        for name in ("/etc/x.png", "../x.png"):
            with pytest.raises(DataError, match="relative names"):
                evaluate([LabelledPhoto(labelled / "dark.png", name=name)], client, results=labelled)


def test_nothing_measured_is_an_error(labelled, tiny_server, tmp_path):
    photos = find_photos(labelled, "a")
    with Client(tiny_server.grpc_url) as client, pytest.raises(DataError, match="none of 4 photos"):
        evaluate(photos, client, results=tmp_path)
    with Client("127.0.0.1:9") as client, pytest.raises(ServerUnavailable):
        evaluate(photos[:1], client)


# --- reports ---


class Page(HTMLParser):
    """Collects what a browser would load, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name.rpartition(":")[2] in ("src", "href", "data", "srcset", "action", "background", "poster"):
                self.loads.append(value)
            assert not name.startswith("on"), "no script"
            assert "http" not in (value or "") or name.startswith("xmlns"), value

    def handle_data(self, data):
        self.text += data


def test_report_loads_nothing_and_shows_nobody(evaluation):
    without = replace(evaluation, measures=tuple(replace(each, pictures=None) for each in evaluation.measures))
    text = write_html(without, "A <title>")
    assert write_html(without, "A <title>") == text
    page = Page(text)
    assert not {"script", "img", "image", "link", "iframe", "object", "embed", "base", "form", "b", "i"} & set(
        page.tags
    )
    assert all(address.startswith("#") for address in page.loads)
    assert "url(http" not in text
    assert "@import" not in text
    assert "data:image" not in text
    for words in (
        "A <title>",
        "<b>bright.png",
        "$1 <i>",
        "二",
        "swap-back",
        "Apparent gender",
        "same classifier",
        "small sample",
    ):
        assert words in page.text
    assert page.tags.count("svg") == 2 + 2 + 3  # shares, utility; two recognisers; three groups


def test_a_report_begins_with_plain_sentences(evaluation):
    """Who, by what, how often, and what that means, before any table or interval in brackets."""
    paragraphs = list(brief(evaluation))
    assert len(paragraphs) == 4  # two recognisers, what is left out, what it means
    assert paragraphs[2] == "1 photo is in none of these numbers: no face was found (1)."
    page = Page(write_html(evaluation, "title")).text
    for text in (page, write_markdown(evaluation, "title")):
        words = " ".join(text.replace("<b>", "‹b›").split())
        places = [words.index(" ".join(paragraph.replace("<b>", "‹b›").split())) for paragraph in paragraphs]
        assert places == sorted(places)
        assert places[-1] < words.index("In detail") < words.index("95 %")


def test_of_one_face_nothing_is_said_by_a_search_without_a_choice(labelled, tiny_server):
    (photo,) = find_photos(labelled, "solo")
    with Client(tiny_server.grpc_url) as client:
        found = evaluate([photo], client)
    assert found.figures.identity["dlib"].rank1.value == 1.0  # there is nobody else
    assert next(brief(found)).startswith("After anonymising, none of 1 face is recognised by dlib")


def test_a_photo_whose_face_was_not_swapped_has_no_figures(labelled, astronaut, tiny_server, tmp_path):
    with Image.open(astronaut) as image:
        image.resize((200, 200), Image.Resampling.LANCZOS).save(tmp_path / "small.png")
    photos = [*find_photos(labelled, "solo"), LabelledPhoto(tmp_path / "small.png", name="small.png")]
    with Client(tiny_server.grpc_url) as client:
        found = evaluate(photos, client)
    assert (found.figures.n, found.errors) == (1, {"NotSwapped": 1})
    assert "1 photo has no figures: the largest face was not swapped (1)." in list(caveats(found))


def test_pictures_on_request_alone(evaluation):
    page = Page(write_html(evaluation, "title"))
    pictures = [address for address in page.loads if not address.startswith("#")]
    assert page.tags.count("img") == len(pictures) >= 9
    assert all(address.startswith("data:image/jpeg;base64,") for address in pictures)


def test_summary_says_it_in_words_first(evaluation):
    text = write_markdown(evaluation, "photos | <b>")
    assert len(text.splitlines()) < 120
    assert text.index("of 3 (") < text.index("| figure")  # sentences first
    assert "| swap success | 100.0 % (43.9–100.0) |" in text  # 3 of 3
    assert "<b>" not in text
    header, *table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {header.count("|")}


def test_every_figure_of_the_table_exists(evaluation):
    for row in rows(evaluation):
        for part in (evaluation.figures, evaluation.groups["light"]["low"]):
            assert cell(part, row) == "–" or any(letter.isdigit() for letter in cell(part, row))


# --- command ---


def test_command_writes_everything(labelled, tiny_server, recogniser, tmp_path):
    run = visard(
        *("evaluate", labelled, "--split", "solo", "--json", "--server", tiny_server.grpc_url, "--group", "light"),
        *(
            "--recogniser",
            f"mean={recogniser}:64:0.1",
            "--report",
            tmp_path / "r.html",
            "--markdown",
            tmp_path / "r.md",
        ),
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert figures["n"] == 1
    assert figures["classifier_accuracy"] == {"female": None, "male": None}  # it has no label
    assert figures["swap_success"] == {"female": 1.0, "male": None}
    assert figures["identity"]["dlib"]["false_match"] is None  # there is nobody else
    assert set(figures["identity"]) == {"dlib", "mean"}
    assert set(figures["groups"]) == {"gender", "light"}
    assert len(figures["settings"]["recognisers"]["mean"]["sha256"]) == 64
    assert "data:image" not in (tmp_path / "r.html").read_text()
    assert "still matched (mean)" in (tmp_path / "r.md").read_text()


def test_command_prints_a_table(evaluation, capsys):
    Console(width=200).print(figures_table(evaluation))
    printed = capsys.readouterr().out
    assert "100.0 % (43.9–100.0)" in printed
    assert "still matched (mean)" in printed
    assert "NoFace" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--with-pictures"], "--report"),
        (["--recogniser", "arcface"], "NAME=FILE"),
        (["--recogniser", "dlib=x.onnx:112:1.1"], "name of its own"),
        (["--second-classifier", "."], "directory"),
        (["--report", "."], "directory"),
    ],
)
def test_wrong_usage(labelled, arguments, words):
    run = CliRunner().invoke(app, ["evaluate", str(labelled), "--split", "a", *arguments], env={"COLUMNS": "200"})
    assert run.exit_code == 2
    assert words in run.output


def test_base_install_has_the_command_and_names_the_extra(labelled):
    code = (
        "import sys; sys.modules.update(scipy=None, matplotlib=None, jinja2=None, cryptography=None, rfc8785=None);"
        f"sys.argv = ['visard', 'evaluate', {str(labelled)!r}, '--split', 'a', '--server', '127.0.0.1:9'];"
        "from visard_cli.app import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 7, run.stderr
    assert "visard[evaluate]" in run.stderr


# --- labels ---


def test_folders_are_labels(tmp_path):
    for name in ("female/a.jpg", "male/b.PNG", "others/c.webp", "male/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_photos(tmp_path) == [
        LabelledPhoto(tmp_path / "female/a.jpg", "female", "female/a.jpg"),
        LabelledPhoto(tmp_path / "male/b.PNG", "male", "male/b.PNG"),
        LabelledPhoto(tmp_path / "others/c.webp", None, "others/c.webp"),
    ]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("file\na.jpg", "columns"),
        ("file,gender\ngone.jpg,male", "gone.jpg"),
        ("file,gender\n", "columns"),
        ("file,gender\ngone.jpg", "gone.jpg"),
        (b"file,gender\n\xff,male", "UTF-8"),
    ],
)
def test_unusable_manifest(tmp_path, manifest, words):
    (tmp_path / "manifest.csv").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    with pytest.raises(DataError, match=words):
        find_photos(tmp_path)


def test_nothing_to_evaluate(tmp_path, labelled):
    with pytest.raises(DataError, match="no photo"):
        find_photos(tmp_path)
    with pytest.raises(DataError, match="split 'c'"):
        find_photos(labelled, "c")
    with pytest.raises(DataError, match="not a folder"):
        find_photos(tmp_path / "nowhere")


def test_what_names_each_photo_is_no_group(tmp_path):
    """Hashes, paths and numbers differ from photo to photo, in small sets and where a few photos are there twice."""
    for n in (6, 12, 60, 200):
        photos = [
            LabelledPhoto(
                tmp_path,
                columns={
                    "sha256": hashlib.sha256(str(i).encode()).hexdigest(),
                    "source": f"archive/{i % (n - 2)}.jpg",
                    "number": str(i),
                    "place": ("here", "there")[i % 2],
                },
            )
            for i in range(n)
        ]
        assert choose_groups(photos) == (("place",) if n >= 10 else ())


def test_groups_are_columns_of_few_values(tmp_path):
    photos = [
        LabelledPhoto(tmp_path, columns={"id": str(i), "place": "here" if i % 2 else "there", "same": "x"})
        for i in range(math.comb(6, 3))
    ]
    assert choose_groups(photos) == ("place",)
    assert choose_groups(photos[:9]) == ()  # two values, but not five photos for each
    assert choose_groups([*photos[:8], *photos[:2]]) == ("place",)  # of ten photos, eight differ: id is no group
    assert choose_groups(photos, ["id"]) == ("id",)
    with pytest.raises(DataError, match="id, place, same"):
        choose_groups(photos, ["age"])
