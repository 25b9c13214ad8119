"""The figures. Each module here declares some; ``load()`` imports them, in this order."""

from __future__ import annotations

from importlib import import_module

MODULES = (
    "hooks",
    "chunks",
    "cluster",
    "watching",
    "exporter",
    "opentelemetry",
    "senders",
    "calls",
    "start",
)


def load() -> None:
    """Declare all figures."""
    for name in MODULES:
        import_module(f"{__name__}.{name}")
