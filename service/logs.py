"""Logging, as text for a terminal or as JSON with one object per line for log collectors.

Each request is one line. It holds no body, no query, and no header but the request id.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from uvicorn.config import LOGGING_CONFIG

access = logging.getLogger("ddaebm.access")


def log_request(level: int, client: str, method: str, path: str, status: int, seconds: float, request_id: str) -> None:
    """Log an answered request in one line; `path` is percent-encoded."""
    fields = {"client": client, "method": method, "path": path, "status": status,
              "milliseconds": round(1e3 * seconds, 1), "request_id": request_id}  # fmt: skip
    access.log(level, "%s %s %s %s %s ms %s", *fields.values(), extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """Formats `time` (UTC, RFC 3339), `level`, `logger`, `message`, fields of a request, and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


def log_config(form: str) -> dict[str, Any]:
    """Configuration for `logging.config.dictConfig`: uvicorn's own with our loggers added."""
    config: dict[str, Any] = {**LOGGING_CONFIG, "loggers": dict(LOGGING_CONFIG["loggers"])}
    config["loggers"]["ddaebm"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    config["loggers"]["opentelemetry"] = {"handlers": ["default"], "level": "WARNING", "propagate": False}
    if form == "json":
        config["formatters"] = {name: {"()": JsonFormatter} for name in LOGGING_CONFIG["formatters"]}
    return config
