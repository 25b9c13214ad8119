"""Checks the compose file and the image by rules: ``python -m stack.check`` reports violations.

They hold what no schema does: what floats, what is open to the world, what is missing. Those for
the configuration files are in ``check_configuration``.
"""

from __future__ import annotations

import fnmatch
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from . import check_configuration
from .compose import COMPOSE_FILE, ENV_FILE, Stack, environment_of, is_secret, strings

WITHOUT_HEALTH_CHECK = {
    "push-job": "it ends",
}
"""Services without a health check, and the reason."""

NOT_CONFINED = {
    "datadog-agent": "its start is a script of root's, which writes and changes owners",
}
"""Services with capabilities and a writable file system, and the reason."""

JOBS = {"push-job"}
"""Services that end, and are not restarted."""

CONSTRAINTS = "stack/constraints.txt"

_LOOPBACK = "127.0.0.1"
_WHOLE_VERSION = re.compile(r"v?\d+\.\d+\.\d+([-.+][\w.+-]+)?")
_SECRET_OPTION = re.compile(
    r"""([\w.-]*(?:password|token|secret|api[_-]?key))[= ]["']?[\w/+-]""", re.I
)
"""An option or an assignment with a value that is written out; ``$`` begins none."""
_RESTARTS = ("unless-stopped", "always", "on-failure")


def problems(root: Path) -> list[str]:
    """Return the violations in a folder; an empty list if there are none."""
    stack = Stack(root)
    found = [
        *images(stack),
        *ports(stack),
        *health(stack),
        *start_order(stack),
        *restarts_and_limits(stack),
        *privileges(stack),
        *confinement(stack),
        *networks(stack),
        *secrets(stack),
        *mounts(stack),
        *variables(stack),
        *dockerfile(root),
    ]
    return [*found, *check_configuration.problems(stack)]


def images(stack: Stack) -> Iterator[str]:
    """The tag of every image is a whole version, set in ``.env``."""
    for name, service in stack.raw["services"].items():
        if "build" in service:
            yield from _inline_images(name, service["build"])
            continue
        image = service.get("image", "")
        if not re.fullmatch(r"[\w./-]+:\$\{\w+_TAG\}", image):
            yield f"{name}: the tag of {image!r} must be a variable of {ENV_FILE}, as ${{X_TAG}}"
    for variable, value in stack.env.items():
        if variable.endswith("_TAG") and not _WHOLE_VERSION.fullmatch(value):
            yield f"{ENV_FILE}: {variable}={value} floats; name a whole version, as in 1.2.3"


def _inline_images(name: str, build: Any) -> Iterator[str]:
    text = build.get("dockerfile_inline", "") if isinstance(build, dict) else ""
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        if not re.fullmatch(r"[\w./-]+:\$\{\w+_TAG\}", image):
            yield f"{name}: the tag of {image!r} must be a variable of {ENV_FILE}, as ${{X_TAG}}"


def ports(stack: Stack) -> Iterator[str]:
    """Every published port is on the loopback interface only."""
    for name, service in stack.services.items():
        for port in service.get("ports", ()):
            if isinstance(port, dict):
                host, shown = port.get("host_ip"), str(port.get("published", port.get("target")))
            else:
                shown = str(port)
                host = shown.rpartition(":")[0].rpartition(":")[0]
            if host != _LOOPBACK:
                yield f"{name}: port {shown} is published to the world; write {_LOOPBACK}:{shown}"
        if service.get("network_mode") == "host":
            yield f"{name}: network_mode: host opens every port of it to the world"


def health(stack: Stack) -> Iterator[str]:
    """Every service has a health check, or a reason not to."""
    for name, service in stack.services.items():
        check = service.get("healthcheck") or {}
        test = check.get("test")
        has_one = bool(test) and test not in ("NONE", ["NONE"]) and not check.get("disable")
        if not has_one and name not in WITHOUT_HEALTH_CHECK:
            yield f"{name}: no health check"
        if has_one and name in WITHOUT_HEALTH_CHECK:
            yield f"{name}: has a health check now; take it from WITHOUT_HEALTH_CHECK"


