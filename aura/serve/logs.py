"""Structured logs: one JSON object a line on stderr, without audio, and without text unless asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOGGERS = ("aura.serve", "uvicorn", "uvicorn.error", "asyncio")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `extra={"fields": {...}}` become its keys."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure() -> None:
    """Send what the server and its libraries say to stderr, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    # It repeats what the request's own line says: a malformed request is the client's affair.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
