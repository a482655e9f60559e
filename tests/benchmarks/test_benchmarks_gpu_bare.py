"""The GPU benchmark for a bare machine: a dry run of all of it, in an interpreter that has torch and numpy alone."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import os
import signal
import subprocess
import sys
import threading
import venv
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from visard_testing.waiting import wait_until

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
INSTALLED_THERE = ("torch", "numpy", "onnx", "onnxruntime")
PARTS = ("peaks", "offline", "parity", "served", "wire", "compiled")
LONG_S = "3600"  # a busy machine is slow, and no part may be cut off for that


def with_what_they_need(names):
    """Names of packages, and of those that they need in turn."""
    found = {}
    names = list(names)
    while names:
        name = names.pop()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            needs = map(Requirement, found[name].requires or ())
            names += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter that sees only these packages of the present one."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in with_what_they_need(INSTALLED_THERE):
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(distribution.locate_file(name))
    return folder / "bin" / "python"


def environment(**more):
    """Without what would let an interpreter see more packages than its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more


def start(python, out, *options):
    out.mkdir(exist_ok=True)
    command = [python, FOLDER / "bench.py", "--dry-run", "--out", out, *options]
    return subprocess.Popen(command, env=environment(TMPDIR=str(out)), stdout=subprocess.PIPE, text=True)


