"""Draws the dashboards after a real run, from the answers of a real Prometheus.

Not a screenshot of Grafana: each panel's own queries are asked as Grafana would ask them, and the
answers are drawn by Matplotlib, where the panel stands, in its unit and colours.
``python -m dashboards.generator.pictures [DIR]`` writes into ``docs/images`` by default.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from amorsize import HookManager
from amorsize.exporters.prometheus.exporter import PrometheusExporter

from . import lint
from .ask import View
from .boards import FUNCTION_UID
from .drawing import Painter
from .scenario import FUNCTIONS, Scenario

ROOT = Path(__file__).parents[2]
SECONDS = 180.0
"""How long the run is; the pictures show all of it."""

SCRAPE_SECONDS = 1
WINDOW_SECONDS = 15.0


def main(arguments: list[str]) -> None:
    """Run the scenario, and draw each dashboard."""
    target = Path(arguments[0]) if arguments else ROOT / "docs" / "images"
    target.mkdir(parents=True, exist_ok=True)
    with a_real_run() as view:
        for path in sorted((ROOT / "dashboards" / "grafana").glob("*.json")):
            board = json.loads(path.read_text(encoding="utf-8"))
            one = {"$function": FUNCTIONS[0]} if board["uid"] == FUNCTION_UID else {}
            view = replace(view, variables=one)
            draw(board, view, target / f"{path.stem.replace('amorsize-', 'dashboard-')}.png")


def draw(board: Mapping[str, Any], view: View, path: Path) -> None:
    """Ask all queries of a dashboard, and draw the answers.

    Args:
        board: as it is committed.
        view: what to ask.
        path: of the picture.
    """
    places = {place.where: place for place in lint.queries(board)}
    title = board["title"]
    painter = Painter(board, view.start, view.end)
    marks = {
        annotation["name"]: (annotation, view.ask(places[f"{title}, {annotation['name']}"]))
        for annotation in board["annotations"]["list"]
        if "expr" in annotation
    }
    painter.annotate(marks)
    for panel in board["panels"]:
        answers = [
            (target, view.ask(places[f"{title}, {panel['title']}, {target['refId']}"]))
            for target in panel.get("targets", ())
        ]
        exemplars = [
            point
            for target in panel.get("targets", ())
            if target.get("exemplar")
            for point in view.exemplars(places[f"{title}, {panel['title']}, {target['refId']}"])
        ]
        painter.panel(panel, answers, exemplars)
    painter.save(path)


@contextmanager
def a_real_run() -> Iterator[View]:
    """Run the scenario under a Prometheus, and look at it while it still runs."""
    binary = shutil.which("prometheus")
    if binary is None:
        sys.exit("prometheus is not installed (on Debian: apt-get install prometheus)")
    manager = HookManager()
    tracer = TracerProvider().get_tracer("pictures")
    with (
        tempfile.TemporaryDirectory() as directory,
        PrometheusExporter(port=0).attach(manager) as exporter,
    ):
        url = f"127.0.0.1:{_free_port()}"
        config = {
            "global": {
                "scrape_interval": f"{SCRAPE_SECONDS}s",
                "scrape_timeout": f"{SCRAPE_SECONDS}s",
            },
            "scrape_configs": [
                {
                    "job_name": "nightly",
                    "static_configs": [{"targets": [f"127.0.0.1:{exporter.port}"]}],
                }
            ],
        }
        (Path(directory) / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={url}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(f"http://{url}/-/ready")
            start = time.time()
            with Scenario(manager, seconds=SECONDS, size=10, tracer=tracer):
                time.sleep(SECONDS)
                yield View(
                    f"http://{url}",
                    start,
                    time.time(),
                    window=WINDOW_SECONDS,
                    step=1.5,
                    variables={},
                )
        finally:
            process.terminate()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1:])
