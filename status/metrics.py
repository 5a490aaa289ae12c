"""`/metrics`: the tally and the newest snapshot in Prometheus' words. Names and units are those of OpenTelemetry's conventions
for GenAI where it has any (docs/metrics.md lists all). Nothing here is labelled by what a request or an upstream may choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from reporting.usage import NODE_VERSION
from status.book import Book
from status.facts import Snapshot
from status.feed import resident_bytes
from status.health import Health
from status.tally import Histogram

if TYPE_CHECKING:
    from config import Settings

STATES = ("waiting", "dispatched", "begun", "delivering")
CHILD_STATES = ("starting", "at work", "spare", "retiring", "ending")
_MODEL = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]


def exposition(book: Book, health: Health, accept: str) -> tuple[str, bytes]:
    """Content type and text, as the Accept header wants it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # of the supervisor: process_cpu_seconds_total, process_resident_memory_bytes, …
    registry.register(_Node(book, health))
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)


class _Node(Collector):
    def __init__(self, book: Book, health: Health) -> None:
        self._book, self._health = book, health

    def collect(self) -> Iterator[Metric]:
        yield self._info()
        yield _gauge("workernode_ready", "1 while the node takes requests.", float(not self._health.why_not_ready))
        yield from self._ends()
        yield from self._gen_ai()
        if self._book.latest is not None:
            snapshot, _ = self._book.latest
            yield from self._now(snapshot)
            yield from _children(snapshot)
            yield from _upstream(snapshot)
        if self._book.backlog.count is not None:
            words = "Messages of the model's subscription that are not acknowledged, those in nodes' hands included."
            yield _gauge("workernode_backlog", words, self._book.backlog.count)

    def _info(self) -> Metric:
        settings = self._book.settings
        info = InfoMetricFamily("workernode", "What this node is.")
        info.add_metric([], {"version": NODE_VERSION, "type": settings.node_type, "model": settings.model_name})
        return info

    def _ends(self) -> Iterator[Metric]:
        tally = self._book.tally
        ends = CounterMetricFamily(
            "workernode_requests_ended", "Requests that ended, by outcome (as in the usage records) and error.", labels=["outcome", "error"]
        )
        for (outcome, error), count in sorted({("answered", ""): 0, ("failed", "other"): 0, **dict(tally.ends)}.items()):
            ends.add_metric([outcome, error], count)
        yield ends
        yield _counter("workernode_dead_letters", "Requests that became dead letters.", tally.dead_letters)
        deaths = CounterMetricFamily(
            "workernode_child_deaths", "Children that ended: by a signal, an exit code, or killed by the node.", labels=["child", "cause"]
        )
        for (child, cause), count in sorted(dict(tally.deaths).items()):
            deaths.add_metric([child, cause], count)
        yield deaths

    def _gen_ai(self) -> Iterator[Metric]:
        tally, labels = self._book.tally, ["chat", _provider(self._book.settings), self._book.settings.model_name]
        tokens = HistogramMetricFamily("gen_ai_client_token_usage", "Tokens of a request.", labels=[*_MODEL, "gen_ai_token_type"])
        _add(tokens, [*labels, "input"], tally.input_tokens)
        _add(tokens, [*labels, "output"], tally.output_tokens)
        yield tokens
        words = "From a request sent to the model to its last output."
        operation = HistogramMetricFamily("gen_ai_client_operation_duration_seconds", words, labels=[*_MODEL, "error_type"])
        _add(operation, [*labels, ""], tally.upstream[False])
        _add(operation, [*labels, "error"], tally.upstream[True])
        yield operation
        for name, words, histogram in (
            ("gen_ai_server_request_duration_seconds", "From a request's receipt to its end.", tally.request),
            ("gen_ai_server_time_to_first_token_seconds", "From a request's receipt to the first output of the model.", tally.first_token),
            ("gen_ai_server_time_per_output_token_seconds", "Per token after the first, where the model streams.", tally.per_token),
            ("workernode_queue_wait_seconds", "From a request's first publish to its receipt, earlier attempts included.", tally.queued),
        ):
            family = HistogramMetricFamily(name, words, labels=_MODEL)
            _add(family, labels, histogram)
            yield family

    def _now(self, snapshot: Snapshot) -> Iterator[Metric]:
        yield _counter("workernode_requests_taken", "Requests taken from the queue, each attempt of one counted.", snapshot.taken)
        yield _counter("workernode_requests_given_back", "Put back into the queue for another attempt or node.", snapshot.given_back)
        states = GaugeMetricFamily("workernode_requests_open", "Requests in the node's hands.", labels=["state"])
        for state in STATES:
            states.add_metric([state], snapshot.states.get(state, 0))
        yield states
        yield _gauge("workernode_unconfirmed_publishes", "What was published and the queue has not confirmed.", snapshot.unconfirmed)
        yield _gauge("workernode_limit", "Requests that may be in hand at once.", snapshot.limit)
        yield _gauge("workernode_capacity", "Requests that the backends at work can hold.", snapshot.capacity)


def _children(snapshot: Snapshot) -> Iterator[Metric]:
    states = GaugeMetricFamily("workernode_children", "The node's processes.", labels=["state"])
    for state in CHILD_STATES:
        states.add_metric([state], sum(child.state == state for child in snapshot.children))
    yield states
    memory = GaugeMetricFamily("workernode_child_resident_memory_bytes", "Of a child, its model server included.", labels=["child"])
    for child in snapshot.children:
        memory.add_metric([child.name], sum(map(resident_bytes, child.pids)))
    yield memory


def _upstream(snapshot: Snapshot) -> Iterator[Metric]:
    upstream = snapshot.upstream
    yield _gauge("workernode_upstream_pause_seconds", "How long nothing is sent yet, as the upstream asked for it.", upstream.paused_s)
    yield _counter("workernode_upstream_refusals", "Answers 429 and the like.", upstream.refusals)
    remaining = GaugeMetricFamily("workernode_upstream_remaining", "What is left of a limit of the upstream's, estimated.", labels=["of"])
    limit = GaugeMetricFamily("workernode_upstream_limit", "What that limit's bucket holds.", labels=["of"])
    for bucket in upstream.buckets:
        remaining.add_metric([bucket.what], bucket.level)
        limit.add_metric([bucket.what], bucket.holds)
    yield remaining
    yield limit


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    """prometheus-client adds `_total`."""
    return CounterMetricFamily(name, words, value=value)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    counts, total, buckets = list(histogram.counts), 0, []
    for bound, count in zip([*map(float, histogram.bounds), float("inf")], counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    family.add_metric(labels, buckets, histogram.sum)


def _provider(settings: Settings) -> str:
    """Whose API is spoken to the model; what runs here is ours."""
    return "openai" if settings.node_type == "remote" else "workernode"