def start_order(stack: Stack) -> Iterator[str]:
    """Every dependency exists, has a health check, and starts with its dependent service."""
    for name, service in stack.services.items():
        waits = service.get("depends_on") or {}
        for other, how in (
            waits.items() if isinstance(waits, dict) else dict.fromkeys(waits).items()
        ):
            if other not in stack.services:
                yield f"{name}: depends on {other}, which is no service"
                continue
            condition = (how or {}).get("condition", "service_started")
            if condition == "service_healthy" and other in WITHOUT_HEALTH_CHECK:
                yield f"{name}: waits for {other} to be healthy, which has no health check"
            profiles = set(stack.services[other].get("profiles", ()))
            if profiles and not set(service.get("profiles", ())) <= profiles:
                yield f"{name}: depends on {other}, which its profiles do not start"
            if profiles and not service.get("profiles"):
                yield f"{name}: depends on {other}, which only a profile starts"


def restarts_and_limits(stack: Stack) -> Iterator[str]:
    """Every service is restarted, and has limits of memory and of processes."""
    for name, service in stack.services.items():
        restart = str(service.get("restart", "")).partition(":")[0]
        if name in JOBS:
            if restart != "no":
                yield f'{name}: is a job, and must say restart: "no"'
        elif restart not in _RESTARTS:
            yield f"{name}: no restart policy; one of {', '.join(_RESTARTS)}"
        for limit in ("mem_limit", "pids_limit"):
            if not service.get(limit):
                yield f"{name}: no {limit}"


def privileges(stack: Stack) -> Iterator[str]:
    """No service has privileges on the host, and no administrator is without a password."""
    for name, service in stack.services.items():
        if service.get("privileged") or service.get("cap_add") or service.get("pid") == "host":
            yield f"{name}: asks for rights over the host"
        if str(service.get("user", "")).partition(":")[0] in ("root", "0"):
            yield f"{name}: runs as root"
        variables = environment_of(service)
        if variables.get("GF_AUTH_ANONYMOUS_ENABLED") == "true":
            role = variables.get("GF_AUTH_ANONYMOUS_ORG_ROLE")
            if role != "Viewer":
                yield f"{name}: anonymous users are {role or 'not limited'}; at most Viewer"
        if "grafana/grafana" in service.get("image", ""):
            start = " ".join(map(str, service.get("entrypoint", ())))
            if "GF_SECURITY_ADMIN_PASSWORD=" not in start or "/dev/urandom" not in start:
                yield f"{name}: without a password given, the administrator's is Grafana's default"


def confinement(stack: Stack) -> Iterator[str]:
    """No service has capabilities, gains any, or writes outside its volumes, without a reason."""
    for name, service in stack.services.items():
        if "no-new-privileges:true" not in service.get("security_opt", ()):
            yield f"{name}: may gain privileges; add no-new-privileges:true to security_opt"
        lacking = []
        if "ALL" not in service.get("cap_drop", ()):
            lacking.append("cap_drop: [ALL]")
        if not service.get("read_only"):
            lacking.append("read_only: true")
        if lacking and name not in NOT_CONFINED:
            yield f"{name}: lacks {' and '.join(lacking)}"
        if not lacking and name in NOT_CONFINED:
            yield f"{name}: is confined now; take it from NOT_CONFINED"


def networks(stack: Stack) -> Iterator[str]:
    """Dask, which runs what it is sent, shares a network with its clients alone."""
    for name, service in stack.services.items():
        for network in stack.networks(name):
            if network not in stack.declared_networks:
                yield f"{name}: the network {network} is not declared"
        if list(service.get("command") or [])[:1] != ["dask"]:
            continue
        for other, described in stack.services.items():
            words = list(strings(described.get("command") or []))
            is_client = words[:1] == ["dask"] or any("tcp://dask-scheduler" in w for w in words)
            if not is_client and stack.networks(name) & stack.networks(other):
                yield f"{name}: {other} reaches it, and is no client; give it a network of its own"


def secrets(stack: Stack) -> Iterator[str]:
    """Secrets come from the shell: no file contains one."""
    for name, service in stack.services.items():
        for variable, value in environment_of(service).items():
            if is_secret(variable) and value is not None:
                yield f"{name}: {variable} has a value in {COMPOSE_FILE}; leave it empty there"
        for text in strings([service.get("command") or [], service.get("entrypoint") or []]):
            if match := _SECRET_OPTION.search(text):
                yield f"{name}: {match[1]} has a value on the command line"
    for variable in stack.env:
        if is_secret(variable):
            yield f"{ENV_FILE}: {variable} is a secret; it belongs into the shell's environment"
    for use in stack.uses:
        if is_secret(use.name) and not use.operator.endswith("+"):
            yield f"{COMPOSE_FILE}: ${{{use.name}}} puts a secret into a value; pass it by its name"


