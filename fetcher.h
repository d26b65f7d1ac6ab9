/* SPDX-License-Identifier: 0BSD
 *
 * fetcher.h - fetch URLs without ever freezing the program around it.
 *
 * One select() loop serves every transfer (by libcurl's multi interface) and
 * everything else the program waits for: a window, a terminal, pipes, timers,
 * signals. There are no threads of ours. (libcurl's usual resolver may start
 * one for the time of a name lookup; it never runs any of your code.)
 *
 *     static void done(struct fetcher *f, const struct fetcher_result *r,
 *                      void *arg)
 *     {
 *         printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
 *     }
 *
 *     struct fetcher *f = fetcher_new();
 *     fetcher_get(f, "https://example.org/", done, NULL);
 *     fetcher_run(f);                 (returns when nothing is left to do)
 *     fetcher_free(f);
 *
 * Contents
 *     Rules          what always holds, numbered; each has a test
 *     Codes          how a transfer can end
 *     Requests       what to fetch, and how
 *     Results        what came of it
 *     Control        cancel, pause, resume, priority, limits, questions
 *     The loop       descriptors, timers, post; running it, or joining yours
 *
 * Compile fetcher.c as C (C99, POSIX.1-2008), link with -lcurl (7.62 or
 * newer). The header may be included from C++. libcurl needs
 * curl_global_init(); fetcher_new calls it. curl_global_init is not safe while
 * other threads run (before libcurl 7.84), so a threaded program calls it
 * first, in main. And libcurl reads a host's name, if there are letters beyond
 * ASCII in it, in the charset of the locale: for URLs in UTF-8 a program calls
 * setlocale(LC_CTYPE, "C.UTF-8"), or "" where the user's locale has that
 * charset. Without it such a URL ends with FETCHER_BAD_URL. And glibc gives the
 * heap back in one call: 50 ms when the last of a million transfers is freed; a
 * program that minds calls mallopt(M_TRIM_THRESHOLD, -1), and so keeps it.
 *
 * With -DFETCHER_LOOP, fetcher.c is the event loop alone and needs no libcurl:
 * fetcher_new, _free, _watch, _timer, _timer_stop, _post, _now, _step, _run,
 * _stop, _prepare, _wants, _dispatch, _slice, _stats, _trace and _version.
 *
 * Rules
 *  1. Ids are 64-bit and never used again. A stale id is an error return
 *     (-1, errno ENOENT), never a crash.
 *  2. on_done runs exactly once for every transfer (once a round for one that
 *     repeats, the last one flagged `last`), also after fetcher_cancel and in
 *     fetcher_free, and never before the call that started it has returned.
 *     So `arg` has one place to die.
 *  3. Every function may be called from every callback, except fetcher_free,
 *     fetcher_step, fetcher_run and fetcher_dispatch: those return -1 with
 *     errno EBUSY (fetcher_free returns without effect).
 *  4. Changing a watch clears what was known of its descriptor: one that was
 *     closed and opened again never gets stale news.
 *  5. A timer made during a turn of the loop runs in a later turn.
 *  6. A descriptor at or above FD_SETSIZE is refused (EMFILE). Memory past an
 *     fd_set is never touched.
 *  7. fetcher_post is the only function that is safe from a signal handler or
 *     from another thread. Everything else belongs to the thread that made the
 *     fetcher.
 *  8. The library never exits, never aborts for lack of memory, installs no
 *     signal handler, ignores no signal, prints nothing, and changes no state
 *     of the process but by curl_global_init. One duty follows for your
 *     program: ignore SIGPIPE (`signal(SIGPIPE, SIG_IGN)`), since a server may
 *     close a connection while it is written to.
 *  9. There are no mutable globals: two fetchers live side by side.
 *
 * Functions that return int return 0, or -1 with errno set: EINVAL (an
 * argument makes no sense), ENOENT (no such id), ENOMEM, EBUSY (rule 3),
 * EMFILE (rule 6). Strings are UTF-8 or plain bytes, ended by NUL.
 */
#ifndef FETCHER_H
#define FETCHER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/select.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FETCHER_VERSION "1.0.0"

/* The version of the library that runs, which may be another than that of this
 * header. Never NULL. */
