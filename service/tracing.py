"""OpenTelemetry traces, if the standard variables name a collector: one span per request, with its stages as children.

Spans are created after a request has been answered, when all times are known, so they cost nothing while it is served.
Like the log they hold no body, no query, and no header but the request id.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from ddaebm.model.errors import ConfigError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")


class Timings(dict[str, float]):
    """Seconds by stage, summed, and the interval of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[tuple[str, float, float]] = []  # (stage, start, end) in perf_counter seconds

    def __setitem__(self, stage: str, seconds: float) -> None:
        """Set when a stage ends. `queue` is set just before the `infer` that followed it."""
        ended = time.perf_counter()
        began = ended - (seconds - self.get(stage, 0.0))
        if stage == "infer" and self.stages and self.stages[-1][0] == "queue":
            _, waited_from, waited_to = self.stages.pop()
            self.stages.append(("queue", began - (waited_to - waited_from), began))
        self.stages.append((stage, began, ended))
        super().__setitem__(stage, seconds)


class Tracing:
    """Creates spans and passes them to `processor`. The standard variables set sampling and limits."""

    def __init__(self, processor: Any, version: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.version": version})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "ddaebm"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(processor)
        self.close = provider.shutdown  # also sends remaining spans
        self._tracer = provider.get_tracer("ddaebm", version)

    def record(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any], status: int,
               began: float, timings: Timings) -> None:  # fmt: skip
        """Record an answered request. `began` is in perf_counter seconds; `headers` may hold a W3C traceparent."""
        from opentelemetry import propagate, trace

        epoch = time.time_ns() - round(1e9 * time.perf_counter())  # epoch time of perf_counter zero

        def at(seconds: float) -> int:
            return epoch + round(1e9 * seconds)

        span = self._tracer.start_span(
            name, propagate.extract(headers), trace.SpanKind.SERVER, dict(attributes), start_time=at(began)
        )
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for stage, stage_began, stage_ended in timings.stages:
            self._tracer.start_span(stage, inside, start_time=at(stage_began)).end(at(stage_ended))
        span.end(at(time.perf_counter()))


def load_tracing(version: str) -> Tracing | None:
    """The tracing that the environment asks for, or None if no variable names a collector.

    Raises:
        ConfigError: the otel extra is not installed, or the protocol is not OTLP over HTTP.
    """
    named = [name for name in _ENDPOINTS if os.environ.get(name)]
    if not named:
        return None
    for name in _PROTOCOLS:
        if os.environ.get(name, "http/protobuf") != "http/protobuf":
            raise ConfigError(f"{name}: traces are sent by http/protobuf alone, most often to port 4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{named[0]} is set, and traces need the otel extra: pip install -c constraints.txt '.[cpu,otel]'"
        ) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()), version)
