"""What Prometheus is told: counts and times, and nothing that anybody said."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from user_llm.serving.service import Service

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "user_llm", "registry": self.registry}
        self.open = Gauge("requests_open", "Requests that are being answered", **own)
        labels = ["method", "route", "status"]
        self._requests = Counter("requests", "Requests by what became of them", labels, **own)
        self._seconds = Histogram(
            "request_seconds",
            "Seconds until a response was whole",
            ["route"],
            buckets=SECONDS,
            **own,
        )
        self.first_token = Histogram(
            "first_token_seconds", "Seconds until an answer's first token", buckets=SECONDS, **own
        )
        self.read = Counter("prompt_tokens", "Tokens of prompts", **own)
        self.written = Counter("completion_tokens", "Tokens of answers", **own)
        self.events = Counter("events", "Events that users were told", **own)

    def watch(self, service: Service) -> None:
        """Tells of a service as it is whenever it is asked."""
        facts: dict[str, tuple[str, Callable[[], float]]] = {
            "answers_running": ("Answers under way", lambda: len(service.engine.running)),
            "answers_waiting": ("Answers that wait", lambda: len(service.engine.waiting)),
            "memories_cached": ("Users' memories kept ready", lambda: service.users.cached),
            "memory_hits": ("Memories that were ready", lambda: service.users.hits),
            "memory_misses": ("Memories that were not", lambda: service.users.misses),
        }
        for name, (what, value) in facts.items():
            gauge = Gauge(name, what, namespace="user_llm", registry=self.registry)
            gauge.set_function(value)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' own format."""
        return generate_latest(self.registry)