const char *fetcher_version(void);

struct fetcher;
struct fetcher_info;
struct fetcher_result;

/* Of a transfer (1, 2, 3 ...) or a timer (large numbers); 0 is none. */
typedef uint64_t fetcher_id;

/* ------------------------------------------------------------------ Codes */

enum fetcher_code {
    FETCHER_OK,            /* whole and, if it was a file, under its name */
    FETCHER_CANCELLED,     /* by fetcher_cancel or fetcher_free */
    FETCHER_BAD_URL,       /* not a URL, or a scheme other than http, https */
    FETCHER_NO_HOST,       /* the name could not be looked up */
    FETCHER_NO_CONNECTION, /* refused, unreachable */
    FETCHER_TLS,           /* no trust: certificate or handshake */
    FETCHER_TIMEOUT,       /* connect_ms, stall_ms or total_ms was over */
    FETCHER_HTTP,          /* the server answered with an error status */
    FETCHER_REDIRECT,      /* more than 20 redirects, or to a bad URL */
    FETCHER_CUT_SHORT,     /* the connection ended before the body did */
    FETCHER_TOO_BIG,       /* more than max_bytes, or endless headers */
    FETCHER_FILE,          /* the file could not be made or written */
    FETCHER_PROTOCOL,      /* the answer was not HTTP, or broken, or a flood */
    FETCHER_REFUSED,       /* on_data or on_send returned a negative number */
    FETCHER_CHECKSUM,      /* it is not what sha256 says */
    FETCHER_NO_MEMORY,
    FETCHER_OTHER /* anything else libcurl can say */
};

/* The code as one word for programs to read: "ok", "no_host", "too_big" ...
 * Never NULL; "other" for a number that is no code. */
const char *fetcher_strerror(enum fetcher_code code);

/* --------------------------------------------------------------- Requests */

#define FETCHER_PAUSE 1    /* on_data: not now */
#define FETCHER_LATER (-2) /* on_send: nothing yet */

/* What if the file exists already? One that is replaced passes its mode on,
 * and its owner where that may be. What is no plain file (a directory, a
 * device, a FIFO, also behind a link) is never replaced: FETCHER_FILE. */
enum fetcher_existing {
    FETCHER_KEEP_BOTH, /* the new one becomes "name (1).ext" */
    FETCHER_OVERWRITE, /* it is replaced, in one step */
    FETCHER_SKIP,      /* nothing is fetched; FETCHER_OK, changed 0 */

    /* It is replaced if it has changed, else left alone (changed 0): a file
     * that was fetched by this, also in an earlier run, from the same URL, and
     * that nobody has changed since, is asked for with the ETag or date that it
     * came with. It remembers those itself (the attribute user.fetcher), and
     * where the file system has no attributes by its time, which is that of
     * Last-Modified: FETCHER_FILE_TIME is implied. In a directory it is the
     * file that is called as the URL is, not as the server calls it. */
    FETCHER_UPDATE
};

#define FETCHER_FRESH     1u /* do not continue an earlier .part */
#define FETCHER_FILE_TIME 2u /* set the file's time from Last-Modified */

/* Accept gzip and deflate, and inflate what comes; never done for files. It
 * also keeps the steps short, which CURLOPT_ACCEPT_ENCODING in setup would
 * not: 1 KiB of zstd may become 32 MiB at once. */
#define FETCHER_COMPRESSED 4u

/* Where a redirect leads to other servers the headers and the login go too. */
#define FETCHER_TRUSTING 16u

/* A file is on the disk, under its name, before on_done, and so outlives a
 * power cut. That blocks, for as long as the disk takes; without it a file
 * that was done in the last half minute may stand empty or short after
 * one. */
#define FETCHER_SYNC 8u

/* All fields may be 0 but url; fill with designated initialisers (or memset).
 * Everything is copied by fetcher_start except what `arg` points to. */
struct fetcher_request {
    /* http or https. Without a scheme, http is taken if the host has a dot in
     * it, is localhost, or stands behind an '@'. It may be as people paste it:
     * spaces around it are left out, and behind the host what has no place in
     * a URL (a space, "<>^`{|}, what isn't ASCII; in the query ' too) is sent
     * encoded, as browsers do; a '%' is left alone. At most 64 KiB, when
     * encoded; no control characters. */
    const char *url;

