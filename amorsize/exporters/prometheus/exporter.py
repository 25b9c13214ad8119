"""Prometheus: the metrics of every execution, on ``/metrics``, pushed, or in a text file.

::

    hooks ──> TotalsExporter <── Page <─┬─ Endpoint <── GET /metrics
                                        ├─ Delivery ──> Pushgateway
                                        └─ Delivery ──> text file

The totals are not prometheus_client's metric objects, so the exporter also works where the
application runs prometheus_client in its multiprocess mode.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from amorsize.errors import ExporterError, MissingExtraError
from amorsize.exporters.base import close_at_exit_of_children, in_child_process
from amorsize.exporters.delivery import CANCELLED_SECONDS, Delivery, Interval
from amorsize.exporters.metrics import (
    COUNTING_SINCE,
    EXECUTIONS_IN_PROGRESS,
    IN_PROGRESS_UNTIL,
)
from amorsize.exporters.prometheus.endpoint import METRICS_PATH, Endpoint, Receive, Scope, Send
from amorsize.exporters.prometheus.listening import Listener
from amorsize.exporters.prometheus.page import Page
from amorsize.exporters.prometheus.program_files import ProgramFiles
from amorsize.exporters.prometheus.pushgateway import GatewayGroups, Pushgateway
from amorsize.exporters.prometheus.settings import PrometheusSettings
from amorsize.exporters.prometheus.standby import Standby
from amorsize.exporters.prometheus.textfile import TextFile
from amorsize.exporters.series import Series, Share
from amorsize.exporters.settings import by_keywords, constructor, enable_with
from amorsize.exporters.totals import TotalsExporter, status_label
from amorsize.hooks import HookContext
from amorsize.workers.role import is_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger(__name__)

MISSED_REPORTS = 4
"""How many pushes, or writes, may be missing before executions in progress count as ended."""

LEAST_SECONDS_IN_PROGRESS = 60.0
"""How long they count at least: a scrape of the gateway may come late, too."""

WRITE_SECONDS = 0.5
"""Between two writes of a process's share, while it runs something."""


@by_keywords(PrometheusSettings)
def enable_prometheus(settings: PrometheusSettings) -> PrometheusExporter:
    """Serve the metrics of every ``execute()`` on ``http://addr:port/metrics``, or push them.

    Args:
        port: the port to listen on; 0 for any free one. None for that of the environment
            variable ``AMORSIZE_PROMETHEUS_PORT``, or else 9464; with ``pushgateway`` or
            ``textfile`` nothing listens unless a port is passed here.
        addr: the address to listen on, IPv4, IPv6 or a host name; the default can be reached
            from this machine only.
        registry: the registry to add the metrics to, and to serve; None for a new one.
            ``prometheus_client.REGISTRY`` serves the application's own metrics beside them.
        listen: False to listen nowhere, because the application itself serves the registry or
            :meth:`PrometheusExporter.wsgi_app`. None to decide by the other arguments.
        certfile: a certificate in PEM format, for TLS.
        keyfile: its private key; None when it is in ``certfile``.
        client_cafile: the authorities that sign clients' certificates; None asks for no
            certificates.
        client_auth_required: False also admits clients without a certificate. None, with
            ``client_cafile``, is True.
        user: the user who may read the metrics, by HTTP basic authentication; None for everybody.
        password: that user's.
        file_sd: a directory that Prometheus watches (``file_sd_configs``). This program's entry
            in it names its address until it exits.
        pushgateway: the URL of a Pushgateway, which receives the metrics at the end of every run,
            at an interval while one runs, and when the program exits.
        job: the name under which the Pushgateway keeps them; also a label in the ``textfile``.
        grouping_key: further labels that distinguish this program's metrics, likewise.
        push_interval: seconds between two pushes, or writes, while an execution runs; None for
            pushes at the ends only.
        pushgateway_user: for HTTP basic authentication at the Pushgateway.
        pushgateway_password: that user's.
        pushgateway_token: a bearer token, instead of the two.
        pushgateway_cafile: the authorities that sign the Pushgateway's certificate; None for
            those that the system trusts.
        pushgateway_certfile: a certificate by which the Pushgateway knows this program.
        pushgateway_keyfile: its private key; None when it is in ``pushgateway_certfile``.
        textfile: a file for the node exporter's textfile collector, ending in ``.prom``, written
            whenever the metrics would be pushed.
        multiprocess: True to show, in each process of a program, the metrics of all of them: of
            the workers of a web server, the pool of a task queue, children of ``multiprocessing``.
            Then one of them listens. None for that where ``listen=False`` leaves the page to a
            server of the application's, and where ``multiprocess_dir`` is named.
        multiprocess_dir: the directory below which the processes keep their metrics; it has to
            exist. None for that of the environment variable
            ``AMORSIZE_PROMETHEUS_MULTIPROCESS_DIR``, or else that of temporary files.

    Returns:
        The exporter, with its ``port`` and ``url``; its ``close()`` ends it. Called again with
        the same arguments, the same one.

    Raises:
        InvalidTypeError, InvalidValueError: an argument, or the environment variable, is wrong.
        MissingExtraError: prometheus-client is not installed.
        PortInUseError: the port is taken.
        ExporterError: it is enabled already with other arguments, the address cannot be listened
            on, or the registry holds metrics of these names.

    Example:
        >>> import amorsize
        >>> with amorsize.enable_prometheus(port=0) as exporter:
        ...     results = amorsize.execute(abs, [-1, 2])  # scrape exporter.url meanwhile
    """
    return enable_with(PrometheusExporter, settings)


