"""fetcher for Python, by ctypes: the whole of fetcher.h that makes sense there, without a thread.

    cc -shared -fPIC -O2 -o libfetcher.so fetcher.c -lcurl

    from fetcher import Fetcher
    f = Fetcher()
    f.start("https://example.org/", done=lambda r: print(r.url, r.message, len(r.data or b"")))
    f.run()

It looks for libfetcher.so in $LIBFETCHER, then beside itself. In a loop that is not the fetcher's: wait for what
wants() names, for at most prepare() ms, then call dispatch(); see README.md for Qt. All from one thread.
"""
import ctypes as c
import os
import signal
import types

READ, WRITE, GONE = 1, 2, 4
KEEP_BOTH, OVERWRITE, SKIP, UPDATE = range(4)
FRESH, FILE_TIME, COMPRESSED, SYNC, TRUSTING = 1, 2, 4, 8, 16
PAUSE, LATER = 1, -2                    # what data() and send() may return
STATES = "waiting", "running", "retrying", "sleeping", "paused", "ended"

SEND = c.CFUNCTYPE(c.c_ssize_t, c.c_void_p, c.c_void_p, c.c_size_t, c.c_int64, c.c_void_p)
DATA = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t, c.c_void_p)
CALL = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
SETUP = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p)


class Info(c.Structure):
    _fields_ = [("id", c.c_uint64), ("state", c.c_int), ("arg", c.c_void_p), ("url", c.c_char_p),
                ("path", c.c_char_p), ("message", c.c_char_p), ("status", c.c_int), ("attempts", c.c_int),
                ("priority", c.c_int), ("bytes", c.c_int64), ("total", c.c_int64), ("sent", c.c_int64),
                ("to_send", c.c_int64), ("speed", c.c_int64), ("wait_ms", c.c_int64)]


class Result(c.Structure):
    _fields_ = [("id", c.c_uint64), ("code", c.c_int), ("status", c.c_int), ("message", c.c_char_p),
                ("url", c.c_char_p), ("final_url", c.c_char_p), ("path", c.c_char_p), ("data", c.c_void_p),
                ("size", c.c_size_t), ("bytes", c.c_int64), ("received", c.c_int64),
                ("content_type", c.c_char_p), ("attempts", c.c_int), ("changed", c.c_int), ("last", c.c_int),
                ("lookup_us", c.c_int64), ("connect_us", c.c_int64), ("tls_us", c.c_int64),
                ("first_byte_us", c.c_int64), ("total_us", c.c_int64)]


PROGRESS = c.CFUNCTYPE(None, c.c_void_p, c.POINTER(Info), c.c_void_p)
DONE = c.CFUNCTYPE(None, c.c_void_p, c.POINTER(Result), c.c_void_p)


class Request(c.Structure):
    _fields_ = [("url", c.c_char_p), ("path", c.c_char_p), ("sha256", c.c_char_p), ("old_url", c.c_char_p),
                ("method", c.c_char_p), ("headers", c.POINTER(c.c_char_p)), ("user", c.c_char_p),
                ("body", c.c_char_p), ("body_size", c.c_size_t), ("on_send", SEND), ("send_size", c.c_int64),
                ("on_data", DATA), ("on_progress", PROGRESS), ("on_done", DONE), ("arg", c.c_void_p),
                ("priority", c.c_int), ("every_ms", c.c_int64), ("max_bytes", c.c_int64),
                ("connect_ms", c.c_int64), ("stall_ms", c.c_int64), ("total_ms", c.c_int64),
                ("retries", c.c_int), ("existing", c.c_int), ("flags", c.c_uint), ("setup", SETUP)]


class Stats(c.Structure):
    _fields_ = [("turns", c.c_uint64), ("done", c.c_uint64), ("failed", c.c_uint64), ("cancelled", c.c_uint64),
                ("received", c.c_int64), ("running", c.c_int), ("waiting", c.c_size_t), ("lookups", c.c_int),
                ("stall_max_us", c.c_int64), ("stall_p99_us", c.c_int64), ("culprit", c.c_char * 128),
                ("stalls", c.c_uint64 * 16), ("limit", c.c_int)]


