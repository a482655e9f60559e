"""A model repository for Triton: the static configurations adapted to a machine, with exported models in them.

A repository is built in a hidden folder beside the target and appears there by renaming, so that what a server finds is
whole. It needs neither weights nor torch.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from visard_errors import RepositoryError
from visard_export.options import Profile

EXPORTED_MODELS = ("gender_classifier", "generator_to_male", "generator_to_female")
# Beside a router, for callers who ask for the direction first: the same weights, a smaller picture.
SMALL_CLASSIFIER = "gender_classifier_224"
ROUTER = "gender_router"
FUSED_MODEL = "anonymizer"  # where it is one graph and no ensemble with a router
ENCODED_MODELS = (
    "encoded_anonymizer",
    "encoded_anonymizer_to_male",
    "encoded_anonymizer_to_female",
    "face_decoder",
    "face_encoder",
)
MODEL_FILE = "model.onnx"
ENGINE_FILE = "model.plan"
CONFIG_FILE = "config.pbtxt"
FUSED_CONFIG_FILE = "fused.pbtxt"  # beside it: of the same model as one graph
PROVENANCE_FILE = "provenance.json"

CPU_MAX_BATCH = 4  # of one request: a CPU gains nothing from more, and all of a batch waits for its last face
# Two instances of one thread each use two cores better than one instance of two threads: nobody waits for the other
# half of a convolution. Raise `count` in the repository's configurations where there are more cores.
CPU_INSTANCES = 2
# What waits longer than this many faces take is given up by its caller before it is done, and the work is lost: better
# refused at once, at the first model of each ensemble: the router, or the generator where the caller says which.
CPU_QUEUE = 4 * CPU_INSTANCES
CPU_ROUTERS = CPU_INSTANCES + 1  # one face is classified while as many as there are instances are generated
AFTER_GENERATORS = ("gender_classifier", "face_encoder")  # a face that was generated already must not be lost there
OPTIMAL_BATCH = 16  # what saturation makes of a generator's queue, and so what an engine's kernels are chosen for
CUDA_GRAPH_BATCHES = (1, 4, 16, 64)
ENGINE_CACHE = "/var/cache/visard"  # of the serving machine; holds engines and kernel timings, never a face
WORKSPACE_BYTES = 4 * 1024**3  # scratch memory that a TensorRT kernel may ask for


def assemble(versions: Path, repository: Path, *, profile: Profile = "cpu", encoded: bool = False) -> None:
    """Build a repository out of the static one and a folder of exported models.

    Args:
        versions: has one folder for each of `EXPORTED_MODELS` with its model and provenance, and one more of
            `FUSED_MODEL` where the anonymizer is one graph, or of `SMALL_CLASSIFIER`; they are moved.
        repository: the folder to make.
        profile: `cpu`, `gpu` or `tensorrt`.
        encoded: with the models for faces that travel as files.

    Raises:
        RepositoryError: the static configurations are not found.
    """
    fused = (versions / FUSED_MODEL).is_dir()
    left_out = {*(() if encoded else ENCODED_MODELS), *([ROUTER] if fused else [])}
    if not (versions / SMALL_CLASSIFIER).is_dir():
        left_out.add(SMALL_CLASSIFIER)
    for static in sorted(static_repository().iterdir()):
        if not (static / CONFIG_FILE).is_file() or static.name in left_out:
            continue
        model = repository / static.name
        shutil.copytree(static, model, ignore=shutil.ignore_patterns("__pycache__", FUSED_CONFIG_FILE))
        if (versions / static.name).is_dir():
            shutil.rmtree(model / "1", ignore_errors=True)
            shutil.move(versions / static.name, model / "1")
        (model / "1").mkdir(exist_ok=True)  # an ensemble has no files, but Triton wants a version
        config_file = FUSED_CONFIG_FILE if fused and static.name == FUSED_MODEL else CONFIG_FILE
        config = adapt(static.name, _read_config(static / config_file), profile)
        (model / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")


def adapt(model: str, config: Any, profile: Profile) -> Any:
    """Fit a model's `ModelConfig` to the machine that will serve it; the static ones are for a GPU without TensorRT."""
    if profile == "cpu":
        config.max_batch_size = min(config.max_batch_size, CPU_MAX_BATCH)
        del config.model_warmup[:]  # a CPU picks no kernels, so warming up would only delay the start
        for group in config.instance_group:
            group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
        if config.HasField("dynamic_batching"):
            config.dynamic_batching.max_queue_delay_microseconds = 0  # a batch saves a CPU nothing worth waiting for
            # Faces one by one: a batch takes a CPU as long as its faces do, and leaves the other instance without work.
            config.dynamic_batching.preferred_batch_size.append(1)
            for group in config.instance_group:
                group.count = CPU_ROUTERS if model == ROUTER else CPU_INSTANCES
            if model not in AFTER_GENERATORS:
                config.dynamic_batching.default_queue_policy.max_queue_size = CPU_QUEUE
        if config.backend == "onnxruntime":
            config.parameters["intra_op_thread_count"].string_value = "1"
    elif config.backend == "onnxruntime" and profile == "gpu":
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        # No `precision_mode`: onnxruntime then builds a strongly typed network, in the precision of the graph itself.
        # "true" and not "1": Triton's native backend takes both, onnxruntime's Python API no other.
        accelerator.parameters.update(
            {
                "max_workspace_size_bytes": str(WORKSPACE_BYTES),
                "trt_engine_cache_enable": "true",  # engines are named after the graph, that after its weights
                "trt_engine_cache_path": ENGINE_CACHE,
                "trt_timing_cache_enable": "true",
                "trt_timing_cache_path": ENGINE_CACHE,
            }
        )
        # For all inputs: onnxruntime loads no model of which one has a free size and no profile.
        for name, batch in zip(("min", "opt", "max"), engine_batches(config.max_batch_size), strict=True):
            shapes = [f"{each.name}:" + "x".join(map(str, (batch, *each.dims))) for each in config.input]
            accelerator.parameters[f"trt_profile_{name}_shapes"] = ",".join(shapes)
    elif config.backend == "onnxruntime":
        config.backend = "tensorrt"
        config.default_model_filename = ENGINE_FILE
        if model == FUSED_MODEL:
            _add_cuda_graphs(config)
    return config


