# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One step of a hook: its buckets come one by one, and are done in any order."""

import threading

import torch


class Round:
    """Counts the buckets of a step, and calls `finish` with itself when all of them are decoded.

    On CUDA each bucket is decoded on a stream of its own; events order what uses several buckets'
    state after all of them.

    buckets : list of (exchange, own payload, counts of what was not finite)
    """

    def __init__(self, step, finish):
        self.step, self.buckets = step, []
        self._finish, self._lock, self._events = finish, threading.Lock(), []
        self._open, self._closed = 0, False

    def launched(self, last):
        """Note that a bucket is under way."""
        with self._lock:
            self._open += 1
            self._closed = last

    def follow(self, future, work, device):
        """Return the future of `work`, called with the value of another one."""

        def callback(done):
            result = work(done.value())
            self.completed(device)
            return result

        return future.then(callback)

    def decoded(self, exchange, payload, counts):
        """Note what came of a bucket."""
        with self._lock:
            self.buckets.append((exchange, payload, counts))

    def completed(self, device):
        """Note that a bucket is done."""
        with self._lock:
            if device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._events.append((device, event))
            self._open -= 1
            last = self._closed and self._open == 0
        if last:
            self.wait()
            self._finish(self)
            self.buckets = []

    def wait(self):
        """Let the current stream wait for all buckets that have been decoded."""
        for device, event in self._events:
            torch.cuda.current_stream(device).wait_event(event)