class Want(c.Structure):
    _fields_ = [("fd", c.c_int), ("events", c.c_int)]


def load(path):
    lib = c.CDLL(path, use_errno=True)
    f, n = c.c_void_p, c.c_uint64
    for name, result, *arguments in (
            ("version", c.c_char_p), ("new", f), ("free", None, f), ("start", n, f, c.POINTER(Request)),
            ("cancel", c.c_int, f, n), ("pause", c.c_int, f, n), ("resume", c.c_int, f, n),
            ("priority", c.c_int, f, n, c.c_int), ("limit", c.c_int, f, c.c_int, c.c_int, c.c_int64),
            ("info", c.c_int, f, n, c.POINTER(Info)), ("header", c.c_char_p, f, n, c.c_char_p, c.c_int),
            ("count", c.c_size_t, f), ("stats", c.c_int, f, c.POINTER(Stats)), ("slice", c.c_int, f, c.c_int),
            ("timer", n, f, c.c_int64, CALL, f), ("timer_stop", c.c_int, f, n),
            ("step", c.c_int, f, c.c_int64), ("run", c.c_int, f), ("stop", c.c_int, f),
            ("prepare", c.c_int, f, f, f, f), ("wants", c.c_int, f, c.POINTER(Want), c.c_int),
            ("dispatch", c.c_int, f, f, f), ("strerror", c.c_char_p, c.c_int)):
        function = getattr(lib, "fetcher_" + name)
        function.restype, function.argtypes = result, arguments
    return lib


def text(raw):
    return None if raw is None else raw.decode()


def packed(value):
    """What a field of a request is made of: text is UTF-8, a path as the file system has it."""
    if isinstance(value, os.PathLike) or isinstance(value, str):
        return os.fsencode(value)
    return value


