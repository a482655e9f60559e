"""Whole clips through a real server and FFmpeg, whose people are in places that the test knows."""

from __future__ import annotations

import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from visard import Client, NoFace, NotHidden
from visard_cli.app import app
from visard_errors import OutputError, UnreadableVideo
from visard_testing.clips import RATE, Actor, read_clip, scene, write_clip
from visard_testing.grpc_proxy import GrpcProxy
from visard_video import VideoOptions, anonymize_video
from visard_video.writer import MARK

DOCS = Path(__file__).parents[2] / "docs" / "video.md"
FACE = np.array([0.36, 0.3, 0.64, 0.58])  # from the brows to the mouth, of a portrait's edge
SIZE = 480, 270


def moving(name, left, speed, top=30, edge=200, light=lambda f: 1.0):
    return Actor(name=name, place=lambda f: (left + speed * f, top, edge), light=light)


@pytest.fixture(scope="module")
def actors():
    """One comes in, one leaves, and they cross; the lights go down meanwhile."""

    def dusk(frame):
        return max(0.35, min(1.0, 1 - 0.05 * (frame - 10)))

    return [moving("female_49", -150, 12, light=dusk), moving("male_59", 330, -14, top=50, edge=180, light=dusk)]


@pytest.fixture(scope="module")
def shots(actors):
    """Two shots, 30 and 10 frames: after the cut somebody else stands where one was before."""
    return [*scene(actors, 30, SIZE), *scene([moving("female_19", 200, 0)], 10, SIZE)]


