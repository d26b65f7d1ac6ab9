# SPDX-License-Identifier: 0BSD
"""What contract.h is for C: the arguments, and the delay of each tick."""
import os
import sys
import time


def read():
    """The URLs, the path that each goes to, how many in flight, and the seconds until it is given up."""
    with open(sys.argv[1]) as f:
        urls = f.read().split()
    cancel = float(sys.argv[4]) / 1000 if len(sys.argv) > 4 else None
    return urls, lambda url: sys.argv[2] + "/" + url.rsplit("/", 1)[1], int(sys.argv[3]), cancel


class Ticks:
    def __init__(self):
        self.begin = self.last = time.perf_counter()
        self.delays = []

    def tick(self):
        now = time.perf_counter()
        self.delays.append(max(0.0, now - self.last - 0.001))
        self.last = now

    def report(self):
        """Tell, and end at once: what a library does when it shuts down is not compared."""
        if not self.delays or time.perf_counter() > self.last + 0.001:
            self.tick()  # one that is owed counts too
        seconds = time.perf_counter() - self.begin
        d = sorted(round(x * 1e6) for x in self.delays)
        print("ticks", len(d), d[len(d) // 2], d[len(d) * 99 // 100], d[-1], "%.3f" % seconds, flush=True)
        os._exit(0)