    /* Where the body goes: a file of this name; or, if it ends in '/', into
     * that directory under the name that the server gives
     * (Content-Disposition), else the last part of the URL, else index.html,
     * made safe. Missing directories are made. What is longer than 16 KiB is
     * collected in "NAME.part", and NAME appears only when it is whole. Beside
     * a .part stands "NAME.part.meta", by which a later transfer, of this
     * process or another, goes on; a .part that can't be continued is removed.
     * If the machine was started anew since, the .part is proved first, by a
     * check for each MiB, and cut off where it is not what was written. A part
     * that another process leaves in a directory where many files were made
     * already may be overlooked.
     * NULL: to on_data if there is one, else into memory. */
    const char *path;

    /* The SHA-256 of the whole, 64 digits of hex; NULL: not known. It is
     * computed while the bytes come, and those of an earlier run are read once
     * more. If it is another, all is fetched anew, once; and then the transfer
     * ends with FETCHER_CHECKSUM, and nothing stands under the name (what
     * on_data was given can't be taken back: there it ends at once). Since it
     * proves the whole, what a file has so far is gone on with from any
     * address. Of what is skipped, or not modified, nothing is computed. */
    const char *sha256;

    /* The address by which this was fetched before, as its result called it
     * (`url`), if that has expired: what it has left in a .part is gone on with
     * if both differ in their query alone, and a strong ETag and the length are
     * the same. With sha256 it isn't needed. NULL: none. */
    const char *old_url;

    /* NULL: GET, or POST if there is a body of either kind. Redirects are
     * followed by RFC 9110, 15.4: 303 makes a GET of it, 301 and 302 make one
     * of a POST; any other keeps its method and body. A cookie that a redirect
     * sets is sent where it leads, and then forgotten. */
    const char *method;
    /* "Name: value", the last one NULL. Where a redirect leads to another
     * server (scheme, host and port; from http to https is the same) they stay
     * behind, but Accept, Accept-..., Content-Type, Expect, If-..., Range and
     * User-Agent: see FETCHER_TRUSTING. The body of a 307 or 308 goes there.
     * With a Range of one's own that range comes (status 206), or the whole
     * from a server that knows none (200); nothing of it is continued. */
    const char *const *headers;
    /* "NAME:PASSWORD", if the URL has none: sent at once, as Basic; and where
     * the answer asks for Digest, once more as that. */
    const char *user;
    const void *body; /* to send; may hold NULs */
    size_t body_size; /* 0 with a body: it is a string */

    /* Or a body by pieces: called when more of it can be sent. Put up to `room`
     * bytes of it there, from its byte `at` on, and return how many; 0: that
     * was all; FETCHER_LATER: nothing yet, and it is called again after
     * fetcher_resume, or when an answer begins before; any other negative
     * number: it can't, and the transfer ends with FETCHER_REFUSED. A retry, a
     * redirect or a login sends the body once more, from `at` 0 on: what can't
     * go back refuses that. Nothing is said of its type, but by `headers`. */
    ptrdiff_t (*on_send)(struct fetcher *f, void *to, size_t room, int64_t at,
                         void *arg);
    int64_t send_size; /* its bytes; 0: not known, and sent chunked */

    /* Called with each piece of the body, which belongs to the library and is
     * gone after the call. Return 0: taken. FETCHER_PAUSE: nothing was taken;
     * the piece comes again after fetcher_resume. Negative: end the transfer
     * with FETCHER_REFUSED. Only the body of a 2xx answer comes here. What
     * was taken can't be taken back: a retry goes on behind it, if the server
     * proves the document the same; else there is none. */
    int (*on_data)(struct fetcher *f, const void *data, size_t size, void *arg);

    /* Called when the transfer begins an attempt, is to be tried again, sleeps
     * or pauses, and, while data comes or goes, at most every 100 ms (but for
     * bodies of up to 16 KiB, which go at once). The info is as
     * fetcher_info's, valid during the call. */
    void (*on_progress)(struct fetcher *f, const struct fetcher_info *info,
                        void *arg);

