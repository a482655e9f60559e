"""The parts of the way of a clip, each against values that are known without it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from visard_errors import PhotoTooLarge, UnreadableVideo
from visard_preprocess.geometry import Quad
from visard_testing.clips import RATE, Actor, scene, write_clip
from visard_testing.small_models import ASTRONAUT
from visard_video.colours import from_hdr
from visard_video.options import VideoOptions
from visard_video.plan import plan
from visard_video.reader import frames, look_into
from visard_video.tracks import Seen, Track, Tracker, small_copy

MAX_PIXELS = VideoOptions().max_pixels


# --- reading ---


def corners(width=64, height=48):
    """A picture whose four corners have four colours."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = 200, 40, 40
    picture[: height // 2, width // 2 :] = 40, 180, 40
    picture[height // 2 :, : width // 2] = 40, 40, 200
    return picture


def read(path):
    return [frame.pixels for frame in frames(look_into(path, MAX_PIXELS))]


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ([0, 1, 0, -1, 0, 0, 0, 0, 16384], lambda picture: np.rot90(picture, -1)),  # x goes down: clockwise
        ([-1, 0, 0, 0, -1, 0, 0, 0, 16384], lambda picture: np.rot90(picture, 2)),
        ([0, -1, 0, 1, 0, 0, 0, 0, 16384], lambda picture: np.rot90(picture, 1)),
    ],
)
def test_a_clip_that_was_filmed_askew_is_upright(tmp_path, matrix, turned):
    path = write_clip(tmp_path / "clip.mp4", [corners()] * 3)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44  # ISO 14496-12: a matrix of 16.16 fixed point numbers, the last column 2.30
    values = [value if value == 16384 else value * 65536 for value in matrix]
    values[-1] = 1 << 30
    data[place : place + 36] = np.array(values, ">i4").tobytes()
    path.write_bytes(data)
    clip = look_into(path, MAX_PIXELS)
    assert (clip.height, clip.width) == turned(corners()).shape[:2]
    for pixels in read(path):
        assert np.abs(pixels.astype(int) - turned(corners())).mean() < 6


@pytest.mark.parametrize(("size", "pix_fmt"), [((64, 48), "yuv420p10le"), ((63, 47), "yuv444p"), ((64, 48), "gray")])
def test_frames_keep_their_colours(tmp_path, size, pix_fmt):
    picture = corners(*size)
    if pix_fmt == "gray":
        picture = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))
    clip = write_clip(tmp_path / "clip.mkv", [picture] * 3, pix_fmt=pix_fmt)
    for pixels in read(clip):
        assert pixels.shape == picture.shape
        assert np.abs(pixels.astype(int) - picture).mean() < 6


def test_times_are_those_of_the_clip(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [corners()] * 5, times=lambda index: index**2)
    clip = look_into(path, MAX_PIXELS)
    assert [Fraction(frame.time) * clip.time_base * RATE for frame in frames(clip)] == [0, 1, 4, 9, 16]


