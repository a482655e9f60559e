"""The Python-based onnxruntime backend inside the real Triton: what it computes and what it refuses, and why."""

from __future__ import annotations

import importlib.util
import sys
import types

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

import visard_server
from visard.wire import build_request
from visard_errors import RepositoryError
from visard_server.triton import TritonServer
from visard_testing.tiny_models import IMAGE_SIZE, build, generator, read_config, tiny_repository, write_config

MODEL = "generator_to_male"
KIND = model_config_pb2.ModelInstanceGroup


def refusal(folder, *, config=None, model=None):
    """Serve one model that was changed, and return why it is refused."""
    repository = tiny_repository(folder / "models", only={MODEL})
    file = repository / MODEL / "1" / "model.onnx"
    if config is not None:
        changed = read_config(repository / MODEL)
        config(changed)
        write_config(repository / MODEL, changed)
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, file)
    elif model is not None:
        file.write_bytes(model)
    else:
        file.unlink()
    with pytest.raises(RepositoryError) as refused:
        TritonServer(repository).start()
    return str(refused.value)


def test_a_missing_model_file_is_named(tmp_path):
    assert f"{MODEL}/1/model.onnx is missing: export the model" in refusal(tmp_path)


def test_a_damaged_model_file_is_named(tmp_path):
    damaged = generator(0).SerializeToString()[:100]
    assert f"{MODEL}/1/model.onnx cannot be loaded" in refusal(tmp_path, model=damaged)


def test_another_tensor_name_is_refused(tmp_path):
    nodes = [helper.make_node("Identity", ["image"], ["307"])]
    message = refusal(tmp_path, model=build(nodes, {}, ("307", TensorProto.UINT8, ["N", 512, 512, 3])))
    assert "the ONNX graph has outputs ['307'], config.pbtxt has ['swapped']" in message


def test_another_shape_is_refused(tmp_path):
    message = refusal(tmp_path, model=generator(0, size=256))
    assert "'image' as tensor(uint8) ['N', 256, 256, 3], config.pbtxt as TYPE_UINT8 [512, 512, 3]" in message


def test_another_type_is_refused(tmp_path):
    nodes = [helper.make_node("Cast", ["image"], ["swapped"], to=TensorProto.FLOAT)]
    message = refusal(tmp_path, model=build(nodes, {}, ("swapped", TensorProto.FLOAT, ["N", 512, 512, 3])))
    assert "'swapped' as tensor(float)" in message


def test_a_graph_of_one_image_is_refused_for_batches(tmp_path):
    nodes = [helper.make_node("Identity", ["image"], ["swapped"])]
    message = refusal(tmp_path, model=build(nodes, {}, ("swapped", TensorProto.UINT8, [1, 512, 512, 3]), batch=1))
    assert "a batched model needs a free first dimension" in message


def test_an_accelerator_without_its_device_is_refused(tmp_path):
    def accelerate(config):
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")

    message = refusal(tmp_path, config=accelerate, model=generator(0))
    assert "execution accelerator tensorrt needs an instance of KIND_GPU" in message


def test_an_unknown_accelerator_is_refused(tmp_path):
    def accelerate(config):
        config.optimization.execution_accelerators.cpu_execution_accelerator.add(name="openvino")

    assert "execution accelerator openvino is not supported" in refusal(tmp_path, config=accelerate, model=generator(0))


def test_a_thread_count_that_is_no_number_is_refused(tmp_path):
    def count(config):
        config.parameters["intra_op_thread_count"].string_value = "many"

    message = refusal(tmp_path, config=count, model=generator(0))
    assert "parameter intra_op_thread_count must be a whole number, got 'many'" in message


def test_a_gpu_model_never_runs_on_the_cpu_in_silence(tmp_path):
    def to_gpu(config):
        config.instance_group[0].kind = KIND.KIND_GPU

    message = refusal(tmp_path, config=to_gpu, model=generator(0))
    assert "no GPUs are available" in message or "no CUDAExecutionProvider" in message
    assert "for the CPU" in message


# -- providers: what this machine may not have ----------------------------------------------------------------------


@pytest.fixture
def backend(monkeypatch):
    """The backend's module outside Triton, whose own module is replaced by the one class that it raises."""
    pb_utils = types.ModuleType("triton_python_backend_utils")
    pb_utils.TritonModelException = type("TritonModelException", (Exception,), {})
    monkeypatch.setitem(sys.modules, pb_utils.__name__, pb_utils)
    path = f"{visard_server.__path__[0]}/backends/onnxruntime/model.py"
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TENSORRT = {
    "optimization": {
        "execution_accelerators": {
            "gpu_execution_accelerator": [
                {"name": "tensorrt", "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": "1000"}}
            ]
        }
    }
}