    /* Called at the end: see rule 2. NULL: nobody is told. */
    void (*on_done)(struct fetcher *f, const struct fetcher_result *r,
                    void *arg);
    void *arg; /* passed to the callbacks, never touched */

    int priority; /* higher starts sooner; 0 is usual */

    /* Fetch again and again: the first time at once, then every every_ms
     * (1000 or more; 0: once), each up to a twentieth of that later, so that
     * many don't come together. Requests after the first are conditional
     * (ETag, else Last-Modified): an unchanged document is not sent again and
     * its file is not touched. No failure ends the repetition: it backs off,
     * and goes on until it is cancelled. Rounds missed while the machine or
     * the process was stopped are not made up for. Each round replaces the
     * file of the one before. With FETCHER_KEEP_BOTH the first makes it, and
     * if there is one already, that ends the repetition (FETCHER_FILE); with
     * FETCHER_UPDATE it goes on with that. Where the server says for how long
     * the document is fresh (Cache-Control: max-age), no round comes sooner, an
     * hour at most. */
    int64_t every_ms;

    /* Most bytes of body to accept; 0: 64 MiB into memory, no limit
     * elsewhere; -1: no limit. */
    int64_t max_bytes;

    /* Time limits in ms. 0 is the usual, -1 none. To wait in the queue counts
     * for total_ms alone, and only once there has been an attempt, or since
     * the host asked to be left alone. What keeps the loop away (the process
     * was stopped, your program or a callback took its time) counts for none,
     * but 10 ms of it each turn. A lookup that was given up runs on by itself,
     * and its host is not asked again before it is over. */
    int64_t connect_ms; /* lookup, connect, TLS, of each connection that
                           redirects lead to; usual 30000 */
    int64_t stall_ms;   /* no byte has come or gone; usual 30000 */
    int64_t total_ms;   /* of all attempts together; usual none */

    /* How often to try again after what may pass: a name not found, no
     * connection, a stall, a body cut short, an answer that is broken, status
     * 408, 425, 429, 500, 502, 503, 504. 0 is the usual 5, -1 never. The
     * waits grow from 1 s to 60 s, at random up to that ("full jitter"). With
     * Retry-After (RFC 9110, 10.2.3; at most an hour) 413, 429 and 503 hold
     * back every transfer to the host that says so, and 403 this one; they are
     * tried again then. A retry goes on behind the bytes that are there,
     * if the server proves that they are the same. A method other than GET,
     * HEAD, PUT, DELETE, OPTIONS is tried again only if nothing of it went
     * out, or if it was answered by 429 or 503, without a redirect before.
     * Who polls, and wants to know at once that it failed, says -1. */
    int retries;

    enum fetcher_existing existing;
    unsigned flags; /* FETCHER_FRESH ... */

    /* The escape hatch, in place of thirty wrappers: called for each attempt
     * with libcurl's easy handle (a CURL *), after all options are set and
     * before it starts. Set anything with curl_easy_setopt, except the
     * callbacks, CURLOPT_HTTPHEADER and CURLOPT_PRIVATE, which are the
     * library's. Return 0, or a negative number to fail the transfer
     * (FETCHER_OTHER). Careful with what can block: other schemes,
     * CURLOPT_INTERFACE with a name, cookie jars, and a CURLOPT_SSLKEY that is
     * locked, for whose pass phrase OpenSSL asks the terminal unless there is a
     * CURLOPT_KEYPASSWD, be it empty. */
    int (*setup)(void *easy, void *arg);
};

/* Queue a transfer. Returns its id, or 0 with errno EINVAL (no url, an empty
 * path, or one together with on_data, two bodies, a line break in a header, a
 * space in the method, a number or enumerator out of its range), ENOMEM, or
 * EBUSY (the fetcher is being freed). All else that can be wrong, the URL too,
 * comes to on_done, in a later turn. */
fetcher_id fetcher_start(struct fetcher *f, const struct fetcher_request *r);

/* The one-liner: GET into memory. Everything else as fetcher_start. */
fetcher_id fetcher_get(struct fetcher *f, const char *url,
                       void (*on_done)(struct fetcher *f,
                                       const struct fetcher_result *r,
                                       void *arg),
                       void *arg);

/* ---------------------------------------------------------------- Results */

