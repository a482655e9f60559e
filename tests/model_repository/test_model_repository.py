"""The configurations against the contract of the client, against each other and against real ONNX graphs."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from visard.wire import ENCODED_MODELS, MODELS, ROUTED_MODELS
from visard_export import repository
from visard_export.checkpoints import load_classifier, load_generator
from visard_export.graphs import build_graph
from visard_export.onnx import export_onnx
from visard_testing.small_models import small_checkpoints
from visard_testing.tiny_models import MODEL_REPOSITORY, read_config, tiny_repository

CONFIGS = {path.parent.name: read_config(path.parent) for path in MODEL_REPOSITORY.glob("*/config.pbtxt")}
FUSED = text_format.Parse((MODEL_REPOSITORY / "anonymizer" / "fused.pbtxt").read_text(), ModelConfig())
ENSEMBLES = [name for name, config in CONFIGS.items() if config.platform == "ensemble"]
ONNX = [name for name, config in CONFIGS.items() if config.backend == "onnxruntime"]
QUEUED = [name for name, config in CONFIGS.items() if config.HasField("dynamic_batching")]


def tensors(configured):
    """Name, data type in the protocol's words and shape of each configured tensor."""
    return [
        (
            tensor.name,
            DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES"),
            tuple(tensor.dims),
        )
        for tensor in configured
    ]


def test_the_repository_serves_the_contract_and_its_provenance():
    assert CONFIGS.keys() == {*MODELS, *ENCODED_MODELS, *ROUTED_MODELS, "provenance", "gender_router"}
    assert set(ENCODED_MODELS) == set(repository.ENCODED_MODELS)
    assert tensors(CONFIGS["provenance"].output) == [("provenance", "BYTES", (1,))]
    assert not CONFIGS["provenance"].input


@pytest.mark.parametrize(("model", "spec"), {**MODELS, **ENCODED_MODELS, **ROUTED_MODELS}.items())
def test_configuration_and_client_name_the_same_tensors(model, spec):
    assert tensors(CONFIGS[model].input) == [(t.name, t.datatype, t.shape) for t in spec.inputs]
    assert tensors(CONFIGS[model].output) == [(t.name, t.datatype, t.shape) for t in spec.outputs]


