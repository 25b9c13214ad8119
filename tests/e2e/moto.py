"""A real HTTP server that speaks CloudWatch's protocol: moto, in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from ports import free_port
from waiting import PATIENCE, poll

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAHUNTER2", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}


class MotoServer:
    """Keeps what is put, and answers what is asked of it."""

    def __init__(self, log: Path, port: int | None = None) -> None:
        binary = shutil.which("moto_server", path=str(Path(sys.executable).parent))
        if binary is None:
            message = "moto_server is not installed (pip install 'moto[server]')"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [binary, "-H", "127.0.0.1", "-p", str(self.port)], stdout=file, stderr=file
            )
        try:
            poll(self._is_ready, bool, "moto is ready")
        except BaseException:
            self.close()
            raise
        self.client = boto3.session.Session().client(
            "cloudwatch",
            endpoint_url=self.url,
            region_name="eu-central-1",
            aws_access_key_id="reader",
            aws_secret_access_key="reader",
        )
        self.client.list_metrics()  # its first answer takes long

    @property
    def environment(self) -> dict[str, str]:
        """Variables that have boto3 use this server."""
        return {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL_CLOUDWATCH": self.url,
            "AWS_DEFAULT_REGION": "eu-central-1",
        }

    def series(self, name: str, namespace: str = "Amorsize", **dimensions: str) -> list[Any]:
        """The dimensions of each series of a metric that has (at least) these."""
        pages = self.client.get_paginator("list_metrics").paginate(
            Namespace=namespace, MetricName=name
        )
        found = {
            tuple(sorted((each["Name"], each["Value"]) for each in metric["Dimensions"]))
            for page in pages
            for metric in page["Metrics"]
        }
        return sorted(each for each in found if dimensions.items() <= dict(each).items())

    def statistic(self, statistic: str, name: str, **dimensions: str) -> float:
        """Add up a statistic over the series of a metric, or take its extreme."""
        now = datetime.now(UTC)
        values = [
            point[statistic]
            for each in self.series(name, **dimensions)
            for point in self.client.get_metric_statistics(
                Namespace="Amorsize",
                MetricName=name,
                Dimensions=[{"Name": key, "Value": value} for key, value in each],
                StartTime=now - timedelta(hours=1),
                EndTime=now + timedelta(hours=1),
                Period=7200,
                Statistics=[statistic],
            )["Datapoints"]
        ]
        combine: Any = {"Minimum": min, "Maximum": max}.get(statistic, sum)
        return float(combine(values)) if values else 0.0

    def total(self, name: str, **dimensions: str) -> float:
        """The sum of all that was put."""
        return self.statistic("Sum", name, **dimensions)

    def samples(self, name: str, **dimensions: str) -> float:
        """How many values were put."""
        return self.statistic("SampleCount", name, **dimensions)

    def reset(self) -> None:
        """Forget everything."""
        with urllib.request.urlopen(
            f"{self.url}/moto-api/reset", data=b"", timeout=PATIENCE
        ) as answer:
            assert answer.status == 200

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        if hasattr(self, "client"):
            self.client.close()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"moto ended: {self._log.read_text(encoding='utf-8')[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True
