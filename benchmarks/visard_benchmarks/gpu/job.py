"""What one process of the GPU benchmark does: `python -m visard_benchmarks.gpu.job JOB`, a pickled `Job` in hex.

Each result is appended to the job's file as one line of JSON as soon as it is there, so that what comes after it cannot
take it away.
"""

from __future__ import annotations

import gc
import pickle
import sys

import numpy as np

from visard_benchmarks.gpu.meters import Gpu, count_flop, gpu_uuid, measure, measure_peaks
from visard_benchmarks.gpu.reports import first_line
from visard_benchmarks.gpu.runners import RUNNERS, Images, personas
from visard_benchmarks.gpu.variants import VARIANTS, Job, Variant

PARITY_FACES = 4


def prepare(job: Job) -> None:
    """Write seeded weights, export them, and compute what every variant is compared with: FP32 on the device."""
    import torch

    from visard_export.checkpoints import load_generator
    from visard_export.demo import random_checkpoints
    from visard_export.graphs import build_graph
    from visard_export.networks.architectures import Pix2PixHDArchitecture, ResNet18Architecture
    from visard_export.onnx import export_onnx
    from visard_server.embedded import SAMPLE_PHOTO, aligned_faces

    if job.tiny:
        classifier = ResNet18Architecture(width=8)
        generator = Pix2PixHDArchitecture(ngf=4, n_downsampling=2, n_blocks=1)
    else:
        classifier, generator = ResNet18Architecture(), Pix2PixHDArchitecture()
    paths = random_checkpoints(job.work, classifier, generator)
    faces = variations(aligned_faces(SAMPLE_PHOTO)[0], max(*job.batches, PARITY_FACES))
    np.save(job.work / "faces.npy", faces)
    network = load_generator(paths.to_male).network()
    export_onnx(build_graph(network, "fp16"), job.onnx)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    graph = build_graph(network).to(job.device)
    images = [faces[index : index + 1] for index in range(PARITY_FACES)]
    with torch.inference_mode():
        answers = [
            graph(torch.from_numpy(image).to(job.device), torch.from_numpy(personas(image)).to(job.device))
            .cpu()
            .numpy()
            for image in images
        ]
    np.save(job.work / "reference.npy", np.concatenate(answers))
    job.report(flop_per_image=count_flop(generator), parameters=sum(p.numel() for p in network.parameters()))


def variations(face: Images, count: int) -> Images:
    """Make (count, 512, 512, 3) faces out of one that differ from each other: mirrored, moved, darkened."""
    faces = [np.roll(face[:, ::-1] if k % 2 else face, 3 * k, axis=1) * (1 - 0.01 * k) for k in range(count)]
    return np.asarray(np.stack(faces), np.uint8)


def run_variant(variant: Variant, job: Job, gpu: Gpu, idle_mib: float | None) -> None:
    """Measure every batch size; one that fails is reported, and larger ones are tried all the same."""
    faces, reference = np.load(job.work / "faces.npy"), np.load(job.work / "reference.npy")
    for batch in job.batches:
        runner = None
        try:
            images = np.ascontiguousarray(faces[:batch])
            runner = RUNNERS[variant.runtime](variant, job, images)
            runner.run()
            runner.wait()
            seen = runner.answer()[: len(reference)].astype(np.int16)
            difference = np.abs(seen - reference[: len(seen)])
            rate = measure(runner, job.seconds, gpu)
            used = gpu.used_mib()
            job.report(
                batch=batch,
                images_per_second=rate.batches_per_second * batch,
                ms_per_batch=1000 / rate.batches_per_second,
                joules_per_image=None if rate.joules_per_batch is None else rate.joules_per_batch / batch,
                gpu_memory_mib=None if used is None or idle_mib is None else used - idle_mib,
                mean_grey=float(difference.mean()),
                max_grey=int(difference.max()),
                note=getattr(runner, "note", ""),
            )
        except Exception as error:  # every library has its own; the reason goes into the report
            job.report(batch=batch, failed=first_line(error))
        finally:
            del runner
            gc.collect()
            _free(job.device)


def _free(device: str) -> None:
    if device == "cuda":
        import torch

        torch._dynamo.reset()
        torch.cuda.empty_cache()


def main() -> None:
    job: Job = pickle.loads(bytes.fromhex(sys.argv[1]))
    uuid = gpu_uuid(job.device)
    gpu = Gpu(uuid)
    idle_mib = gpu.used_mib()
    if job.task == "prepare":
        prepare(job)
    elif job.task == "peaks":
        job.report(**dict(measure_peaks(job.device, min(job.seconds, 2.0))))
    else:
        (variant,) = (variant for variant in VARIANTS if variant.name == job.task)
        run_variant(variant, job, gpu, idle_mib)


if __name__ == "__main__":
    main()
