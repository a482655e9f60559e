"""A model repository appears whole or not at all, with configurations that fit the machine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from visard.wire import ENCODED_MODELS, MODELS
from visard_errors import CheckpointError, ExportError, RepositoryError
from visard_export import verify
from visard_export.checkpoints import sha256_of
from visard_export.demo import demo_checkpoints
from visard_export.export import export_repository, export_version
from visard_export.options import ExportOptions
from visard_export.repository import (
    EXPORTED_MODELS,
    FUSED_MODEL,
    SMALL_CLASSIFIER,
    add_version,
    assemble,
    engine_batches,
    publish,
    read_provenance,
    staging,
)
from visard_testing.small_models import aligned_faces, small_checkpoints

KIND_CPU = model_config_pb2.ModelInstanceGroup.KIND_CPU
KIND_GPU = model_config_pb2.ModelInstanceGroup.KIND_GPU


def export(target, paths, **options):
    lines = []
    export_repository(
        target,
        classifier=paths.classifier,
        to_male=paths.to_male,
        to_female=paths.to_female,
        faces=aligned_faces(),
        options=ExportOptions(**options),
        report=lines.append,
    )
    return lines


def fake_versions(folder, *, fused=False):
    """Stand-ins for exported models, where only the files' whereabouts matter."""
    for model in (*EXPORTED_MODELS, FUSED_MODEL if fused else SMALL_CLASSIFIER):
        (folder / model).mkdir(parents=True)
        (folder / model / "model.onnx").write_bytes(model.encode())
        (folder / model / "provenance.json").write_text("{}")
    return folder


def fake_repository(target, profile="cpu", *, encoded=False, fused=False):
    with staging(target) as stage:
        assemble(fake_versions(stage / "versions", fused=fused), stage / "repository", profile=profile, encoded=encoded)
        publish(stage / "repository", target)
    return target


def read_config(repository, model):
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The whole way


