"""What Prometheus reads: requests, faces and how well they were hidden. Numbers only, nothing of any photo.

Each app has a registry of its own, so that two in one process do not count together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from visard import Result
    from visard_web.limiter import ConcurrencyLimiter
    from visard_web.store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one app.

    Args:
        limiter: whose queue is shown.
        store: whose photos are counted.
    """

    def __init__(self, limiter: ConcurrencyLimiter, store: Store) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "visard_requests",
            "Answers by route, method, status and error class",
            ["route", "method", "status", "error"],
            registry=registry,
        )
        self._seconds = Histogram(
            "visard_request_seconds",
            "From the first byte asked to the last byte answered",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._stages = Histogram(
            "visard_stage_seconds", "Wall time of a photo's stages", ["stage"], registry=registry, buckets=_SECONDS
        )
        self._faces = Counter(
            "visard_faces",
            "Faces found, by what became of them and why: swapped, covered or visible",
            ["outcome", "reason"],
            registry=registry,
        )
        self._distance = Histogram(
            "visard_face_identity_distance",
            "Distance of the face descriptors before and after; below 0.6 a recogniser still matches",
            registry=registry,
            buckets=[tenth / 10 for tenth in range(1, 13)],
        )
        self._similarity = Histogram(
            "visard_face_similarity_percent",
            "How similar a face still is, by the published formula",
            registry=registry,
            buckets=[*range(10, 101, 10)],
        )
        for name, text, value in (
            ("visard_queue_depth", "Requests that wait for a slot", lambda: limiter.present - limiter.working),
            ("visard_in_work", "Requests that have one", lambda: limiter.working),
            ("visard_kept_photos", "Photos of the page in memory", lambda: len(store)),
            ("visard_kept_bytes", "Bytes of their pixels", lambda: store.size),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def count_request(self, route: str, method: str, status: int, error: str, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(route, method, str(status), error).inc()
        self._seconds.labels(route).observe(seconds)

    def count_result(self, result: Result) -> None:
        """Count the faces of one photo."""
        for stage, seconds in result.seconds.items():
            self._stages.labels(stage).observe(seconds)
        for each in result.all_faces:
            self._faces.labels(each.outcome, each.reason or "").inc()
        for face in result.faces:
            self._similarity.observe(face.similarity_percent)
            if face.identity_distance is not None:
                self._distance.observe(face.identity_distance)

    def page(self) -> bytes:
        """Write all of it as Prometheus reads it."""
        return generate_latest(self._registry)
