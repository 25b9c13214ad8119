"""A tracer provider for a program that has none yet, and that gives way to the program's own.

``enable_opentelemetry()`` makes providers for a program without any. Its spans before the first
execution must not be lost, so that a provider has to be there at once; but many programs set their
own a few lines later, and ``set_tracer_provider()`` works once per process. So the global variable
is set, as in workers (:mod:`amorsize.workers.otel_context`), and not by that function, until the
first execution decides.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from amorsize.workers.otel_context import YieldingTracer


class ProvisionalProvider(trace.TracerProvider):
    """Makes spans by a provider of amorsize's, while the program has set none.

    Args:
        own: that provider; all its other methods are reached through this one.
    """

    amorsize_provisional = True

    def __init__(self, own: Any) -> None:
        self._own = own

    def get_tracer(self, *scope: Any, **named_scope: Any) -> trace.Tracer:
        return YieldingTracer(self, _scope_of(*scope, **named_scope))

    def sdk(self) -> trace.TracerProvider:
        """Return the provider that makes the spans."""
        own: trace.TracerProvider = self._own
        return own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def install(self) -> None:
        """Serve the program, which has no provider."""
        trace._TRACER_PROVIDER = self

    def withdraw(self) -> None:
        """Leave the program without a provider, unless it has set one."""
        if trace._TRACER_PROVIDER is self:
            trace._TRACER_PROVIDER = None


def _scope_of(
    instrumenting_module_name: str,
    instrumenting_library_version: str | None = None,
    schema_url: str | None = None,
    attributes: Any = None,
) -> tuple[Any, ...]:
    return instrumenting_module_name, instrumenting_library_version, schema_url, attributes
