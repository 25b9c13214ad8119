"""Real backend processes for the end-to-end tests, each on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from waiting import PATIENCE, poll

from stack import servers, settings

__all__ = [
    "PrometheusApi",
    "PrometheusServer",
    "require_binary",
    "require_program",
]


def require_binary(name: str, package: str) -> str:
    """Find a program; where it is missing, skip the test on a laptop and fail it in CI."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed (on Debian: apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def require_program(program: servers.Program) -> None:
    """The same for one of the servers, which have several names."""
    if program.find() is None:
        require_binary(program.names[0], program.package)


class PrometheusApi:
    """The API of a Prometheus server.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an instant query to pairs of labels and value."""
        parameters = urllib.parse.urlencode({"query": promql})
        with urllib.request.urlopen(
            f"{self.url}/api/v1/query?{parameters}", timeout=PATIENCE
        ) as answer:
            result = json.load(answer)["data"]["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def exemplars(self, promql: str) -> list[dict[str, Any]]:
        """All exemplars of the last hour that belong to a selector's series."""
        now = time.time()
        parameters = urllib.parse.urlencode(
            {"query": promql, "start": now - 3600, "end": now + 3600}
        )
        url = f"{self.url}/api/v1/query_exemplars?{parameters}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data = json.load(answer)["data"]
        return [exemplar for series in data for exemplar in series["exemplars"]]

    def value(self, promql: str) -> float | None:
        """Evaluate a query that has one series; None while it has none."""
        result = self.query(promql)
        assert len(result) <= 1, f"{promql} has {len(result)} series"
        return result[0][1] if result else None

    def scrape_errors(self) -> list[str]:
        """Say what each target's last scrape failed with; empty for one that went well."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets", timeout=PATIENCE) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        return [target["lastError"] for target in targets]

    def wait_for(self, promql: str, expected: float) -> None:
        """Wait until a query gives a value."""
        poll(lambda: self.value(promql), lambda value: value == expected, promql)


class PrometheusServer(PrometheusApi):
    """A Prometheus server that scrapes each target every second.

    Args:
        directory: for its configuration, its data and its log.
        targets: what to scrape, each as ``host:port``.
        arguments: further ones for its command line.
        scrape: further settings of its one scrape config.
        config: further sections of its configuration, beside ``global`` and ``scrape_configs``.
    """

    def __init__(
        self,
        directory: Path,
        targets: Sequence[str],
        *arguments: str,
        scrape: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        require_program(servers.PROMETHEUS)
        directory.mkdir(parents=True, exist_ok=True)
        seconds = {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "1s",
        }
        whole = {
            "global": seconds,
            **(config or {}),
            "scrape_configs": [
                {
                    "job_name": "amorsize",
                    "static_configs": [{"targets": list(targets)}],
                    **(scrape or {}),
                }
            ],
        }
        port = free_port()
        super().__init__(f"http://127.0.0.1:{port}")
        path = settings.write(directory / "prometheus.yml", whole)
        self._start = lambda: servers.start_prometheus(directory, path, port, arguments)
        self._process = self._start()
        self._wait()

    def restart(self) -> None:
        """End it, and start it again with the same data."""
        self.close()
        self._process = self._start()
        self._wait()

    def _wait(self) -> None:
        try:
            self._process.wait_until_ready(PATIENCE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the server's process."""
        self._process.stop()
