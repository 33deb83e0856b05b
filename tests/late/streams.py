"""Streams and events of the simulated device, and the random order in which their work runs."""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Moment(NamedTuple):
    """End of the work that had been queued on a stream at some time."""

    stream: "Stream"
    number: int
    """Number of pieces of work that were queued until then."""

    @property
    def is_past(self) -> bool:
        """Whether the work is done."""
        return self.stream.num_done >= self.number


class Work(NamedTuple):
    """A kernel, a copy or a wait in a stream's queue."""

    run: Callable[[], object]
    after: Moment | None
    """Moment on another stream that must be past before the work may run."""


class Stream:
    """Queue of work that runs in order. A new stream has a random speed relative to the others."""

    def __init__(self, order: "Order") -> None:
        self._order = order
        self.queue: deque[Work] = deque()
        self.num_queued = 0
        self.num_done = 0
        self.speed = 1e-4 ** order.rng.random()
        order.streams.append(self)

    def push(self, run: Callable[[], object], after: Moment | None = None) -> None:
        """Queue work. The device may run some of the queued work at once."""
        self.queue.append(Work(run, after))
        self.num_queued += 1
        self._order.run_some()

    @property
    def now(self) -> Moment:
        """End of all work that is queued now."""
        return Moment(self, self.num_queued)

    @property
    def is_ready(self) -> bool:
        """Whether there is work, and it does not have to wait for another stream."""
        return bool(self.queue) and (self.queue[0].after is None or self.queue[0].after.is_past)

    def run_one(self) -> None:
        """Run the first work in the queue."""
        self.queue.popleft().run()
        self.num_done += 1

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Return an event at the end of all work that is queued now."""
        event = event or Event(self._order)
        event.moment = self.now
        return event

    def wait_event(self, event: "Event") -> None:
        """Let later work wait for an event. An event that is recorded again later does not change this wait."""
        if event.moment is not None and event.moment.stream is not self:
            self.push(lambda: None, after=event.moment)

    def wait_stream(self, other: "Stream") -> None:
        """Let later work wait for all work that is queued on another stream now."""
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        """Let the host wait for all work that is queued now."""
        self._order.run_until(self.now)

    def query(self) -> bool:
        """Return whether all work is done, without waiting."""
        return self.now.is_past


class Event:
    """Moment on a stream. An event that was never recorded is past."""

    def __init__(self, order: "Order", **_options: bool) -> None:
        self._order = order
        self.moment: Moment | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Set the event to the end of all work that is queued now on a stream, by default the current one."""
        (stream or self._order.current).record_event(self)

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream, by default the current one, wait for the event."""
        (stream or self._order.current).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait for the event."""
        if self.moment is not None:
            self._order.run_until(self.moment)

    def query(self) -> bool:
        """Return whether the event is past, without waiting."""
        return self.moment is None or self.moment.is_past


class Order:
    """Random order in which queued work runs.

    Work runs when the host waits for something, and with probability `eager` after work was queued.

    Attributes:
        current: stream that gets new work.
        default: stream that is current at the start.
    """

    def __init__(self, seed: int, eager: float) -> None:
        self.rng = random.Random(seed)
        self.streams: list[Stream] = []
        self.default = self.current = Stream(self)
        self._eager = eager

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """Make a stream the current one; None changes nothing."""
        before, self.current = self.current, stream or self.current
        try:
            yield
        finally:
            self.current = before

    def run_some(self) -> None:
        """Run a random number of pieces of work."""
        while self.rng.random() < self._eager and (ready := self._ready()):
            self._run_one_of(ready)

    def run_until(self, moment: Moment) -> None:
        """Run work in a random order until a moment is past."""
        while not moment.is_past:
            self._run_one_of(self._ready())

    def synchronize(self) -> None:
        """Run all work that is queued."""
        for stream in self.streams:
            self.run_until(stream.now)

    def _ready(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.is_ready]

    def _run_one_of(self, ready: Sequence[Stream]) -> None:
        [stream] = self.rng.choices(ready, [stream.speed for stream in ready])
        stream.run_one()
