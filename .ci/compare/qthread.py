# SPDX-License-Identifier: 0BSD
"""PyQt5 with QThread workers: the main thread keeps the window alive, the workers call urllib."""
import os
import queue
import shutil
import sys
import urllib.request

from PyQt5.QtCore import Qt, QThread, QTimer, pyqtSignal
from PyQt5.QtGui import QGuiApplication

import contract


class Worker(QThread):
    fetched = pyqtSignal(str, str)  # URL, and what went wrong or ""

    def __init__(self, urls, path):
        super().__init__()
        self.urls, self.path = urls, path

    def run(self):
        while True:
            try:
                url = self.urls.get_nowait()
            except queue.Empty:
                return
            try:
                with urllib.request.urlopen(url) as answer:
                    if into_memory:
                        answer.read()
                    else:
                        with open(self.path(url), "wb") as file:
                            shutil.copyfileobj(answer, file)
                self.fetched.emit(url, "")
            except OSError as error:
                self.fetched.emit(url, str(error))


def on_fetched(url, error):
    global left
    if error:
        print(url, error, file=sys.stderr)
    left -= 1
    if left == 0:
        app.quit()


app = QGuiApplication(sys.argv)
urls, path, jobs, _ = contract.read()
into_memory = "INTO_MEMORY" in os.environ
jobs = int(os.environ.get("WORKERS", jobs))
left = len(urls)
ticks = contract.Ticks()
timer = QTimer(timerType=Qt.PreciseTimer)
timer.timeout.connect(ticks.tick)
timer.start(1)
waiting = queue.SimpleQueue()
for url in urls:
    waiting.put(url)
workers = [Worker(waiting, path) for _ in range(jobs)]
for worker in workers:
    worker.fetched.connect(on_fetched)
    worker.start()
app.exec_()
ticks.report()