def test_what_is_no_clip_is_refused_with_words(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (8, 360, 640, 3), np.uint8)
    whole = write_clip(tmp_path / "whole.mkv", noise).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(write_clip(tmp_path / "whole.mp4", noise).read_bytes()[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'whole.mp4'}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    damaged = bytearray(whole)
    damaged[len(damaged) // 3 :: 7] = bytes(len(damaged[len(damaged) // 3 :: 7]))
    (tmp_path / "damaged.mkv").write_bytes(damaged)
    names = ["cut.mp4", "text.mp4", "empty.mp4", "list.m3u8", "list.ffconcat", "damaged.mkv", "missing.mp4", "."]
    for path in (*(tmp_path / name for name in names), ASTRONAUT):
        with pytest.raises(UnreadableVideo, match=path.name):
            read(path)
    with pytest.raises(PhotoTooLarge, match="640×360"):
        look_into(tmp_path / "whole.mp4", 640 * 360 - 1)


def test_high_dynamic_range_becomes_the_standard_one():
    # PQ, BT.2100 table 4: the signal of 203 cd/m², a white wall, is 58 %; HLG's is 75 % (BT.2408).
    for curve, signal in (("PQ", 0.58), ("HLG", 0.75)):
        levels = np.rint(np.array([0.0, signal, 1.0]) * 65535).astype(np.uint16)
        black, white, sun = from_hdr(np.repeat(levels[:, None, None], 3, axis=2), curve)[:, 0].astype(int)
        assert black.tolist() == [0, 0, 0]
        assert np.ptp(white) <= 2  # grey stays grey
        assert 225 <= white[0] <= 245
        assert 250 <= sun[0] <= 255
    # Below the shoulder nothing is compressed: 18 % grey of paper is what sRGB has for it, 118.
    nits = 0.18 * 203
    ratio = (nits / 10000) ** (2610 / 16384)
    signal = ((3424 / 4096 + 2413 / 128 * ratio) / (1 + 2392 / 128 * ratio)) ** (2523 / 32)
    grey = from_hdr(np.full((1, 1, 3), round(signal * 65535), np.uint16), "PQ")
    assert grey.ravel().tolist() == pytest.approx([118] * 3, abs=1)


# --- following ---


def follow(all_seen, pictures=None, size=(640, 360)):
    """Tracks of faces that are seen so in each frame; before a wall with a pattern by default."""
    tracks = []
    tracker = Tracker(RATE, tracks.append)
    wall = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    for frame, seen in enumerate(all_seen):
        copy = small_copy(wall if pictures is None else pictures[frame])
        tracker.step(frame, copy, seen, size, lambda quad: np.zeros((512, 512, 3), np.uint8))
    tracker.end()
    return sorted(tracks, key=lambda track: track.number)


def at(left, top=100, edge=80, **values):
    box = (left, top, left + edge, top + edge)
    quad = Quad(centre=(left + edge / 2, top + edge / 2), x_axis=(edge, 0))
    return Seen(box=box, **{"sure": True, "quad": quad, "reason": None, **values})


def unsure(left):
    return Seen(box=at(left).box)


def test_two_people_who_cross_keep_their_numbers():
    one, two = follow([[at(50 + 12 * f), at(470 - 12 * f, 130)] for f in range(36)])
    assert [one.seen[f].box[0] for f in range(36)] == [50 + 12 * f for f in range(36)]
    assert [two.seen[f].box[0] for f in range(36)] == [470 - 12 * f for f in range(36)]


def test_an_unsure_face_counts_where_a_sure_one_is_before_or_after():
    found = [[unsure(100 + 4 * f)] for f in range(4)] + [[at(116)]] + [[unsure(120 + 4 * f)] for f in range(3)]
    (track,) = follow(found)
    assert [seen.box[0] for seen in track.seen.values()] == [100 + 4 * f for f in range(8)]
    assert [seen.sure for seen in track.seen.values()] == [False] * 4 + [True] + [False] * 3
    assert not follow([[unsure(100)]] * 10)  # one that nobody is ever sure of is none


def test_what_never_was_a_clear_face_is_soon_forgotten():
    doubtful = replace(at(100), reason="unclear")  # the detector was sure once, as of a flower pot
    (track,) = follow([[unsure(100)]] * 100 + [[doubtful]] + [[unsure(100)]] * 100)
    assert (min(track.seen), max(track.seen)) == (100 - RATE // 2, 100 + RATE // 2)
    (track,) = follow([[unsure(100)]] * 100 + [[at(100)]] + [[unsure(100)]] * 100)
    assert (min(track.seen), max(track.seen)) == (0, 200)


def test_a_face_is_followed_to_where_it_came_from_and_through_a_gap():
    actor = Actor(name="female_49", place=lambda f: (40 + 6 * f, 80, 200))
    pictures = scene([actor], 40)
    face = [at(40 + 6 * f + 70, 80 + 62, 64) for f in range(40)]
    (track,) = follow([[face[f]] if 12 <= f < 20 or f >= 30 else [] for f in range(40)], pictures)
    assert list(track.seen) == list(range(40))
    for f, seen in track.seen.items():
        assert np.abs(np.subtract(seen.box, face[f].box)).max() < 12  # of 64: followed by what it looks like


def test_who_was_hidden_for_a_moment_is_the_same_person():
    behind = range(10, 16)
    pictures = [np.full((360, 640, 3), 128, np.uint8)] * 30  # nothing to follow
    (track,) = follow([[] if f in behind else [at(40 + 10 * f)] for f in range(30)], pictures)
    assert {10, 11} - set(track.seen) or set(behind) <= set(track.seen)
    assert {*range(10), *range(16, 30)} <= set(track.seen)
    steps = plan(track)
    assert steps[25].quad.centre[0] == pytest.approx(40 + 10 * 25 + 40)


def test_nobody_is_followed_beyond_a_cut():
    actor = Actor(name="female_49", place=lambda f: (200, 80, 200))
    other = Image.open(ASTRONAUT).convert("RGB").resize((640, 360))
    pictures = [*scene([actor], 10), *[np.asarray(other)] * 10]
    one, two = follow([[at(270, 142, 64)]] * 10 + [[]] * 3 + [[at(300)]] * 7, pictures)
    assert list(one.seen) == list(range(10))
    assert min(two.seen) >= 10


def test_who_leaves_the_picture_is_let_go():
    (track,) = follow([[at(500 + 20 * f)] if f < 6 else [] for f in range(60)])
    assert max(track.seen) < 60 - RATE / 2


# --- planning ---


def track_of(seen):
    return Track(number=0, seen=dict(enumerate(seen)))


def test_places_are_smooth_and_come_no_later():
    steady = plan(track_of([at(10 + 3 * f) for f in range(30)]))
    assert [steady[f].quad.centre[0] for f in range(30)] == pytest.approx([50 + 3 * f for f in range(30)])
    noise = np.random.default_rng(0).normal(0, 2, 60)
    shaky = plan(track_of([at(10 + 3 * f + noise[f]) for f in range(60)]))
    left = np.array([shaky[f].quad.centre[0] - 50 - 3 * f for f in range(60)])
    assert np.abs(np.diff(left)).mean() < 0.35 * np.abs(np.diff(noise)).mean()


def test_a_swap_goes_on_through_a_short_gap_and_no_longer():
    seen = [at(3 * f) for f in range(40)]
    seen[5:8] = [unsure(3 * f) for f in range(5, 8)]
    seen[20:30] = [unsure(3 * f) for f in range(20, 30)]
    steps = plan(track_of(seen))
    assert [frame for frame, step in steps.items() if step.quad is None] == list(range(20, 30))
    assert {steps[f].reason for f in range(20, 30)} == {"unclear"}
    assert steps[6].quad.centre[0] == pytest.approx(18 + 40)


def test_nothing_flashes():
    seen = [at(0, reason=None if f % 3 == 0 else "unclear") for f in range(30)]  # clear in one of three
    assert all(step.quad is None for step in plan(track_of(seen)).values())
    seen = [at(0, reason="unclear" if f % 10 == 5 else None) for f in range(30)]  # unclear in one of ten
    assert all(step.quad is not None for step in plan(track_of(seen)).values())


def test_a_cover_hides_the_frame_before_and_after_too():
    seen = [replace(at(30 * f), reason="too_small") for f in range(5)]
    step = plan(track_of(seen))[2]
    assert (step.box, step.reason) == ((30, 100, 170, 180), "too_small")
