"""Metrics for Prometheus, at `/metrics`. They contain no data of tenants, documents or answers."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fastmem.serve.engine import Engine
from fastmem.serve.jobs import AnswerFinished
from fastmem.serve.store import Store
from fastmem.serve.vllm_answers import VllmAnswers

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one server, in its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "fastmem_http_responses", "Responses by route and status.", ["route", "status"], registry=self.registry
        )
        self.answers = Counter("fastmem_answers", "Complete answers.", ["method", "reason"], registry=self.registry)
        self.abandoned = Counter(
            "fastmem_abandoned", "Requests whose client disconnected before the end.", registry=self.registry
        )
        self.tokens = Counter(
            "fastmem_tokens", "Tokens of prompts, from the cache, and generated.", ["kind"], registry=self.registry
        )
        self.events = Counter(
            "fastmem_memory_events",
            "Memories memorized, read, evicted and so on, by event.",
            ["event"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "fastmem_first_token_seconds",
            "Seconds from a request to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.memorizing = Histogram(
            "fastmem_memorize_seconds", "Seconds to make one memory.", buckets=SECONDS, registry=self.registry
        )
        self.step = Histogram(
            "fastmem_step_seconds",
            "Seconds of one decoding step, which gives every running answer a token.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def count_engine_event(self, name: str, seconds: float) -> None:
        """Count an event that the engine has reported."""
        if name == "stepped":
            self.step.observe(seconds)
            return
        self.events.labels(name).inc()
        if name == "memorized":
            self.memorizing.observe(seconds)

    def count_answer(self, method: str, end: AnswerFinished) -> None:
        """Count a complete answer."""
        self.answers.labels(method, end.answer.reason).inc()
        self.tokens.labels("prompt").inc(end.answer.prompt_tokens)
        self.tokens.labels("cached").inc(end.answer.cached_tokens)
        self.tokens.labels("generated").inc(len(end.answer.token_ids))
        self.first_token.observe(end.first_seconds)

    def text(self) -> bytes:
        """The metrics in the format of Prometheus."""
        return generate_latest(self.registry)


class StoreCollector(Collector):
    """Sizes that are measured when Prometheus reads them."""

    def __init__(self, engine: Engine, store: Store, vllm: VllmAnswers | None = None):
        self.engine, self.store, self.vllm = engine, store, vllm

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Memories by place, rows, the queue, and cached prefixes."""
        memories = GaugeMetricFamily("fastmem_memories", "Memories by place.", labels=["place"])
        sizes = GaugeMetricFamily("fastmem_memory_bytes", "Bytes of memories by place.", labels=["place"])
        for place, (count, size_bytes) in self.store.totals().items():
            memories.add_metric([place], count)
            sizes.add_metric([place], size_bytes)
        evictions = CounterMetricFamily("fastmem_evictions", "Evictions by place.", labels=["place"])
        for place, count in self.store.evictions.items():
            evictions.add_metric([place], count)
        yield from (memories, sizes, evictions)
        running, waiting = len(self.engine.batch), self.engine.waiting
        if self.vllm is not None:
            running, waiting = self.vllm.running, self.vllm.waiting
            adapters = sum(map(len, self.vllm.servers))
            yield GaugeMetricFamily("fastmem_vllm_adapters", "Adapters in the folder.", value=adapters)
        yield GaugeMetricFamily("fastmem_rows_running", "Answers that are being decoded.", value=running)
        yield GaugeMetricFamily("fastmem_jobs_waiting", "Requests that are waiting.", value=waiting)
        prefixes = self.engine.prefixes.size_bytes
        yield GaugeMetricFamily("fastmem_prefix_bytes", "Bytes of keys and values kept for reuse.", value=prefixes)