def test_exported_models_keep_the_contract(exported):
    for model in (*EXPORTED_MODELS, FUSED_MODEL):
        config = read_config(exported, model)
        session = onnxruntime.InferenceSession(
            exported / model / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        for ours, theirs, graph in (
            (MODELS[model].inputs, config.input, session.get_inputs()),
            (MODELS[model].outputs, config.output, session.get_outputs()),
        ):
            assert [spec.name for spec in ours] == [tensor.name for tensor in theirs] == [node.name for node in graph]
            assert [spec.shape for spec in ours] == [tuple(tensor.dims) for tensor in theirs]
            assert [list(spec.shape) for spec in ours] == [node.shape[1:] for node in graph]
            kinds = {"UINT8": "tensor(uint8)", "INT32": "tensor(int32)", "FP32": "tensor(float)"}
            assert [kinds[spec.datatype] for spec in ours] == [node.type for node in graph]


def test_exported_generator_does_something_mild(exported):
    path = exported / "generator_to_male" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    faces = aligned_faces()
    difference = np.abs(
        session.run(None, {"image": faces, "persona": np.zeros((len(faces), 1), np.int32)})[0].astype(int) - faces
    )
    assert 1 < difference.mean() < 30


def test_provenance_tells_where_a_model_comes_from(exported, small_paths):
    provenance = json.loads((exported / "generator_to_male" / "1" / "provenance.json").read_text())
    assert provenance["checkpoint"] == "persona.safetensors"
    assert provenance["checkpoint_sha256"] == sha256_of(small_paths.to_male)
    assert provenance["model_sha256"] == sha256_of(exported / "generator_to_male" / "1" / "model.onnx")
    assert provenance["trained"] is False
    assert provenance["architecture"]["trunk"]["head"] == "persona"
    assert provenance["precision_histogram"]["compute"]["Conv"] == {"FLOAT": 10}
    assert provenance["parity"].keys() == {"fp32"}
    assert provenance["parity"]["fp32"]["mean_grey"] <= 0.02
    assert provenance["created"].endswith("+00:00")
    assert provenance["versions"].keys() == {"visard", "torch", "onnx", "onnxruntime"}
    assert str(small_paths.to_male.parent) not in json.dumps(provenance)


def test_persona_generator_is_served_as_one_graph_of_all_weights(exported, small_paths):
    assert {folder.name for folder in exported.iterdir()} == {*MODELS, "provenance"}
    assert read_config(exported, "anonymizer").backend == "onnxruntime"
    provenance = read_provenance(exported)
    assert provenance.keys() == {*EXPORTED_MODELS, FUSED_MODEL}
    fused = provenance[FUSED_MODEL]
    assert fused["model_sha256"] == sha256_of(exported / "anonymizer" / "1" / "model.onnx")
    assert fused["checkpoint_sha256"].split(" + ") == [
        sha256_of(path) for path in (small_paths.classifier, small_paths.to_male)
    ]
    assert fused["trained"] is False
    assert fused["parity"]["fp32"] == {"n_faces": 1, "max_grey": 0, "max_probability": 0.0}


def test_one_graph_that_is_not_its_parts_is_refused(exported, tmp_path):
    versions = {model: exported / model / "1" for model in (*EXPORTED_MODELS, FUSED_MODEL)}
    versions["gender_classifier"] = other = shutil.copytree(versions["gender_classifier"], tmp_path / "other")
    model = onnx.load(other / "model.onnx")
    (last,) = (node for node in model.graph.node if node.output[0] == "gender")
    one_sure, axes = numpy_helper.from_array(np.float32(1), "one"), last.input[0]
    model.graph.initializer.append(one_sure)
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Add", [axes, "one"], ["shifted"]))
    last.input[0] = "shifted"
    last.op_type = "Sigmoid"
    del last.attribute[:]
    onnx.save(model, other / "model.onnx")
    with pytest.raises(ExportError, match="differs from its parts"):
        verify.verify_fused(versions, aligned_faces())


def test_generators_of_their_own_are_routed(tmp_path):
    (tmp_path / "weights").mkdir()
    export(tmp_path / "repository", small_checkpoints(tmp_path / "weights", "image"))
    assert read_config(tmp_path / "repository", "anonymizer").platform == "ensemble"
    assert (tmp_path / "repository" / "gender_router").is_dir()
    provenance = read_provenance(tmp_path / "repository")
    assert provenance.keys() == {*EXPORTED_MODELS, SMALL_CLASSIFIER}
    large, small = (provenance[model] for model in ("gender_classifier", SMALL_CLASSIFIER))
    assert small["checkpoint_sha256"] == large["checkpoint_sha256"]
    assert small["parity"]["fp32"]["max_probability"] <= verify.MAX_PROBABILITY["fp32"]


def test_weights_inside_one_graph_are_not_replaced_alone(tmp_path):
    repository = fake_repository(tmp_path / "repository", fused=True)
    before = contents(repository)
    with pytest.raises(RepositoryError, match="--shape routed"):
        add_version(repository, "generator_to_male", tmp_path)
    assert contents(repository) == before


def test_new_weights_become_the_next_version(exported, small_paths, tmp_path):
    with staging(tmp_path / "repository") as stage:
        for model in EXPORTED_MODELS:
            shutil.copytree(exported / model / "1", stage / "versions" / model)
        assemble(stage / "versions", stage / "repository")  # routed: without the one graph
        publish(stage / "repository", tmp_path / "repository")
    repository = tmp_path / "repository"
    before = contents(repository)
    weights = small_paths.to_female
    number = export_version(repository, "generator_to_male", weights, faces=aligned_faces(), precision="fp16")
    assert number == 2
    provenance = json.loads((repository / "generator_to_male" / "2" / "provenance.json").read_text())
    assert provenance["checkpoint"] == "persona.safetensors"
    assert provenance["precision_histogram"]["compute"]["Conv"] == {"FLOAT16": 10}
    assert provenance["parity"].keys() == {"fp32", "fp16"}
    after = contents(repository)
    assert {name: after[name] for name in before} == before


def test_out_of_tolerance_publishes_nothing(tmp_path, small_paths, monkeypatch):
    monkeypatch.setitem(verify.MAX_PROBABILITY, "fp32", -1.0)  # of the model that is exported first
    with pytest.raises(ExportError, match="differs from its network"):
        export(tmp_path / "repository", small_paths)
    assert not list(tmp_path.iterdir())


def test_refused_checkpoint_publishes_nothing(tmp_path, small_paths):
    wrong = replace(small_paths, to_male=small_paths.classifier)
    with pytest.raises(CheckpointError, match="is not a pix2pixhd checkpoint"):
        export(tmp_path / "repository", wrong)
    assert not list(tmp_path.iterdir())


def test_demo_checkpoints_are_there():
    paths = demo_checkpoints()
    assert all(path.is_file() for path in (paths.classifier, paths.to_male, paths.to_female))


# Configurations


@pytest.fixture(scope="module", params=["cpu", "gpu", "tensorrt"])
def profiled(request, tmp_path_factory):
    return request.param, fake_repository(tmp_path_factory.mktemp(request.param) / "repository", request.param)


def test_every_model_has_a_configuration_and_a_version(profiled):
    _, repository = profiled
    assert {folder.name for folder in repository.iterdir()} == {
        *MODELS,
        SMALL_CLASSIFIER,
        "provenance",
        "gender_router",
    }
    for folder in repository.iterdir():
        assert (folder / "config.pbtxt").is_file()
        assert (folder / "1").is_dir()
    for model in (*EXPORTED_MODELS, SMALL_CLASSIFIER):
        assert (repository / model / "1" / "model.onnx").read_bytes() == model.encode()


def test_cpu_profile(tmp_path):
    repository = fake_repository(tmp_path / "repository")
    for model in MODELS:
        config = read_config(repository, model)
        assert config.max_batch_size == 4
        assert not config.model_warmup
        assert all(group.kind == KIND_CPU for group in config.instance_group)
        assert not config.HasField("optimization")
        assert config.dynamic_batching.max_queue_delay_microseconds == 0
    for model in (*EXPORTED_MODELS, SMALL_CLASSIFIER, "gender_router"):
        batching = read_config(repository, model).dynamic_batching
        assert list(batching.preferred_batch_size) == [1]  # faces one by one
        excess_is_refused = batching.default_queue_policy.max_queue_size == 8
        assert excess_is_refused == (model != "gender_classifier")  # which checks faces that are done already
    counts = {
        model: read_config(repository, model).instance_group[0].count for model in (*EXPORTED_MODELS, "gender_router")
    }
    assert counts == {"gender_router": 3, **dict.fromkeys(EXPORTED_MODELS, 2)}
    for model in EXPORTED_MODELS:
        assert read_config(repository, model).parameters["intra_op_thread_count"].string_value == "1"
    assert read_config(repository, "provenance").max_batch_size == 0  # no batching stays no batching
    assert [group.count for group in read_config(repository, "provenance").instance_group] == [1]
    assert read_config(repository, "generator_to_male").backend == "onnxruntime"


def test_one_graph_is_fitted_to_the_machine_as_a_generator_is(profiled, tmp_path):
    profile, _ = profiled
    repository = fake_repository(tmp_path / "repository", profile, fused=True)
    assert not (repository / "anonymizer" / "fused.pbtxt").exists()
    assert not (repository / "gender_router").exists()
    assert (repository / "anonymizer" / "1" / "model.onnx").is_file()
    fused, generator = (read_config(repository, model) for model in ("anonymizer", "generator_to_male"))
    assert [tensor.name for tensor in fused.output] == ["swapped", "gender", "swapped_gender"]
    assert fused.backend == generator.backend
    assert [group.kind for group in fused.instance_group] == [group.kind for group in generator.instance_group]
    assert fused.parameters == generator.parameters
    assert fused.default_model_filename == generator.default_model_filename
    assert fused.dynamic_batching.default_queue_policy == generator.dynamic_batching.default_queue_policy
    assert fused.max_batch_size == (4 if profile == "cpu" else 64)


def test_models_for_faces_that_travel_as_files_are_there_where_they_are_wanted(tmp_path):
    repository = fake_repository(tmp_path / "repository", encoded=True)
    folders = {folder.name for folder in repository.iterdir()}
    assert folders == {*MODELS, *ENCODED_MODELS, SMALL_CLASSIFIER, "provenance", "gender_router"}
    room = {
        model: read_config(repository, model).dynamic_batching.default_queue_policy.max_queue_size
        for model in ("face_decoder", "face_encoder")
    }
    assert room == {"face_decoder": 8, "face_encoder": 1024}  # the encoder gets faces that are done already


def test_gpu_profile(tmp_path):
    repository = fake_repository(tmp_path / "repository", "gpu")
    for model in EXPORTED_MODELS:
        config = read_config(repository, model)
        assert [group.kind for group in config.instance_group] == [KIND_GPU]
        assert config.model_warmup
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "tensorrt"
        assert "precision_mode" not in accelerator.parameters
    router = read_config(repository, "gender_router")
    assert [group.kind for group in router.instance_group] == [KIND_CPU]
    assert not router.HasField("optimization")


def test_engines_take_every_input_in_every_batch_and_are_best_at_full_ones(tmp_path):
    repository = fake_repository(tmp_path / "repository", "gpu", fused=True)
    profiles = {}
    for model in (*EXPORTED_MODELS, FUSED_MODEL):
        (accelerator,) = read_config(repository, model).optimization.execution_accelerators.gpu_execution_accelerator
        profiles[model] = [accelerator.parameters[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")]
    one, full = "image:1x512x512x3,persona:1x1", "image:16x512x512x3,persona:16x1"
    assert profiles == {
        "gender_classifier": ["image:1x512x512x3", "image:16x512x512x3", "image:64x512x512x3"],
        "generator_to_male": [one, full, full],
        "generator_to_female": [one, full, full],
        "anonymizer": [one, full, "image:64x512x512x3,persona:64x1"],
    }


def test_an_engine_of_the_small_classifier_takes_small_faces(tmp_path):
    config = read_config(fake_repository(tmp_path / "repository", "gpu"), SMALL_CLASSIFIER)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["trt_profile_max_shapes"] == "image:64x224x224x3"


def test_no_engine_is_best_at_more_than_it_takes():
    assert engine_batches(4) == (1, 4, 4)


def test_tensorrt_profile(tmp_path):
    config = read_config(fake_repository(tmp_path / "repository", "tensorrt"), "generator_to_male")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")


def test_one_graph_of_tensorrt_is_started_at_once_at_every_batch_size(tmp_path):
    repository = fake_repository(tmp_path / "repository", "tensorrt", fused=True)
    cuda = read_config(repository, "anonymizer").optimization.cuda
    assert cuda.graphs
    covered = [range(spec.graph_lower_bound.batch_size, spec.batch_size + 1) for spec in cuda.graph_spec]
    assert [size for sizes in covered for size in sizes] == list(range(1, 65))
    for spec in cuda.graph_spec:
        for part in (spec, spec.graph_lower_bound):
            assert {name: list(shape.dim) for name, shape in part.input.items()} == {
                "image": [512, 512, 3],
                "persona": [1],
            }
    assert not read_config(repository, "generator_to_male").optimization.cuda.graphs


def test_queues_and_limits_survive_every_profile(profiled):
    _, repository = profiled
    for model in EXPORTED_MODELS:
        policy = read_config(repository, model).dynamic_batching.default_queue_policy
        assert policy.max_queue_size > 0
        assert policy.default_timeout_microseconds > 0
        assert policy.allow_timeout_override
    steps = read_config(repository, "anonymizer").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["gender_router", "gender_classifier"]


def test_no_ensemble_takes_more_than_its_steps(profiled):
    _, repository = profiled
    for model in ("anonymizer", "anonymizer_to_male", "anonymizer_to_female"):
        config = read_config(repository, model)
        for step in config.ensemble_scheduling.step:
            assert config.max_batch_size <= read_config(repository, step.model_name).max_batch_size


# Whole or not at all


def test_export_replaces_an_earlier_repository(tmp_path):
    target = fake_repository(tmp_path / "repository")
    (target / "generator_to_male" / "1" / "model.onnx").write_bytes(b"old")
    fake_repository(target)
    assert (target / "generator_to_male" / "1" / "model.onnx").read_bytes() == b"generator_to_male"
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_failure_leaves_the_earlier_repository(tmp_path, small_paths):
    target = fake_repository(tmp_path / "repository")
    before = contents(target)
    missing = replace(small_paths, to_female=tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        export(target, missing)
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_folder_of_something_else_is_left_alone(tmp_path, small_paths):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(RepositoryError, match="is not a repository of Visard"):
        export(tmp_path / "holiday", small_paths)
    assert contents(tmp_path) == {"holiday/photo.jpg": b"precious"}


def test_repository_with_a_foreign_model_is_left_alone(tmp_path):
    target = fake_repository(tmp_path / "repository")
    (target / "my_model").mkdir()
    with pytest.raises(RepositoryError, match="is not a repository of Visard"):
        fake_repository(target)
    assert (target / "my_model").is_dir()


def test_file_in_the_place_of_the_target(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RepositoryError, match="is not a repository of Visard"), staging(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "precious"


def test_empty_folder_is_a_fine_target(tmp_path):
    (tmp_path / "repository").mkdir()
    assert (fake_repository(tmp_path / "repository") / "anonymizer").is_dir()


@pytest.mark.parametrize("place", ["under_a_file", "proc"])
def test_unwritable_target_is_said_before_any_work(tmp_path, small_paths, place):
    (tmp_path / "file").write_text("")
    target = {"under_a_file": tmp_path / "file" / "repository", "proc": Path("/proc/visard")}[place]
    with pytest.raises(RepositoryError, match="cannot be written"):
        export(target, small_paths)


def test_relative_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (fake_repository(Path("repository")) / "anonymizer").is_dir()


def test_killed_export_is_recognised_and_cleaned(tmp_path):
    target = tmp_path / "repository"
    code = (
        "import os, signal, sys; from pathlib import Path; from visard_export.repository import staging\n"
        "with staging(Path(sys.argv[1])) as stage:\n"
        "    (stage / 'model.onnx').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert [path.read_bytes() for path in tmp_path.rglob("*.onnx")] == [b"half"]
    lines = []
    with staging(target, lines.append) as stage:
        assert not list(stage.iterdir())
    assert lines == [f"an earlier export to {target} was interrupted: its unfinished files are removed"]
    assert not list(tmp_path.iterdir())


def test_export_killed_between_its_two_renames_is_undone(tmp_path):
    target = fake_repository(tmp_path / "repository")
    before = contents(target)
    target.rename(tmp_path / ".repository.visard-old")
    lines = []
    with staging(target, lines.append):
        assert contents(target) == before
    assert "is back" in lines[0]


def test_two_exports_do_not_meet(tmp_path):
    with staging(tmp_path / "repository") as stage:
        (stage / "mine").write_text("")
        with pytest.raises(RepositoryError, match="another export"), staging(tmp_path / "repository"):
            pass
        assert (stage / "mine").exists()


def test_a_link_where_it_works_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".repository.visard-new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RepositoryError, match="a link is in the way"), staging(tmp_path / "repository"):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


# Versions


def test_versions_count_up(tmp_path):
    target = fake_repository(tmp_path / "repository")
    versions = fake_versions(tmp_path / "new")
    (versions / "generator_to_male" / "model.onnx").write_bytes(b"new")
    assert add_version(target, "generator_to_male", versions) == 2
    assert add_version(target, "generator_to_male", versions) == 3
    assert (target / "generator_to_male" / "1" / "model.onnx").read_bytes() == b"generator_to_male"
    assert (target / "generator_to_male" / "3" / "model.onnx").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"new", "repository"}


def test_both_classifiers_get_new_weights_or_none(tmp_path, monkeypatch):
    target = fake_repository(tmp_path / "repository")
    versions = fake_versions(tmp_path / "new")
    assert add_version(target, "gender_classifier", versions) == 2
    before = contents(target)
    assert {"gender_classifier/2/model.onnx", f"{SMALL_CLASSIFIER}/2/model.onnx"} <= before.keys()
    shutil.rmtree(versions / SMALL_CLASSIFIER)
    with pytest.raises(RepositoryError, match="cannot be written"):
        add_version(target, "gender_classifier", versions)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: fail() if SMALL_CLASSIFIER in str(to) else rename(self, to))
    with pytest.raises(RepositoryError, match="cannot be written"):
        add_version(target, "gender_classifier", fake_versions(tmp_path / "again"))
    assert contents(target) == before


def fail():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("model", ["gender_router", "nothing", "../elsewhere"])
def test_version_of_no_exported_model_is_refused(tmp_path, model):
    target = fake_repository(tmp_path / "repository")
    with pytest.raises(RepositoryError, match="not a repository of Visard with a model"):
        add_version(target, model, tmp_path)


def test_version_without_a_repository_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="export one first"):
        add_version(tmp_path / "none", "gender_classifier", tmp_path)


def test_version_beside_an_engine_is_refused(tmp_path):
    target = fake_repository(tmp_path / "repository", "tensorrt")
    with pytest.raises(RepositoryError, match="TensorRT engine"):
        add_version(target, "gender_classifier", tmp_path)
