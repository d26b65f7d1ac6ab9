# How long does a QTimer of 1 ms wait at most, while a PyQt5 program gets many files? Once with the class QtFetcher
# of the README (app.py), once with threads: 16 QThreads that call urllib.
#
#     QT_QPA_PLATFORM=offscreen python3 qt_delay.py fetcher|threads URL COUNT
import sys, time, urllib.request
from PyQt5.QtCore import QThread, QTimer, Qt, pyqtSignal
from PyQt5.QtWidgets import QApplication

how, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
app = QApplication(sys.argv)
got, size, longest, last = 0, 0, 0.0, time.monotonic()


def tick():
    global longest, last
    now = time.monotonic()
    longest, last = max(longest, now - last), now


def done(r):
    came(r.message, r.data)


def came(message, data):
    global got, size
    got += 1
    size += len(data)
    if got == count:
        app.quit()


class Worker(QThread):
    got = pyqtSignal(str, bytes)        # to the thread of the window

    def __init__(self, urls):
        super().__init__()
        self.urls = urls

    def run(self):
        for u in self.urls:
            self.got.emit("done", urllib.request.urlopen(u).read())


urls = [url % i for i in range(count)]
timer = QTimer(timerType=Qt.PreciseTimer, timeout=tick)
timer.start(1)
begun = time.monotonic()
if how == "fetcher":
    from app import QtFetcher
    fetcher = QtFetcher()
    fetcher.limit(16, 16)
    for u in urls:
        fetcher.start(u, done=done)
else:
    threads = [Worker(urls[i::16]) for i in range(16)]
    for t in threads:
        t.got.connect(came)
        t.start()
last = time.monotonic()                 # from here on Qt's loop runs
app.exec()
if how != "fetcher":
    for t in threads:
        t.wait()
print("%d files, %d bytes in %.2f s; longest delay %.1f ms" %
      (got, size, time.monotonic() - begun, longest * 1000))
