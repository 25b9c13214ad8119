"""Checks the configuration files: everything that a file names exists at that place.

Prometheus' and Alertmanager's own tools check what is within their files (the tests run them);
this is about what lies between the files: services, ports, mounts, data sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from amorsize.exporters.metrics import METRICS

from .compose import Stack, environment_of, is_secret, strings

PROMETHEUS, ALERTMANAGER, COLLECTOR, JAEGER, GRAFANA = (
    "prometheus",
    "alertmanager",
    "otel-collector",
    "jaeger",
    "grafana",
)
"""Services of the compose file that read our configuration files."""

PROVISIONING = "/etc/grafana/provisioning"

_ENDPOINT = re.compile(r"^0\.0\.0\.0:(\d+)$")
_PORT_OPTION = re.compile(r"^--port=(\d+)$")
_ADDRESS = re.compile(r"^(?:--\w+=)?(?:https?|tcp)://([a-z][\w-]*):(\d+)")


def problems(stack: Stack) -> list[str]:
    """Return the violations; an empty list if there are none."""
    return [
        *configuration_files(stack),
        *addresses(stack),
        *prometheus(stack),
        *collector(stack),
        *jaeger(stack),
        *data_sources(stack),
        *dashboards(stack),
    ]


def configuration_files(stack: Stack) -> Iterator[str]:
    """Every file that a service reads is mounted, and holds no secret."""
    for name, option in (
        (PROMETHEUS, "--config.file="),
        (ALERTMANAGER, "--config.file="),
        (COLLECTOR, "--config="),
        (JAEGER, "--config="),
    ):
        path = _configuration(stack, name, option)
        if path is None:
            yield f"{name}: reads {option}..., and no file is mounted there"
            continue
        for key, value in _pairs(_read(path)):
            if is_secret(key) and value:
                yield f"{path.name}: {key} has a value; name a file that holds it (..._file:)"


def addresses(stack: Stack) -> Iterator[str]:
    """Every address in commands and variables is a service that listens on that port."""
    for name, service in stack.services.items():
        given = [*environment_of(service).values(), *strings(service.get("command") or [])]
        for text in filter(None, given):
            match = _ADDRESS.match(text)
            if match:
                yield from _reachable(stack, f"{name}: {text}", match[1], int(match[2]), name)
        host = environment_of(service).get("DD_AGENT_HOST")
        port = environment_of(service).get("DD_DOGSTATSD_PORT")
        if host:
            yield from _reachable(stack, f"{name}: DD_AGENT_HOST", host, int(port or 8125), name)
            # With an API key, the host is the agent.
            if f"{host}-datadog" not in stack.names:
                yield f"{name}: no service is named {host}-datadog, which is used with an API key"


def prometheus(stack: Stack) -> Iterator[str]:
    """Targets, rule files, and the settings that the dashboards rely on."""
    path = _configuration(stack, PROMETHEUS, "--config.file=")
    if path is None:
        return
    config = _read(path)
    if "--enable-feature=exemplar-storage" not in stack.services[PROMETHEUS].get("command", ()):
        yield f"{PROMETHEUS}: does not keep exemplars; add --enable-feature=exemplar-storage"
    for rules in config.get("rule_files", ()):
        file = stack.in_container(PROMETHEUS, rules)
        if file is None or not file.is_file():
            yield f"{path.name}: the rule file {rules} is not mounted"
    for job in config["scrape_configs"]:
        where = f"{path.name}: job {job['job_name']}"
        for target in _targets(job):
            host, _, port = target.rpartition(":")
            if host != "127.0.0.1":
                yield from _reachable(stack, where, host, int(port), PROMETHEUS)
        for discovery in job.get("dns_sd_configs", ()):
            for host in discovery["names"]:
                yield from _reachable(stack, where, host, discovery["port"], PROMETHEUS)
                if host == "pushgateway" and not job.get("honor_labels"):
                    yield f"{where}: needs honor_labels: true, or all pushes have one job"
    for manager in config.get("alerting", {}).get("alertmanagers", ()):
        for target in _targets(manager):
            host, _, port = target.rpartition(":")
            yield from _reachable(stack, f"{path.name}: alerting", host, int(port), PROMETHEUS)
    interval = config["global"]["scrape_interval"]
    for source in _sources(stack):
        said = source.get("jsonData", {}).get("timeInterval")
        if source["type"] == "prometheus" and said != interval:
            yield (
                f"{path.name}: scrapes every {interval}, and Grafana's {source['name']} has "
                f"{said}: $__rate_interval would be wrong"
            )


def collector(stack: Stack) -> Iterator[str]:
    """Each pipeline has its parts, each part is in a pipeline, and each endpoint has a service."""
    path = _configuration(stack, COLLECTOR, "--config=")
    if path is None:
        return
    config = _read(path)
    yield from _pipelines(path, config)
    for name, exporter in config.get("exporters", {}).items():
        endpoint = str((exporter or {}).get("endpoint", ""))
        here = _ENDPOINT.match(endpoint)
        if here is None:
            host, _, port = endpoint.removeprefix("http://").rpartition(":")
            yield from _reachable(stack, f"{path.name}: {name}", host, int(port or 0), COLLECTOR)
        elif f"{COLLECTOR}:{here[1]}" not in _scraped(stack):
            yield f"{path.name}: {name} listens on {here[1]}, and Prometheus does not scrape it"
    yield from _numbers(path, config)


def _numbers(path: Path, config: dict[str, Any]) -> Iterator[str]:
    """What the collector passes on is what it received: fractions, distributions, exemplars."""
    receivers, exporters = config.get("receivers", {}), config.get("exporters", {})
    for name, receiver in receivers.items():
        if name.partition("/")[0] != "statsd":
            continue
        if receiver.get("counter_type") != "float":
            yield f"{path.name}: {name} drops the fractions of counters; add counter_type: float"
        for mapping in receiver.get("timer_histogram_mapping", ()):
            if mapping.get("observer_type") != "histogram":
                yield f"{path.name}: {name} makes no histograms of each {mapping['statsd_type']}"
                continue
            named = mapping.get("histogram", {}).get("explicit_buckets", ())
            for row in METRICS:
                found = [
                    each["buckets"]
                    for each in named
                    if re.search(each["matcher_pattern"], row.dotted)
                ]
                if row.buckets and found[:1] != [list(row.buckets)]:
                    yield f"{path.name}: {name} has other buckets for {row.dotted} than its table"
    for pipeline in config["service"]["pipelines"].values():
        if "otlp" not in pipeline.get("receivers", ()):
            continue
        for name in pipeline.get("exporters", ()):
            exporter = exporters.get(name) or {}
            if name.partition("/")[0] == "prometheus" and not exporter.get("enable_open_metrics"):
                yield f"{path.name}: {name} drops exemplars; add enable_open_metrics: true"


def jaeger(stack: Stack) -> Iterator[str]:
    """Its pipelines, its extensions, and the storage that they share."""
    path = _configuration(stack, JAEGER, "--config=")
    if path is None:
        return
    config = _read(path)
    yield from _pipelines(path, config)
    extensions = config.get("extensions", {})
    backends = (extensions.get("jaeger_storage") or {}).get("backends", {})
    named = [extensions.get("jaeger_query", {}).get("storage", {}).get("traces")]
    named += [each.get("trace_storage") for each in config.get("exporters", {}).values()]
    if extensions.get("jaeger_query", {}).get("enable_tracing", True):
        yield f"{path.name}: Jaeger traces itself into its store; add enable_tracing: false"
    for storage in named:
        if storage not in backends:
            yield f"{path.name}: the storage {storage} is not defined"


def data_sources(stack: Stack) -> Iterator[str]:
    """Data sources are reachable, and those that they link to exist and have the right type."""
    sources = _sources(stack)
    if not sources:
        yield f"{GRAFANA}: no data sources are mounted below {PROVISIONING}"
    types = {source["uid"]: source["type"] for source in sources}
    if len(types) < len(sources):
        yield "data sources: a uid stands twice"
    for source in sources:
        name, url = source["name"], urlsplit(source["url"])
        where = f"data source {name}: {source['url']}"
        yield from _reachable(stack, where, url.hostname or "", url.port or 80, GRAFANA)
        if source.get("secureJsonData"):
            yield f"data source {name}: has secrets in its file"
        settings = source.get("jsonData", {})
        links = [
            ("exemplars", each["datasourceUid"], "jaeger")
            for each in settings.get("exemplarTraceIdDestinations", ())
            if "datasourceUid" in each
        ]
        if "tracesToMetrics" in settings:
            links.append(("traces", settings["tracesToMetrics"]["datasourceUid"], "prometheus"))
        for what, uid, kind in links:
            if types.get(uid) != kind:
                yield f"data source {name}: {what} lead to {uid}, which is no {kind} data source"
        if source["type"] == "prometheus" and not any(what == "exemplars" for what, *_ in links):
            yield f"data source {name}: exemplars lead nowhere"
        if source["type"] == "jaeger" and not any(what == "traces" for what, *_ in links):
            yield f"data source {name}: traces lead nowhere"


def dashboards(stack: Stack) -> Iterator[str]:
    """The dashboards are mounted where Grafana reads them, and query data sources that exist."""
    uids = {source["uid"] for source in _sources(stack)}
    folder = stack.in_container(GRAFANA, f"{PROVISIONING}/dashboards")
    for provider in [each for file in _yaml_files(folder) for each in _read(file)["providers"]]:
        path = provider["options"]["path"]
        mounted = stack.in_container(GRAFANA, path)
        found = sorted(mounted.glob("*.json")) if mounted is not None else []
        if not found:
            yield f"{GRAFANA}: provider {provider['name']} reads {path}, and no dashboard is there"
        for file in found:
            board = json.loads(file.read_text(encoding="utf-8"))
            for uid in _asked(board):
                if not uid.startswith("$") and uid not in uids:
                    yield f"{file.name}: asks the data source {uid}, which does not exist"
    home = environment_of(stack.services[GRAFANA]).get("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH")
    if home:
        start = stack.in_container(GRAFANA, home)
        if start is None or not start.is_file():
            yield f"{GRAFANA}: its first page, {home}, is not mounted"


def listening(stack: Stack, service: str) -> set[int]:
    """The known ports of a service: published, configured, or on its command line."""
    found = set()
    described = stack.services[service]
    for port in described.get("ports", ()):
        found.add(int(port["target"] if isinstance(port, dict) else str(port).rpartition(":")[2]))
    for option in strings(described.get("command") or []):
        if match := _PORT_OPTION.match(option):
            found.add(int(match[1]))
    for mount in stack.mounts(service):
        file = stack.root / mount.source
        if mount.is_bind and file.suffix == ".yml" and file.is_file():
            found |= {int(m[1]) for text in strings(_read(file)) if (m := _ENDPOINT.match(text))}
    if environment_of(described).get("DD_DOGSTATSD_NON_LOCAL_TRAFFIC") == "true":
        found.add(8125)
    return found


def _reachable(stack: Stack, where: str, host: str, port: int, by: str) -> Iterator[str]:
    service = stack.names.get(host)
    if service is None:
        yield f"{where}: {host!r} is no service of the stack"
    elif not stack.networks(service) & stack.networks(by):
        yield f"{where}: {by} and {service} share no network"
    elif port not in listening(stack, service):
        yield f"{where}: {service} does not listen on {port}"


def _pipelines(path: Path, config: dict[str, Any]) -> Iterator[str]:
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for name, pipeline in config["service"]["pipelines"].items():
        for kind in used:
            parts = pipeline.get(kind, ())
            used[kind].update(parts)
            if not parts and kind != "processors":
                yield f"{path.name}: pipeline {name} has no {kind}"
    used["extensions"] = set(config["service"].get("extensions", ()))
    for kind, names in used.items():
        defined = set(config.get(kind) or {})
        for name in sorted(names - defined):
            yield f"{path.name}: {name} is used, and is not defined below {kind}"
        for name in sorted(defined - names):
            yield f"{path.name}: {name} is defined below {kind}, and used nowhere"


def _configuration(stack: Stack, service: str, option: str) -> Path | None:
    for word in stack.services[service].get("command", ()):
        if word.startswith(option):
            path = stack.in_container(service, word.removeprefix(option))
            return path if path is not None and path.is_file() else None
    return None


def _scraped(stack: Stack) -> set[str]:
    path = _configuration(stack, PROMETHEUS, "--config.file=")
    jobs = _read(path)["scrape_configs"] if path is not None else []
    return {target for job in jobs for target in _targets(job)}


def _targets(job: dict[str, Any]) -> list[str]:
    return [target for each in job.get("static_configs", ()) for target in each["targets"]]


def _sources(stack: Stack) -> list[dict[str, Any]]:
    folder = stack.in_container(GRAFANA, f"{PROVISIONING}/datasources")
    return [each for file in _yaml_files(folder) for each in _read(file)["datasources"]]


def _yaml_files(folder: Path | None) -> Iterable[Path]:
    return sorted(folder.glob("*.yml")) if folder is not None else ()


def _asked(value: Any) -> Iterator[str]:
    """Return the uids of all data sources in a dashboard."""
    if isinstance(value, dict):
        source = value.get("datasource")
        if isinstance(source, dict) and source.get("type") != "grafana" and "uid" in source:
            yield str(source["uid"])
        for each in value.values():
            yield from _asked(each)
    elif isinstance(value, list):
        for each in value:
            yield from _asked(each)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key), each
            yield from _pairs(each)
    elif isinstance(value, list):
        for each in value:
            yield from _pairs(each)


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
