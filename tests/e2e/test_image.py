"""The image without an engine: what the Dockerfile copies and runs, done here in a fresh folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PIP_NO_COMPILE"] = "1"  # a third of the time; what is imported is compiled then
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.timeout(1200)
def test_what_the_image_copies_installs_and_works(tmp_path: Path) -> None:
    """Exactly the copied files, ``pip install`` as it stands there, and both commands of it."""
    source, target = tmp_path / "src", tmp_path / "amorsize"
    source.mkdir()
    for sources in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *names, to = sources.split()
        for name in names:
            (source / to).parent.mkdir(exist_ok=True)
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / to, ignore=ignored)
            else:
                shutil.copy(ROOT / name, source / to)
    [steps] = re.findall(r"^RUN (python -m venv .*)$", DOCKERFILE, re.MULTILINE)
    make, install = (step.split() for step in steps.replace('"', "").split("&&"))
    assert make == ["python", "-m", "venv", "/opt/amorsize"]
    assert install[:2] == ["/opt/amorsize/bin/pip", "install"]
    assert run(sys.executable, "-m", "venv", str(target), cwd=source).returncode == 0
    done = run(str(target / "bin" / "pip"), *install[1:], cwd=source)
    if done.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"pip cannot install here: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stderr
    frozen = run(str(target / "bin" / "pip"), "freeze", "--exclude", "amorsize", cwd=source)
    pins = (source / "stack" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(frozen.stdout.splitlines()) <= set(pins)
    command = str(target / "bin" / "amorsize")
    # Not from the copied sources: from what was installed.
    demo = run(command, "demo", "--quick", "--port", "0", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.count("  ok\n") == 3
    boards = run(command, "dashboards", str(tmp_path / "boards"), cwd=tmp_path)
    assert boards.stdout.count("amorsize-overview.json") == 1
    script = "import datadog, boto3, distributed, opentelemetry.sdk, prometheus_client, tqdm"
    assert run(str(target / "bin" / "python"), "-c", script, cwd=tmp_path).returncode == 0
    assert run(str(target / "bin" / "dask"), "--version", cwd=tmp_path).returncode == 0
