"""The simulated GPU: the whole benchmark in small, and what it takes for a right answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from visard import Swap
from visard_benchmarks.simulated_gpu import as_expected, goal_ms, main, make_faces

RATE = 100


def test_both_ways_of_routing_are_measured_and_no_face_is_mixed_up():
    arguments = f"--rates {RATE} --shapes routed client-first --transports shared-memory --in-flight 40".split()
    report = main([*arguments, "--window", "0.4", "--repeats", "1"])
    routed, client_first = report["rows"]
    for row in report["rows"]:
        assert set(row["outcomes"]) == {"flipped"}  # so every answer had its persona, direction and pixels
        assert 0 < row["device_busy"] <= 1  # two generators share one device, which is never faster than it is
        assert 0 < row["batch"] <= 16
        assert row["served_per_s"] > 0
        assert row["share"] == pytest.approx(row["served_per_s"] / RATE, abs=0.001)
        assert row["p50_ms"] <= row["p99_ms"]
        assert row["server_ms"] > row["triton_ms"] > 0
        assert row["client_ms"] >= row["event_loop_ms"] > 0
        assert row["server_cores"] == pytest.approx(row["server_ms"] * RATE / 1000, abs=0.001)
    assert routed["router_ms"] > client_first["router_ms"]


def test_the_goal_leaves_three_tenths_of_eight_cores():
    assert goal_ms(800) == pytest.approx(7)
    assert goal_ms(5000) == pytest.approx(1.12)


def test_an_answer_to_another_request_is_noticed():
    faces = make_faces()
    face = next(face for face in faces if face[0, 0, 0] < 128)  # female
    male = next(face for face in faces if face[0, 0, 0] >= 128)
    pixels = ~face
    pixels.reshape(-1)[-8:] = np.array([7, 0], np.int32).view(np.uint8)
    right = Swap(swapped=pixels, gender=np.array([1, 0], np.float32), swapped_gender=np.array([0, 1], np.float32))
    assert as_expected(right, face, 7, whole=True)
    assert not as_expected(right, face, 8, whole=False)
    assert not as_expected(right, male, 7, whole=False)
    assert not as_expected(replace(right, swapped_gender=right.gender), face, 7, whole=False)
    pixels[100, 100, 1] += 1
    assert not as_expected(right, face, 7, whole=True)
