"""Datadog's events and service checks of executions, cut to the sizes that Datadog accepts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from amorsize.errors import ExecutionCancelledError, WorkerDiedError
from amorsize.hooks import HookContext
from amorsize.workers.names import part

CHECK = "amorsize.execution"
"""The service check."""

KINDS = ("error", "worker_death", "start", "completed")
"""The kinds of events."""

TITLE_CHARACTERS = 100
TEXT_CHARACTERS = 4000
"""The most that the HTTP API shows of an event."""

_NAME_CHARACTERS = 200
_MESSAGE_CHARACTERS = 300
_OPEN, _CLOSE = "%%% \n", "\n %%%"
_FENCE = "```"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class DatadogEvent:
    """An event of Datadog's stream.

    Attributes:
        title: one line.
        facts: markdown that is kept first.
        traceback: its end is kept, as far as there is room.
        alert_type: ``error``, ``warning``, ``success`` or ``info``.
        aggregation_key: events of one execution are shown together.
        tags: as ``name:value``.
        timestamp: seconds since the epoch.
    """

    title: str
    facts: str
    traceback: str
    alert_type: str
    aggregation_key: str
    tags: tuple[str, ...]
    timestamp: int

    def text(self, room: int, size: Callable[[str], int] = len) -> str:
        """Write the markdown.

        Args:
            room: the largest size.
            size: measures a text, in the unit of ``room``.
        """
        bare = f"{_OPEN}{part(self.facts, room - size(_OPEN + _CLOSE), size)}{_CLOSE}"
        before, after = f"\n\n{_FENCE}\n", f"\n{_FENCE}"
        left = room - size(bare) - size(before + after)
        tail = part(self.traceback, left, size, of_end=True)
        if not tail.strip():
            return bare
        return f"{_OPEN}{self.facts}{before}{tail}{after}{_CLOSE}"


@dataclass(frozen=True, slots=True)
class Check:
    """One result of the service check.

    Attributes:
        ok: whether the execution succeeded.
        tags: as ``name:value``.
        timestamp: seconds since the epoch.
        message: how it ended.
    """

    ok: bool
    tags: tuple[str, ...]
    timestamp: int
    message: str


def datagram_size(text: str) -> int:
    """Count the bytes of a text in a datagram, where a line break has two."""
    return len(text.encode()) + text.count("\n")


class EventBuilder:
    """Builds the events of one execution from its contexts, one at a time.

    Args:
        kinds: those of ``KINDS`` that are wanted.
        tags: of each event, as ``name:value``.
        most: failures with events; a million bad items do not flood the stream.
    """

    def __init__(self, kinds: Sequence[str], tags: Sequence[str], *, most: int = 10) -> None:
        self._kinds = frozenset(kinds)
        self.tags = tuple(tags)
        self._most = most
        self._failures = 0
        self._failed_items = 0

    def started(self, context: HookContext) -> DatadogEvent | None:
        """Build the event of its start."""
        if "start" not in self._kinds:
            return None
        return self._event(context, "started", "info")

    def failed(self, context: HookContext) -> DatadogEvent | None:
        """Build the event of a failure, or of a worker's death."""
        metadata = context.metadata
        lost = metadata.get("failed_items") or 0
        self._failed_items += lost
        death = isinstance(context.error, WorkerDiedError)
        if ("worker_death" if death else "error") not in self._kinds:
            return None
        self._failures += 1
        if self._failures > self._most:
            return None
        facts = {"items lost": str(lost)}
        exit_code = metadata.get("exit_code")
        if exit_code is not None:
            facts["exit code"] = str(exit_code)
        for key, name in (("chunk_start", "first item of the chunk"), ("item_index", "item")):
            if metadata.get(key) is not None:
                facts[name] = str(metadata[key])
        facts |= _error_facts(context)
        if self._failures == self._most:
            facts["note"] = "further failures of this execution have no events"
        if death:
            suffix = "" if exit_code is None else f" (exit code {exit_code})"
            return self._event(context, f"lost a worker{suffix}", "error", facts)
        kind = _kind_of(context.error)
        if is_cancellation(context.error):
            return self._event(context, f"was cancelled ({kind})", "warning", facts)
        return self._event(context, f"failed: {kind}", "error", facts)

    def ended(self, context: HookContext, status: str) -> DatadogEvent | None:
        """Build the event of its end."""
        if "completed" not in self._kinds:
            return None
        facts = {
            "items lost": str(self._failed_items),
            "seconds": f"{context.elapsed_time:.3f}",
            **_error_facts(context),
        }
        said, alert = {
            "ok": ("completed", "success"),
            "cancelled": ("was cancelled", "warning"),
            "timeout": ("timed out", "error"),
        }.get(status, ("failed", "error"))
        return self._event(context, said, alert, facts)

    def _event(
        self,
        context: HookContext,
        said: str,
        alert_type: str,
        facts: dict[str, str] | None = None,
    ) -> DatadogEvent:
        metadata = context.metadata
        function = _one_line(metadata.get("function"), _NAME_CHARACTERS)
        total = "an unknown number" if context.total_items is None else str(context.total_items)
        facts = {
            "function": function,
            "executor": f"{metadata.get('executor_type')}, {context.n_jobs} at a time",
            "execution": str(metadata.get("execution_id")),
            "items done": f"{context.items_completed} of {total}",
            **(facts or {}),
        }
        room = TITLE_CHARACTERS - len(said) - 1
        name = function if len(function) <= room else f"{function[: room - 1]}…"
        return DatadogEvent(
            title=f"{name} {said}"[:TITLE_CHARACTERS],
            facts="\n".join(f"- {key}: {_quoted(value)}" for key, value in facts.items()),
            traceback=_encodable(context.error_traceback or "")
            .rstrip()
            .replace(_FENCE, "'''")
            .replace("%%%", "%%"),
            alert_type=alert_type,
            aggregation_key=str(metadata.get("execution_id")),
            tags=self.tags,
            timestamp=int(context.timestamp),
        )


