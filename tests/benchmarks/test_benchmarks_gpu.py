"""The GPU benchmark's dry run: everything but the GPU is real, and one variant's failure is not another's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from visard_benchmarks.gpu import __main__ as bench
from visard_benchmarks.gpu.meters import count_flop
from visard_benchmarks.gpu.variants import Job
from visard_export.networks.architectures import Pix2PixHDArchitecture


@pytest.fixture
def job(tmp_path):
    def make(task, **changes):
        values = {
            "task": task,
            "work": tmp_path,
            "out": tmp_path / f"{task}.jsonl",
            "device": "cpu",
            "batches": (1, 2),
            "seconds": 0.01,
            "tiny": True,
        }
        return Job(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def dry_run():
    variants = "torch-fp32,ort-cuda-nchw-exhaustive,ort-cuda-copies,ort-tensorrt,tensorrt"
    command = [sys.executable, "-m", "visard_benchmarks.gpu", "--dry-run", "--batches", "1,2", "--seconds", "0.02"]
    return subprocess.run([*command, "--variants", variants], capture_output=True, text=True, check=True).stdout


def test_says_loudly_that_it_is_dry(dry_run):
    assert dry_run.count("DRY RUN") == 2
    assert json.loads(dry_run.splitlines()[-1])["dry_run"] is True


def test_reports_every_variant(dry_run):
    report = json.loads(dry_run.splitlines()[-1])
    results = report["results"]
    for name in ("torch-fp32", "ort-cuda-nchw-exhaustive", "ort-cuda-copies"):
        assert [line["batch"] for line in results[name]] == [1, 2]
        for line in results[name]:
            peak = report["peaks"][f"{report['variants'][name]['precision']}_tflops"]
            share = line["images_per_second"] * report["flop_per_image"] / (peak * 1e12)
            assert line["share_of_roofline"] == pytest.approx(share)
            assert line["images_per_second"] == pytest.approx(1000 * line["batch"] / line["ms_per_batch"])


def test_holds_every_variant_against_fp32(dry_run):
    results = json.loads(dry_run.splitlines()[-1])["results"]
    assert all(line["mean_grey"] < 1e-3 for line in results["torch-fp32"])  # under load a CPU may round otherwise
    for name in ("ort-cuda-nchw-exhaustive", "ort-cuda-copies"):
        assert all(0 < line["mean_grey"] < 1 for line in results[name])  # half is not float, and the faces are the same


def test_what_is_missing_is_a_reason_and_not_the_end(dry_run):
    results = json.loads(dry_run.splitlines()[-1])["results"]
    assert all("no TensorrtExecutionProvider" in line["failed"] for line in results["ort-tensorrt"])
    assert all("needs TensorRT" in line["failed"] for line in results["tensorrt"])
    assert "no TensorrtExecutionProvider" in dry_run.rsplit("\n{", 1)[0]  # in the table too


def test_the_published_generator_is_counted():
    size, channels = 512, 64
    expected = 2 * 49 * size**2 * channels * (3 + 3)  # first and last convolution, 7×7
    for step in range(4):  # two per multiply and add; down, then up again by the same number
        inner = channels * 2**step
        expected += 2 * 2 * 9 * inner * 2 * inner * (size // 2 ** (step + 1)) ** 2
    expected += 9 * 2 * 2 * 9 * (channels * 16) ** 2 * (size // 16) ** 2
    assert count_flop(Pix2PixHDArchitecture()) == expected
    assert round(expected / 1e9) == 435


def test_a_process_that_dies_leaves_what_it_had_reported(job, monkeypatch):
    dying = job("dying")
    dying.report(batch=1, images_per_second=1.0)
    script = dying.work / "dying.py"
    monkeypatch.setattr(bench, "RUN_JOB", [sys.executable, str(script)])
    script.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", encoding="utf-8")
    assert bench.run_job(dying, 60) == ([{"batch": 1, "images_per_second": 1.0}], "ended by SIGKILL")
    script.write_text("raise RuntimeError('no such kernel')", encoding="utf-8")
    assert bench.run_job(dying, 60)[1] == "RuntimeError: no such kernel"
    script.write_text("import time; time.sleep(60)", encoding="utf-8")
    assert bench.run_job(dying, 0.2)[1] == "not done within 0.2 s"


def test_without_a_gpu_it_ends_with_a_reason(job):
    lines, reason = bench.run_job(job("peaks", device="cuda"), 120)
    assert lines == []
    assert reason


def test_a_line_of_the_table_says_all_of_a_measurement(capsys):
    results = {
        "a": [{"batch": 4, "images_per_second": 12.34, "mean_grey": 0.1, "max_grey": 2, "share_of_roofline": 0.5}],
        "b": [{"batch": 4, "failed": "out of memory"}],
    }
    bench.print_table(bench.rows(results))
    a, b = (line for line in capsys.readouterr().out.splitlines() if line[2:3] in "ab")
    assert "12.3" in a
    assert "50.0%" in a
    assert "0.100 / 2" in a
    assert "out of memory" in b
