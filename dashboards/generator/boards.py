"""The common parts of the Grafana dashboards: variables, annotations, links, the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as model

from amorsize.exporters import metrics

from . import promql
from .panels import ORANGE, RED, SOURCE, Panel
from .promql import Query

TAG = "amorsize"
"""Dashboards with this tag link to each other."""

FUNCTION_UID = "amorsize-function"
"""Where a click on a function leads."""

OPEN_FUNCTION = (
    f"/d/{FUNCTION_UID}?${{datasource:queryparam}}&${{job:queryparam}}&${{__url_time_range}}"
    "&var-function=${__value.text:percentencode}"
)

GRID_WIDTH = 24

ANNOTATION_FIELDS = ("titleFormat", "tagKeys", "useValueForTime")
"""Fields of an annotation that Grafana's Prometheus source reads, and the schema omits."""


class Board:
    """A dashboard, row by row.

    Args:
        uid: its name in addresses.
        title: its name on the screen.
        description: who opens it, and what for.
        one_function: whether the variable ``function`` has one value, and not many.
    """

    def __init__(self, uid: str, title: str, description: str, *, one_function: bool) -> None:
        self.uid = uid
        self.title = title
        self.query = Query(promql.ONE if one_function else promql.FLEET)
        self._ids: dict[str, int] = {}
        self._y = 0
        self._next_id = 1
        self._dashboard = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .timezone("browser")
            .readonly()
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .time("now-1h", "now")
            .refresh("10s")
            .link(
                dashboard.DashboardLink("amorsize")
                .type(model.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .include_vars(True)
                .keep_time(True)
                .tooltip("The other dashboards of amorsize")
            )
        )
        for variable in _variables(one_function=one_function):
            self._dashboard.with_variable(variable)

    def row(self, title: str, panels: Sequence[Panel]) -> None:
        """Add a row; panels that do not fit beside each other go below.

        Raises:
            ValueError: two panels have the same title.
        """
        position = model.GridPos(x=0, y=self._y, w=GRID_WIDTH, h=1)
        self._dashboard.with_row(dashboard.Row(title).id(self._take_id()).grid_pos(position))
        self._y += 1
        x = height = 0
        for panel in panels:
            built = panel.build()
            assert built.grid_pos is not None
            assert built.title is not None
            if x + built.grid_pos.w > GRID_WIDTH:
                x, self._y, height = 0, self._y + height, 0
            built.grid_pos.x, built.grid_pos.y = x, self._y
            x += built.grid_pos.w
            height = max(height, built.grid_pos.h)
            if built.title in self._ids:
                raise ValueError(f"{self.title} has two panels called {built.title!r}")
            self._ids[built.title] = built.id_val = self._take_id()
            self._dashboard.with_panel(panel)
        self._y += height

    def link(self, panel: str, **variables: str) -> str:
        """Write the address of a panel, below Grafana's own.

        Args:
            panel: its title.
            variables: values of the dashboard's variables.
        """
        chosen = "".join(f"&var-{name}={value}" for name, value in variables.items())
        return f"/d/{self.uid}?viewPanel={self._ids[panel]}{chosen}"

    def to_json(self) -> dict[str, Any]:
        """Write it as Grafana reads it."""
        register_default_plugins()
        built = json.dumps(self._dashboard.build(), cls=JSONEncoder)
        # A second pass through the model: it writes a few defaults only for values it has read.
        whole = model.Dashboard.from_json(json.loads(built))
        made: dict[str, Any] = json.loads(json.dumps(whole, cls=JSONEncoder))
        made["annotations"] = {"list": _annotations(self.query)}
        return made

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1


def _variables(*, one_function: bool) -> Sequence[Any]:
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    known = metrics.LAST_ACTIVITY
    job = _values("job", "Job", Query(promql.EVERYTHING).series(metrics.BUILD_INFO), many=True)
    of_job = Query({"job": promql.FLEET["job"]})
    function = _values("function", "Function", of_job.series(known), many=not one_function)
    executor = _values("executor", "Executor", of_job.series(known), many=True)
    return [source, job, function, executor]


def _values(name: str, label: str, series: str, *, many: bool) -> dashboard.QueryVariable:
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": f"label_values({series}, {name})", "refId": "StandardVariableQuery"})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    if many:
        everything = model.VariableOption(selected=True, text="All", value="$__all")
        variable.multi(True).include_all(True).all_value(".*").current(everything)
    return variable


def _annotations(query: Query) -> list[dict[str, Any]]:
    failed = query.series(metrics.LAST_COMPLETION, status=f'=~"{promql.FAILED}"')
    died = query.in_each_bar(metrics.WORKER_DEATHS, "function", "executor")
    builtin = {
        "name": "Annotations & Alerts",
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "type": "dashboard",
        "builtIn": 1,
    }
    common = {"datasource": SOURCE.to_json(), "enable": True, "hide": False, "builtIn": 0}
    return [
        builtin,
        common
        | {
            "name": "Failed executions",
            "iconColor": RED,
            "expr": f"1000 * max by (function, status) ({failed})",
            "titleFormat": "{{function}} failed ({{status}})",
            "tagKeys": "function,status",
            "useValueForTime": True,  # it is when the execution ended, in milliseconds
        },
        common
        | {
            "name": "Worker deaths",
            "iconColor": ORANGE,
            "expr": f"{died} > 0",
            "titleFormat": "{{function}} lost a worker",
            "tagKeys": "function,executor",
        },
    ]