def mounts(stack: Stack) -> Iterator[str]:
    """Every mounted file exists and is read-only; named volumes are declared and used."""
    declared = set(stack.raw.get("volumes") or {})
    used = set()
    for name in stack.services:
        for mount in stack.mounts(name):
            if not mount.is_bind:
                used.add(mount.source)
                continue
            if "docker.sock" in mount.source:
                yield f"{name}: mounts the socket of Docker, which is to be root"
            elif not (stack.root / mount.source).exists():
                yield f"{name}: mounts {mount.source}, which does not exist"
            if not mount.read_only:
                yield f"{name}: mounts {mount.source} to be written to; append :ro"
    for volume in sorted(used - declared):
        yield f"the volume {volume} is not declared"
    for volume in sorted(declared - used):
        yield f"the volume {volume} is not used"


def variables(stack: Stack) -> Iterator[str]:
    """Every variable has a value in ``.env``, and every value a variable."""
    used = {use.name for use in stack.uses}
    for name in sorted(used):
        if not is_secret(name) and not stack.env.get(name):
            yield f"{COMPOSE_FILE}: {name} has no value in {ENV_FILE}"
    for name in sorted(set(stack.env) - used):
        yield f"{ENV_FILE}: {name} is not used"


def dockerfile(root: Path) -> Iterator[str]:
    """The base image is pinned, the user is not root, and no URL is downloaded."""
    ignored = root / ".dockerignore"
    if not ignored.exists():
        yield ".dockerignore is missing: the image would get all of the folder"
    text = (root / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    instructions = [
        (words[0].upper(), words[1:])
        for line in text.splitlines()
        if (words := line.split()) and not line.startswith("#")
    ]
    arguments = {words[0] for name, words in instructions if name == "ARG"}
    for name, words in instructions:
        if name == "FROM" and not (
            (pinned := re.fullmatch(r"[\w./-]+:\$\{(\w+_TAG)\}", words[0]))
            and pinned[1] in arguments
        ):
            yield f"Dockerfile: FROM {words[0]}; its tag must be an ARG X_TAG, of {ENV_FILE}"
        if name == "ADD":
            yield f"Dockerfile: ADD {' '.join(words)}; COPY does no more than it says"
        if name in ("ARG", "ENV") and any(is_secret(word.partition("=")[0]) for word in words):
            yield f"Dockerfile: {name} {' '.join(words)} would keep a secret in the image"
        if name == "COPY" and not words[0].startswith("--from="):
            yield from _copied(root, words[:-1])
    yield from _pins(root, text)
    users = [words[0] for name, words in instructions if name == "USER"]
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        yield "Dockerfile: the last USER is root, or there is none"


def _pins(root: Path, text: str) -> Iterator[str]:
    """Every package that the image installs has one version."""
    if f"--constraint {CONSTRAINTS} " not in text:
        yield f"Dockerfile: what pip installs floats; pass it --constraint {CONSTRAINTS}"
    lines = (root / CONSTRAINTS).read_text(encoding="utf-8").splitlines()
    pinned = set()
    for line in lines:
        if line.startswith("#"):
            continue
        name, equals, version = line.partition("==")
        pinned.add(_normal(name))
        if not equals or not re.fullmatch(r"[\w.+!-]+", version):
            yield f"{CONSTRAINTS}: {line} is no version; write name==1.2.3"
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for requirement in [*project["dependencies"], *chain.from_iterable(extras)]:
        name = _normal(re.split(r"[^\w.-]", requirement)[0])
        if name not in pinned | {"amorsize"}:
            yield f"{CONSTRAINTS}: {name} is missing; run make constraints"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _copied(root: Path, sources: list[str]) -> Iterator[str]:
    allowed = []
    if (root / ".dockerignore").exists():
        lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
        allowed = [line[1:] for line in lines if line.startswith("!")]
    for source in sources:
        if not (root / source).exists():
            yield f"Dockerfile: copies {source}, which does not exist"
        elif not any(fnmatch.fnmatch(source, pattern) for pattern in allowed):
            yield f"Dockerfile: copies {source}, which .dockerignore leaves out"


def main(arguments: list[str]) -> int:
    """Print the violations; returns the exit code."""
    found = problems(Path(arguments[0]) if arguments else Path(__file__).parents[1])
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