def lines_of(out):
    return [json.loads(line) for line in (out / "figures.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def dry_run(bare_python, tmp_path_factory):
    out, bundle = tmp_path_factory.mktemp("dry"), tmp_path_factory.mktemp("bundle") / "triton"
    subprocess.run([sys.executable, FOLDER / "make_bundle.py", bundle], check=True)
    process = start(bare_python, out, "--seconds", LONG_S, "--triton", bundle)
    printed, _ = process.communicate()
    assert process.returncode == 0
    return printed, lines_of(out)


@pytest.fixture
def figures(dry_run):
    def of(part):
        return [line for line in dry_run[1] if line["part"] == part and "failed" not in line]

    return of


def test_it_runs_with_torch_and_numpy_alone(bare_python):
    forbidden = "tritonclient", "grpc", "PIL", "safetensors", "annotated_types", "dlib", "rich", "visard"
    program = f"import importlib.util as u; print([n for n in {forbidden} if u.find_spec(n)])"
    assert subprocess.check_output([bare_python, "-c", program], text=True, env=environment()).strip() == "[]"


def test_what_is_missing_has_a_named_reason(dry_run):
    printed, lines = dry_run
    assert printed.count("DRY RUN") == 2
    assert [part for part in dict.fromkeys(line["part"] for line in lines) if part in PARTS] == list(PARTS)
    reasons = {line["failed"] for line in lines if "failed" in line}
    assert reasons == {"RuntimeError: CUDA graphs need a GPU", "ValueError: gRPC needs grpcio, which is not here"}
    totals = json.loads(printed.splitlines()[-1])["parts"]
    assert sum(total["figures"] for total in totals.values()) == len([line for line in lines if "failed" not in line])


def test_peaks(figures):
    device, *lines = figures("peaks")
    assert device["device"] == "cpu"
    peaks = {line["peak"]: line["value"] for line in lines}
    assert {"fp16_tflops", "tf32_tflops", "fp32_tflops", "d2d_gb_per_s"} < peaks.keys()
    assert {"h2d_gb_per_s", "d2h_gb_per_s", "pageable_h2d_gb_per_s", "pageable_d2h_gb_per_s"} < peaks.keys()
    assert all(value > 0 for value in peaks.values())


@pytest.mark.parametrize("model", ["full", "demo"])
def test_offline(figures, model):
    (peak,) = (line["value"] for line in figures("peaks") if line.get("peak") == "fp16_tflops")
    lines = [line for line in figures("offline") if line["model"] == model]
    cases = {(line["norm"], line["layout"], line["how"]) for line in lines}
    norms = "layer_norm", "cast", "instance_norm"
    assert cases == {(norm, layout, "eager") for norm in norms for layout in ("nhwc", "nchw")}
    compiled = [line for line in figures("compiled") if line["model"] == model]
    assert [line["how"] for line in compiled] == ["compiled"]
    for line in lines + compiled:
        assert line["faces_per_second"] == pytest.approx(1000 * line["batch"] / line["ms_per_batch"])
        share = line["faces_per_second"] * line["gflop_per_face"] / (1000 * peak)
        assert line["share_of_roofline"] == pytest.approx(share)
        assert share > 0


@pytest.mark.parametrize("model", ["full", "demo"])
def test_parity(figures, model):
    reference, *halves, tf32 = [line for line in figures("parity") if line["model"] == model]
    assert reference["precision"] == "fp32"
    assert "Pillow, which reads the repository's, is not here" in reference["faces"]
    assert {line["norm"] for line in halves} == {"layer_norm", "cast", "instance_norm"}
    assert tf32["precision"] == "tf32"
    for line in halves:
        assert 0 < line["mean_grey"] < 0.5  # half is not float, and the faces are the same
    for line in (reference, *halves, tf32):
        assert line["finite"]
        assert 0 < line["largest_convolution_output"] < line["half_limit"] == 65504
        assert line["largest_convolution_output"] == pytest.approx(reference["largest_convolution_output"], rel=0.05)


def is_right(line):
    """Whether answers came, and the right ones: byte for byte those without a server, alone in a batch as those."""
    assert line["faces_per_second"] > 0
    assert 0 < line["p50_ms"] <= line["p99_ms"]
    assert "callers" in line["cpu_ms_per_face"]
    if "alone" in line:
        assert line["alone"]["equal"] == line["alone"]["answers"] > 0
    # In a batch with others a CPU may round otherwise; another face's answer is a hundred levels off.
    assert line["under_load"]["largest_difference"] < 10
    assert line["under_load"]["answers"] == line["under_way"]
    return True


def test_served(figures):
    offline = {line["shape"]: line for line in figures("served") if "offline_faces_per_second" in line}
    loads = [line for line in figures("served") if "server" in line]
    shapes = [("routed", "full"), ("fused", "demo")]
    assert [(line["shape"], line["model"]) for line in offline.values()] == shapes
    assert [(line["shape"], line["directions"]) for line in loads] == [
        (shape, directions) for shape, _ in shapes for directions in ("both", "one")
    ]
    for line in loads:
        assert is_right(line)
        assert line["server"] == "Triton, Python backend"
        assert "tritonserver" in line["cpu_ms_per_face"]
        ratio = line["faces_per_second"] / offline[line["shape"]]["offline_faces_per_second"]
        assert line["served_over_offline"] == pytest.approx(ratio)


def test_the_wire(figures):
    lines = [line for line in figures("wire") if "server" in line]
    assert [(line["model"], line["transport"]) for line in lines] == [
        (model, transport) for model in ("anonymizer", "echo") for transport in ("shared memory", "HTTP")
    ]
    for line in lines:
        assert is_right(line)
        assert {"tritonserver", f"model {line['model']}"} < line["cpu_ms_per_face"].keys()


@pytest.fixture
def module(monkeypatch):
    """Import one of the benchmark's files into this interpreter."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def callers_of(module, **values):
    settled = {"outputs": ["swapped"], "images": "", "expected": {}, "segment": "", "alone": True, "callers": 2}
    settled |= {"transport": "HTTP", "models": [], "faces": {}, "warm_s": 0, "seconds": 0.1}
    return module("callers").Callers(**{**settled, **values})


def test_over_grpc_comes_what_comes_over_http(module, tiny_server):
    callers = module("callers")
    http = callers.HttpConnection(callers_of(module, port=int(tiny_server.http_url.rpartition(":")[2])), None, 0)
    grpc = callers.GrpcConnection(callers_of(module, port=int(tiny_server.grpc_url.rpartition(":")[2])))
    face = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8).tobytes()
    with closing(http), closing(grpc):
        over_http, over_grpc = (bytes(way.ask("generator_to_male", face, 7)) for way in (http, grpc))
    assert over_grpc == over_http != face
    assert len(over_grpc) == len(face)


@pytest.mark.parametrize("transport", ["HTTP", "shared memory"])
def test_without_triton_a_plain_server_gives_the_same_answers(module, tmp_path, monkeypatch, transport):
    engine, server = module("engine"), module("plain_server")
    settings = engine.Settings(
        model="full", direction="to_male", norm="layer_norm", layout="nchw", sizes=(1, 2), device="cpu", tiny=True
    )
    faces = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), np.uint8)
    alone = engine.Engine(settings)
    personas = torch.zeros((1, 1), dtype=torch.int32)
    right = [alone.run([torch.from_numpy(face[None])], [personas])[0][0].numpy().copy() for face in faces]
    for name, array in (("faces", faces), ("right", np.concatenate(right))):
        np.save(tmp_path / f"{name}.npy", array)
    monkeypatch.setattr(server.Handler, "served", {"swap": server.Served(settings.to_json(), 1)}, raising=False)
    with server.Server(("127.0.0.1", 0), server.Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        config = callers_of(
            module,
            transport=transport,
            segment=f"visard-test-{os.getpid()}" if transport == "shared memory" else "",
            port=listening.server_address[1],
            models=["swap"],
            faces={"swap": [0, 1]},
            images=str(tmp_path / "faces.npy"),
            expected={"swap": str(tmp_path / "right.npy")},
        )
        monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
        seen = module("callers").run(config)
        listening.shutdown()
    assert seen["alone"] == [2, 2]
    assert seen["checked"] == 2
    assert seen["largest_difference"] < 10
    assert not Path(f"/dev/shm/{config.segment}").is_file()


def test_killed_midway_it_leaves_what_it_had_found(bare_python, tmp_path):
    out = tmp_path / "out"
    process = start(bare_python, out, "--seconds", LONG_S, "--parts", "peaks")
    for line in process.stdout:
        if '"peak"' in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    machine, device, first_peak, *_ = lines_of(out)
    assert machine["versions"]["torch"] in device["torch"]
    assert first_peak["value"] > 0
    wait_until(lambda: not running_with(out))


def running_with(out):
    """Programs that were started with an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if str(out).encode() in path.read_bytes() else []
        except OSError:  # it has just ended
            continue
    return found


def test_a_part_that_takes_too_long_is_a_line_and_the_next_begins(bare_python, tmp_path):
    process = start(bare_python, tmp_path / "out", "--seconds", "0.2")
    process.communicate()
    assert process.returncode == 0
    cut = {line["part"]: line["failed"] for line in lines_of(tmp_path / "out") if "failed" in line}
    assert cut == dict.fromkeys(PARTS, "not done within its share of the time")
    assert not list((tmp_path / "out").glob("visard-gpu-*"))


def test_without_a_gpu_every_part_says_so(bare_python, tmp_path):
    command = [bare_python, FOLDER / "bench.py", "--out", tmp_path, "--parts", "peaks", "--seconds", LONG_S]
    subprocess.run(command, check=True, env=environment(CUDA_VISIBLE_DEVICES=""))
    assert "no CUDA GPU" in lines_of(tmp_path)[-1]["failed"]