/* Everything in it belongs to the library and is valid during on_done. Text is
 * never NULL and safe to print: no control characters, valid UTF-8. Paths
 * (path) are exact, as the file system has them. */
struct fetcher_result {
    fetcher_id id;
    enum fetcher_code code;
    int status;            /* of HTTP; 0: none came that was the last */
    const char *message;   /* for people: "404 Not Found" */
    const char *url;       /* as asked for, any password removed */
    const char *final_url; /* after redirects, likewise */
    const char *path;      /* the file's name at last; NULL: no file */

    /* The body in memory, of an error page too, with a NUL behind it, and its
     * bytes. NULL and 0 if it went elsewhere. */
    const char *data;
    size_t size;

    int64_t bytes;            /* of body there now, wherever it went */
    int64_t received;         /* bytes of body from the network, all attempts;
                                 less than `bytes` if a part was continued */
    const char *content_type; /* "" if none was given */
    int attempts;             /* requests made, 0 if it never started */
    int changed;              /* 0: not modified, or skipped: so `data` is NULL,
                                 also where an earlier round had brought it */
    int last;                 /* no on_done will follow for this id */

    /* Of the last attempt, in microseconds since its start, 0 if not reached
     * (a connection used again needs no lookup, connect or TLS). */
    int64_t lookup_us;
    int64_t connect_us;
    int64_t tls_us;
    int64_t first_byte_us;
    int64_t total_us;
};

/* ---------------------------------------------------------------- Control */

/* End a transfer. The call returns at once, whatever the network does;
 * on_done follows in a later turn with FETCHER_CANCELLED. What a file has so
 * far stays in its .part if it can be continued. */
int fetcher_cancel(struct fetcher *f, fetcher_id id);

/* Hold a transfer, and let it go on. A file or memory download gives its
 * connection back and is continued with a range request; a stream (on_data)
 * keeps it and is not read from. Pausing a paused one is no error. Resuming
 * also ends a wait for the next attempt or round. */
int fetcher_pause(struct fetcher *f, fetcher_id id);
int fetcher_resume(struct fetcher *f, fetcher_id id);

/* Change the priority of one that waits (of the next attempt, if it runs).
 * With equal priorities, hosts take turns; within a host, first come first. */
int fetcher_priority(struct fetcher *f, fetcher_id id, int priority);

/* The most transfers in flight, all together (usual: 16) and to one host
 * (usual: 6), and the most bytes of body a second, all together (usual: no
 * limit). 0 leaves a limit as it is, -1 takes it away. The number in flight
 * never exceeds what FD_SETSIZE and RLIMIT_NOFILE leave room for, about 900.
 * What waits for a lookup of over 250 ms is not in flight until that is over.
 * At most 256 names are looked up at a time (fewer if RLIMIT_NOFILE is below
 * 1536), 16 of them since less than 250 ms. A host whose last lookup took
 * longer comes behind others that have to be looked up.
 * May be changed at any time; what runs is not interrupted. */
int fetcher_limit(struct fetcher *f, int total, int per_host,
                  int64_t bytes_per_second);

enum fetcher_state {
    FETCHER_WAITING,  /* for its turn */
    FETCHER_RUNNING,  /* a request is on its way */
    FETCHER_RETRYING, /* waiting for its next attempt */
    FETCHER_SLEEPING, /* a repeating one, until its next round */
    FETCHER_PAUSED,   /* until fetcher_resume */
    FETCHER_ENDED     /* on_done will be called */
};

/* Texts are as in struct fetcher_result. */
struct fetcher_info {
    fetcher_id id;
    enum fetcher_state state;
    void *arg; /* that of the request */
    const char *url;
    const char *path;    /* the file's name as far as known, or NULL */
    const char *message; /* why the last attempt failed, "" if none */
    int status;          /* of HTTP, of the last answer; 0: none */
    int attempts;        /* requests made, of this round */
    int priority;
    int64_t bytes;   /* there so far */
    int64_t total;   /* bytes there will be; -1: not known */
    int64_t sent;    /* bytes of its own body that went out, this attempt */
    int64_t to_send; /* bytes of that; 0: it has none, -1: not known */
    int64_t speed;   /* bytes a second, of the last second or so */
    int64_t wait_ms; /* to the next attempt or round; -1: none */
};

