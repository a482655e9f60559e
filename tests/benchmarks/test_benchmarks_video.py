"""The video benchmark, in small."""

from __future__ import annotations

import pytest

from visard_benchmarks.video import PASSES, main


def test_both_passes_are_compared_with_the_sum_of_their_stages():
    report = main(["--frames", "4", "--size", "480", "270"])
    assert report["stages_ms"].keys() == {stage for stages in PASSES.values() for stage in stages}
    assert all(cost > 0 for cost in report["stages_ms"].values())
    for part, stages in PASSES.items():
        figures = report["passes"][part]
        assert figures["ceiling_per_s"] == pytest.approx(1000 / sum(report["stages_ms"][s] for s in stages))
        assert figures["share"] == pytest.approx(figures["frames_per_s"] / figures["ceiling_per_s"])
    assert sum(report["outcomes"].values()) >= 12  # three people in four frames
