"""The real servers of the end-to-end tests."""

from __future__ import annotations

from e2e.conftest import gateway, prometheus_server

__all__ = ["gateway", "prometheus_server"]