class PrometheusExporter(TotalsExporter):
    """Keeps the metrics of :mod:`amorsize.exporters.metrics`, serves them and delivers them.

    :func:`enable_prometheus` makes one and attaches it to every execution; make one yourself to
    ``attach()`` it to a manager of your own. Arguments and errors are the same.

    Attributes:
        port: the port that it listens on; 0 for none.
        url: of the metrics; empty where nothing listens.
    """

    name = "prometheus"
    remedy = (
        "Enable it with multiprocess=True, for one page of all processes; or enable another one in "
        "this process, after amorsize.enable_in_child_process()"
    )

    @constructor(PrometheusSettings)
    def __init__(self, settings: PrometheusSettings) -> None:
        try:
            import prometheus_client  # noqa: F401  # here, to say so where it is missing
        except ImportError:
            raise MissingExtraError(
                "The Prometheus exporter", "prometheus-client", "prometheus"
            ) from None
        self._settings = settings
        self._page = Page(settings.registry, self._shown)
        self._is_open = False
        self._listener: Listener | None = None
        self.port = 0
        self.url = ""
        self._prepare()
        is_multiprocess = settings.is_multiprocess
        if not (is_worker() if is_multiprocess else in_child_process()):
            self._open()
        super().__init__(in_children=is_multiprocess)
        if self.active:
            self._prepare_deliveries()

    def _prepare(self, exporter: int | None = None) -> None:
        """Set up what each process has of its own.

        Args:
            exporter: its number in the program's files; None for another one.
        """
        settings = self._settings
        self._failures = 0
        self._has_observed = False
        self._is_behind = False
        self._is_failing = False
        self._interval: Interval | None = None
        self._deliveries: list[Delivery] = []
        self._files: ProgramFiles | None = None
        self._writes: Interval | None = None
        self._standby: Standby | None = None
        if settings.is_multiprocess:
            files = ProgramFiles(settings.multiprocess_base, self._own_share, exporter)
            self._files = files
            self._writes = Interval(
                WRITE_SECONDS, lambda: bool(self._runs) or self._is_behind, self._write
            )
            if settings.listens:
                self._standby = Standby(lambda: files.directory, self._listen)

    def _prepare_deliveries(self) -> None:
        settings = self._settings
        # Of several processes, one would continue what another one has delivered just now.
        continues = not settings.is_multiprocess
        if settings.pushgateway is not None:
            groups = GatewayGroups(Pushgateway(settings), settings.group, continues=continues)
            self._deliveries.append(Delivery(self.new_sender, lambda: self._push_to(groups)))
        if settings.textfile_path is not None:
            file = TextFile(settings.textfile_path, settings.group, continues=continues)
            self._deliveries.append(Delivery(self.new_sender, lambda: self._write_to(file)))
        if self._deliveries and settings.push_interval is not None:
            self._interval = Interval(
                settings.push_interval, lambda: bool(self._runs), self._request_deliveries
            )

    def _open(self) -> None:
        try:
            self._page.open()
        except ValueError as duplicate:
            self._forget_files()
            raise ExporterError(
                f"the registry already holds metrics of these names ({duplicate}). Pass "
                "another registry, or close the exporter that uses this one."
            ) from None
        try:
            if self._standby is not None:
                if not self._standby.try_to_listen():
                    self._standby.stand_by()
            elif self._settings.listens:
                self._listen()
        except BaseException as error:
            self._page.close()
            self._forget_files()
            if isinstance(error, OSError) and not isinstance(error, ExporterError):
                raise ExporterError(f"the processes have no directory: {error}") from error
            raise
        self._is_open = True

    def _listen(self) -> Listener:
        endpoint = Endpoint(
            self._render, self._scrape_failed, credentials=self._settings.credentials
        )
        listener = Listener(self._settings, endpoint.wsgi)
        listener.start()
        self._listener = listener
        self.port, self.url = listener.port, listener.url
        return listener

    def wsgi_app(self) -> WSGIApplication:
        """Make a WSGI application that answers ``/metrics``, ``/`` and ``/-/healthy``.

        For a server of the application's: mount it at ``/metrics``. It asks for no password; that
        server decides who may read.
        """
        return self._mounted().wsgi

    def asgi_app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Make an ASGI 3 application; see :meth:`wsgi_app`."""
        endpoint = self._mounted()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await endpoint.asgi(scope, receive, send)

        return app  # a function: uvicorn takes a bound method for ASGI 2

    def _mounted(self) -> Endpoint:
        paths = (METRICS_PATH, f"{METRICS_PATH}/", "/", "")
        return Endpoint(self._render, self._scrape_failed, paths=paths)

    def _render(self, accept: str, names: Sequence[str]) -> tuple[str, bytes]:
        return self._page.render(accept, names)

    def flush(self, timeout: float = 1.0) -> bool:
        """Push and write the present numbers, waiting at most ``timeout`` seconds.

        Returns:
            Whether they arrived.
        """
        if self._has_observed or self._files is None:  # most forked children run nothing
            self._write()
            self._request_deliveries()
        return super().flush(timeout)

    def counts(self) -> tuple[int, int]:
        dropped, errors = super().counts()
        return dropped, errors + self._failures

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        if not self._has_observed:
            self._has_observed = True
            close_at_exit_of_children()  # this may be one of them, by now
        for interval in (self._interval, self._writes):
            if interval is not None:
                interval.wake()
        if self._standby is not None:
            self._standby.stand_by()

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        self._write_at_end()
        if status_label(context) == "cancelled":
            self.flush(CANCELLED_SECONDS)
        else:
            self._request_deliveries()

    def restart(self) -> None:
        super().restart()
        self._prepare(None if self._files is None else self._files.exporter)
        self._listener, self.port, self.url = None, 0, ""
        if self._settings.registry is None:  # a thread that is not here may hold its lock
            self._page = Page(None, self._shown)
            self._page.open()
        self._prepare_deliveries()

    def release(self) -> None:
        for interval in (self._interval, self._writes):
            if interval is not None:
                interval.close()
        if self._is_open:
            self._page.close()
        if self._standby is not None:
            self._standby.close()
        elif self._listener is not None:
            self._listener.close()
        if self._files is not None:
            self._files.close()

    def abandon(self) -> None:
        if self._standby is not None:
            self._standby.abandon()
        elif self._listener is not None:
            self._listener.abandon()
        self._forget_files()

    # --- the processes of the program ----

    def _shown(self) -> Series:
        """Read the metrics of the program: of all its processes, where they are added up."""
        if self._files is None or not self.active:
            return self.snapshot()
        try:
            return self._files.merge()
        except OSError as error:
            if self._settings.multiprocess_base or self._settings.multiprocess:
                raise
            if self._files.are_used:
                raise
            # Nobody has asked for it: a program of one process, in a container without such files.
            self._files = None
            logger.warning(
                "Each process of this program shows its own metrics alone, because they cannot "
                "keep them together: %s. Name a directory with multiprocess_dir=, or pass "
                "multiprocess=False.",
                error,
            )
            return self.snapshot()

    def share(self) -> Share:
        share = super().share()
        share.series[COUNTING_SINCE] = {(): self.counting_since}
        return share

    def _own_share(self) -> Share | None:
        return self.share() if self.active else None

    def _write_at_end(self) -> None:
        """Write at the end of a run: before it returns, unless runs end in quick succession."""
        if self._files is None or self._writes is None:
            return
        if self._files.may_write_at_once():
            self._write()
        else:
            self._is_behind = True
            self._writes.wake()

    def _write(self) -> None:
        if self._files is None:
            return
        self._is_behind = False
        try:
            self._files.write()
        except OSError as error:
            self._failures += 1
            if not self._is_failing:
                logger.warning("The metrics of this process cannot be written: %s", error)
            self._is_failing = True
        else:
            self._is_failing = False

    def _forget_files(self) -> None:
        if self._files is not None:
            self._files.forget()

    def _request_deliveries(self) -> None:
        for delivery in self._deliveries:
            delivery.request()

    def _delivered(self) -> Series:
        """Read what is delivered: it stays where it is when the program is killed."""
        series = self._shown()
        if not series:  # an exporter that was closed meanwhile has none
            return series
        seconds = max(
            MISSED_REPORTS * (self._settings.push_interval or 0.0), LEAST_SECONDS_IN_PROGRESS
        )
        until = time.time() + seconds
        running = series.get(EXECUTIONS_IN_PROGRESS, {})
        series[IN_PROGRESS_UNTIL] = {labels: until for labels, count in running.items() if count}
        return series

    def _push_to(self, groups: GatewayGroups) -> None:
        # At the end of a run, and of the program, there may be little time: only what has changed.
        series, in_progress = self._delivered(), bool(self._runs)
        if series:
            groups.push(series, self._page.others(), again=in_progress)

    def _write_to(self, file: TextFile) -> None:
        series = self._delivered()
        if series:
            file.write(series, self._page.others())

    def _scrape_failed(self) -> None:
        self._failures += 1

    def _state(self) -> str:
        return self.url or "delivering" if self.active else super()._state()
