"""Prometheus: the metrics of every execution, on ``/metrics``, pushed, or in a text file.

::

    hooks ──> TotalsExporter <── Page <─┬─ Endpoint <── GET /metrics
                                        ├─ Delivery ──> Pushgateway
                                        └─ Delivery ──> text file

The totals are not prometheus_client's metric objects, so the exporter also works where the
application runs prometheus_client in its multiprocess mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amorsize.errors import ExporterError, MissingExtraError
from amorsize.exporters.base import in_child_process
from amorsize.exporters.delivery import CANCELLED_SECONDS, Delivery, Interval
from amorsize.exporters.prometheus.endpoint import METRICS_PATH, Endpoint, Receive, Scope, Send
from amorsize.exporters.prometheus.listening import Listener
from amorsize.exporters.prometheus.page import Page
from amorsize.exporters.prometheus.pushgateway import Pushgateway
from amorsize.exporters.prometheus.settings import PrometheusSettings
from amorsize.exporters.prometheus.textfile import TextFile
from amorsize.exporters.settings import by_keywords, constructor, enable_with
from amorsize.exporters.totals import TotalsExporter, status_of
from amorsize.hooks import HookContext

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from _typeshed.wsgi import WSGIApplication


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

    @constructor(PrometheusSettings)
    def __init__(self, settings: PrometheusSettings) -> None:
        try:
            import prometheus_client  # noqa: F401  # here, to say so where it is missing
        except ImportError:
            raise MissingExtraError(
                "The Prometheus exporter", "prometheus-client", "prometheus"
            ) from None
        self._failed_scrapes = 0
        self._page = Page(settings.registry, self.snapshot, settings.group)
        self._listener: Listener | None = None
        self._interval: Interval | None = None
        self._deliveries: list[Delivery] = []
        self.port = 0
        self.url = ""
        self._is_open = False
        if not in_child_process():
            self._open(settings)
        super().__init__()
        if not self.active:
            return
        if settings.pushgateway is not None:
            gateway = Pushgateway(settings)
            self._deliveries.append(
                Delivery(self.new_sender, lambda: self._deliver_to(gateway.push))
            )
        if settings.textfile_path is not None:
            file = TextFile(settings.textfile_path)
            self._deliveries.append(
                Delivery(self.new_sender, lambda: self._deliver_to(file.write, labelled=True))
            )
        if self._deliveries and settings.push_interval is not None:
            self._interval = Interval(
                settings.push_interval, lambda: bool(self._runs), self._request_deliveries
            )

    def _open(self, settings: PrometheusSettings) -> None:
        if settings.listens:
            endpoint = Endpoint(
                self._page.render, self._scrape_failed, credentials=settings.credentials
            )
            self._listener = Listener(settings, endpoint.wsgi)
        try:
            self._page.open()
        except ValueError as duplicate:
            if self._listener is not None:
                self._listener.close()
            raise ExporterError(
                f"the registry already holds metrics of these names ({duplicate}). Pass "
                "another registry, or close the exporter that uses this one."
            ) from None
        if self._listener is not None:
            try:
                self._listener.start()
            except BaseException:
                self._page.close()
                raise
            self.port, self.url = self._listener.port, self._listener.url
        self._is_open = True

    def wsgi_app(self) -> WSGIApplication:
        """Make a WSGI application that answers ``/metrics``, ``/`` and ``/-/healthy``.

        For a server of the application's: mount it at ``/metrics``. It asks for no password; that
        server decides who may read.
        """
        return self._mounted().wsgi

    def asgi_app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Make an ASGI 3 application; see :meth:`wsgi_app`."""
        return self._mounted().asgi

    def _mounted(self) -> Endpoint:
        paths = (METRICS_PATH, f"{METRICS_PATH}/", "/", "")
        return Endpoint(self._page.render, self._scrape_failed, paths=paths)

    def flush(self, timeout: float = 1.0) -> bool:
        """Push and write the present numbers, waiting at most ``timeout`` seconds.

        Returns:
            Whether they arrived.
        """
        self._request_deliveries()
        return super().flush(timeout)

    def counts(self) -> tuple[int, int]:
        dropped, errors = super().counts()
        return dropped, errors + self._failed_scrapes

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        if self._interval is not None:
            self._interval.wake()

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        if status_of(context) == "cancelled":
            self.flush(CANCELLED_SECONDS)
        else:
            self._request_deliveries()

    def release(self) -> None:
        if self._interval is not None:
            self._interval.close()
        if self._is_open:
            self._page.close()
        if self._listener is not None:
            self._listener.close()

    def abandon(self) -> None:
        if self._listener is not None:
            self._listener.abandon()

    def _request_deliveries(self) -> None:
        for delivery in self._deliveries:
            delivery.request()

    def _deliver_to(self, destination: Callable[[bytes], None], *, labelled: bool = False) -> None:
        page = self._page.text(labelled=labelled)
        if page:  # an exporter that was closed meanwhile has none
            destination(page)

    def _scrape_failed(self) -> None:
        self._failed_scrapes += 1

    def _state(self) -> str:
        return self.url or "delivering" if self.active else super()._state()
