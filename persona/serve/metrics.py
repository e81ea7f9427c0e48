"""What a server does in numbers, for Prometheus: `GET /metrics`.

Only numbers are kept: no name, no address, no photo. Paths are those of the API. All others count
as `other`, so that a client cannot add labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as as_text

__all__ = ["CONTENT_TYPE_LATEST", "METRICS", "OTHER", "Metrics"]

METRICS = "/metrics"
OTHER = "other"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of a request's time."""


class Metrics:
    """Counts requests. Any number of threads may use it at once."""

    def __init__(self, paths: Collection[str], *, taken: Callable[[], int], places: int) -> None:
        """Begins at 0.

        Args:
            paths: the paths that are counted under their own names.
            taken: returns how many places for requests are taken.
            places: number of places for requests in work and in the queue.
        """
        self._paths = frozenset(paths)
        self._registry = CollectorRegistry()
        common: Any = {"namespace": "persona", "registry": self._registry}
        self._requests = Counter(
            "requests", "Requests by path and HTTP status.", ["path", "status"], **common
        )
        self._seconds = Histogram(
            "request_seconds",
            "Time from the head of a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            **common,
        )
        busy = Gauge("places_taken", "Requests in work and in the queue.", **common)
        busy.set_function(taken)
        Gauge("places", "Most requests in work and in the queue.", **common).set(places)

    def add(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        path = path if path in self._paths else OTHER
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return as_text(self._registry)
