"""Hooks: callables that are notified of the steps of an execution.

``events`` defines the steps and the context that each comes with. ``manager`` registers hooks and
calls them, on a thread of its own by way of ``background``. ``conditions`` decide when a hook is
called, ``chains`` combine several into one, ``helpers`` makes hooks for common wishes, and
``config`` reads and writes hooks as a file.

The names are imported on first use, as those of amorsize are: a run needs the manager alone.
"""

from __future__ import annotations

from amorsize.public_names import lazy_names as _lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.hooks.chains import chain as chain
    from amorsize.hooks.conditions import every as every
    from amorsize.hooks.conditions import function as function
    from amorsize.hooks.conditions import on_failure as on_failure
    from amorsize.hooks.conditions import slower_than as slower_than
    from amorsize.hooks.entries import Condition as Condition
    from amorsize.hooks.entries import Hook as Hook
    from amorsize.hooks.entries import Registration as Registration
    from amorsize.hooks.events import HookContext as HookContext
    from amorsize.hooks.events import HookEvent as HookEvent
    from amorsize.hooks.helpers import create_error_hook as create_error_hook
    from amorsize.hooks.helpers import create_progress_hook as create_progress_hook
    from amorsize.hooks.helpers import create_throughput_hook as create_throughput_hook
    from amorsize.hooks.helpers import create_timing_hook as create_timing_hook
    from amorsize.hooks.manager import HookManager as HookManager
    from amorsize.hooks.manager import get_default_manager as get_default_manager
    from amorsize.hooks.manager import on as on

_HOMES = {
    "Condition": "amorsize.hooks.entries",
    "Hook": "amorsize.hooks.entries",
    "HookContext": "amorsize.hooks.events",
    "HookEvent": "amorsize.hooks.events",
    "HookManager": "amorsize.hooks.manager",
    "Registration": "amorsize.hooks.entries",
    "chain": "amorsize.hooks.chains",
    "create_error_hook": "amorsize.hooks.helpers",
    "create_progress_hook": "amorsize.hooks.helpers",
    "create_throughput_hook": "amorsize.hooks.helpers",
    "create_timing_hook": "amorsize.hooks.helpers",
    "every": "amorsize.hooks.conditions",
    "function": "amorsize.hooks.conditions",
    "get_default_manager": "amorsize.hooks.manager",
    "on": "amorsize.hooks.manager",
    "on_failure": "amorsize.hooks.conditions",
    "slower_than": "amorsize.hooks.conditions",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
