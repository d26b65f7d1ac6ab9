# SPDX-License-Identifier: 0BSD
"""PyQt5 with Python's own threads: they take URLs from one queue, and put results into another."""
import queue
import shutil
import sys
import threading
import urllib.request

from PyQt5.QtCore import Qt, QTimer
from PyQt5.QtGui import QGuiApplication

import contract


def work():
    while True:
        url = waiting.get()
        try:
            with urllib.request.urlopen(url) as answer, open(path(url), "wb") as file:
                shutil.copyfileobj(answer, file)
            results.put((url, None))
        except OSError as error:
            results.put((url, error))


def on_tick():
    global left
    ticks.tick()
    while not results.empty():
        url, error = results.get()
        if error:
            print(url, error, file=sys.stderr)
        left -= 1
    if left == 0:
        app.quit()


app = QGuiApplication(sys.argv)
urls, path, jobs, _ = contract.read()
left = len(urls)
waiting, results = queue.SimpleQueue(), queue.SimpleQueue()
ticks = contract.Ticks()
timer = QTimer(timerType=Qt.PreciseTimer)
timer.timeout.connect(on_tick)
timer.start(1)
for url in urls:
    waiting.put(url)
for _ in range(jobs):
    threading.Thread(target=work, daemon=True).start()
app.exec_()
ticks.report()