def test_the_anonymizer_is_the_same_model_as_one_graph():
    assert (tensors(FUSED.input), tensors(FUSED.output)) == (
        tensors(CONFIGS["anonymizer"].input),
        tensors(CONFIGS["anonymizer"].output),
    )
    # It is a generator with judgements around it: as bounded, and refusing as early.
    assert FUSED.dynamic_batching.default_queue_policy == (
        CONFIGS["generator_to_male"].dynamic_batching.default_queue_policy
    )


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_an_ensemble_is_wired_to_tensors_that_exist_and_fit(ensemble):
    config = CONFIGS[ensemble]
    known = {tensor.name: tensor for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        part = CONFIGS[step.model_name]
        assert config.max_batch_size <= part.max_batch_size
        assert set(step.input_map) == {tensor.name for tensor in part.input}
        for tensor in part.input:
            source = known[step.input_map[tensor.name]]
            assert (source.data_type, source.dims) == (tensor.data_type, tensor.dims)
        known |= {step.output_map[tensor.name]: tensor for tensor in part.output if tensor.name in step.output_map}
    for tensor in config.output:
        assert (known[tensor.name].data_type, known[tensor.name].dims) == (tensor.data_type, tensor.dims)


def test_the_anonymizer_routes_and_classifies_the_result():
    steps = [
        (s.model_name, dict(s.input_map), dict(s.output_map)) for s in CONFIGS["anonymizer"].ensemble_scheduling.step
    ]
    assert steps == [
        ("gender_router", {"image": "image", "persona": "persona"}, {"swapped": "swapped", "gender": "gender"}),
        ("gender_classifier", {"image": "swapped"}, {"gender": "swapped_gender"}),
    ]


@pytest.mark.parametrize("direction", ["to_male", "to_female"])
def test_a_given_direction_uses_its_own_generator(direction):
    steps = [step.model_name for step in CONFIGS[f"anonymizer_{direction}"].ensemble_scheduling.step]
    assert steps == [f"generator_{direction}", "gender_classifier"]


def test_a_persona_goes_wherever_a_generator_is_reached_and_nowhere_else():
    takes = {name for name, config in CONFIGS.items() if "persona" in {tensor.name for tensor in config.input}}
    assert takes == {"gender_router", *ENSEMBLES, *(name for name in ONNX if name.startswith("generator_"))}


@pytest.mark.parametrize("model", QUEUED)
def test_a_queue_is_bounded_and_rejects(model):
    policy = CONFIGS[model].dynamic_batching.default_queue_policy
    assert policy.timeout_action == ModelQueuePolicy.REJECT
    assert policy.max_queue_size > 0
    assert policy.allow_timeout_override
    assert policy.default_timeout_microseconds > 0  # without one Triton ignores a request's own
    assert not CONFIGS[model].dynamic_batching.preferred_batch_size


@pytest.mark.parametrize("later", ["gender_classifier", "face_encoder"])
def test_what_waits_for_a_generator_finds_room_after_it(later):
    room = {model: CONFIGS[model].dynamic_batching.default_queue_policy.max_queue_size for model in QUEUED}
    assert room[later] >= room["gender_router"] + room["generator_to_male"] + room["generator_to_female"]


@pytest.mark.parametrize("ensemble", ["anonymizer", "anonymizer_to_male", "anonymizer_to_female"])
def test_encoded_faces_take_the_same_way_between_a_decoder_and_an_encoder(ensemble):
    steps = [step.model_name for step in CONFIGS[f"encoded_{ensemble}"].ensemble_scheduling.step]
    assert steps == ["face_decoder", ensemble, "face_encoder"]


def test_nothing_keeps_faces():
    assert not any(config.response_cache.enable for config in CONFIGS.values())


@pytest.mark.parametrize("config", [*(CONFIGS[model] for model in ONNX), FUSED], ids=[*ONNX, "fused"])
def test_onnx_models_run_and_warm_up_on_the_gpu(config):
    (group,) = config.instance_group
    assert group.kind == ModelInstanceGroup.KIND_GPU
    assert group.count > 1  # of one instance Triton may hold a burst's last requests
    sizes = [warmup.batch_size for warmup in config.model_warmup]
    assert sizes[0] == 1
    assert repository.OPTIMAL_BATCH in sizes
    assert sizes[-1] == config.max_batch_size
    for warmup in config.model_warmup:
        assert {name: (value.data_type, value.dims) for name, value in warmup.inputs.items()} == {
            tensor.name: (tensor.data_type, tensor.dims) for tensor in config.input
        }


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    return tiny_repository(tmp_path_factory.mktemp("repository") / "models", small_classifier=True)


@pytest.mark.parametrize("model", ONNX)
def test_tiny_graphs_have_the_configured_tensors(tiny_files, model):
    graph = onnx.load(tiny_files / model / "1" / "model.onnx").graph
    for configured, offered in ((CONFIGS[model].input, graph.input), (CONFIGS[model].output, graph.output)):
        assert tensors(configured) == [onnx_tensor(value) for value in offered]


@pytest.mark.parametrize("model", ONNX)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_exported_graphs_have_the_configured_tensors(tmp_path, model, precision):
    checkpoints = small_checkpoints(tmp_path)
    if model.startswith("gender_classifier"):
        network = load_classifier(checkpoints.classifier).network()
    else:
        network = load_generator(getattr(checkpoints, model.removeprefix("generator_"))).network()
    graph = build_graph(network, precision, small=model == repository.SMALL_CLASSIFIER)
    export_onnx(graph, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    for configured, offered in ((CONFIGS[model].input, graph.input), (CONFIGS[model].output, graph.output)):
        assert tensors(configured) == [onnx_tensor(value) for value in offered]


def onnx_tensor(value):
    """Name, data type in the protocol's words and shape without the batch dimension, which must be free."""
    batch, *dims = value.type.tensor_type.shape.dim
    assert batch.dim_param
    words = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.INT32: "INT32", onnx.TensorProto.FLOAT: "FP32"}
    return value.name, words[value.type.tensor_type.elem_type], tuple(dim.dim_value for dim in dims)