/* Where a transfer stands. The texts are valid until the next call to any
 * function of this fetcher. */
int fetcher_info(struct fetcher *f, fetcher_id id, struct fetcher_info *info);

/* A field of the answer's head, such as "ETag" or "Link": the value of the n-th
 * of that name (0: the first), or NULL if there are not so many. The name is
 * compared in any case. The answer is the one that was not led on: the final
 * one, also to a HEAD, also an error. Values are unfolded and clean, as texts
 * of a result are. There is an answer within on_data, on_done, and on_progress
 * once data comes; the text is valid until the callback returns. The name ""
 * is the first line, "HTTP/1.1 200 OK". With a name of NULL the name of the
 * n-th field of all is returned, and behind its NUL stands the value. */
const char *fetcher_header(struct fetcher *f, fetcher_id id, const char *name,
                           int n);

/* How many transfers there are that have not ended. */
size_t fetcher_count(struct fetcher *f);

#define FETCHER_BUCKETS 16

/* What the loop did since fetcher_new. A "stall" is the time from the return
 * of select() (or the call of fetcher_dispatch) until the loop is ready to
 * look at your descriptors again: how long the program was deaf. */
struct fetcher_stats {
    uint64_t turns;
    uint64_t done;      /* transfers that ended (rounds too): well, ... */
    uint64_t failed;    /* ... not, ... */
    uint64_t cancelled; /* ... or by fetcher_cancel */
    int64_t received;   /* bytes of body */
    int running;        /* in flight now */
    size_t waiting;     /* in the queue now */
    int lookups;        /* name lookups now, given up or not */

    int64_t stall_max_us; /* the longest, ... */
    int64_t stall_p99_us; /* ... and what 99 of 100 stayed below */
    char culprit[128];    /* phase and cause of the longest */

    /* Turns that took less than 62.5 us << i; the last has all others. */
    uint64_t stalls[FETCHER_BUCKETS];

    int limit; /* how many may be in flight: see fetcher_limit */
};

int fetcher_stats(struct fetcher *f, struct fetcher_stats *stats);

/* --------------------------------------------------------------- The loop */

/* A new fetcher, or NULL with errno ENOMEM, EMFILE or what pipe() says. Uses
 * two descriptors, and some of libcurl's. */
struct fetcher *fetcher_new(void);

/* Cancel everything, call every on_done that is owed, give all back. Returns
 * at once even if lookups hang. NULL is allowed; in a callback: rule 3. */
void fetcher_free(struct fetcher *f);

#define FETCHER_READ  1
#define FETCHER_WRITE 2
#define FETCHER_GONE  4 /* it was closed: the watch has been removed */

/* Call cb whenever fd is ready for one of `events`; events 0 removes. One
 * watch a descriptor: a second call replaces the first. The descriptor stays
 * the caller's; remove the watch before closing it. Regular files are always
 * ready and so must not be watched; at end of file, remove the watch. EINVAL:
 * negative, events unknown, no cb; EMFILE: rule 6; EBUSY: a descriptor of the
 * fetcher itself or of libcurl. */
int fetcher_watch(struct fetcher *f, int fd, int events,
                  void (*cb)(struct fetcher *f, int fd, int events, void *arg),
                  void *arg);

/* Call cb once, ms from now (0: in the next turn). Returns its id, or 0 with
 * errno ENOMEM or EINVAL. To repeat, call it again in cb. The clock does not
 * jump when the time is set. */
fetcher_id fetcher_timer(struct fetcher *f, int64_t ms,
                         void (*cb)(struct fetcher *f, void *arg), void *arg);
int fetcher_timer_stop(struct fetcher *f, fetcher_id id);

/* From a signal handler or another thread: have cb called in the loop's next
 * turn, and wake it. -1 with EAGAIN if some 4,000 calls wait already. Leaves
 * errno alone when it succeeds. Calls come in the order they were made, at most
 * 64 of them in a turn. */
int fetcher_post(struct fetcher *f, void (*cb)(struct fetcher *f, void *arg),
                 void *arg);

