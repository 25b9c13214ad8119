"""``amorsize dashboards DIR``, from a checkout and from an installed package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from amorsize import cli, dashboards
from amorsize.dashboards import FOLDERS, GRAFANA_URL, write_dashboards
from amorsize.errors import AmorsizeError, InvalidValueError

ROOT = Path(__file__).parents[2]
SHIPPED = {
    path.relative_to(ROOT / "dashboards"): path
    for folder in FOLDERS
    for path in (ROOT / "dashboards" / folder).rglob("*.*")
}


def test_the_command_writes_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are in the repository, and lists them."""
    assert cli.main(["dashboards", str(tmp_path / "new" / "folder")]) == 0
    written = capsys.readouterr().out.split()
    assert written == sorted(str(tmp_path / "new" / "folder" / name) for name in SHIPPED)
    for name, path in SHIPPED.items():
        assert (tmp_path / "new" / "folder" / name).read_bytes() == path.read_bytes()


def test_the_links_of_alerts_lead_to_the_readers_grafana(tmp_path: Path) -> None:
    """And nothing else changes."""
    write_dashboards(tmp_path, grafana_url="https://grafana.example/ops/")
    alerts = (tmp_path / "prometheus" / "alerts.yml").read_text()
    assert "https://grafana.example/ops/d/amorsize-function?" in alerts
    assert GRAFANA_URL not in alerts
    restored = alerts.replace("https://grafana.example/ops", GRAFANA_URL)
    assert restored == SHIPPED[Path("prometheus/alerts.yml")].read_text()


def test_the_runbooks_lead_to_the_readers_page(tmp_path: Path) -> None:
    """Each to the heading of its alert there; by the command, too."""
    page = "https://wiki.example/ops/amorsize"
    assert cli.main(["dashboards", str(tmp_path), "--runbook-url", page]) == 0
    text = (tmp_path / "prometheus" / "alerts.yml").read_text()
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    assert len(rules) > 5
    for rule in rules:
        link = rule["annotations"]["runbook_url"]
        assert link == f"{page}#{rule['alert'].lower()}"
    shipped = SHIPPED[Path("prometheus/alerts.yml")].read_text()
    assert text.replace(page, dashboards.RUNBOOK_URL) == shipped


def test_files_of_ones_own_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless one says so; what is the same is no obstacle."""
    write_dashboards(tmp_path)
    write_dashboards(tmp_path)
    changed = tmp_path / "prometheus" / "alerts.yml"
    changed.write_text("mine")
    missing = tmp_path / "grafana" / "amorsize-overview.json"
    missing.unlink()
    assert cli.main(["dashboards", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"1 of the files exist already and are different: {changed}" in said
    assert "--force" in said
    assert changed.read_text() == "mine"
    assert not missing.exists()
    assert cli.main(["dashboards", str(tmp_path), "--force"]) == 0
    assert changed.read_bytes() == SHIPPED[Path("prometheus/alerts.yml")].read_bytes()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """With the reason of the system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AmorsizeError, match=r"cannot write into .*file.*: "):
        write_dashboards(tmp_path / "file")


def test_an_installation_without_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to do about it."""
    monkeypatch.setattr(dashboards, "_PLACES", (tmp_path / "nowhere", tmp_path / "else"))
    with pytest.raises(
        AmorsizeError, match=r"this installation has no dashboards: .* reinstall amorsize"
    ):
        write_dashboards(tmp_path / "out")


@pytest.mark.parametrize("url", ["ops.example", "ftp://ops.example", "https://", "https://x#y", ""])
@pytest.mark.parametrize("setting", ["grafana_url", "runbook_url"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, setting: str, url: str) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidValueError, match=f"{setting} is .* must be an address such as 'htt"):
        write_dashboards(tmp_path, **{setting: url})
    assert list(tmp_path.iterdir()) == []


def test_the_default_of_the_command_is_that_of_the_function() -> None:
    """``--help`` shows it without importing the module."""
    parsed = cli._parser().parse_args(["dashboards", "x"])
    assert parsed.grafana_url == GRAFANA_URL
    assert parsed.runbook_url == dashboards.RUNBOOK_URL


def test_the_wheel_has_them(tmp_path: Path) -> None:
    """An installation by pip has them: the package of the wheel, by itself, writes all files."""
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    subprocess.run([sys.executable, "-c", build, str(wheels)], cwd=ROOT, check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        assert not any("generator" in name for name in wheel.namelist())
        wheel.extractall(site)
    run = "import sys; sys.path.insert(0, sys.argv[1]); from amorsize.cli import main; "
    run += "import amorsize; assert amorsize.__file__.startswith(sys.argv[1]); "
    run += "sys.exit(main(['dashboards', sys.argv[2]]))"
    subprocess.run(
        [sys.executable, "-c", run, str(site), str(tmp_path / "out")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    for name, path in SHIPPED.items():
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
