"""Looks at a call in progress, from the thread that probes the GIL, and asks the planner."""

from __future__ import annotations

import sys
import time
from threading import Lock, get_ident

from amorsize.planning.clocks import ThreadClocks
from amorsize.planning.gil_probe import GilProbe, switching_often
from amorsize.planning.observations import Observations, Sample
from amorsize.planning.plan import CALL, PAYLOAD, LookFurther, Plan, StartTemplate, StartWorkers
from amorsize.planning.planner import LOOK_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.planning.pickling import Payload
    from amorsize.running.measurement import Measurement


class CallMonitor:
    """The observer of a call in progress, on the probe's thread.

    Args:
        measurement: what is known so far, and what can be done about it.
        clocks: those of the thread that calls.
    """

    def __init__(self, measurement: Measurement, clocks: ThreadClocks) -> None:
        self._measurement = measurement
        self._clocks = clocks
        self._looking = Lock()
        self._caller = get_ident()
        self._settled = False
        self._spent = 0.0
        self._looked = 0.0

    def begin(self) -> None:
        """Get ready, in the thread that calls."""
        self._clocks.begin()

    def __call__(self, probe: GilProbe) -> float | None:
        """Look; return in how many seconds to do so again, or None."""
        with self._looking:
            # CPU time spent here is not the function's.
            self._spent -= time.thread_time()
            self._looked -= time.perf_counter()
            try:
                return None if self._settled else self._look(probe)
            except Exception:
                import logging  # 5 ms, where nothing goes wrong

                logging.getLogger(__name__).debug("No look at a call", exc_info=True)
                return None
            finally:
                self._spent += time.thread_time()
                self._looked += time.perf_counter()

    def _look(self, probe: GilProbe) -> float | None:
        if self._is_importing():
            return LOOK_SECONDS
        payload: Payload | None = None
        while True:
            with switching_often():
                # Looking may have taken long enough for a call to come to its end.
                if (seen := self._observe(probe, payload)) is None:
                    return LOOK_SECONDS
                plan: Plan | None = self._measurement.planner.next(seen)
                if isinstance(plan, LookFurther):
                    if plan.at == CALL:
                        return plan.seconds
                    if plan.at == PAYLOAD:
                        payload = self._measurement.measure_payload()
                    else:
                        self._measurement.look_at_machine(plan)
                    continue
                if isinstance(plan, StartTemplate):
                    self._measurement.start_template()
                    continue
            if not isinstance(plan, StartWorkers):
                return None
            self._measurement.early.start(plan)
            if plan.look_again_seconds != 0.0:
                return plan.look_again_seconds

    def _is_importing(self) -> bool:
        """Whether the caller is in the middle of an import.

        To pickle what is of that module, this thread would wait until it is over; and the caller,
        after its call, for this thread.
        """
        frame = sys._current_frames().get(self._caller)
        while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
            frame = frame.f_back
        return frame is not None

    def _observe(self, probe: GilProbe, payload: Payload | None) -> Observations | None:
        """Say what is known in the middle of a call; None where none is in progress."""
        cpu, process_cpu = self._clocks.cpu(), time.process_time()
        measurement = self._measurement
        sample = measurement.first.so_far(
            time.perf_counter(), cpu, process_cpu, self._clocks.queued()
        )
        if sample is None or (share := probe.share()) is None:
            return None
        sample.gil_share = share
        self._correct(sample, self._spent + time.thread_time(), self._looked + time.perf_counter())
        return measurement.seen._replace(
            sample=sample, in_progress=True, left=measurement.source.left, payload=payload
        )

    def settle(self, sample: Sample) -> None:
        """Wait for a look in progress, allow no other, and correct the sample for them."""
        self._settled = True
        with self._looking:
            self._correct(sample, self._spent, self._looked)

    def _correct(self, sample: Sample, spent: float, looked: float) -> None:
        sample.looks_seconds = looked
        ours = max(0.0, sample.process_cpu_seconds - sample.cpu_seconds)
        sample.process_cpu_seconds -= min(ours, spent)
