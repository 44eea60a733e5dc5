"""What a server logs, and how: a JSON line each on stderr, or plain text on a terminal.

Knows no route. A secret that reaches a message or a traceback is taken out of it here.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from tachograph.security.texts import redact_text


def set_up_logging(stream: TextIO = sys.stderr) -> None:
    """Send what this process logs to a stream, uvicorn's messages and all warnings included."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_clean)
    handler.setFormatter(_Plain() if stream.isatty() else _Json())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    logging.getLogger("tachograph.server").warning("%s", message)


def _clean(record: logging.LogRecord) -> bool:
    record.__dict__.pop("color_message", None)  # uvicorn's, for terminals
    record.msg, record.args = redact_text(record.getMessage()), ()
    return True


class _WithoutSecrets(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return redact_text(logging.Formatter.formatException(self, ei))


class _Plain(_WithoutSecrets):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


class _Json(_WithoutSecrets, JsonFormatter):
    def __init__(self) -> None:
        JsonFormatter.__init__(
            self,
            "%(levelname)s %(name)s %(message)s",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )
