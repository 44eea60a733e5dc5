"""How a run ended: its status, and its error in one line and in full."""

from __future__ import annotations

from typing import Any

from tachograph.security.texts import redact_text


def status_of(error: BaseException | None) -> str:
    """The status of a run that an exception ended, or nothing did."""
    if error is None or isinstance(error, GeneratorExit):
        return "finished"
    if isinstance(error, SystemExit):
        return "finished" if error.code in (None, 0) else "failed"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "pruned" if type(error).__name__ == "TrialPruned" else "failed"


def error_line(error: BaseException | str | None) -> str | None:
    if error is None:
        return None
    line = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    # Redacted before it is cut: half a secret would not be known for one.
    return redact_text(line[:20_000])[:2000]


def error_data(error: BaseException) -> dict[str, Any]:
    import traceback

    lines = traceback.format_exception(type(error), error, error.__traceback__)
    text = redact_text("".join(lines)[-100_000:])[-20_000:]
    return {"type": type(error).__qualname__, "traceback": text}
