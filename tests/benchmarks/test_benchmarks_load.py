"""The load benchmark counts honestly, and runs from end to end against tiny models."""

from __future__ import annotations

import asyncio
import json
import math
import selectors
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from visard import Connection
from visard_benchmarks.load.figures import (
    FLIPPED,
    UNFLIPPED,
    Sample,
    Timing,
    Turn,
    achieved,
    agree,
    figures,
    goodput,
    ideal_latencies_s,
    offered,
    percentile,
    percentiles_ms,
    stable,
)
from visard_benchmarks.load.loops import Load, closed_loop, open_loop, poisson_schedule, senders
from visard_benchmarks.load.server import parse_counters, times_between
from visard_benchmarks.load.transports import FaceTransport
from visard_errors import Overloaded
from visard_testing.tiny_models import tiny_repository

TIMING = Timing(warm_up_s=1, window_s=2)  # measured from 1 to 7


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer, so that seconds pass at once and always the same."""

    def __init__(self):
        self.now = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                if timeout:
                    loop.now += timeout
                return super().select(0)

        super().__init__(Selector())

    def time(self):
        return self.now


def in_virtual_time(make):
    """Run `make(loop)` on a virtual loop."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        loop.close()


class Server:
    """Serves one request after another in 10 ms, and nothing at all from second 3 to 4."""

    def __init__(self, loop):
        self._loop = loop
        self._turn = asyncio.Lock()

    async def send(self, number):
        async with self._turn:
            await asyncio.sleep(0.01)
            if 3 <= self._loop.now < 4:
                await asyncio.sleep(4 - self._loop.now)
        return True


def sample(due, latency=0.1, outcome=FLIPPED):
    return Sample(due, due, due + latency, outcome)


def evenly(per_s, end_s=7.0, **values):
    return [sample(moment, **values) for moment in np.arange(0, end_s, 1 / per_s)]


def turn(samples, *, open_loop=True):
    return Turn(timing=TIMING, samples=samples, open_loop=open_loop)


def test_an_open_loop_shows_a_stall_that_a_closed_one_hides():
    due = poisson_schedule(40, TIMING.end_s, seed=1)
    opened = in_virtual_time(lambda loop: open_loop(Server(loop).send, due.tolist(), 0.0))
    closed = in_virtual_time(lambda loop: closed_loop(Server(loop).send, 1, TIMING.end_s, 0.0))
    seen = figures([turn(opened)], deadline_s=0.2)
    blind = figures([turn(closed, open_loop=False)], deadline_s=0.2)
    assert blind.latency_ms["p99"] == pytest.approx(10)
    assert blind.latency_ms["max"] == pytest.approx(1000, abs=20)
    assert seen.latency_ms["p99"] > 900
    assert seen.latency_ms["p50"] < 60
    # Whoever was due in the first 0.8 s of the stall, or in the queue that it left, came too late.
    late = sum(each.latency_s > 0.2 for each in opened if 1 <= each.due_s < 7)
    assert late > 0.8 * 40 * 0.7
    assert seen.good_per_s == pytest.approx((seen.samples - late) / 6, rel=0.02)


def test_latency_counts_from_when_a_request_was_due_even_where_the_sender_itself_stalls():
    def blocked(loop):
        async def send(number):
            if number == 10:
                loop.now += 1.0  # as if this process had not been given the processor
            return True

        return open_loop(send, [number / 10 for number in range(30)], 0.0)

    samples = in_virtual_time(blocked)
    delays = [each.latency_s for each in samples]
    assert delays[10] == pytest.approx(1.0)
    assert delays[11:20] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert delays[20:] == pytest.approx([0.0] * 10)
    assert samples[11].sent_s - samples[11].due_s == pytest.approx(0.9)


def test_an_ideal_queue_waits_as_long_as_the_formula_says():
    timing = Timing(warm_up_s=0, window_s=10_000)
    due = poisson_schedule(7, timing.end_s, seed=2)
    latencies = ideal_latencies_s(Turn(timing=timing, samples=[sample(d) for d in due], open_loop=True), 10, 1)
    assert len(latencies) == len(due)
    assert min(latencies) == pytest.approx(0.1)
    # Pollaczek and Khinchine for M/D/1: the mean wait is load · service / (2 · (1 − load)).
    assert np.mean(latencies) == pytest.approx(0.1 + 0.7 * 0.1 / (2 * 0.3), rel=0.03)


def test_an_ideal_queue_takes_as_many_at_once_as_it_has_servers():
    samples = [sample(2.0) for _ in range(4)] + [sample(2.1)]
    assert ideal_latencies_s(turn(samples), 4, 2) == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.4])


def test_a_closed_loop_keeps_its_callers_under_way():
    under_way, most = 0, 0

    async def send(number):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.1)
        under_way -= 1
        return number % 2 == 0

    samples = in_virtual_time(lambda loop: closed_loop(send, 3, 2.0, 0.0))
    assert most == 3
    assert len(samples) == pytest.approx(60, abs=3)
    assert {each.outcome for each in samples} == {FLIPPED, UNFLIPPED}


def test_a_refusal_is_an_outcome_under_its_own_name():
    async def send(number):
        if number % 3 == 0:
            raise Overloaded("full")
        return True

    samples = in_virtual_time(lambda loop: open_loop(send, [0.1, 0.2, 0.3], 0.0))
    assert [each.outcome for each in samples] == ["Overloaded", FLIPPED, FLIPPED]


def test_a_defect_of_the_benchmark_is_no_outcome():
    async def send(number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_virtual_time(lambda loop: open_loop(send, [0.1], 0.0))


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process():
    counts, gaps = [], []
    for seed in range(40):
        moments = poisson_schedule(50, 20, seed)
        assert moments[-1] < 20
        assert (np.diff(moments) > 0).all()
        counts += list(np.histogram(moments, bins=20, range=(0, 20))[0])
        gaps += list(np.diff(moments))
    assert np.mean(counts) == pytest.approx(50, rel=0.02)
    assert np.std(counts) == pytest.approx(math.sqrt(50), rel=0.1)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)  # exponential


def test_a_schedule_is_told_by_its_seed():
    assert (poisson_schedule(5, 10, 3) == poisson_schedule(5, 10, 3)).all()
    assert not np.array_equal(poisson_schedule(5, 10, 3), poisson_schedule(5, 10, 4))


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (-1, 1)])
def test_a_schedule_needs_a_rate_and_a_length(rate, seconds):
    with pytest.raises(ValueError, match="positive"):
        poisson_schedule(rate, seconds, 0)


def test_a_percentile_is_a_latency_that_occurred():
    values = [float(value) for value in range(1, 1001)][::-1]
    assert [percentile(values, percent) for percent in (50, 90, 99, 99.9, 100)] == [500, 900, 990, 999, 1000]
    assert percentile([1.0, 2.0], 99) == 2
    assert percentile([7.0], 0) == 7
    assert math.isnan(percentile([], 50))
    assert percentiles_ms([0.001]) == dict.fromkeys(("p50", "p90", "p95", "p99", "p99.9", "max"), 1.0)


@pytest.mark.parametrize(
    ("values", "settled"),
    [((100, 91, 109), True), ((100, 88, 112), False), ((5, 5, 5), True), ((0, 0, 0), False), ((), False)],
)
def test_values_agree_within_a_tenth_of_their_mean(values, settled):
    assert agree(values) is settled


def test_a_closed_loop_has_settled_where_its_windows_agree():
    assert stable(turn(evenly(20), open_loop=False))
    slower = evenly(20, 5) + [sample(moment) for moment in np.arange(5, 7, 1 / 12)]
    assert not stable(turn(slower, open_loop=False))


def test_an_open_loop_with_a_growing_queue_has_not_settled():
    assert stable(turn(evenly(20)))
    growing = [sample(each.due_s, latency=each.due_s / 2) for each in evenly(20)]
    assert not stable(turn(growing))
    assert stable(turn(evenly(20, outcome="Overloaded", latency=0.01)))  # refused at once: no queue


def test_rates_count_what_came_back_in_the_measured_time():
    late = [sample(0.5, latency=1.0), sample(6.5, latency=1.0)]  # due before and back in it; due in it and back after
    assert offered(turn(late)) == pytest.approx(1 / 6)
    assert achieved(turn(late)) == pytest.approx(1 / 6)
    assert figures([turn(late)], 2.0).latency_ms["max"] == pytest.approx(1000)


def test_good_is_flipped_and_in_time():
    samples = [
        sample(2.0),
        sample(2.1, latency=0.3),
        sample(2.2, outcome=UNFLIPPED),
        sample(2.3, outcome="Overloaded"),
    ]
    assert achieved(turn(samples)) == pytest.approx(3 / 6)
    assert goodput(turn(samples), deadline_s=0.2) == pytest.approx(1 / 6)
    assert goodput(turn(samples), deadline_s=0.5) == pytest.approx(2 / 6)
    summed = figures([turn(samples)], 0.2)
    assert summed.outcomes == {FLIPPED: 2, UNFLIPPED: 1, "Overloaded": 1}
    assert summed.answered_share == 0.75
    assert summed.samples == 3
    assert summed.refused_ms["p50"] == pytest.approx(100)


def test_figures_take_medians_of_rates_and_pool_latencies():
    turns = [turn(evenly(rate, latency=latency)) for rate, latency in ((10, 0.1), (20, 0.2), (40, 0.4))]
    summed = figures(turns, deadline_s=1.0)
    assert summed.achieved_per_s == pytest.approx(20, rel=0.05)
    assert summed.latency_ms["p50"] == pytest.approx(400)  # 240 of the 420 latencies
    assert summed.latency_ms["p90"] == pytest.approx(400)
    assert (summed.turns, summed.stable_turns) == (3, 3)
    json.dumps(summed.to_dict(), allow_nan=False)