def make_check(context: HookContext, status: str, tags: Sequence[str]) -> Check | None:
    """Make the result of the service check; none for a cancelled execution."""
    if status == "cancelled":
        return None
    kind = "" if context.error is None else f" ({_kind_of(context.error)})"
    function = _one_line(context.metadata.get("function"), _NAME_CHARACTERS)
    return Check(
        ok=status == "ok",
        tags=tuple(tags),
        timestamp=int(context.timestamp),
        # Datadog reads the text after a bar as a further field.
        message=part(f"{function}: {status}{kind}".replace("|", "/"), 200, datagram_size),
    )


def is_cancellation(error: Any) -> bool:
    """Whether the execution was cancelled, and did not fail."""
    if isinstance(error, ExecutionCancelledError):
        return True
    return isinstance(error, BaseException) and not isinstance(error, Exception)  # Ctrl-C, SIGTERM


def _error_facts(context: HookContext) -> dict[str, str]:
    if context.error is None:
        return {}
    message = _one_line(context.error_message, _MESSAGE_CHARACTERS)
    return {
        "error": f"{_kind_of(context.error)}: {message}" if message else _kind_of(context.error)
    }


def _kind_of(error: object) -> str:
    return _one_line(type(error).__name__, 80)


def _one_line(value: object, characters: int) -> str:
    text = _encodable(str(value)) if value is not None else ""
    return re.sub(r"\s+", " ", text)[:characters].strip()


def _quoted(text: str) -> str:
    """Write a text as code, which markdown does not format."""
    text = text.replace("`", "'").replace("%%%", "%%")
    return f"`{text}`" if text else "none"


def _encodable(text: str) -> str:
    """Spell out lone surrogates and control characters, such as a terminal's colours."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\r\n", "\n")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
