"""Prometheus metrics, in seconds, bytes and `_total`. Labels never hold values that a client chooses."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from ddaebm.service.queue.scheduling import Operation

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series of timestamps for each counter, which nobody reads

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_P_VALUES = (0.001, 0.01, 0.05, *(i / 10 for i in range(1, 11)))


class Metrics:
    """The metrics of one app, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "ddaebm_http_requests_total", "HTTP requests.", ["route", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "ddaebm_http_request_duration_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge("ddaebm_http_requests_in_flight", "Requests not yet answered.", registry=registry)
        self.connections = Gauge("ddaebm_http_connections", "Open connections.", registry=registry)
        self.rejected = Counter("ddaebm_rejected_total", "Work refused or given up.", ["reason"], registry=registry)
        self.images_dropped = Counter(
            "ddaebm_images_dropped_total",
            "Images that waited and were not computed: the client left, or the deadline passed.",
            ["reason"],
            registry=registry,
        )
        for reason in ("client-gone", "deadline"):
            self.images_dropped.labels(reason)
        self.reloads = Counter(
            "ddaebm_reloads_total", "Reloads of the bundles on SIGHUP.", ["outcome"], registry=registry
        )
        for outcome in ("ok", "failed"):  # start at 0: Prometheus sees no increase in a series that begins at 1
            self.reloads.labels(outcome)
        self.inference_restarts = Counter(
            "ddaebm_inference_restarts_total", "Inference threads replaced: died or hung.", registry=registry
        )
        self.model_info = Gauge(
            "ddaebm_model_info", "Loaded models; always 1.", ["model", "digest", "backend"], registry=registry
        )
        self._add_work(registry)
        self._add_scores(registry)

    def _add_work(self, registry: CollectorRegistry) -> None:
        self.queue_images = Gauge("ddaebm_queue_images", "Images waiting for inference.", registry=registry)
        self.queue_limit = Gauge(
            "ddaebm_queue_limit_images", "Images that may wait before requests are refused.", registry=registry
        )
        self.decode_pixels = Gauge(
            "ddaebm_decode_queue_pixels", "Pixels waiting for the decoder processes.", registry=registry
        )
        self.decoder_restarts = Counter(
            "ddaebm_decoder_restarts_total", "Decoder processes that died or were killed.", registry=registry
        )
        self.batch_images = Histogram(
            "ddaebm_batch_images", "Images in one inference.", ["operation"],
            buckets=tuple(2**i for i in range(11)), registry=registry,
        )  # fmt: skip
        self.inference_seconds = Histogram(
            "ddaebm_inference_seconds", "Time of one inference.", ["operation"], buckets=_SECONDS, registry=registry
        )
        self.inference_workers = Gauge("ddaebm_inference_workers", "Inferences at a time.", registry=registry)

    def _add_scores(self, registry: CollectorRegistry) -> None:
        self.sampled = Counter("ddaebm_images_sampled_total", "Images made.", ["model"], registry=registry)
        self.scored = Counter("ddaebm_images_scored_total", "Images scored.", ["model", "verdict"], registry=registry)
        self.p_value = Histogram(
            "ddaebm_ood_p_value",
            "Conformal p-values of scored images.",
            ["model"],
            buckets=_P_VALUES,
            registry=registry,
        )
        self.drift = Gauge(
            "ddaebm_drift_log_martingale",
            "Evidence that scored images are not like the calibration set, ln; model.ood.drift.",
            ["model"],
            registry=registry,
        )
        self.drift_highest = Gauge(
            "ddaebm_drift_log_martingale_highest", "Highest value of the martingale so far, ln.", ["model"],
            registry=registry,
        )  # fmt: skip

    def computed(self, operation: Operation, rows: int, seconds: float) -> None:
        self.batch_images.labels(operation.kind).observe(rows)
        self.inference_seconds.labels(operation.kind).observe(seconds)

    def dropped(self, reason: str, rows: int) -> None:
        self.images_dropped.labels(reason).inc(rows)