class Fetcher:
    def __init__(self, library=None):
        here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libfetcher.so")
        self.lib = load(library or os.environ.get("LIBFETCHER") or here)
        self.f = self.lib.fetcher_new()
        if not self.f:
            raise OSError(c.get_errno(), "cannot start a fetcher")
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.calls, self.last, self.room = {}, 0, (Want * 1024)()
        # What C calls has to live as long as the fetcher.
        self.on_done, self.on_progress, self.on_timer = DONE(self._done), PROGRESS(self._progress), CALL(self._timer)
        self.on_data, self.on_send = DATA(self._data), SEND(self._send)

    def close(self):
        """Cancel everything: what is owed is called now."""
        if self.f:
            self.lib.fetcher_free(self.f)
        self.f = None

    def start(self, url, done=None, progress=None, data=None, send=None, headers=(), **fields):
        """Queue a transfer, and return its id. done(result), progress(info), data(bytes), send(offset, room);
        `fields` are those of struct fetcher_request by their names."""
        self.last += 1
        key = self.last
        lines = (c.c_char_p * (len(headers) + 1))(*[h.encode() for h in headers], None)
        body = packed(fields.pop("body", None))
        rq = Request(url=url.encode(), headers=lines, arg=key, body=body, body_size=len(body or b""),
                     on_done=self.on_done, **{name: packed(value) for name, value in fields.items()})
        if progress:
            rq.on_progress = self.on_progress
        if data:
            rq.on_data = self.on_data
        if send:
            rq.on_send = self.on_send
        self.calls[key] = types.SimpleNamespace(done=done, progress=progress, data=data, send=send)
        return self._checked(self.lib.fetcher_start(self.f, c.byref(rq)), key)

    def timer(self, ms, call):
        self.last += 1
        self.calls[self.last] = call
        return self._checked(self.lib.fetcher_timer(self.f, ms, self.on_timer, self.last), self.last)

    def _checked(self, number, key):
        if not number:
            del self.calls[key]
            raise OSError(c.get_errno(), os.strerror(c.get_errno()))
        return number

    def cancel(self, number):
        return self.lib.fetcher_cancel(self.f, number) == 0

    def pause(self, number):
        return self.lib.fetcher_pause(self.f, number) == 0

    def resume(self, number):
        return self.lib.fetcher_resume(self.f, number) == 0

    def priority(self, number, priority):
        return self.lib.fetcher_priority(self.f, number, priority) == 0

    def limit(self, total=0, per_host=0, bytes_per_second=0):
        return self.lib.fetcher_limit(self.f, total, per_host, bytes_per_second) == 0

    def slice(self, us):
        return self.lib.fetcher_slice(self.f, us) == 0

    def header(self, number, name, n=0):
        """Within a callback: the n-th value of a field of the answer, or None."""
        return text(self.lib.fetcher_header(self.f, number, name.encode(), n))

    def info(self, number):
        i = Info()
        return self._info(i) if self.lib.fetcher_info(self.f, number, c.byref(i)) == 0 else None

    def stats(self):
        s = Stats()
        self.lib.fetcher_stats(self.f, c.byref(s))
        return s

    def count(self):
        return self.lib.fetcher_count(self.f)

    def step(self, ms=-1):
        return self.lib.fetcher_step(self.f, ms) == 1

    def run(self):
        """Until nothing is left to do; ^C is heard once a second."""
        while self.step(1000):
            pass

    def prepare(self):
        return self.lib.fetcher_prepare(self.f, None, None, None)

    def wants(self):
        n = self.lib.fetcher_wants(self.f, self.room, len(self.room))
        return [(w.fd, w.events) for w in self.room[:n]]

    def dispatch(self):
        return self.lib.fetcher_dispatch(self.f, None, None) == 0

    def version(self):
        return text(self.lib.fetcher_version())

    # -- what C calls --

    def _done(self, f, result, key):
        r = result.contents
        calls = self.calls[key]
        if r.last:
            del self.calls[key]
        if calls.done:
            calls.done(types.SimpleNamespace(
                id=r.id, code=text(self.lib.fetcher_strerror(r.code)), status=r.status, message=text(r.message),
                url=text(r.url), final_url=text(r.final_url), path=r.path and os.fsdecode(r.path),
                data=c.string_at(r.data, r.size) if r.data else None, bytes=r.bytes, received=r.received,
                content_type=text(r.content_type), attempts=r.attempts, changed=bool(r.changed), last=bool(r.last),
                lookup_us=r.lookup_us, connect_us=r.connect_us, tls_us=r.tls_us, first_byte_us=r.first_byte_us,
                total_us=r.total_us))

    def _info(self, i):
        return types.SimpleNamespace(
            id=i.id, state=STATES[i.state], url=text(i.url), path=i.path and os.fsdecode(i.path),
            message=text(i.message), status=i.status, attempts=i.attempts, priority=i.priority, bytes=i.bytes,
            total=i.total, sent=i.sent, to_send=i.to_send, speed=i.speed, wait_ms=i.wait_ms)

    def _progress(self, f, info, key):
        self.calls[key].progress(self._info(info.contents))

    def _data(self, f, data, size, key):
        return self.calls[key].data(c.string_at(data, size)) or 0

    def _send(self, f, to, room, at, key):
        """send() returns bytes, at most `room` of them; LATER; or None: it can't."""
        piece = self.calls[key].send(at, room)
        if piece is None or piece == LATER:
            return -1 if piece is None else LATER
        c.memmove(to, piece, len(piece))
        return len(piece)

    def _timer(self, f, key):
        self.calls.pop(key)()


if __name__ == "__main__":              # how C and Python see it: for a test that compares
    for kind in Request, Result, Info, Stats, Want:
        for field in kind._fields_:
            print(kind.__name__.lower(), field[0], getattr(kind, field[0]).offset)
        print(kind.__name__.lower(), "size", c.sizeof(kind))
