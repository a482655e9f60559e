"""How fast one GPU runs the generator, in every way that Visard has, compared with the limits of the GPU.

For a machine with what NVIDIA's containers hold; `benchmarks/gpu/bench.py` is for one with torch alone.

    python -m visard_benchmarks.gpu                    on a machine with a CUDA GPU; needs no network
    python -m visard_benchmarks.gpu --variants torch-fp16-nhwc,ort-cuda-nhwc-exhaustive --batches 8,16
    python -m visard_benchmarks.gpu --dry-run          on any machine: tiny models on the CPU, figures without meaning

The generator has the published size (ngf 64, 512²) and seeded random weights. Each variant runs in a process of its own
at each batch size: images per second, share of the roofline (operations counted by torch over the network, divided by
the matrix-product peak measured here in the same precision), difference from FP32 in grey levels, joules per image,
memory. A variant that fails is listed with its reason, and the others go on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from visard_benchmarks.environment import environment
from visard_benchmarks.gpu import reports
from visard_benchmarks.gpu.variants import VARIANTS, Job, Variant
from visard_benchmarks.load.report import console

RUN_JOB = [sys.executable, "-m", "visard_benchmarks.gpu.job"]

HEADINGS = ("variant", "batch", "images/s", "of roofline", "grey mean / max", "J/image", "GPU MiB", "remark")

Results = dict[str, list[dict[str, Any]]]


def run_job(job: Job, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    """Do a job in a process of its own.

    Returns:
        What it reported, as far as it came, and why it did not come further; empty where it did.
    """
    command = [*RUN_JOB, pickle.dumps(job).hex()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=job.work
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
        reason = "" if process.returncode == 0 else reports.reason(process.returncode, output)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        reason = f"not done within {timeout_s:g} s"
    return reports.read_lines(job.out), reason


def derive(variant: Variant, lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add each measurement's share of the roofline."""
    peak = facts["peaks"].get(f"{variant.precision}_tflops")
    derived = []
    for line in lines:
        more = {}
        if "images_per_second" in line and peak:
            more["share_of_roofline"] = line["images_per_second"] * facts["flop_per_image"] / (peak * 1e12)
        derived.append({**line, **more})
    return derived


def rows(results: Results) -> list[tuple[str, ...]]:
    """Lines of the table, the heading first."""
    table: list[tuple[str, ...]] = [HEADINGS]
    for name, lines in results.items():
        for line in lines:
            if "failed" in line:
                table.append((name, str(line.get("batch", "")), "–", "–", "–", "–", "–", line["failed"]))
                continue
            grey = f"{line['mean_grey']:.3f} / {line['max_grey']}" if "mean_grey" in line else "–"
            share, joules = line.get("share_of_roofline"), line.get("joules_per_image")
            figures = (
                f"{line['images_per_second']:.1f}",
                _number(share, "{:.1%}"),
                grey,
                _number(joules, "{:.2f}"),
                _number(line.get("gpu_memory_mib"), "{:.0f}"),
            )
            table.append((name, str(line.get("batch", "")), *figures, line.get("note", "")))
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def print_table(table: list[tuple[str, ...]]) -> None:
    """Print it, cut off nowhere where the output goes to a file."""
    shown = Table(*table[0])
    for row in table[1:]:
        shown.add_row(*row)
    console(width=200).print(shown)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,2,4,8,16,32", help="batch sizes (default 1,2,4,8,16,32)")
    parser.add_argument("--variants", default="", help="some of them, by name; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (default 5)")
    parser.add_argument(
        "--timeout", type=float, default=1800.0, help="seconds that one variant may take (default 1800)"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for models and engines, to keep them; a temporary one by default"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU: shows that it runs")
    parsed = parser.parse_args(arguments)
    parsed.batches = tuple(sorted({int(batch) for batch in parsed.batches.split(",")}))
    known = {variant.name for variant in VARIANTS}
    wanted = [name for name in parsed.variants.split(",") if name]
    if unknown := set(wanted) - known:
        parser.error(f"no variant {', '.join(sorted(unknown))}: there are {', '.join(sorted(known))}")
    parsed.variants = [variant for variant in VARIANTS if not wanted or variant.name in wanted]
    return parsed


def run(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Do everything and return what goes into the JSON."""
    device = "cpu" if arguments.dry_run else "cuda"

    def do(task: str) -> tuple[list[dict[str, Any]], str]:
        job = Job(
            task=task,
            work=work,
            out=work / f"{task}.jsonl",
            device=device,
            batches=arguments.batches,
            seconds=arguments.seconds,
            tiny=arguments.dry_run,
        )
        job.out.unlink(missing_ok=True)
        return run_job(job, arguments.timeout)

    print("measuring the device's peaks", flush=True)
    peaks, reason = do("peaks")
    if reason:
        sys.exit(f"nothing can be measured here: {reason}")
    print("making and exporting the model", flush=True)
    facts, reason = do("prepare")
    if reason:
        sys.exit(f"the model could not be made: {reason}")
    known = {"peaks": peaks[0], **facts[0]}
    print(f"{known['flop_per_image'] / 1e9:.1f} GFLOP per image, {known['parameters']:,} parameters", flush=True)
    print("peaks: " + ", ".join(f"{name} {value:.1f}" for name, value in known["peaks"].items()), flush=True)
    results: Results = {}
    for variant in arguments.variants:
        print(f"measuring {variant.name}", flush=True)
        lines, reason = do(variant.name)
        results[variant.name] = derive(variant, lines, known)
        if reason:
            results[variant.name].append({"failed": reason})
    return {
        "dry_run": arguments.dry_run,
        "environment": environment(),
        **known,
        "variants": {
            variant.name: {"precision": variant.precision, "settings": dict(variant.settings)}
            for variant in arguments.variants
        },
        "results": results,
    }


def main() -> None:
    arguments = parse()
    if arguments.dry_run:
        print(reports.DRY_RUN, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        report = run(arguments, work)
    print_table(rows(report["results"]))
    if arguments.dry_run:
        print(reports.DRY_RUN)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
