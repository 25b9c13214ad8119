"""Run a Python function over data at the right parallelism, and observe the run.

::

    import amorsize
    amorsize.enable_prometheus()
    results = amorsize.execute(func, data)

The public names are imported on first use (PEP 562), so importing amorsize takes 0.3 ms and loads
no SDK.
"""

from amorsize.public_names import lazy_names as _lazy_names

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from amorsize.aio import aexecute as aexecute
    from amorsize.aio import astream as astream
    from amorsize.errors import AmorsizeError as AmorsizeError
    from amorsize.executor import execute as execute
    from amorsize.executor import shutdown as shutdown
    from amorsize.exporters.base import enable_in_child_process as enable_in_child_process
    from amorsize.exporters.cloudwatch.exporter import enable_cloudwatch as enable_cloudwatch
    from amorsize.exporters.datadog.exporter import enable_datadog as enable_datadog
    from amorsize.exporters.opentelemetry.exporter import (
        enable_opentelemetry as enable_opentelemetry,
    )
    from amorsize.exporters.prometheus.exporter import enable_prometheus as enable_prometheus
    from amorsize.exporters.registry import enable as enable
    from amorsize.hooks import HookContext as HookContext
    from amorsize.hooks import HookEvent as HookEvent
    from amorsize.hooks import HookManager as HookManager
    from amorsize.hooks import chain as chain
    from amorsize.hooks import create_error_hook as create_error_hook
    from amorsize.hooks import create_progress_hook as create_progress_hook
    from amorsize.hooks import create_throughput_hook as create_throughput_hook
    from amorsize.hooks import create_timing_hook as create_timing_hook
    from amorsize.hooks import every as every
    from amorsize.hooks import function as function
    from amorsize.hooks import get_default_manager as get_default_manager
    from amorsize.hooks import on as on
    from amorsize.hooks import on_failure as on_failure
    from amorsize.hooks import slower_than as slower_than
    from amorsize.optimizer import optimize as optimize
    from amorsize.planning.explanation import OptimizationResult as OptimizationResult
    from amorsize.streaming import stream as stream
    from amorsize.workers.user_metrics import count as count
    from amorsize.workers.user_metrics import observe as observe
    from amorsize.workers.user_metrics import set_gauge as set_gauge

__version__ = "0.1.0"

_HOMES = {
    "AmorsizeError": "amorsize.errors",
    "HookContext": "amorsize.hooks",
    "HookEvent": "amorsize.hooks",
    "HookManager": "amorsize.hooks",
    "OptimizationResult": "amorsize.planning.explanation",
    "aexecute": "amorsize.aio",
    "astream": "amorsize.aio",
    "chain": "amorsize.hooks",
    "count": "amorsize.workers.user_metrics",
    "create_error_hook": "amorsize.hooks",
    "create_progress_hook": "amorsize.hooks",
    "create_throughput_hook": "amorsize.hooks",
    "create_timing_hook": "amorsize.hooks",
    "enable": "amorsize.exporters.registry",
    "enable_cloudwatch": "amorsize.exporters.cloudwatch",
    "enable_datadog": "amorsize.exporters.datadog",
    "enable_in_child_process": "amorsize.exporters.base",
    "enable_opentelemetry": "amorsize.exporters.opentelemetry",
    "enable_prometheus": "amorsize.exporters.prometheus",
    "every": "amorsize.hooks",
    "execute": "amorsize.executor",
    "function": "amorsize.hooks",
    "get_default_manager": "amorsize.hooks",
    "observe": "amorsize.workers.user_metrics",
    "on": "amorsize.hooks",
    "on_failure": "amorsize.hooks",
    "optimize": "amorsize.optimizer",
    "set_gauge": "amorsize.workers.user_metrics",
    "shutdown": "amorsize.executor",
    "slower_than": "amorsize.hooks",
    "stream": "amorsize.streaming",
}

__all__ = [*_HOMES, "__version__"]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