def _add_cuda_graphs(config: Any) -> None:
    """Have the hundreds of small kernels of one graph started at once; between two sizes, the larger one is run.

    Triton's TensorRT backend alone: that of onnxruntime gives no sizes and keeps no addresses, so that a graph of it
    would repeat an earlier batch.
    """
    config.optimization.cuda.graphs = True
    smallest = 1
    for batch in CUDA_GRAPH_BATCHES:
        spec = config.optimization.cuda.graph_spec.add(batch_size=batch)
        spec.graph_lower_bound.batch_size = smallest
        for tensor in config.input:
            for part in (spec, spec.graph_lower_bound):
                part.input[tensor.name].dim.extend(tensor.dims)
        smallest = batch + 1


def engine_batches(max_batch: int) -> tuple[int, int, int]:
    """The smallest batch of an engine, the one that it is best at, and the largest."""
    return 1, min(OPTIMAL_BATCH, max_batch), max_batch


def max_batch_size(model: str) -> int:
    """How many faces the static configuration lets a model that is exported take at once."""
    config_file = FUSED_CONFIG_FILE if model == FUSED_MODEL else CONFIG_FILE
    return int(_read_config(static_repository() / model / config_file).max_batch_size)


def static_repository() -> Path:
    """Find the static configurations: inside the wheel, or at the top of a checkout.

    Raises:
        RepositoryError: they are in neither place.
    """
    here = Path(__file__).parent
    for folder in (here / "model_repository", here.parents[1] / "model_repository"):
        if (folder / "anonymizer" / CONFIG_FILE).is_file():
            return folder
    raise RepositoryError(f"the model configurations are missing from {here}: install visard again")


def is_repository(folder: Path) -> bool:
    """Whether a folder was exported by us: all its folders are models that we know, and the main one is there."""
    known = {static.name for static in static_repository().iterdir()}
    return (folder / "anonymizer" / CONFIG_FILE).is_file() and all(child.name in known for child in folder.iterdir())