def test_nothing_that_came_back_has_figures_too():
    summed = figures([turn(evenly(10, outcome="ServerUnavailable"))], 1.0)
    assert (summed.achieved_per_s, summed.latency_ms, summed.samples, summed.answered_share) == (0, {}, 0, 0)
    json.dumps(summed.to_dict(), allow_nan=False)


@pytest.mark.parametrize("values", [{}, {"callers": 1, "rate_per_s": 1.0}])
def test_a_load_is_closed_or_open(values):
    with pytest.raises(ValueError, match="either"):
        Load(**values)


PAGE = """
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="generator",version="1"} REQUESTS
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="generator",reason="REJECTED",version="1"} FAILURES
nv_inference_request_failure{model="generator",reason="CANCELED",version="1"} 3
# TYPE nv_inference_count counter
nv_inference_count{model="generator",version="1"} FACES
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="generator",version="1"} RUNS
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="generator",version="1"} SPENT
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="generator",version="1"} WAITED
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.5
"""


def page(**values):
    text = PAGE
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def test_the_server_s_times_are_differences_of_its_counters():
    before = parse_counters(page(REQUESTS=100, FAILURES=1, FACES=100, RUNS=100, SPENT=1_000_000, WAITED=500_000))
    after = parse_counters(page(REQUESTS=110, FAILURES=8, FACES=140, RUNS=120, SPENT=1_200_000, WAITED=550_000))
    (times,) = times_between(before, after)
    assert (times.model, times.faces, times.mean_batch) == ("generator", 40, 2)
    assert (times.request_ms, times.queue_ms) == (20, 5)
    assert times.failures == {"REJECTED": 7}
    assert times_between(after, after) == []


def test_several_processes_share_one_schedule(tiny_server):
    face = np.full((1, 512, 512, 3), 60, np.uint8)
    transport = FaceTransport(name="grpc", connection=Connection(url=tiny_server.grpc_url), faces=face)
    timing = Timing(warm_up_s=0.2, window_s=0.2)
    with senders(2) as sending:
        result = sending.run(transport, Load(rate_per_s=30.0), timing, seed=5)
    assert [each.due_s for each in result.samples] == poisson_schedule(30, timing.end_s, 5).tolist()
    assert {each.outcome for each in result.samples} == {FLIPPED}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run of two short turns, its last line and the folder of its results."""
    folder = tmp_path_factory.mktemp("load")
    models = tiny_repository(folder / "models")
    command = [sys.executable, "-m", "visard_benchmarks.load", "--models", models, "--quick"]
    command += ["--transports", "grpc", "sdk", "--window", "0.3", "--repeats", "2", "--loads", "0.5"]
    command += ["--in-flight", "2", "--deadline-ms", "60000", "--output", folder / "results"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "results").iterdir()
    return json.loads((results / "report.json").read_text()), json.loads(done.stdout.splitlines()[-1]), results


def test_a_run_measures_every_load_and_says_it_in_one_line(report):
    full, line, results = report
    loads = {(load["transport"], load["kind"], load["amount"]) for load in full["loads"]}
    assert {("grpc", "closed", 1), ("grpc", "open", 0.5), ("sdk", "closed", 1)} <= loads
    assert all(set(load["outcomes"]) <= {"flipped"} for load in full["loads"] if load["transport"] == "grpc")
    assert line["images_per_second"] == full["served"]["achieved_per_s"] > 0
    (opened,) = (load for load in full["loads"] if load["kind"] == "open" and load["transport"] == "grpc")
    assert opened["latency_ms"]["p99"] > 0
    assert line["served_over_bare"] == full["over_bare"]["grpc"] > 0
    assert line["environment"]["cores"] > 0
    assert sorted(path.name for path in results.iterdir()) == ["latency.png", "report.json", "samples.csv.gz"]


def test_a_run_sees_into_the_server(report):
    full, _, _ = report
    (opened,) = (each for each in full["server"] if each["kind"] == "open" and each["transport"] == "grpc")
    faces = {each["model"]: each["faces"] for each in opened["models"]}
    generated = faces.get("generator_to_male", 0) + faces.get("generator_to_female", 0)
    assert generated == pytest.approx(faces["anonymizer"], abs=4)
    assert faces["gender_classifier"] == pytest.approx(2 * faces["anonymizer"], abs=4)


def test_no_path_and_no_file_name_is_in_the_report(report):
    full, _, _ = report
    kept = {name: value for name, value in full.items() if name != "arguments"}
    assert "astronaut" not in json.dumps(full)
    assert str(Path.home()) not in json.dumps(kept)
    assert "/models" not in json.dumps(kept)
