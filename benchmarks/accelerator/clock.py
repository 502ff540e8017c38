"""Time, peak memory, launches and waits of a repeated computation on a device.

Steps are timed together, from one synchronisation to the next, so that the host may run ahead of the device as it does
in a real training. One further step is profiled, since the profiler slows the host.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
"""What the profiler calls the launch of a kernel, PyTorch's own and Triton's, and of a graph of kernels."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""What it calls a host that waits for the device."""


@dataclass(frozen=True)
class Measured:
    """A computation's cost."""

    seconds: float
    """Mean of the timed steps."""
    peak_mib: float | None
    """Peak memory of the device, everything included; None on a CPU."""
    launches: int | None = None
    """Kernel launches of one step; None on a CPU."""
    waits: int | None = None
    """How often the host waits for the device in one step; the measurement's own wait is not counted."""
    idle: float | None = None
    """Share of a step in which the device computes nothing: it waits for launches, or for the host."""

    def fields(self) -> dict[str, float | int | None]:
        """Return plain values."""
        return asdict(self)


class StepClock:
    """Stopwatch of a training's steps: some for warming up, some that are timed together, one that is profiled.

    Args:
        device: where the steps run.
        warm_up: steps before the timed ones.
        timed: steps that are timed.
    """

    def __init__(self, device: torch.device, warm_up: int, timed: int):
        self.device, self.warm_up, self.timed = device, warm_up, timed
        self.at_start: Callable[[], None] = lambda: None
        """Called when the timed steps begin, for what counts from there on."""
        self.at_end: Callable[[], None] = lambda: None
        """Called when they have ended."""
        self._ended = 0
        self._profiler: profile | None = None
        self._seconds, self._peak = 0.0, None

    @property
    def steps(self) -> int:
        """Steps that have to be made in all."""
        return self.warm_up + self.timed + (1 if self._profiles else 0)

    @property
    def _profiles(self) -> bool:
        return self.device.type == "cuda"

    def begin_step(self) -> None:
        """Note that a step begins."""
        if self._ended == self.warm_up:
            self._start_timing()
        elif self._profiles and self._ended == self.warm_up + self.timed:
            self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profiler.start()

    def end_step(self) -> None:
        """Note that a step has ended."""
        self._ended += 1
        if self._ended == self.warm_up + self.timed:
            self._stop_timing()
        elif self._profiler is not None:
            synchronise(self.device)
            self._profiler.stop()

    def run(self, step: Callable[[], object]) -> Measured:
        """Make all steps and return their cost."""
        for _ in range(self.steps):
            self.begin_step()
            step()
            self.end_step()
        return self.measured()

    def measured(self) -> Measured:
        """Return the cost of a step, after all of them."""
        if self._ended < self.steps:
            raise RuntimeError(f"{self._ended} of {self.steps} steps were made")
        if self._profiler is None:
            return Measured(self._seconds, self._peak)
        launches, waits, busy = counted(self._profiler)
        # The last wait is `end_step`'s own.
        return Measured(self._seconds, self._peak, launches, max(0, waits - 1), max(0.0, 1 - busy / self._seconds))

    def _start_timing(self) -> None:
        self.at_start()
        synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = time.perf_counter()

    def _stop_timing(self) -> None:
        synchronise(self.device)
        self._seconds = (time.perf_counter() - self._started) / self.timed
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        self.at_end()


def synchronise(device: torch.device) -> None:
    """Wait for everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Free what the last contestant has left, so that the next one starts with an empty device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def counted(profiler: profile) -> tuple[int, int, float]:
    """Return launches, waits, and the seconds in which the device was busy, of what was profiled."""
    launches = waits = 0
    busy_us = 0.0
    for event in profiler.key_averages():
        if event.key in LAUNCHES:
            launches += event.count
        elif event.key in WAITS:
            waits += event.count
        # Ranges that a program names are on the device too, around the kernels inside them.
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            busy_us += event.self_device_time_total
    return launches, waits, busy_us / 1e6