/* Milliseconds on the fetcher's clock, which only goes forward. The moment is
 * that of the present turn, so it costs nothing. */
int64_t fetcher_now(struct fetcher *f);

/* One turn of the loop: sleep at most max_ms (-1: until something happens),
 * then serve what is ready. Returns 1 while something can still happen
 * (transfers, timers or watches are left), 0 if not, -1 with errno EBUSY in a
 * callback. While there is a transfer or a timer it sleeps for a second at
 * most: a wake-up that gets lost, here or in libcurl, then costs a second, not
 * the program. With neither it sleeps until a descriptor or a post wakes it.
 *
 * A blocking helper in five lines (`done` is set by on_done):
 *
 *     int done = 0;
 *     if (!fetcher_get(f, url, on_done, &done))
 *         return -1;
 *     while (!done)
 *         fetcher_step(f, -1);
 *
 * fetcher_step(f, 0) does not sleep: a game calls it once a frame. That costs
 * some 5 us when there is nothing to do and the slice at most when there is
 * (see fetcher_slice), and brings what has come since the last frame: of each
 * connection what the kernel holds for it, often some MiB. */
int fetcher_step(struct fetcher *f, int64_t max_ms);

/* Turn until fetcher_stop, or until nothing can happen any more. */
int fetcher_run(struct fetcher *f);
int fetcher_stop(struct fetcher *f);

/* For a program that has a loop of its own. Before its select():
 *
 *     ms = fetcher_prepare(f, &rd, &wr, &maxfd);
 *
 * adds the fetcher's descriptors to the sets, raises *maxfd (start with -1 or
 * your own highest), and returns how long to sleep at most, in ms: 0 to 1000,
 * never more. (Without a transfer or a timer you need not wake for it.) After
 * it, and also when it timed out or was interrupted (then with empty sets):
 *
 *     fetcher_dispatch(f, &rd, &wr);
 *
 * The sets are read, not changed, so you may look at your own descriptors
 * first, and should. The network's share of a dispatch ends when the slice is
 * spent, or when a timer or a descriptor of this fetcher waits; of yours it
 * knows nothing. Nothing is remembered between the two calls, so you may skip a
 * turn.
 *
 * Where the loop is not select() (poll, epoll, a toolkit, another language)
 * there are no sets:
 *
 *     ms = fetcher_prepare(f, NULL, NULL, NULL);
 *     count = fetcher_wants(f, wants, n);
 *     ... wait for those, for ms at most ...
 *     fetcher_dispatch(f, NULL, NULL);
 *
 * Without sets dispatch looks for itself what is ready, by a select() that does
 * not wait. A callback may change what is wanted: so ask before each wait. */
int fetcher_prepare(struct fetcher *f, fd_set *rd, fd_set *wr, int *maxfd);
int fetcher_dispatch(struct fetcher *f, const fd_set *rd, const fd_set *wr);

struct fetcher_want {
    int fd;
    int events; /* FETCHER_READ, FETCHER_WRITE, or both */
};

/* What the fetcher wants to wait for, a descriptor each, in ascending order.
 * Returns how many there are, which may be more than the n that were filled:
 * FD_SETSIZE is always enough. */
int fetcher_wants(struct fetcher *f, struct fetcher_want *wants, int n);

/* How long a turn may work for the network, in microseconds: up to a second;
 * 0: the usual 2000. It is what your program may have to wait, so a toolkit
 * that owns the loop wants less (its own events wait for the whole of it), and
 * a game that steps once a frame wants more: with 8 ms of the 16.7 ms of a
 * frame 1 GiB comes at 100 MB/s and more. EINVAL: out of range. */
int fetcher_slice(struct fetcher *f, int us);

/* Have cb called at the end of every turn with one line (no newline) that says
 * how long the loop slept, what woke it and what each phase cost. NULL ends
 * it. */
int fetcher_trace(struct fetcher *f,
                  void (*cb)(struct fetcher *f, const char *line, void *arg),
                  void *arg);

#ifdef __cplusplus
}
#endif

/* Permission to use, copy, modify, and/or distribute this software for any
 * purpose with or without fee is hereby granted.
 *
 * THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
 * WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
 * MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY
 * SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
 * WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION
 * OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN
 * CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE. */
#endif