def read_provenance(repository: Path) -> dict[str, dict[str, Any]]:
    """Read model → provenance of the version that Triton serves, the highest.

    Raises:
        RepositoryError: the folder is no repository of Visard.
    """
    if not repository.is_dir() or not is_repository(repository):
        raise RepositoryError(f"'{repository}' is not a model repository of Visard: `visard export` makes one")
    provenance = {}
    for model in (*EXPORTED_MODELS, FUSED_MODEL if _is_fused(repository) else SMALL_CLASSIFIER):
        if not (repository / model).is_dir():
            continue  # exported before there was a small classifier
        newest = max(
            (path for path in (repository / model).iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
        )
        provenance[model] = json.loads((newest / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return provenance


def publish(repository: Path, target: Path) -> None:
    """Rename a finished repository to its target; one that was there before goes when the new one stands.

    Raises:
        RepositoryError: the target cannot be replaced.
    """
    old = _old(target)
    try:
        if target.exists():
            target.rename(old)
        try:
            repository.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise _not_writable(target, error) from error
    shutil.rmtree(old, ignore_errors=True)


def add_version(repository: Path, model: str, versions: Path, report: Callable[[str], None] = lambda line: None) -> int:
    """Put an exported model beside the versions that a repository has; Triton serves the highest number.

    The old version stays for going back: delete the new folder and restart the server. A server that runs does not
    take notice before it is restarted, because it does not watch its repository.

    Args:
        repository: made by `export_repository`.
        model: one of `EXPORTED_MODELS`.
        versions: has a folder for each of `served_from_the_weights_of` the model, with its file and its provenance;
            they are copied.
        report: takes a line of progress.

    Returns:
        The number of the new version.

    Raises:
        RepositoryError: there is no such repository or model, it cannot be written, it serves engines, or the model is
            part of one graph.
    """
    folder = repository / model
    if model not in EXPORTED_MODELS or not is_repository(repository):
        raise RepositoryError(f"'{repository}' is not a repository of Visard with a model '{model}': export one first")
    if _read_config(folder / CONFIG_FILE).backend != "onnxruntime":
        raise RepositoryError(f"'{folder}' serves a TensorRT engine: export the whole repository again")
    if _is_fused(repository):
        raise RepositoryError(
            f"'{model}' is also part of '{repository / FUSED_MODEL}', one graph: export the whole repository again, "
            "with --shape routed where single models are to be replaced"
        )
    with staging(repository, report) as stage:
        models = served_from_the_weights_of(model, repository)
        taken = (int(child.name) for each in models for child in (repository / each).iterdir() if child.name.isdigit())
        number = str(1 + max(taken))
        added: list[Path] = []
        try:
            for each in models:
                shutil.copytree(versions / each, stage / each)
            for each in models:
                added.append((stage / each).rename(repository / each / number))
        except OSError as error:
            for one in added:  # two classifiers of different weights would disagree on faces
                shutil.rmtree(one, ignore_errors=True)
            raise _not_writable(folder, error) from error
    return int(number)


def served_from_the_weights_of(model: str, repository: Path) -> tuple[str, ...]:
    """The models of a repository that are made of one weights file: of the classifier, the small one as well."""
    if model == "gender_classifier" and (repository / SMALL_CLASSIFIER).is_dir():
        return model, SMALL_CLASSIFIER
    return (model,)


@contextmanager
def staging(target: Path, report: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """Hold an empty hidden folder beside the target; it is gone afterwards, whatever happened.

    What an export that was killed has left behind is cleaned up first, and said.

    Raises:
        RepositoryError: the place cannot be written, the target is something else, or another export is at work there.
    """
    target = target.absolute()
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or is_repository(target))):
        raise RepositoryError(f"'{target}' is there and is not a repository of Visard: choose another folder")
    stage = target.parent / f".{target.name}.visard-new"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir(exist_ok=True)
        if stage.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "a link is in the way", stage)
        lock = FileLock(stage / "lock", blocking=False)  # released by the system when its holder is killed
        lock.acquire()
    except Timeout as error:
        raise RepositoryError(f"another export to '{target}' is at work: wait for it") from error
    except OSError as error:
        raise _not_writable(target, error) from error
    try:
        _recover(stage / "new", target, report)
        (stage / "new").mkdir(exist_ok=True)
        yield stage / "new"
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # before the lock is free, so that nobody else's files go
        lock.release()
        with suppress(OSError):  # Windows keeps a file that is open; and another export may be at work by now
            (stage / "lock").unlink(missing_ok=True)
            stage.rmdir()


def _recover(stage: Path, target: Path, report: Callable[[str], None]) -> None:
    if _old(target).exists():
        if target.exists():
            shutil.rmtree(_old(target))
        else:  # killed between the two renames of `publish`
            _old(target).rename(target)
            report(f"an earlier export was interrupted: the repository before it is back at {target}")
    if stage.exists():
        report(f"an earlier export to {target} was interrupted: its unfinished files are removed")
        shutil.rmtree(stage)


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.visard-old"


def _is_fused(repository: Path) -> bool:
    return not (repository / ROUTER).exists()


def _read_config(path: Path) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise RepositoryError(f"'{path}' cannot be read as a model configuration: {error}") from error


def _not_writable(path: Path, error: OSError) -> RepositoryError:
    return RepositoryError(f"'{path}' cannot be written ({error.strerror}): choose another folder or free some space")