def test_the_cpu_is_asked_for_alone(backend):
    assert backend._providers({}, "CPU", 0) == [("CPUExecutionProvider", {})]


def test_the_gpu_of_the_instance_is_asked_for_first(backend, monkeypatch):
    offered = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: offered)
    assert backend._providers({}, "GPU", 3)[0] == ("CUDAExecutionProvider", {"device_id": 3})
    wanted = backend._providers(TENSORRT, "GPU", 3)
    assert [name for name, _ in wanted] == offered
    assert wanted[0][1] == {"device_id": 3, "trt_fp16_enable": True, "trt_max_workspace_size": "1000"}


def test_folders_for_engines_are_made_or_named(backend, tmp_path):
    folder = tmp_path / "cache" / "visard"
    backend._tensorrt_options({"trt_engine_cache_path": str(folder)})
    assert folder.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match=r"trt_timing_cache_path '.*file/cache' cannot be made .*config.pbtxt"):
        backend._tensorrt_options({"trt_timing_cache_path": str(tmp_path / "file" / "cache")})


@pytest.mark.parametrize(
    ("config", "missing"), [({}, "CUDAExecutionProvider"), (TENSORRT, "TensorrtExecutionProvider")]
)
def test_a_provider_that_is_not_installed_is_named(backend, monkeypatch, config, missing):
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Exception, match=rf"no {missing}.*visard\[serve-gpu\]"):
        backend._providers(config, "GPU", 0)


# -- batches --------------------------------------------------------------------------------------------------------


def fragile():
    """Adds one grey level; a request whose first pixel is brighter than 0 looks up a row that does not exist."""
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "axes"], ["first"]),
        helper.make_node("Cast", ["first"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["one"]),
        helper.make_node("Add", ["image", "one"], ["swapped"]),
    ]
    constants = {
        "start": np.array([0, 0, 0]),
        "end": np.array([1, 1, 1]),
        "axes": np.array([1, 2, 3]),
        "table": np.array([1], np.uint8),
    }
    return build(nodes, constants, ("swapped", TensorProto.UINT8, ["N", IMAGE_SIZE, IMAGE_SIZE, 3]))


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A server whose model waits half a minute for its batch of three images, so that requests surely meet in one."""
    repository = tiny_repository(tmp_path_factory.mktemp("patient") / "models", only={MODEL})
    config = read_config(repository / MODEL)
    config.max_batch_size = 3
    config.dynamic_batching.max_queue_delay_microseconds = 30_000_000
    config.parameters["intra_op_thread_count"].string_value = "1"
    write_config(repository / MODEL, config)
    onnx.save(fragile(), repository / MODEL / "1" / "model.onnx")
    with TritonServer(repository) as server:
        yield server


def ask(server, *batches):
    """Send all requests at once; return each one's (N, 512, 512, 3) answer or its error."""
    triton = service_pb2_grpc.GRPCInferenceServiceStub(
        grpc.insecure_channel(server.grpc_url, options=[("grpc.max_receive_message_length", -1)])
    )
    answers = []
    for future in [triton.ModelInfer.future(build_request(MODEL, images)) for images in batches]:
        error = future.exception()
        raw = None if error else np.frombuffer(future.result().raw_output_contents[0], np.uint8)
        answers.append(error.details() if raw is None else raw.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3))
    return answers


def executed_batches(server):
    """Batch size → how often the model was run with it."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        statistics = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStatistics(
            service_pb2.ModelStatisticsRequest(name=MODEL), metadata=list(server.admin_headers.items())
        )
    (model,) = statistics.model_stats
    return {batch.batch_size: batch.compute_infer.count for batch in model.batch_stats}


def images(count, *, seed, first=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    pixels[:, 0, 0, 0] = first
    return pixels


def test_requests_that_meet_are_one_batch_and_keep_their_own_rows(patient):
    before = executed_batches(patient).get(3, 0)
    one, two = images(1, seed=1), images(2, seed=2)
    first, second = ask(patient, one, two)
    np.testing.assert_array_equal(first, one + 1)
    np.testing.assert_array_equal(second, two + 1)
    assert executed_batches(patient)[3] == before + 1


def test_a_bad_request_fails_alone(patient):
    good, also_good = images(1, seed=3), images(1, seed=5)
    first, bad, last = ask(patient, good, images(1, seed=4, first=9), also_good)
    assert "onnxruntime" in bad
    assert "out of data bounds" in bad
    np.testing.assert_array_equal(first, good + 1)
    np.testing.assert_array_equal(last, also_good + 1)