@pytest.fixture(scope="module")
def sound():
    return (0.3 * np.sin(np.arange(48000 * 40 // RATE) * 2 * np.pi * 440 / 48000)).astype(np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, shots, sound):
    """With sound, and what a phone writes into it."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, shots, sound=sound, metadata={"title": "Anna at home", "location": "+52.5200+013.4050/"})


@pytest.fixture(scope="module")
def done(tiny_server, clip):
    """The clip anonymised: its file, its report, what the server was asked, and the progress."""
    target, steps = clip.with_name("out.mp4"), []
    with GrpcProxy(tiny_server.grpc_url) as proxy, Client(proxy.url) as client:
        options = VideoOptions(audio="keep", quality=10)
        report = anonymize_video(client, clip, target, options, progress=lambda *step: steps.append(step))
        personas = {number for numbers in proxy.personas() for number in numbers}
    return target, report, personas, steps


def part(place):
    """The inner face of a portrait, as slices of the frame; None where less than half of it is in the picture."""
    left, top, edge = place
    x0, y0, x1, y1 = np.rint(np.tile([left, top], 2) + FACE * edge).astype(int)
    cut = slice(max(0, y0), min(SIZE[1], y1)), slice(max(0, x0), min(SIZE[0], x1))
    seen = max(0, cut[0].stop - cut[0].start) * max(0, cut[1].stop - cut[1].start)
    return cut if seen >= 0.5 * (x1 - x0) * (y1 - y0) else None


def change(before, after, cut):
    return np.abs(before[cut].astype(int) - after[cut]).mean() / max(1, before[cut].mean())


def test_nobody_is_missed_in_a_single_frame(done, shots, actors):
    after = read_clip(done[0])
    assert len(after) == len(shots) == 40
    checked = 0
    for f in range(30):
        places = [actor.place(f) for actor in actors]
        for index, place in enumerate(places):
            cut = part(place)
            behind = index == 0 and part(places[1]) is not None and abs(place[0] - places[1][0]) < 120
            if cut is not None and not behind:
                checked += 1
                assert change(shots[f], after[f], cut) > 0.1, (f, index)
    assert checked > 35
    for f in range(30, 40):
        assert change(shots[f], after[f], part((200, 30, 200))) > 0.1, f
    wall = slice(245, 270), slice(0, 480)  # below everybody: only encoded anew
    assert max(change(before, then, wall) for before, then in zip(shots, after, strict=True)) < 0.02


def test_each_person_has_one_look(done):
    _, report, personas, _ = done
    assert (report.frames, report.shots, len(report.tracks)) == (40, 2, 3)
    assert len(personas) == 3
    assert [track.from_s for track in report.tracks][2] == 1.2  # the cut
    assert max(track.to_s for track in report.tracks[:2]) < 1.2
    assert all(track.frames["swapped"] > 0 for track in report.tracks)


def test_progress_and_report_are_complete(done):
    _, report, _, steps = done
    assert steps == [*(("look", f + 1, 40) for f in range(40)), *(("draw", f + 1, 40) for f in range(40))]
    told = json.loads(json.dumps(report.to_dict()))
    assert told["sound"] == "keep"
    for track in told["tracks"]:
        assert track["frames"]["covered"] == sum(track["reasons"].values())


def test_nothing_of_the_old_file_is_left_but_the_sound(done, clip):
    data = done[0].read_bytes()
    assert b"Anna" not in data
    assert b"52.52" not in data
    with av.open(str(done[0])) as new, av.open(str(clip)) as old:
        assert new.metadata["comment"] == MARK
        assert {"title", "location"} & new.metadata.keys() == set()
        assert [stream.type for stream in new.streams] == ["video", "audio"]
        packets = [[bytes(packet) for packet in each.demux(audio=0) if packet.size] for each in (new, old)]
        assert packets[0] == packets[1] != []


def heard(path):
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.fixture(scope="module")
def short(tmp_path_factory, sound):
    """Eight frames of one face, in times that are not regular and a size that is odd."""
    path = tmp_path_factory.mktemp("short") / "short.mkv"
    frames = [picture[:269, :479] for picture in scene([moving("male_59", 140, 2)], 8, SIZE)]
    return write_clip(path, frames, times=lambda f: f * (f + 1) // 2, sound=sound, pix_fmt="yuv444p")


def test_a_disguised_voice_is_lower_and_no_shorter(tiny_server, short, tmp_path):
    with Client(tiny_server.grpc_url) as client:
        report = anonymize_video(client, short, tmp_path / "out.mp4", VideoOptions(audio="disguise"))
        assert report.sound == "disguise"
        voice, before = heard(tmp_path / "out.mp4"), heard(short)
        assert len(voice) == pytest.approx(len(before), rel=0.05)
        middle = voice[len(voice) // 4 : 3 * len(voice) // 4]
        loudest = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * 48000 / len(middle)
        assert loudest == pytest.approx(440 * 0.8, abs=5)
        with av.open(str(tmp_path / "out.mp4")) as container:
            frames = list(container.decode(video=0))
        assert [round(frame.pts * frame.time_base * RATE) for frame in frames] == [f * (f + 1) // 2 for f in range(8)]
        assert {(frame.width, frame.height) for frame in frames} == {(480, 270)}  # an odd edge is repeated

        anonymize_video(client, short, tmp_path / "silent.mkv")
        with av.open(str(tmp_path / "silent.mkv")) as container:
            assert [stream.type for stream in container.streams] == ["video"]


def test_people_are_linked_where_that_is_wanted(tiny_server, tmp_path):
    """She comes in again after a cut, and somebody else comes with her."""
    again = scene([moving("female_49", 20, 0), moving("male_59", 250, 0)], 5, SIZE)
    clip = write_clip(tmp_path / "clip.mp4", [*scene([moving("female_49", 200, 0)], 5, SIZE), *again])
    looks = []
    for linked in (False, True):
        with GrpcProxy(tiny_server.grpc_url) as proxy, Client(proxy.url) as client:
            options = VideoOptions(link_people=linked, direction="to_male", identity=False)
            report = anonymize_video(client, clip, tmp_path / "out.mp4", options)
            assert (report.shots, len(report.tracks)) == (2, 3)
            drawn = proxy.personas()[
                -sum(track.frames["swapped"] for track in report.tracks) :
            ]  # after those that were tried
        looks.append(len({number for numbers in drawn for number in numbers}))
    assert looks == [3, 2]


def test_a_key_gives_the_same_looks(tiny_server, short, tmp_path):
    asked = []
    for name in ("one.mp4", "two.mp4"):
        with GrpcProxy(tiny_server.grpc_url) as proxy, Client(proxy.url) as client:
            anonymize_video(client, short, tmp_path / name, VideoOptions(persona_key="a key", direction="to_female"))
            asked.append({number for numbers in proxy.personas() for number in numbers})
            assert set(proxy.models()) == {"anonymizer_to_female"}
    assert asked[0] == asked[1]


def test_what_fails_leaves_no_file(tiny_server, short, tmp_path):
    target = tmp_path / "out.mp4"
    small = write_clip(tmp_path / "small.mp4", scene([moving("male_59", 200, 0, edge=60)], 4, SIZE))
    nobody = write_clip(tmp_path / "nobody.mp4", scene([], 4, SIZE))
    broken = tmp_path / "broken.mkv"
    data = short.read_bytes()
    broken.write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :])
    with Client(tiny_server.grpc_url) as client:
        for source, options, error in (
            (small, VideoOptions(unswapped="withhold"), "withheld"),
            (nobody, VideoOptions(), "no face was found"),
            (broken, VideoOptions(), "damaged"),
        ):
            with pytest.raises((NoFace, NotHidden, UnreadableVideo, Exception), match=error):
                anonymize_video(client, source, target, options)
        for name in ("out.avi", "nowhere/out.mp4"):
            with pytest.raises(OutputError):
                anonymize_video(client, short, tmp_path / name)
        if shutil.which("nvidia-smi") is None:
            with pytest.raises(OutputError, match="encoder"):
                anonymize_video(client, small, target, VideoOptions(encoder="h264_nvenc"))
        with pytest.raises(OutputError, match="the clip itself"):
            anonymize_video(client, small, small)
        report = anonymize_video(client, small, target)  # covered instead
    assert report.outcomes == {"covered": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mkv", "nobody.mp4", "out.mp4", "small.mp4"]


def test_the_command_says_what_became_of_whom(tiny_server, short, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            app(["video", *map(str, arguments), "--server", tiny_server.grpc_url])
        return ended.value.code, *capsys.readouterr()

    (tmp_path / "text.mp4").write_text("no clip")
    code, out, err = run(short, tmp_path / "text.mp4", "-o", tmp_path / "out")
    assert (code, [path.name for path in (tmp_path / "out").iterdir()]) == (3, ["short.mkv"])
    assert "UnreadableVideo" in err
    assert sum(map(int, re.search(r"Faces: (\d+) swapped, (\d+) covered", err).groups())) == 8
    assert "The sound was left out" in err
    assert "short.mkv" in out
    code, out, err = run(short, "-o", tmp_path / "one.mp4", "--json", "--audio", "keep")
    assert (code, json.loads(out)["frames"], err) == (0, 8, "")
    code, _, err = run(short, "-o", tmp_path / "one.avi")
    assert (code, "must end in .mp4" in err) == (2, True)
    code, _, err = run(short, "-o", short.parent)
    assert (code, "would overwrite a clip" in err) == (2, True)


def test_half_a_clip_is_said_to_be_one(tiny_server, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (12, 270, 140, 3), np.uint8)  # so that no part is small
    people = scene([moving("male_59", 120, 0)], 12, SIZE)
    mixed = [np.concatenate([one[:, :340], other], axis=1) for one, other in zip(people, noise, strict=True)]
    whole = write_clip(tmp_path / "whole.mkv", mixed)
    half = tmp_path / "half.mkv"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Client(tiny_server.grpc_url) as client:
        reports = [anonymize_video(client, clip, tmp_path / "out.mkv") for clip in (whole, half)]
    assert [report.stated_frames for report in reports] == [12, 12]
    assert [report.may_be_cut_off for report in reports] == [False, True]


def test_the_example_of_the_docs_runs(tiny_server, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", scene([moving("male_59", 140, 0)], 3, SIZE))
    exec(compile(code.replace("127.0.0.1:8001", tiny_server.grpc_url), str(DOCS), "exec"), {})
    assert "Counter" in capsys.readouterr().out
    assert len(read_clip(tmp_path / "anonymised.mp4")) == 3


def test_rates_of_film_and_television_stay_exact(tiny_server, tmp_path):
    def configure(stream):
        stream.codec_context.framerate = Fraction(24000, 1001)

    source = write_clip(tmp_path / "clip.mkv", scene([moving("male_59", 140, 0)], 3, SIZE), configure=configure)
    with Client(tiny_server.grpc_url) as client:
        anonymize_video(client, source, tmp_path / "out.mkv")
    with av.open(str(source)) as old, av.open(str(tmp_path / "out.mkv")) as new:
        assert new.streams.video[0].average_rate == old.streams.video[0].average_rate
