"""The stack's files keep our rules, and each rule finds what breaks it in a copy of those files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stack import check
from stack.compose import Stack, interpolate

ROOT = Path(__file__).parents[2]

COMPOSE, ENV, DOCKERFILE = "docker-compose.yml", ".env", "Dockerfile"
CONSTRAINTS = "stack/constraints.txt"
PROMETHEUS, ALERTMANAGER = "stack/prometheus.yml", "stack/alertmanager.yml"
COLLECTOR, JAEGER = "stack/otel-collector.yml", "stack/jaeger.yml"
SOURCES = "dashboards/grafana/provisioning/datasources/amorsize.yml"
PROVIDERS = "dashboards/grafana/provisioning/dashboards/amorsize.yml"
BOARD = "dashboards/grafana/amorsize-overview.json"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of all that the stack is made of, to break."""
    for name in (COMPOSE, ENV, DOCKERFILE, ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("stack", "dashboards/grafana", "dashboards/prometheus"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("amorsize", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_stack_keeps_all_rules() -> None:
    """As it stands in the repository."""
    assert check.problems(ROOT) == []


def test_a_copy_keeps_them_too(copied: Path) -> None:
    """So that what the tests below find is what they broke."""
    assert check.problems(copied) == []


BROKEN = {
    "a port is published to the world": (
        COMPOSE,
        '"127.0.0.1:${PROMETHEUS_PORT}:9090"',
        '"${PROMETHEUS_PORT}:9090"',
        r"prometheus: port 9090:9090 is published to the world",
    ),
    "a port is published on all interfaces by name": (
        COMPOSE,
        '"127.0.0.1:${GRAFANA_PORT}:3000"',
        '"0.0.0.0:${GRAFANA_PORT}:3000"',
        r"grafana: port 0\.0\.0\.0:3000:3000 is published to the world",
    ),
    "a port is published on a port that Docker chooses": (
        COMPOSE,
        'ports: ["127.0.0.1:${APP_PORT}:9464"]',
        "ports: [9464]",
        r"app: port 9464 is published to the world",
    ),
    "a port is published in the long form": (
        COMPOSE,
        'ports: ["127.0.0.1:${JAEGER_PORT}:16686"]',
        'ports: [{ target: 16686, published: "16686" }]',
        r"jaeger: port 16686 is published to the world",
    ),
    "a service is on the host's network": (
        COMPOSE,
        "    command: [dask, scheduler,",
        "    network_mode: host\n    command: [dask, scheduler,",
        r"dask-scheduler: network_mode: host",
    ),
    "a tag floats": (
        ENV,
        "GRAFANA_TAG=13.2.0",
        "GRAFANA_TAG=latest",
        r"GRAFANA_TAG=latest floats",
    ),
    "a tag is a major version": (
        ENV,
        "DATADOG_AGENT_TAG=7.78.0",
        "DATADOG_AGENT_TAG=7",
        r"DATADOG_AGENT_TAG=7 floats",
    ),
    "Python's tag has no patch level": (
        ENV,
        "PYTHON_TAG=3.13.7-slim-bookworm",
        "PYTHON_TAG=3.13-slim",
        r"PYTHON_TAG=3\.13-slim floats",
    ),
    "a tag stands in the compose file": (
        COMPOSE,
        "prom/prometheus:${PROMETHEUS_TAG}",
        "prom/prometheus:v3.14.0",
        r"prometheus: the tag of 'prom/prometheus:v3\.14\.0' must be a variable",
    ),
    "an image has no tag": (
        COMPOSE,
        "grafana/grafana:${GRAFANA_TAG}",
        "grafana/grafana",
        r"grafana: the tag of 'grafana/grafana' must be a variable",
    ),
    "a mounted file is missing": (
        COMPOSE,
        "./stack/alertmanager.yml:/etc/alertmanager/alertmanager.yml",
        "./stack/alerts.yml:/etc/alertmanager/alertmanager.yml",
        r"alertmanager: mounts \./stack/alerts\.yml, which does not exist",
    ),
    "a file is mounted elsewhere than it is read": (
        COMPOSE,
        "./stack/jaeger.yml:/etc/jaeger/jaeger.yml",
        "./stack/jaeger.yml:/etc/jaeger/config.yml",
        r"jaeger: reads --config=\.\.\., and no file is mounted there",
    ),
    "a mount can be written to": (
        COMPOSE,
        "/etc/prometheus/amorsize:ro",
        "/etc/prometheus/amorsize",
        r"prometheus: mounts \./dashboards/prometheus to be written to",
    ),
    "Docker's socket is mounted": (
        COMPOSE,
        "      - prometheus-data:/prometheus",
        "      - prometheus-data:/prometheus\n      - /var/run/docker.sock:/var/run/docker.sock:ro",
        r"prometheus: mounts the socket of Docker",
    ),
    "a volume is not declared": (
        COMPOSE,
        "  grafana-data:\n  pushgateway-data:",
        "  pushgateway-data:",
        r"the volume grafana-data is not declared",
    ),
    "a health check is missing": (
        COMPOSE,
        "    healthcheck:\n      <<: *check\n      test: [CMD, promtool, query, instant, "
        '"http://127.0.0.1:9090", vector(1)]\n',
        "",
        r"prometheus: no health check",
    ),
    "a health check is turned off": (
        COMPOSE,
        'test: [CMD, amtool, config, show, "--alertmanager.url=http://127.0.0.1:9093"]',
        "disable: true",
        r"alertmanager: no health check",
    ),
    "a service waits for the health of one that has no check": (
        COMPOSE,
        "    depends_on:\n      pushgateway: { condition: service_healthy }",
        "    depends_on:\n      push-job: { condition: service_healthy }",
        r"push-job: waits for push-job to be healthy, which has no health check",
    ),
    "a service waits for one that is not started": (
        COMPOSE,
        "      alertmanager: { condition: service_healthy }",
        "      pushgateway: { condition: service_healthy }",
        r"prometheus: depends on pushgateway, which only a profile starts",
    ),
    "a service does not come back": (
        COMPOSE,
        "  restart: unless-stopped\n",
        "",
        r"jaeger: no restart policy",
    ),
    "a job is started again and again": (
        COMPOSE,
        '    restart: "no"\n',
        "",
        r"push-job: is a job",
    ),
    "a service may take all memory": (
        COMPOSE,
        "      jaeger: { condition: service_started }\n    mem_limit: 512m\n\n  jaeger:",
        "      jaeger: { condition: service_started }\n\n  jaeger:",
        r"otel-collector: no mem_limit",
    ),
    "a service may start processes without end": (
        COMPOSE,
        "  pids_limit: 512",
        "  # pids_limit: 512",
        r"grafana: no pids_limit",
    ),
    "a service keeps its capabilities": (
        COMPOSE,
        "  cap_drop: [ALL]\n",
        "",
        r"jaeger: lacks cap_drop: \[ALL\]$",
    ),
    "a service may write to its image": (
        COMPOSE,
        "    image: prom/alertmanager:${ALERTMANAGER_TAG}\n",
        "    image: prom/alertmanager:${ALERTMANAGER_TAG}\n    read_only: false\n",
        r"alertmanager: lacks read_only: true$",
    ),
    "a service may gain privileges": (
        COMPOSE,
        '  security_opt: ["no-new-privileges:true"]\n',
        "",
        r"datadog-agent: may gain privileges",
    ),
    "a service is no longer an exception": (
        COMPOSE,
        "    cap_drop: []\n    read_only: false\n",
        "",
        r"datadog-agent: is confined now; take it from NOT_CONFINED",
    ),
    "everybody reaches the scheduler of Dask": (
        COMPOSE,
        "    networks: [dask] # it runs what it is sent, by anybody who reaches it\n",
        "",
        r"dask-scheduler: prometheus reaches it, and is no client",
    ),
    "a worker of Dask is on the network of all": (
        COMPOSE,
        "      - --local-directory=/tmp\n    networks: [dask]\n",
        "      - --local-directory=/tmp\n    networks: [dask, default]\n",
        r"dask-worker: grafana reaches it, and is no client",
    ),
    "the app does not reach the scheduler": (
        COMPOSE,
        "    networks: [default, dask]\n",
        "",
        r"app-dask: --dask=tcp://dask-scheduler:8786: app-dask and dask-scheduler share no network",
    ),
    "a network is not declared": (
        COMPOSE,
        "networks:\n  default:\n  dask:\n",
        "networks:\n  default:\n",
        r"dask-worker: the network dask is not declared",
    ),
    "an image that is built from others names a tag": (
        COMPOSE,
        "FROM busybox:${BUSYBOX_TAG} AS client",
        "FROM busybox:latest AS client",
        r"otel-collector: the tag of 'busybox:latest' must be a variable",
    ),
    "everybody is an administrator": (
        COMPOSE,
        "GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer",
        "GF_AUTH_ANONYMOUS_ORG_ROLE: Admin",
        r"grafana: anonymous users are Admin; at most Viewer",
    ),
    "the administrator's password is Grafana's default": (
        COMPOSE,
        "$$(head -c 24 /dev/urandom |\n        base64)",
        "admin",
        r"grafana: without a password given",
    ),
    "a service has rights over the host": (
        COMPOSE,
        "  init: true",
        "  privileged: true\n  init: true",
        r"app: asks for rights over the host",
    ),
    "a service runs as root": (
        COMPOSE,
        "  init: true",
        "  user: root\n  init: true",
        r"app: runs as root",
    ),
    "a secret stands in the compose file": (
        COMPOSE,
        "      DD_API_KEY: # of the shell that runs docker compose",
        "      DD_API_KEY: 0123456789abcdef0123456789abcdef",
        r"datadog-agent: DD_API_KEY has a value in docker-compose\.yml",
    ),
    "a secret stands on a command line": (
        COMPOSE,
        '["--persistence.file=/pushgateway/metrics"]',
        '["--persistence.file=/pushgateway/metrics", "--web.token=hunter2"]',
        r"pushgateway: --web\.token has a value on the command line",
    ),
    "a secret is put into a value": (
        COMPOSE,
        "dogstatsd${DD_API_KEY:+-datadog}",
        "dogstatsd${DD_API_KEY:-}",
        r"\$\{DD_API_KEY\} puts a secret into a value",
    ),
    "a secret stands in .env": (
        ENV,
        "DD_SITE=datadoghq.com",
        "DD_SITE=datadoghq.com\nGRAFANA_ADMIN_PASSWORD=admin",
        r"GRAFANA_ADMIN_PASSWORD is a secret",
    ),
    "a secret stands in a configuration file": (
        ALERTMANAGER,
        "  - name: default\n  - name: critical",
        "  - name: default\n  - name: critical\n    pagerduty_configs: [{ service_key: x, "
        "http_config: { basic_auth: { username: u, password: hunter2 } } }]",
        r"alertmanager\.yml: password has a value",
    ),
    "a variable has no value": (
        ENV,
        "PROMETHEUS_RETENTION=15d",
        "PROMETHEUS_RETENTION=",
        r"PROMETHEUS_RETENTION has no value in \.env",
    ),
    "a variable is gone": (
        ENV,
        "JAEGER_PORT=16686\n",
        "",
        r"JAEGER_PORT has no value in \.env",
    ),
    "a variable is not used": (
        ENV,
        "DD_SITE=datadoghq.com",
        "DD_SITE=datadoghq.com\nLOKI_PORT=3100",
        r"LOKI_PORT is not used",
    ),
    "the image runs as root": (DOCKERFILE, "USER 10001\n", "", r"the last USER is root"),
    "the image becomes root again": (
        DOCKERFILE,
        "USER 10001\n",
        "USER 10001\nUSER root\n",
        r"the last USER is root",
    ),
    "the base image floats": (
        DOCKERFILE,
        "FROM python:${PYTHON_TAG}\n",
        "FROM python:3.13-slim\n",
        r"FROM python:3\.13-slim; its tag must be an ARG",
    ),
    "the image downloads something": (
        DOCKERFILE,
        "COPY amorsize amorsize\n",
        "COPY amorsize amorsize\nADD https://example.com/tool /usr/bin/tool\n",
        r"Dockerfile: ADD https://example\.com/tool",
    ),
    "what the image installs floats": (
        DOCKERFILE,
        "--constraint stack/constraints.txt ",
        "",
        r"Dockerfile: what pip installs floats",
    ),
    "a package of the image has no version": (
        CONSTRAINTS,
        "grpcio==",
        "grpcio>=",
        r"constraints\.txt: grpcio>=\S+ is no version",
    ),
    "a package of the image is not pinned": (
        CONSTRAINTS,
        "\nprometheus_client==",
        "\nprometheus_server==",
        r"constraints\.txt: prometheus-client is missing",
    ),
    "the image has a secret": (
        DOCKERFILE,
        "EXPOSE 9464",
        "ENV DD_API_KEY=0123456789abcdef\nEXPOSE 9464",
        r"ENV DD_API_KEY=0123456789abcdef would keep a secret",
    ),
    "the image wants what .dockerignore leaves out": (
        ".dockerignore",
        "!dashboards\n",
        "",
        r"copies dashboards, which \.dockerignore leaves out",
    ),
    "exemplars lead to a data source that is none": (
        SOURCES,
        "datasourceUid: amorsize-jaeger",
        "datasourceUid: jaeger",
        r"Prometheus: exemplars lead to jaeger, which is no jaeger data source",
    ),
    "spans lead to a data source that is none": (
        SOURCES,
        "datasourceUid: amorsize-prometheus",
        "datasourceUid: prometheus",
        r"Jaeger: traces lead to prometheus, which is no prometheus data source",
    ),
    "the uid of a data source is another one": (
        SOURCES,
        "  uid: amorsize-prometheus",
        "  uid: prometheus",
        r"Jaeger: traces lead to amorsize-prometheus, which is no prometheus data source",
    ),
    "a data source is at a service that is none": (
        SOURCES,
        "http://jaeger:16686",
        "http://tempo:16686",
        r"'tempo' is no service of the stack",
    ),
    "a data source is at another port": (
        SOURCES,
        "http://prometheus:9090",
        "http://prometheus:9091",
        r"prometheus does not listen on 9091",
    ),
    "a dashboard asks a data source that is none": (
        BOARD,
        '"uid": "${datasource}"',
        '"uid": "prometheus"',
        r"amorsize-overview\.json: asks the data source prometheus, which does not exist",
    ),
    "the dashboards are mounted elsewhere": (
        PROVIDERS,
        "/var/lib/grafana/dashboards/amorsize",
        "/var/lib/grafana/boards",
        r"reads /var/lib/grafana/boards, and no dashboard is there",
    ),
    "Grafana's first page is missing": (
        COMPOSE,
        "amorsize/amorsize-overview.json",
        "amorsize/overview.json",
        r"grafana: its first page, .*overview\.json, is not mounted",
    ),
    "Grafana expects another scrape interval": (
        PROMETHEUS,
        "scrape_interval: 15s",
        "scrape_interval: 30s",
        r"scrapes every 30s, and Grafana's Prometheus has 15s",
    ),
    "a target is no service": (
        PROMETHEUS,
        '"app:9464"',
        '"demo:9464"',
        r"job amorsize: 'demo' is no service",
    ),
    "a target's port is another one": (
        PROMETHEUS,
        '"otel-collector:8889"',
        '"otel-collector:8888"',
        r"job otel-collector: otel-collector does not listen on 8888",
    ),
    "a rule file is not mounted": (
        PROMETHEUS,
        "/etc/prometheus/amorsize/alerts.yml",
        "/etc/prometheus/rules/alerts.yml",
        r"the rule file /etc/prometheus/rules/alerts\.yml is not mounted",
    ),
    "alerts go nowhere": (
        PROMETHEUS,
        '"alertmanager:9093"]\n\nscrape',
        '"alerts:9093"]\n\nscrape',
        r"alerting: 'alerts' is no service",
    ),
    "pushed jobs would lose their labels": (
        PROMETHEUS,
        "    honor_labels: true\n",
        "",
        r"job pushgateway: needs honor_labels",
    ),
    "exemplars are not kept": (
        COMPOSE,
        "      - --enable-feature=exemplar-storage\n",
        "",
        r"prometheus: does not keep exemplars",
    ),
    "a pipeline names what is not defined": (
        COLLECTOR,
        "exporters: [otlp_grpc/jaeger]",
        "exporters: [otlp_grpc/tempo]",
        r"otlp_grpc/tempo is used, and is not defined below exporters",
    ),
    "what is defined is in no pipeline": (
        COLLECTOR,
        "exporters: [prometheus/dogstatsd]",
        "exporters: [prometheus/otlp]",
        r"prometheus/dogstatsd is defined below exporters, and used nowhere",
    ),
    "traces go to a service that is none": (
        COLLECTOR,
        "endpoint: jaeger:4317",
        "endpoint: tempo:4317",
        r"otlp_grpc/jaeger: 'tempo' is no service",
    ),
    "what the collector serves is not scraped": (
        COLLECTOR,
        "0.0.0.0:8890",
        "0.0.0.0:8891",
        r"prometheus/dogstatsd listens on 8891, and Prometheus does not scrape it",
    ),
    "the app sends OTLP to a port that nobody listens on": (
        COMPOSE,
        "http://otel-collector:4318",
        "http://otel-collector:4319",
        r"app: http://otel-collector:4319: otel-collector does not listen on 4319",
    ),
    "the app sends DogStatsD to a name that nobody has": (
        COMPOSE,
        "aliases: [dogstatsd]",
        "aliases: [statsd]",
        r"app: DD_AGENT_HOST: 'dogstatsd' is no service",
    ),
    "with a key the app sends DogStatsD to a name that nobody has": (
        COMPOSE,
        "aliases: [dogstatsd-datadog]",
        "aliases: [datadog]",
        r"no service is named dogstatsd-datadog",
    ),
    "exemplars do not pass the collector": (
        COLLECTOR,
        "    enable_open_metrics: true # the only format that has exemplars\n",
        "",
        r"prometheus/otlp drops exemplars",
    ),
    "the collector drops fractions of counters": (
        COLLECTOR,
        "counter_type: float",
        "counter_type: int",
        r"statsd drops the fractions of counters",
    ),
    "the collector makes summaries": (
        COLLECTOR,
        "observer_type: histogram",
        "observer_type: summary",
        r"statsd makes no histograms of each distribution",
    ),
    "the collector has other buckets": (
        COLLECTOR,
        "[0.005, 0.01, 0.025, 0.05,",
        "[0.005, 0.01, 0.05,",
        r"statsd has other buckets for amorsize\.planning\.duration than its table",
    ),
    "the collector has no buckets": (
        COLLECTOR,
        r"^amorsize\.chunk\.queue$",
        r"^amorsize\.chunk\.wait$",
        r"statsd has other buckets for amorsize\.chunk\.queue than its table",
    ),
    "the collector's health is not served": (
        COLLECTOR,
        "  extensions: [health_check]\n",
        "",
        r"health_check is defined below extensions, and used nowhere",
    ),
    "Jaeger traces itself": (
        JAEGER,
        "enable_tracing: false",
        "enable_tracing: true",
        r"Jaeger traces itself into its store",
    ),
    "Jaeger's query has no storage": (
        JAEGER,
        "      traces: memory",
        "      traces: badger",
        r"jaeger\.yml: the storage badger is not defined",
    ),
    "the workers look for another scheduler": (
        COMPOSE,
        "      - tcp://dask-scheduler:8786",
        "      - tcp://scheduler:8786",
        r"dask-worker: tcp://scheduler:8786: 'scheduler' is no service",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_a_rule_is_found(copied: Path, what: str) -> None:
    """Each in a copy of the real files, which has no other fault."""
    name, old, new, message = BROKEN[what]
    text = (copied / name).read_text(encoding="utf-8")
    assert old in text, f"{name} has no {old!r} to break"
    (copied / name).write_text(text.replace(old, new), encoding="utf-8")
    found = check.problems(copied)
    assert any(re.search(message, problem) for problem in found), found


def test_a_missing_file_is_found(copied: Path) -> None:
    """As when somebody moves one, and forgets who mounts it."""
    (copied / COLLECTOR).unlink()
    (copied / "dashboards" / "prometheus" / "alerts.yml").unlink()
    (copied / ".dockerignore").unlink()
    found = "\n".join(check.problems(copied))
    assert "otel-collector: mounts ./stack/otel-collector.yml, which does not exist" in found
    assert "the rule file /etc/prometheus/amorsize/alerts.yml is not mounted" in found
    assert ".dockerignore is missing" in found


def test_the_command_says_what_is_wrong(copied: Path) -> None:
    """One line a problem, and an exit code."""
    command = [sys.executable, "-m", "stack.check", str(copied)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    env = copied / ENV
    env.write_text(env.read_text().replace("v1.11.3", "latest"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        ".env: PUSHGATEWAY_TAG=latest floats; name a whole version, as in 1.2.3"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A and ${A}", "a and a"),
        ("$$A and $${A}", "$A and ${A}"),
        ("${A:-x} ${EMPTY:-x} ${EMPTY-x} ${NONE-x}", "a x  x"),
        ("[${A:+x}] [${EMPTY:+x}] [${EMPTY+x}] [${NONE+x}]", "[x] [] [x] []"),
        ("${NONE}", ""),
    ],
)
def test_variables_are_put_in_as_compose_does(text: str, value: str) -> None:
    """The operators of the compose specification."""
    assert interpolate([text], {"A": "a", "EMPTY": ""}) == [value]


def test_without_a_key_dogstatsd_goes_to_the_collector_and_with_one_to_the_agent() -> None:
    """The same file; nothing but the shell's environment differs."""
    stack = Stack(ROOT)
    host = stack.raw["x-telemetry"]["DD_AGENT_HOST"]
    without, with_key = (interpolate(host, {"DD_API_KEY": key}) for key in ("", "0123"))
    assert stack.names[without] == "otel-collector"
    assert stack.names[with_key] == "datadog-agent"
