# SPDX-License-Identifier: 0BSD
"""Twisted: an Agent on a pool of persistent connections, and a coroutine for each that is in flight."""
import sys

from twisted.internet import defer, reactor, task
from twisted.web.client import Agent, HTTPConnectionPool, readBody

import contract


async def fetch(url):
    request = agent.request(b"GET", url.encode())
    if cancel is not None:
        request.addTimeout(cancel, reactor)
    answer = await request
    body = await readBody(answer)
    if answer.code != 200:
        raise OSError(answer.code)
    with open(path(url), "wb") as file:
        file.write(body)


async def work(waiting):
    for url in waiting:
        try:
            await fetch(url)
        except Exception as error:
            print(url, repr(error), file=sys.stderr)


urls, path, jobs, cancel = contract.read()
pool = HTTPConnectionPool(reactor, persistent=True)
pool.maxPersistentPerHost = jobs
agent = Agent(reactor, pool=pool)
ticks = contract.Ticks()
task.LoopingCall(ticks.tick).start(0.001, now=False)
waiting = iter(urls)
workers = [defer.ensureDeferred(work(waiting)) for _ in range(jobs)]
defer.DeferredList(workers).addCallback(lambda _: ticks.report())
reactor.run()
