"""Exporters: what the hooks are told, carried to monitoring systems.

``metrics`` is the table of every metric, ``base`` and ``sender`` are what all exporters share,
``registry`` finds them by name. Each exporter imports the SDK of its system only when used.
"""

from amorsize.exporters.base import Exporter
from amorsize.exporters.sender import RefusedError, Sender, SenderStats

__all__ = ["Exporter", "RefusedError", "Sender", "SenderStats"]
