"""Exporters: they send events of executions to monitoring systems.

One folder holds each backend; beside the folders stands what they share. ``metrics`` is the table
of every metric, ``base`` the base class, ``sender`` the background sender; ``registry`` finds
exporters by name. An exporter imports the SDK of its system when it is enabled.
"""

from typing import TYPE_CHECKING

from amorsize.public_names import lazy_names as _lazy_names

if TYPE_CHECKING:
    from amorsize.exporters.base import Exporter as Exporter
    from amorsize.exporters.base import enable_once as enable_once
    from amorsize.exporters.sender import RefusedError as RefusedError
    from amorsize.exporters.sender import Sender as Sender
    from amorsize.exporters.sender import SenderStats as SenderStats

_HOMES = {
    "Exporter": "amorsize.exporters.base",
    "RefusedError": "amorsize.exporters.sender",
    "Sender": "amorsize.exporters.sender",
    "SenderStats": "amorsize.exporters.sender",
    "enable_once": "amorsize.exporters.base",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
