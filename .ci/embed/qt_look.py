# Run the README's program as it stands, with its 5 seconds cut short, until it has looked three times.
import sys
from PyQt5.QtCore import QTimer
from PyQt5.QtWidgets import QApplication, QLabel

looks, single_shot, set_text = 0, QTimer.singleShot, QLabel.setText


def text_set(label, text):
    global looks
    set_text(label, text)
    looks += 1
    if looks == 3:
        print("looked 3 times" if len(text) == 7 else "not the text: " + text)
        QApplication.quit()


QTimer.singleShot = lambda ms, call: single_shot(min(ms, 10), call)
QLabel.setText = text_set
exec(compile(open("app.py").read(), "app.py", "exec"), {"__name__": "__main__"})
