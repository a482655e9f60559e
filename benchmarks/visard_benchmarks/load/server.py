"""Where time goes inside the server: the difference of its own counters before and after a load.

From the Prometheus page that every Triton has, so that it works for a server elsewhere too, whose statistics calls are
closed to clients as they should be.
"""

from __future__ import annotations

import urllib.request
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Counters = dict[tuple[str, str], float]  # (counter, model) → value; failures as ("failure REASON", model)

_STEPS = ("request", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    """What one model did during a load; times are means per request.

    Attributes:
        model: its name.
        faces: how many images went through.
        mean_batch: images per execution; 0 where an ensemble executes nothing itself.
        request_ms: from its arrival at the model to its answer.
        queue_ms: waiting for an instance.
        compute_input_ms: moving tensors into the model.
        compute_infer_ms: the model's own work.
        compute_output_ms: moving tensors out of it.
        failures: how many requests failed why, in Triton's words (REJECTED is a full queue or a timeout in it).
    """

    model: str
    faces: int
    mean_batch: float
    request_ms: float
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    failures: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Everything, rounded, ready for JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def read_counters(metrics_url: str) -> Counters:
    """Read a server's counters. Raises OSError where it does not answer."""
    with urllib.request.urlopen(metrics_url, timeout=10) as page:
        return parse_counters(page.read().decode())


def parse_counters(page: str) -> Counters:
    """Read the counters of inference from a Prometheus page; versions of a model are added up."""
    counters: Counters = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if not sample.name.startswith("nv_inference_") or "model" not in sample.labels:
                continue
            name = sample.name.removeprefix("nv_inference_").removesuffix("_total")
            if name == "request_failure":
                name = f"failure {sample.labels['reason']}"
            key = name, sample.labels["model"]
            counters[key] = counters.get(key, 0.0) + sample.value
    return counters


def times_between(before: Counters, after: Counters) -> list[ModelTimes]:
    """Say what each model did between two readings; models that had nothing to do are left out."""
    passed = {key: value - before.get(key, 0.0) for key, value in after.items()}
    times = []
    for model in sorted({model for _, model in passed}):

        def counted(name: str, model: str = model) -> float:
            return passed.get((name, model), 0.0)

        failures = {
            name.removeprefix("failure "): int(value)
            for (name, of), value in passed.items()
            if of == model and name.startswith("failure ") and value
        }
        requests, executions = counted("request_success"), counted("exec_count")
        if not requests and not failures:
            continue
        per_request = {f"{step}_ms": counted(f"{step}_duration_us") / max(1.0, requests) / 1000 for step in _STEPS}
        times.append(
            ModelTimes(
                model=model,
                faces=int(counted("count")),
                mean_batch=counted("count") / executions if executions else 0.0,
                failures=failures,
                **per_request,
            )
        )
    return times
