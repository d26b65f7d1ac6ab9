/* SPDX-License-Identifier: 0BSD
 *
 * fetcher.c - fetch URLs without ever freezing the program around it. The manual is fetcher.h.
 * This file is the library; with -DFETCHER_MAIN, and linked with -lcurl, it is the program too.
 *
 * =========================================================================================== Story
 *
 * "My program freezes while it fetches something. Which kind of thread do I need?" None. A program
 * freezes because it waits in one place for one thing. So let it wait in one place for everything,
 * and never work for long between two waits. One turn of the loop:
 *
 *        +--> prepare   which descriptors, and how long may we sleep?
 *        |    select    ... the only place where this program waits
 *        |    post      calls from signal handlers and other threads
 *        |    host      the user's descriptors: the person comes before the network
 *        |    timers    what was due when the turn began
 *        |    sockets   ready transfers, from a rotating start    \
 *        |    finish    transfers that came to an end              > 2 ms: the slice
 *        +--- start     transfers that wait for their turn        /
 *
 * The slice is the heart. A loop that feeds 300 ready sockets before it looks at the keyboard again
 * is as deaf as one that blocks. Here, when 2 ms are spent, what is left over waits for the next
 * turn, whose sleep is then 0. A phase that got nothing comes first then, so none can starve.
 *
 * libcurl runs many transfers in one thread if we do the waiting:
 *   - By a callback it tells us which sockets to watch, and for what.
 *   - When one is ready we call curl_multi_socket_action(); it calls us back with headers and data.
 *   - When curl_multi_timeout() says that time is up, we call it for CURL_SOCKET_TIMEOUT: a kick.
 * Inside its callbacks nearly every call to libcurl is forbidden. So the public functions only mark
 * what is wanted, and the turn carries it out.
 *
 * The map: Portability, Types, Tools; Descriptors, Timers, Post, The turn (an event loop that knows
 * nothing of libcurl); libcurl as a guest, Transfers, Files, Repeats, Life (the library); and with
 * FETCHER_MAIN the program. A section uses only what stands above it. The loop reaches down in one
 * place, the turn; a transfer does through struct sink. */

/* =================================================================================== Portability
 * The only conditional compilation of the library. What stands below may rely on C99, POSIX.1-2008
 * and libcurl 7.62; what is newer is asked for here, and done without where it is missing. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* renameat2, wcwidth; elsewhere without effect */
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64 /* files over 2 GiB on 32-bit machines */
#endif

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <curl/curl.h>

#include "fetcher.h"

/* Options by their numbers, since the libcurl found at run time may know more than the headers
 * found at build time. One that is unknown is an error to be ignored, or has an older twin. */
enum {
    OPT_PROTOCOLS =
        181, /* a mask (http 1, https 2), to be gone; 182: of redirects */
    OPT_PROTOCOLS_STR = 10318, /* 7.85; 10319: of redirects */
    OPT_QUICK_EXIT = 322,
    MOPT_QUICK_EXIT = 21,
    MOPT_RESOLVE_THREADS_MAX = 20 /* 7.87; 8.20 */
};

typedef int64_t usec; /* all times of the library are microseconds */

static usec clock_us(void) {
    struct timespec ts = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (usec)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int err(int code) {
    errno = code;
    return -1;
}

/* Of a descriptor just made: some systems have no pipe2(), and no SOCK_CLOEXEC. */
static int set_flags(int fd, int flags) {
    return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -1
           : flags                            ? fcntl(fd, F_SETFL, flags)
                                              : 0;
}

/* Rename, unless the new name exists (EEXIST): in one step by renameat2() on Linux, by link()
 * elsewhere; on a file system without either (FAT) with a gap between look and leap. */
static int rename_new(const char *from, const char *to) {
    struct stat st;
#ifdef RENAME_NOREPLACE
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
#endif
    if (link(from, to) == 0)
        return unlink(from);
    if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOTSUP &&
        errno != ENOSYS && errno != EMLINK)
        return -1;
    return lstat(to, &st) == 0 ? err(EEXIST) : rename(from, to);
}

/* Where OpenSSL can look a certificate up by its hash; NULL: unknown. */
static const char *default_capath(const curl_version_info_data *v) {
#if LIBCURL_VERSION_NUM >= 0x074600
    if (v->age >= CURLVERSION_SEVENTH && v->ssl_version &&
        !strncmp(v->ssl_version, "OpenSSL/", 8))
        return v->capath;
#endif
    return v ? NULL : "";
}

/* ======================================================================================== Types */
enum {
    SLICE_US = 2000, /* a turn's work for the network, see Story */
    SLEEP_MAX_MS =
        1000, /* so that a lost wake-up costs a second, not the program */
    LOOKUPS_MAX = 16, /* each may be two threads of libcurl */
    SPARES_MAX = 256, /* handles that are kept to be used again */
    REDIRECTS_MAX = 20,
    URL_MAX = 65536,       /* as browsers do */
    HEAD_MAX = 256 * 1024, /* a head without end must end somewhere */
    DRAIN_MAX = 65536,     /* of an error page, to keep the connection */
    SMALL_MAX = 16384,     /* a file this small is written when it is whole */
    NAME_CUT = 240,        /* 255 less ".part.meta" and a number */
    PROGRESS_US = 100000,
    SCOUT_US = 50000,
    KNOWN_US = 50000000, /* libcurl remembers an address for 60 s */
    MEMORY_USUAL = 64 * 1024 * 1024,
    LIMIT_USUAL_MS = 30000,
    RETRIES_USUAL = 5,
    BACKOFF_FIRST_US = 1000000,
    BACKOFF_MAX_US = 60000000
};

#define HOUR_US         (3600 * (usec)1000000)
#define FOREVER         (INT64_MAX / 4) /* may be added to a time */
#define TIMER_ID        ((int64_t)1 << 62) /* no id of a timer is one of a transfer */
#define MS(us)          ((double)(us) / 1000)
#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
#define container_of(ptr, type, member)                                        \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* A place in an ordered tree; by it, one kind of tree finds ids, sorts deadlines and queues by
 * priority. It stands inside what it orders, so nothing is allocated and nothing can fail. */
struct node {
    int64_t key;
    uint64_t seq; /* seq: the order among equal keys; no two have both equal */
    struct node *child[2];
    bool in; /* in: in a tree */
};

typedef void call_fn(struct fetcher *, void *);
typedef void watch_fn(struct fetcher *, int fd, int events, void *);
/* A descriptor that the loop waits for. The class decides in which phase it is served. */
enum class { NOBODY, POST, HOST, GUEST };

struct watch {
    enum class class;
    int events;
    watch_fn *cb;
    void *arg;
    bool fresh;
};

struct call {
    call_fn *cb;
    void *arg;
}; /* also what goes through the self-pipe */

struct timer {
    struct node due, id;
    struct call call;
}; /* id's key 0: the library's own */

enum phase {
    IN_POST,
    IN_HOST,
    IN_TIMERS,
    IN_SOCKETS,
    IN_FINISH,
    IN_START,
    PHASES
};

/* A piece of work, to be blamed; -1: no descriptor, 0: no transfer. */
struct step {
    enum phase phase;
    usec took;
    int fd;
    fetcher_id transfer;
};

struct meter {
    usec began, slept, may_sleep, took[PHASES]; /* of this turn */
    int steps[PHASES],
        woke;  /* likewise; a descriptor that ended its sleep, or -1 */
    usec mark; /* when the present step began, the transfer it works for, ... */
    fetcher_id touched;
    bool fed; /* ... and whether it has brought data */
    struct step worst, record;
    usec record_us; /* of this turn; of the longest stall */
    uint64_t turns, stalls[FETCHER_BUCKETS];
    void (*trace)(struct fetcher *, const char *, void *), *trace_arg;
};

/* What tells documents apart, and a part from another's: each "" if absent or too long. */
struct proof {
    char etag[200], modified[48], date[48];
};

/* The head of the answer that is coming in; that of a redirect is overwritten. */
struct head {
    int status;
    bool decided; /* decided: the body has been given its place */
    int64_t length, range_first, range_total,
        retry_after_us; /* -1: not given */
    struct proof proof;
    char reason[80], disposition[600];
};

/* One request on the wire. It outlives its transfer if that is given up in a lookup ("parked"). */
struct attempt {
    struct fetcher *f;
    struct transfer *transfer; /* transfer NULL: parked */
    struct attempt *next;      /* in f->spare */
    CURL *easy;
    struct curl_slist *headers;
    long buffer;
    bool usual; /* the handle has our own settings only: see attempt_free() */
    struct node all,
        breath; /* in f->attempts; in f->breathless: made to stop reading */
    bool lookup,
        scout; /* it has one running; the others for its host wait for it */
    bool complete,
        again; /* the rest is nothing (416); ask once more, without waiting */
    bool done;
    CURLcode result; /* libcurl says so */
    int64_t from,
        sent; /* where it begins; bytes of its own body that went out */
    usec began, moved; /* when a byte came; both on the listening clock */
    size_t head_bytes, drained;
    struct head head;
    char error[CURL_ERROR_SIZE];
};

/* What there is of a document: of use to later attempts and rounds while the validator holds. */
struct body {
    char *data;
    size_t room; /* in memory: all, or a file's first bytes */
    int64_t have,
        skip; /* bytes kept (of a stream: handed on); those that come once more */
    int64_t length;
    int fd; /* of the whole, -1: not known; the .part, -1: not open */
    bool page,
        whole; /* it is an error page, of no use; complete: the last round's */
    bool no_etag,
        no_range; /* If-Range with an ETag is ignored; nothing may be continued */
    int modified_sure; /* Last-Modified proves as much as a strong ETag; -1: not asked */
    bool meta,
        placed; /* the .part has its .meta; path is ours, from an earlier round */
    char *part, *base,
        *path; /* its name; that without ".part"; the file's, as far as known */
    struct proof proof;
};

/* Where a body goes. Each returns 0, or -1 after fail(). */
struct sink {
    int (*open)(
        struct transfer *); /* before a request. 1: nothing is to be fetched */
    int (*begin)(
        struct transfer *); /* a body comes: cut what is there to body->have */
    int (*take)(struct transfer *, const char *, size_t);
    int (*commit)(struct transfer *); /* it is whole */
};

enum want { WANT_CANCEL = 1, WANT_PAUSE = 2, WANT_RESUME = 4, WANT_END = 8 };

struct transfer {
    struct fetcher *f;
    struct node id,
        queued; /* queued in its host; key: -2 * priority, less 1 to go first */
    struct node mark;
    unsigned want; /* the finish phase is to look at it, and do this */
    struct fetcher_request rq; /* its strings stand behind this struct */
    enum fetcher_state state;
    struct timer timer; /* a time limit, the next attempt, or the next round */
    struct host *host;
    struct attempt *attempt; /* attempt: NULL if not running */
    const struct sink *sink;
    struct body *body; /* body: NULL until the first attempt */
    char *shown;       /* the URL fit for the eye; NULL: it is so already */
    bool in_flight,
        held; /* counted as running; paused, with libcurl holding the rest */
    bool own_range,
        unchanged; /* the caller's headers have a Range; 304, or skipped */
    int attempts, failures,
        failed_rounds; /* of this round, in this round, in a row */
    usec began,
        round; /* this round's first attempt; when it was due, without jitter */
    usec progressed, speed_since;
    int64_t speed_bytes, speed, received;
    enum fetcher_code code;
    int status;
    char message[200]; /* what on_done will be told */
};

/* A host is scheme, name and port: what is limited, cooled down, and looked up. */
struct host {
    struct node name; /* key: hash of the origin */
    struct node ready, *queue,
        **ready_in;     /* may start (in which tree); those that wait */
    struct timer timer; /* the end of its rest */
    size_t users;
    int running, looking; /* transfers; those in flight; scouts, 0 or 1 */
    bool numeric, tls,
        shares; /* needs no lookup; https; many share a connection: HTTP/2 */
    usec known,
        rest; /* until when: its address is known; it wants to be left alone */
};

struct fetcher {
    struct watch watch[FD_SETSIZE];
    int top,
        first; /* the highest descriptor watched; where sockets are begun with */
    fd_set rd, wr;             /* the ready sets at hand */
    int host_watches, pipe[2]; /* the self-pipe: read, write */

    struct node *timers, *timer_ids;
    usec now, skew, slice_end; /* the turn's clock, and what is added to it */
    usec turn_now; /* when the turn began, and the timers made until then */
    uint64_t turn_serial, serial; /* of everything that comes in an order */
    bool busy, more, stopped,
        closing;   /* in a turn: rule 3; work was left over: don't sleep */
    int next_part; /* of the network's work: it got nothing in the last turn */
    struct meter meter;

    CURLM *multi;
    unsigned curl_version;
    char *capath; /* hashed, to be read a certificate at a time */
    struct node *attempts,
        *breathless; /* libcurl's handles; those to go on when there is time */
    struct attempt *spare;
    int spares; /* those that have done their work, and can do more */
    struct timer kick;
    bool kick_due;
    int lookups, running; /* names being looked up; transfers in flight */

    struct node *transfers, *hosts, *marked;
    struct host *last;
    char authority[128]; /* the last URL's host, and how that was written */
    struct node
        *ready[2]; /* hosts that may start one: their address known, unknown */
    int limit_total, limit_host, capacity;
    int64_t rate,
        budget; /* bytes a second, 0: no limit; bytes that may come, < 0: debt */
    usec filled; /* when the budget was last filled */
    bool deaf;
    struct timer hear; /* in debt: not listening, until then */
    usec
        silence; /* how long in all; if deaf: where the listening clock stands */
    size_t count, waiting;
    uint64_t last_id, random, done, failed, cancelled;
    int64_t received;
};

/* ======================================================================================== Tools */
static bool node_before(const struct node *a, const struct node *b) {
    return a->key != b->key ? a->key < b->key : a->seq < b->seq;
}

/* The tree is a treap: ordered by key from left to right, and by weight from top to bottom. Weights
 * that look random make it as deep as a random one: some 2 log2(n). */
static uint64_t node_weight(const struct node *n) {
    uint64_t w = ((uint64_t)n->key ^ n->seq << 32) * 0x9e3779b97f4a7c15u;
    return (w ^ w >> 29) * 0xbf58476d1ce4e5b9u;
}

static void tree_add(struct node **at, struct node *n) {
    struct node **end[2] = {&n->child[1], &n->child[0]};
    while (*at && node_weight(*at) > node_weight(n))
        at = &(*at)->child[node_before(*at, n)];
    for (struct node *rest = *at; rest;) { /* split what is there in two */
        int side = node_before(rest, n);
        *end[side] = rest;
        end[side] = &rest->child[side];
        rest = *end[side];
    }
    *end[0] = *end[1] = NULL;
    *at = n;
    n->in = true;
}

static void tree_remove(struct node **at, struct node *n) {
    struct node *half[2] = {n->child[0], n->child[1]};
    if (!n->in)
        return;
    while (*at != n)
        at = &(*at)->child[node_before(*at, n)];
    while (half[0] && half[1]) { /* merge what it leaves behind */
        int side = node_weight(half[0]) < node_weight(half[1]);
        *at = half[side];
        at = &(*at)->child[!side];
        half[side] = *at;
    }
    *at = half[0] ? half[0] : half[1];
    n->in = false;
}

/* The first node that is not before (key, seq); or, backwards, the last one that is. */
static struct node *tree_near(struct node *n, int64_t key, uint64_t seq,
                              bool backwards) {
    struct node probe = {key, seq, {NULL, NULL}, false}, *best = NULL;
    while (n) {
        bool before = node_before(n, &probe);
        if (before == backwards)
            best = n;
        n = n->child[before];
    }
    return best;
}

#define tree_from(tree, key, seq) tree_near(tree, key, seq, false)
#define tree_first(tree)          tree_from(tree, INT64_MIN, 0)
#define tree_next(tree, n)        tree_from(tree, (n)->key, (n)->seq + 1)

static struct node *tree_find(struct node *tree, uint64_t id) {
    struct node *n = tree_from(tree, (int64_t)id, 0);
    return n && n->key == (int64_t)id ? n : NULL;
}

/* xorshift64*: jitter has to be spread, not secret. */
static int64_t random_below(struct fetcher *f, int64_t below) {
    f->random ^= f->random >> 12;
    f->random ^= f->random << 25;
    f->random ^= f->random >> 27;
    return below > 0
               ? (int64_t)(f->random * 0x2545f4914f6cdd1du % (uint64_t)below)
               : 0;
}

/* The bytes of the UTF-8 character at text, and what it is. 0 if it is broken (over-long forms hide
 * a '/' from a careless check) or not fit to be shown: controls, separators, and marks that turn
 * the direction of text, and so make "exe.txt" of "txt.exe". */
static size_t utf8_decode(const char *text, uint32_t *rune) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    size_t n = *s < 0x80   ? 1
               : *s < 0xc0 ? 0
               : *s < 0xe0 ? 2
               : *s < 0xf0 ? 3
               : *s < 0xf8 ? 4
                           : 0;
    uint32_t c = n == 1 ? *s : *s & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    *rune = c;
    return n == 0 || c < least[n] || c < 0x20 || (c >= 0x7f && c < 0xa0) ||
                   c == 0x061c || (c >= 0x200e && c <= 0x200f) ||
                   (c >= 0x2028 && c <= 0x202e) || c == 0xfeff ||
                   (c >= 0x2066 && c <= 0x2069) ||
                   (c >= 0xd800 && c <= 0xdfff) || c > 0x10ffff
               ? 0
               : n;
}

static size_t utf8_length(const char *text) {
    uint32_t rune;
    return utf8_decode(text, &rune);
}

/* Copy text from outside for the eye: whole characters only, what is unsafe replaced. */
static void text_clean(char *to, size_t room, const char *from, char instead) {
    for (size_t good, n; *from; from += n, to += n, room -= n) {
        n = (good = utf8_length(from)) > 0 ? good : 1;
        if (room <= n)
            break;
        memcpy(to, good ? from : &instead, n);
    }
    *to = '\0';
}

/* Copy a field whole or not at all: half an ETag is worse than none. */
static void text_field(char *to, size_t room, const char *from) {
    strcpy(to, strlen(from) < room ? from : "");
}

static uint64_t text_hash(const char *s, size_t n) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325u;
    while (n-- > 0)
        hash = (hash ^ (unsigned char)*s++) * 0x100000001b3u;
    return hash;
}

static char *text_join(const char *a, const char *b) {
    size_t na = strlen(a), nb = strlen(b);
    char *joined = malloc(na + nb + 1);
    if (joined)
        memcpy(joined, a, na), memcpy(joined + na, b, nb + 1);
    return joined;
}

/* A number of a protocol: digits only, no sign, no overflow; -1 if there is none. *s moves on. */
static int64_t text_number(const char **s) {
    int64_t n = isdigit((unsigned char)**s) ? 0 : -1;
    for (; isdigit((unsigned char)**s); (*s)++)
        n = n > INT64_MAX / 20 ? INT64_MAX / 10 : n * 10 + (**s - '0');
    return n;
}

/* =================================================================================== Descriptors
 * The watch table. select() takes descriptors below FD_SETSIZE only, and FD_SET past that writes to
 * memory that isn't ours: so everything that is watched passes the one check in watch_set. */
static int watch_set(struct fetcher *f, int fd, enum class class, int events,
                     watch_fn *cb, void *arg) {
    if (fd < 0 || fd >= FD_SETSIZE)
        return err(fd < 0 ? EINVAL : EMFILE);
    struct watch *w = &f->watch[fd];
    if (class == HOST && w->class != HOST && w->class != NOBODY)
        return err(EBUSY);
    f->host_watches -= w->class == HOST;
    /* Rule 4: what select said is of the watch that was. libcurl uses numbers again in one call. */
    *w = (struct watch){events ? class : NOBODY, events, cb, arg, true};
    f->host_watches += w->class == HOST;
    if (events && fd > f->top)
        f->top = fd;
    while (f->top >= 0 && f->watch[f->top].class == NOBODY)
        f->top--;
    return 0;
}

int fetcher_watch(struct fetcher *f, int fd, int events, watch_fn *cb,
                  void *arg) {
    if ((events & ~(FETCHER_READ | FETCHER_WRITE)) || (events && !cb))
        return err(EINVAL);
    return watch_set(f, fd, HOST, events, cb, arg);
}

/* ======================================================================================= Timers */
static void clock_read(struct fetcher *f) {
    f->now = clock_us() + f->skew;
}

int64_t fetcher_now(struct fetcher *f) {
    return f->now / 1000;
}

static void timer_disarm(struct fetcher *f, struct timer *t) {
    tree_remove(&f->timers, &t->due);
}

static void timer_arm(struct fetcher *f, struct timer *t, usec due) {
    timer_disarm(f, t);
    t->due.key = due;
    t->due.seq = ++f->serial;
    tree_add(&f->timers, &t->due);
}

fetcher_id fetcher_timer(struct fetcher *f, int64_t ms, call_fn *cb,
                         void *arg) {
    struct timer *t = ms < 0 || !cb ? NULL : calloc(1, sizeof *t);
    if (!t) {
        errno = ms < 0 || !cb ? EINVAL : ENOMEM;
        return 0;
    }
    t->call = (struct call){cb, arg};
    t->id.key = TIMER_ID | (int64_t)++f->serial;
    tree_add(&f->timer_ids, &t->id);
    if (!f->busy)
        clock_read(f);
    timer_arm(f, t, f->now + (ms < FOREVER / 1000 ? ms * 1000 : FOREVER));
    return (fetcher_id)t->id.key;
}

int fetcher_timer_stop(struct fetcher *f, fetcher_id id) {
    struct node *n = tree_find(f->timer_ids, id);
    struct timer *t = n ? container_of(n, struct timer, id) : NULL;
    if (!t)
        return err(ENOENT);
    timer_disarm(f, t);
    tree_remove(&f->timer_ids, n);
    free(t);
    return 0;
}

/* ========================================================================================== Post
 * The self-pipe: the one door for signal handlers and other threads. Both may call write(), and
 * what is not longer than PIPE_BUF goes into a pipe whole or not at all: so it carries the calls
 * themselves, in order, without lock or memory. And a signal that comes just before select() ends
 * that at once, where a flag would be seen too late. */
int fetcher_post(struct fetcher *f, call_fn *cb, void *arg) {
    struct call call = {cb, arg};
    int saved = errno;
    ssize_t n;
    while ((n = write(f->pipe[1], &call, sizeof call)) < 0 && errno == EINTR)
        continue;
    if (n >= 0)
        errno = saved;
    return n < 0 ? -1 : 0;
}

/* What one read brings, no more: a callback that posts again must not keep the loop here. Calls are
 * never split, since all that is read and written are multiples of one. */
static void post_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct call call[64];
    ssize_t n = read(fd, call, sizeof call);
    (void)events, (void)arg;
    for (ssize_t i = 0; i < n / (ssize_t)sizeof *call; i++)
        call[i].cb(f, call[i].arg);
}

/* ===================================================================================== The turn */

/* A step of a phase is over: charge it, and read the clock for the next. */
static void step_done(struct fetcher *f, enum phase phase, int fd) {
    struct meter *m = &f->meter;
    clock_read(f);
    usec took = f->now - m->mark;
    m->took[phase] += took;
    m->steps[phase]++;
    if (took > m->worst.took)
        m->worst = (struct step){phase, took, fd, m->touched};
    m->mark = f->now;
    m->touched = 0;
    m->fed = false;
}

/* May there be one more step of a part, after so many? Its first is free. */
static bool slice_left(struct fetcher *f, int steps) {
    f->more |= steps > 0 && f->now >= f->slice_end;
    return steps == 0 || f->now < f->slice_end;
}

/* Call the watches of one class that are ready. For the network's sockets the slice counts, and
 * where it ended the next turn begins: by this rotation the last of 900 sockets is heard. In debt
 * to the rate limit there is no more reading. A host's callback is never put off. */
static void serve(struct fetcher *f, enum class class, enum phase phase) {
    int n = f->top + 1, first = class == GUEST ? f->first : 0, events,
        steps = 0;
    for (int i = 0; i < n; i++) {
        int fd = (first + i) % n;
        bool rd = FD_ISSET(fd, &f->rd), wr = FD_ISSET(fd, &f->wr);
        if (f->watch[fd].class != class || f->watch[fd].fresh || !(rd || wr))
            continue;
        if (class == GUEST && !slice_left(f, steps++)) {
            f->first = fd;
            return;
        }
        events = (rd && !(class == GUEST && f->deaf) ? FETCHER_READ : 0) |
                 (wr ? FETCHER_WRITE : 0);
        FD_CLR(fd, &f->rd);
        FD_CLR(fd, &f->wr);
        if (events &= f->watch[fd].events)
            f->watch[fd].cb(f, fd, events, f->watch[fd].arg);
        step_done(f, phase, fd);
    }
}

/* Rule 5: what was due and made when the turn began. A host's timer is gone before its callback. */
static void run_timers(struct fetcher *f) {
    for (struct node *n; (n = tree_first(f->timers)) != NULL &&
                         n->key <= f->turn_now && n->seq <= f->turn_serial &&
                         slice_left(f, f->meter.steps[IN_TIMERS]);) {
        struct timer *t = container_of(n, struct timer, due);
        struct call call = t->call;
        if (t->id.key)
            fetcher_timer_stop(f, (fetcher_id)t->id.key);
        else
            timer_disarm(f, t);
        call.cb(f, call.arg);
        step_done(f, IN_TIMERS, -1);
    }
}

static const char *const phase_name[] = {"post",    "host",   "timers",
                                         "sockets", "finish", "start"};

static void trace_line(struct fetcher *f, usec stall) {
    struct meter *m = &f->meter;
    char line[400], fd[32];
    snprintf(fd, sizeof fd, "descriptor %d", m->woke);
    int n = snprintf(line, sizeof line,
                     "turn %" PRIu64 ": slept %.2f of %.0f ms, woke for %s",
                     m->turns, MS(m->slept), MS(m->may_sleep),
                     m->woke >= 0          ? fd
                     : m->steps[IN_TIMERS] ? "a timer"
                                           : "work left over, or time");
    for (int i = 0; i < PHASES; i++)
        if (m->steps[i])
            n += snprintf(line + n, sizeof line - (size_t)n,
                          "; %s %d in %.2f ms", phase_name[i], m->steps[i],
                          MS(m->took[i]));
    snprintf(line + n, sizeof line - (size_t)n, "; all %.2f ms%s", MS(stall),
             f->more ? ", more left over" : "");
    m->trace(f, line, m->trace_arg);
}

static usec stall_bound(int i) {
    return ((usec)125 << i) / 2;
} /* of bucket i, exclusive */

int fetcher_prepare(struct fetcher *f, fd_set *rd, fd_set *wr, int *maxfd) {
    clock_read(f);
    for (int fd = 0; fd <= f->top; fd++) {
        struct watch *w = &f->watch[fd];
        w->fresh = false; /* the sets are to know it */
        if ((w->events & FETCHER_READ) && !(w->class == GUEST && f->deaf))
            FD_SET(fd, rd);
        if (w->events & FETCHER_WRITE)
            FD_SET(fd, wr);
    }
    if (f->top > *maxfd)
        *maxfd = f->top;
    struct node *next = tree_first(f->timers);
    usec wait = f->more ? 0
                : next  ? next->key - f->now + 999
                        : FOREVER; /* rounded up */
    int ms = wait < 0                     ? 0
             : wait > SLEEP_MAX_MS * 1000 ? SLEEP_MAX_MS
                                          : (int)(wait / 1000);
    f->meter.may_sleep = ms * 1000;
    return ms;
}

static void turn_begin(struct fetcher *f, const fd_set *rd, const fd_set *wr) {
    struct meter *m = &f->meter;
    usec asleep = f->now;
    f->busy = true;
    f->more = false;
    f->rd = *rd;
    f->wr = *wr;
    clock_read(f);
    f->turn_now = m->began = m->mark = f->now;
    f->turn_serial = f->serial;
    m->slept = f->now - asleep;
    m->worst = (struct step){IN_POST, 0, -1, 0};
    m->touched = 0;
    m->woke = -1;
    memset(m->took, 0, sizeof m->took);
    memset(m->steps, 0, sizeof m->steps);
    for (int fd = f->top; fd >= 0 && m->trace; fd--)
        if (FD_ISSET(fd, rd) || FD_ISSET(fd, wr))
            m->woke = fd;
}

static void turn_end(struct fetcher *f) {
    struct meter *m = &f->meter;
    usec stall = f->now - m->began;
    int i = 0;
    while (i < FETCHER_BUCKETS - 1 && stall >= stall_bound(i))
        i++;
    m->stalls[i]++;
    m->turns++;
    if (stall > m->record_us) {
        m->record_us = stall;
        m->record = m->worst;
    }
    uint64_t serial = f->serial;
    if (m->trace)
        trace_line(f, stall);
    f->more |=
        f->serial != serial; /* the trace's callback has started something */
    f->busy = false;
}

/* What the network does in a turn stands below: what is due, what has ended, what waits. */
static void guest_kick(struct fetcher *), finish_phase(struct fetcher *);
static void breathe(struct fetcher *), start_phase(struct fetcher *),
    guest_ask(struct fetcher *);

static void sockets_phase(struct fetcher *f) {
    serve(f, GUEST, IN_SOCKETS);
}

/* All of it in a slice, but for the first step of each part. Is it well over, what is left comes
 * first in the next turn: so no part starves, and two writes to a slow disk never come together. */
static void network(struct fetcher *f) {
    static void (*const part[])(struct fetcher *) = {
        guest_kick, sockets_phase, finish_phase, breathe, start_phase};
    int n = COUNT_OF(part), done = 0, first = f->next_part;
    f->slice_end = f->now + SLICE_US;
    do
        part[f->next_part](f), f->next_part = (f->next_part + 1) % n;
    while (++done < n && f->now < f->slice_end + SLICE_US / 2);
    if (done == n)
        f->next_part = 0;
    f->more |=
        done < n || first; /* the last may have made work for the first */
    guest_ask(f);
}

int fetcher_dispatch(struct fetcher *f, const fd_set *rd, const fd_set *wr) {
    if (f->busy)
        return err(EBUSY);
    turn_begin(f, rd, wr);
    serve(f, POST, IN_POST);
    serve(f, HOST, IN_HOST);
    f->slice_end = f->now + SLICE_US;
    run_timers(f);
    network(f);
    turn_end(f);
    return 0;
}

/* Can anything still happen? Given-up lookups and idle connections don't count: nobody waits. */
static bool alive(struct fetcher *f) {
    return f->transfers || f->timer_ids || f->host_watches;
}

int fetcher_step(struct fetcher *f, int64_t max_ms) {
    fd_set rd, wr;
    int maxfd = -1;
    if (f->busy)
        return err(EBUSY);
    FD_ZERO(&rd);
    FD_ZERO(&wr);
    int ms = fetcher_prepare(f, &rd, &wr, &maxfd);
    if (max_ms >= 0 && ms > max_ms)
        ms = (int)max_ms;
    struct timeval tv = {ms / 1000, ms % 1000 * 1000};
    if (select(maxfd + 1, &rd, &wr, NULL, &tv) < 0) {
        /* The sets say nothing now. EINTR: what the handler posted ends the next select. EBADF:
         * somebody closed a descriptor and left its watch; to go on with that would spin. */
        int top = errno == EBADF ? f->top : -1;
        f->busy = true;
        for (int fd = 0; fd <= top; fd++) {
            struct watch w = f->watch[fd];
            if (w.class == NOBODY || fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
                continue;
            watch_set(f, fd, NOBODY, 0, NULL, NULL);
            w.cb(f, fd, FETCHER_GONE, w.arg);
        }
        f->busy = false;
        FD_ZERO(&rd);
        FD_ZERO(&wr);
    }
    fetcher_dispatch(f, &rd, &wr);
    return alive(f);
}

int fetcher_run(struct fetcher *f) {
    if (f->busy)
        return err(EBUSY);
    for (bool left = alive(f); left && !f->stopped;)
        left = fetcher_step(f, -1) > 0;
    f->stopped = false;
    return 0;
}

int fetcher_stop(struct fetcher *f) {
    f->stopped = true;
    return 0;
}

int fetcher_trace(struct fetcher *f,
                  void (*cb)(struct fetcher *, const char *, void *), void *a) {
    f->meter.trace = cb;
    f->meter.trace_arg = a;
    return 0;
}

int fetcher_stats(struct fetcher *f, struct fetcher_stats *s) {
    const struct meter *m = &f->meter;
    const struct step *r = &m->record;
    char fd[32] = "", transfer[40] = "";
    uint64_t seen = 0;
    int i = 0;
    while (i < FETCHER_BUCKETS - 1 &&
           (seen += m->stalls[i]) < m->turns - m->turns / 100)
        i++;
    *s = (struct fetcher_stats){
        .turns = m->turns,
        .done = f->done,
        .failed = f->failed,
        .cancelled = f->cancelled,
        .received = f->received,
        .running = f->running,
        .waiting = f->waiting,
        .lookups = f->lookups,
        .stall_max_us = m->record_us, /* 99 of 100 stayed below: */
        .stall_p99_us =
            stall_bound(i) < m->record_us ? stall_bound(i) : m->record_us,
    };
    if (r->fd >= 0)
        snprintf(fd, sizeof fd, ", descriptor %d", r->fd);
    if (r->transfer)
        snprintf(transfer, sizeof transfer, ", transfer %" PRIu64, r->transfer);
    snprintf(s->culprit, sizeof s->culprit, "%s %.2f ms%s%s",
             phase_name[r->phase], MS(r->took), fd, transfer);
    memcpy(s->stalls, m->stalls, sizeof s->stalls);
    return 0;
}

/* ============================================================================ libcurl as a guest
 * - A kick is needed once for each handle that is added, and whenever curl_multi_timeout() says so.
 *   We ask that once a turn instead of being called back: it costs the same, and nothing re-enters.
 * - A name lookup can't be given up: to remove its handle joins libcurl's resolver thread, for
 *   seconds. So we know when one runs, and a transfer given up meanwhile leaves its handle parked
 *   in the multi until the lookup ends by itself; it is refused a socket then. */

/* Have the finish phase look at a transfer: the one way to what libcurl's callbacks forbid. */
static void mark(struct fetcher *f, struct transfer *t, unsigned want) {
    t->want |= want;
    f->more |= !f->busy;
    if (t->mark.in)
        return;
    t->mark.key = (int64_t)++f->serial;
    tree_add(&f->marked, &t->mark);
}

/* Why a transfer failed: the first reason counts, cleaned of what came from outside. Returns -1. */
static int fail(struct transfer *t, enum fetcher_code code, const char *format,
                ...) {
    char text[2 * sizeof t->message];
    va_list args;
    if (t->code != FETCHER_OK)
        return -1;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    t->code = code;
    text_clean(t->message, sizeof t->message, text, '?');
    return -1;
}

static const char *shown_url(const struct transfer *t) {
    return t->shown ? t->shown : t->rq.url;
}

static int fail_memory(struct transfer *t) {
    return fail(t, FETCHER_NO_MEMORY, "out of memory");
}

static void lookup_set(struct attempt *a, bool lookup) {
    a->f->lookups += lookup - a->lookup;
    a->lookup = lookup;
}

/* The first transfer to a host is its scout: the others wait until it has found the address,
 * and with TLS an answer, for then it is known whether all can share one connection. libcurl
 * can wait like that too (CURLOPT_PIPEWAIT), but then starts hundreds in one call. */
static void scout_over(struct attempt *a, bool found) {
    struct host *h = a->transfer->host;
    if (found) {
        h->known = a->f->now + KNOWN_US;
        lookup_set(a, false);
    }
    if (a->scout) {
        h->looking--;
        mark(a->f, a->transfer, 0);
    }
    a->scout = false;
}

/* Whoever looks a name up must wait for that: if in the meantime another's address came out of
 * libcurl's cache, it would go on with that, and at its end join the thread that still runs. */
static int on_resolver_start(void *resolver, void *reserved, void *arg) {
    struct attempt *a = arg;
    (void)resolver, (void)reserved;
    if (a->transfer)
        lookup_set(a, true);
    return curl_easy_setopt(a->easy, CURLOPT_DNS_CACHE_TIMEOUT, 0L) != CURLE_OK;
}

/* The lookup is over. A parked handle gets no socket: that ends it. One out of range is none. */
static curl_socket_t on_open_socket(void *arg, curlsocktype purpose,
                                    struct curl_sockaddr *addr) {
    struct attempt *a = arg;
    (void)purpose;
    lookup_set(a, false);
    (void)curl_easy_setopt(a->easy, CURLOPT_DNS_CACHE_TIMEOUT, 60L);
    if (!a->transfer)
        return CURL_SOCKET_BAD;
    if (!a->transfer->host->tls)
        scout_over(a, true);
    else if (a->scout) /* look soon whether the connection is there */
        timer_arm(a->f, &a->transfer->timer, a->f->now + SCOUT_US);
    int fd = socket(addr->family, addr->socktype, addr->protocol);
    if (fd < 0 || (fd < FD_SETSIZE && set_flags(fd, 0) == 0))
        return fd;
    close(fd);
    return CURL_SOCKET_BAD;
}

/* Errors need no answer here: a transfer learns of them by its DONE message, or its time limit. */
static void socket_action(struct fetcher *f, curl_socket_t fd, int mask) {
    int running;
    (void)curl_multi_socket_action(f->multi, fd, mask, &running);
}

/* libcurl 8.20.0 forgets to read its wake-up descriptor after a lookup, and would spin. It is the
 * one whose easy handle isn't ours; on that version `wakeup` marks it, and it's read empty here. */
static void socket_ready(struct fetcher *f, int fd, int events, void *wakeup) {
    char unread[64];
    if (wakeup && fcntl(fd, F_GETFL) & O_NONBLOCK)
        while (read(fd, unread, sizeof unread) > 0)
            continue;
    socket_action(f, fd,
                  (events & FETCHER_READ ? CURL_CSELECT_IN : 0) |
                      (events & FETCHER_WRITE ? CURL_CSELECT_OUT : 0) |
                      (events & FETCHER_GONE ? CURL_CSELECT_ERR : 0));
}

/* A descriptor out of select()'s range can only be one of libcurl's resolver, which it polls by its
 * timeout as well. Never return -1: that ends every transfer. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg,
                     void *unused) {
    struct fetcher *f = arg;
    int events = what == CURL_POLL_REMOVE
                     ? 0
                     : what; /* CURL_POLL_IN, OUT, INOUT are as ours */
    char *ours = "";
    (void)unused;
    if (f->curl_version == 0x081400)
        curl_easy_getinfo(easy, CURLINFO_PRIVATE, &ours);
    if (fd >= 0 && fd < FD_SETSIZE)
        watch_set(f, fd, GUEST, events, socket_ready, ours ? NULL : f);
    return 0;
}

/* The time in which transfers could be heard: silence of our own making, in debt, is no stall. */
static usec listening(struct fetcher *f) {
    return f->deaf ? f->silence : f->now - f->silence;
}

static void kick_is_due(struct fetcher *f, void *arg) {
    (void)arg;
    f->kick_due = true;
}

/* A kick may read from sockets too: so there is none while in debt to the rate limit. */
static void guest_kick(struct fetcher *f) {
    if (!f->kick_due || f->deaf)
        return;
    f->kick_due = false;
    socket_action(f, CURL_SOCKET_TIMEOUT, 0);
    step_done(f, IN_SOCKETS, -1);
}

#define SET(option, value)                                                     \
    (bad |= (unsigned)curl_easy_setopt(e, CURLOPT_##option, value))

/* The size of its buffer: 512 KiB cost half the CPU of 16 with 1 GiB, with small files it is all
 * the same. So few get much, and many little, 2 MiB in all. A low rate limit wants small ones. */
static long buffer_size(const struct fetcher *f) {
    size_t most = (size_t)f->limit_total,
           many = f->count < most ? f->count : most;
    long size = 512 * 1024;
    while (size > 16384 && size * (long)many > 2 * 1024 * 1024)
        size /= 2;
    while (size > 1024 && f->rate && size > f->rate / 64)
        size /= 2;
    return size;
}

/* libcurl's own time limits join its resolver thread, ours don't. To read the bundle of all
 * certificates costs 20 ms, and for each connection if CAPATH is set (as distributions do), since
 * then nothing is cached. With OpenSSL a hashed directory alone is better: only one is read. */
static unsigned set_common(struct attempt *a) {
    CURL *e = a->easy;
    unsigned bad = 0;
    SET(PRIVATE, a);
    SET(HEADERDATA, a);
    SET(WRITEDATA, a);
    SET(ERRORBUFFER, a->error);
    SET(RESOLVER_START_FUNCTION, on_resolver_start);
    SET(RESOLVER_START_DATA, a);
    SET(OPENSOCKETFUNCTION, on_open_socket);
    SET(OPENSOCKETDATA, a);
    SET(BUFFERSIZE, a->buffer);
    SET(NOSIGNAL, 1L);
    SET(CONNECTTIMEOUT, 1000000L);
    SET(FOLLOWLOCATION, 1L);
    SET(MAXREDIRS, (long)REDIRECTS_MAX);
    SET(SUPPRESS_CONNECT_HEADERS, 1L);
    SET(USERAGENT, "fetcher/" FETCHER_VERSION);
    if (a->f->capath)
        curl_easy_setopt(e, CURLOPT_CAINFO, NULL); /* unknown without TLS */
    curl_easy_setopt(e, CURLOPT_CAPATH, a->f->capath);
    /* http and https only, for redirects as well: other schemes block (telnet, file), or reach what
     * a URL from outside must not. The masks are old, and quick; without them, there are lists. */
    for (int i = 0; i < 2; i++) {
        CURLcode c = (curl_easy_setopt)(e, (CURLoption)(OPT_PROTOCOLS + i), 3L);
        if (c == CURLE_UNKNOWN_OPTION)
            c = (curl_easy_setopt)(e, (CURLoption)(OPT_PROTOCOLS_STR + i),
                                   "http,https");
        bad |= (unsigned)c;
    }
    return bad;
}

static void handle_free(struct attempt *a) {
    curl_easy_cleanup(a->easy);
    curl_slist_free_all(a->headers);
    free(a);
}

/* Only a handle without a running lookup may come here. If nothing has happened to it that could
 * leave a trace, it is spared for the next: a new one costs a tenth of what a small file does. */
static void attempt_free(struct attempt *a) {
    if (!a)
        return;
    struct fetcher *f = a->f;
    long os = 0;
    if (a->transfer)
        a->transfer->attempt = NULL;
    curl_easy_getinfo(a->easy, CURLINFO_OS_ERRNO, &os);
    a->usual &= !os && !a->headers;
    lookup_set(a, false);
    tree_remove(&f->breathless, &a->breath);
    tree_remove(&f->attempts, &a->all);
    curl_multi_remove_handle(f->multi, a->easy);
    if (f->transfers && f->spares < SPARES_MAX && a->usual && a->done &&
        !a->result) {
        a->next = f->spare;
        f->spare = a;
        f->spares++;
    } else
        handle_free(a);
}

static struct attempt *spare_take(struct fetcher *f) {
    struct attempt *a = f->spare;
    if (a) {
        f->spare = a->next;
        f->spares--;
    }
    return a;
}

/* A new one; or one that has been spared, if its buffer has the right size. */
static struct attempt *attempt_make(struct fetcher *f, bool usual,
                                    unsigned *bad) {
    struct attempt blank = {.f = f, .usual = usual, .buffer = buffer_size(f)};
    struct attempt *a = usual ? spare_take(f) : NULL;
    if (a && a->buffer == blank.buffer) {
        blank.easy = a->easy;
        *a = blank;
        return a;
    }
    if (a)
        handle_free(a);
    if ((blank.easy = curl_easy_init()) == NULL)
        return NULL;
    if ((a = malloc(sizeof *a)) == NULL) {
        curl_easy_cleanup(blank.easy);
        return NULL;
    }
    *a = blank;
    *bad = set_common(a);
    return a;
}

static usec time_of(CURL *easy, CURLINFO info) {
    curl_off_t us = 0;
    return curl_easy_getinfo(easy, info, &us) == CURLE_OK ? us : 0;
}

/* How long did it take until the request could go out? 0: there is no connection yet. */
#define connect_time(a) time_of((a)->easy, CURLINFO_PRETRANSFER_TIME_T)

static bool connected(const struct attempt *a) {
    return a->head_bytes > 0 || connect_time(a) > 0;
}

static int guest_open(struct fetcher *f) {
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
    const char *capath = default_capath(v);
    bool hashed = false;
    if ((f->multi = curl_multi_init()) == NULL ||
        curl_multi_setopt(f->multi, CURLMOPT_SOCKETFUNCTION, on_socket) !=
            CURLM_OK ||
        curl_multi_setopt(f->multi, CURLMOPT_SOCKETDATA, f) != CURLM_OK)
        return err(ENOMEM);
    /* So that twelve hung lookups don't hold up the thirteenth; unknown before 8.20. */
    (void)(curl_multi_setopt)(f->multi, (CURLMoption)MOPT_RESOLVE_THREADS_MAX,
                              64L);
    f->kick.call.cb = kick_is_due;
    f->curl_version = v->version_num;
    DIR *dir = capath ? opendir(capath)
                      : NULL; /* does OpenSSL find certificates there? */
    for (struct dirent *e; dir && !hashed && (e = readdir(dir)) != NULL;)
        hashed = strspn(e->d_name, "0123456789abcdef") == 8 &&
                 !strcmp(e->d_name + 8, ".0");
    if (dir)
        closedir(dir);
    return hashed && (f->capath = text_join(capath, "")) == NULL ? err(ENOMEM)
                                                                 : 0;
}

/* ===================================================================================== Transfers
 * A transfer waits in its host's queue, is attempted, and ends or is attempted again. Ours are the
 * queue (libcurl's own holds everything up in single calls of 50 ms), the limits, the time limits
 * (libcurl's wait for its resolver), and what an answer means for the bytes that are there. */
/* -- hosts and the queue --------------------------------------------------------------------- */
static bool host_known(const struct fetcher *f, const struct host *h) {
    return h->known > f->now || (h->numeric && !h->tls);
}

/* May this host start one? As long as it is unknown only a scout: two would look the name up. */
static void host_place(struct fetcher *f, struct host *h) {
    struct node *first = tree_first(h->queue);
    bool known = host_known(f, h);
    tree_remove(h->ready_in, &h->ready);
    if (!first || h->rest > f->now || (!known && h->looking) ||
        (f->limit_host > 0 && h->running >= f->limit_host))
        return;
    h->ready_in = &f->ready[known || h->numeric ? 0 : 1];
    h->ready.key = first->key;
    tree_add(h->ready_in, &h->ready);
}

/* A host that nobody uses is forgotten, unless it asked for rest. */
static void host_forget(struct fetcher *f, struct host *h) {
    if (h->users || (h->rest > f->now && !f->closing))
        return;
    tree_remove(h->ready_in, &h->ready);
    timer_disarm(f, &h->timer);
    tree_remove(&f->hosts, &h->name);
    if (f->last == h)
        f->last = NULL;
    free(h);
}

static void host_rested(struct fetcher *f, void *arg) {
    host_place(f, arg);
    host_forget(f, arg);
}

/* Hashes that collide share limits, no more. Literal addresses and localhost need no lookup. */
static struct host *host_get(struct fetcher *f, const char *origin) {
    const char *name = strstr(origin, "://") + 3;
    uint64_t hash = text_hash(origin, strlen(origin));
    struct node *n = tree_find(f->hosts, hash);
    struct host *h =
        n ? container_of(n, struct host, name) : calloc(1, sizeof *h);
    if (n || !h)
        return h;
    h->name.key = (int64_t)hash;
    h->ready.seq = ++f->serial;
    h->ready_in = f->ready;
    h->timer.call = (struct call){host_rested, h};
    h->tls = strncmp(origin, "https", 5) == 0;
    h->numeric = *name == '[' || strncmp(name, "localhost:", 10) == 0 ||
                 strspn(name, "0123456789.:") == strlen(name);
    tree_add(&f->hosts, &h->name);
    return h;
}

/* Whose turn is it? The higher priority's, then the host's that has waited longest. While all
 * lookups are in use, only a host whose address is known can start. */
static struct host *host_next(struct fetcher *f) {
    struct node *known = tree_first(f->ready[0]), *best = known;
    struct node *unknown =
        f->lookups < LOOKUPS_MAX ? tree_first(f->ready[1]) : NULL;
    if (unknown && (!known || node_before(unknown, known)))
        best = unknown;
    struct host *h = best ? container_of(best, struct host, ready) : NULL;
    if (!h || best == unknown || h->numeric || host_known(f, h))
        return h;
    host_place(f, h); /* what was known is so no more */
    return host_next(f);
}

static usec limit_us(int64_t ms) {
    return ms < 0 || ms > FOREVER / 1000 ? FOREVER : ms * 1000;
}

static void set_state(struct fetcher *f, struct transfer *t,
                      enum fetcher_state state) {
    struct fetcher_info info;
    t->state = state;
    if (!t->rq.on_progress || fetcher_info(f, (fetcher_id)t->id.key, &info) < 0)
        return;
    t->progressed = f->now;
    t->rq.on_progress(f, &info, t->rq.arg);
}

static void enqueue(struct fetcher *f, struct transfer *t, bool in_front) {
    timer_disarm(f, &t->timer);
    t->queued.key = -2 * (int64_t)t->rq.priority - in_front;
    t->queued.seq = ++f->serial;
    tree_add(&t->host->queue, &t->queued);
    f->waiting++;
    host_place(f, t->host);
    t->state =
        FETCHER_WAITING; /* without on_progress: we may be in fetcher_start */
    if (t->attempts > 0)
        timer_arm(f, &t->timer, t->began + limit_us(t->rq.total_ms));
    f->more |= !f->busy;
}

static void dequeue(struct fetcher *f, struct transfer *t) {
    if (!t->queued.in)
        return;
    tree_remove(&t->host->queue, &t->queued);
    f->waiting--;
    host_place(f, t->host);
}

/* -- URLs ------------------------------------------------------------------------------------ */
static char *url_part(CURLU *u, CURLUPart part, unsigned flags) {
    char *text = NULL;
    return curl_url_get(u, part, &text, flags) == CURLUE_OK ? text : NULL;
}

/* The origin of a URL, such as "https://example.org:443". Returns what is wrong with it. */
static const char *url_origin(const char *url, char *origin, size_t room) {
    CURLU *u = curl_url();
    CURLUcode c =
        u ? curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME)
          : CURLUE_OUT_OF_MEMORY;
    char *scheme = url_part(u, CURLUPART_SCHEME, 0),
         *host = url_part(u, CURLUPART_HOST, 0);
    char *port = url_part(u, CURLUPART_PORT, CURLU_DEFAULT_PORT);
    const char *wrong = "not a URL";
    if (c == CURLUE_BAD_PORT_NUMBER)
        wrong = "not a URL: its port is out of range";
    else if (c == CURLUE_OK && scheme && strcasecmp(scheme, "http") &&
             strcasecmp(scheme, "https"))
        wrong = "only http and https are fetched";
    else if (c == CURLUE_OK && scheme && host && *host && port &&
             snprintf(origin, room, "%s://%s:%s", scheme, host, port) <
                 (int)room)
        wrong = NULL;
    for (char *s = origin; !wrong && *s; s++)
        *s = (char)tolower((unsigned char)*s);
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(u);
    return wrong;
}

/* The host of a URL; what is not a URL has one too, of no name. To take a URL apart is slow, and
 * most come in runs from one host: so the last one is known by its beginning, up to the path. */
static struct host *url_host(struct fetcher *f, const char *url,
                             const char **wrong) {
    char origin[512] = "://";
    size_t n = strcspn(url, ":/?#");
    bool good = !strncmp(url + n, "://", 3) && !strchr("/?#", url[n + 3]);
    n += good ? 3 + strcspn(url + n + 3, "/?#") : 0;
    bool fits = good && !*wrong && url[n] == '/' && n < sizeof f->authority;
    if (fits && f->last && strncmp(url, f->authority, n) == 0 &&
        !f->authority[n])
        return f->last;
    if (!*wrong)
        *wrong = url_origin(url, origin, sizeof origin);
    if (!*wrong && !good)
        *wrong = "not a URL"; /* libcurl takes http:/x and http:///x */
    struct host *h = host_get(f, origin);
    if (!fits || *wrong || !h)
        return h;
    memcpy(f->authority, url, n);
    f->authority[n] = '\0';
    return f->last = h;
}

/* A copy for the eye, without any password: what libcurl can't take apart is shown from '@' on. */
static char *url_shown(const char *url) {
    const char *at = strrchr(url, '@');
    char *clean, *part = NULL;
    CURLU *u = at ? curl_url() : NULL;
    if (u &&
        curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) ==
            CURLUE_OK &&
        curl_url_set(u, CURLUPART_PASSWORD, NULL, 0) == CURLUE_OK)
        part = url_part(u, CURLUPART_URL, 0);
    if (at)
        url = part ? part : at;
    if ((clean = malloc(strlen(url) + 1)) != NULL)
        text_clean(clean, strlen(url) + 1, url, '?');
    curl_free(part);
    curl_url_cleanup(u);
    return clean;
}

/* -- the head of the answer ------------------------------------------------------------------ */
/* Seconds or a date, and an hour at most: a far date must not overflow. */
static int64_t read_retry_after(const char *s) {
    int64_t seconds = text_number(&s);
    time_t date = seconds < 0 ? curl_getdate(s, NULL) : 0;
    if (date < 0)
        return -1;
    if (seconds < 0)
        seconds = (int64_t)date - (int64_t)time(NULL);
    return seconds < 0 ? 0 : seconds > 3600 ? HOUR_US : seconds * 1000000;
}

static void head_field(struct head *h, const char *name, const char *value) {
    struct proof *p = &h->proof;
#define IS(text) (strcasecmp(name, text) == 0)
    switch (tolower((unsigned char)*name)) { /* most are none of ours */
    case 'e':
        if (IS("ETag"))
            text_field(p->etag, sizeof p->etag, value);
        break;
    case 'd':
        if (IS("Date"))
            text_field(p->date, sizeof p->date, value);
        break;
    case 'l':
        if (IS("Last-Modified"))
            text_field(p->modified, sizeof p->modified, value);
        break;
    case 'r':
        if (IS("Retry-After"))
            h->retry_after_us = read_retry_after(value);
        break;
    case 'c':
        if (IS("Content-Length"))
            h->length = text_number(&value);
        if (IS("Content-Disposition"))
            text_field(h->disposition, sizeof h->disposition, value);
        if (!IS("Content-Range") || strncasecmp(value, "bytes ", 6))
            return;
        value += 6;
        h->range_first =
            text_number(&value); /* "100-199/1000"; of a 416: a star */
        if ((value = strchr(value, '/')) != NULL) {
            value++;
            h->range_total = text_number(&value);
        }
    }
}

/* A line, without a NUL. (libcurl's own reader, of 7.83, only answers when the head is whole.) */
static size_t on_header(char *data, size_t one, size_t size, void *arg) {
    struct attempt *a = arg;
    struct head *h = &a->head;
    char line[1024], *colon;
    size_t n = size < sizeof line ? size : sizeof line - 1;
    (void)one;
    if (!a->transfer)
        return 0;
    scout_over(a, true);
    a->moved = listening(a->f);
    a->f->meter.touched = (fetcher_id)a->transfer->id.key;
    if ((a->head_bytes += size) > HEAD_MAX)
        return (size_t)fail(a->transfer, FETCHER_TOO_BIG,
                            "the answer's headers have no end");
    memcpy(line, data, n);
    while (n > 0 && isspace((unsigned char)line[n - 1]))
        n--;
    line[n] = '\0';
    if (strncmp(line, "HTTP/", 5) == 0) {
        const char *s = line + strcspn(line, " ");
        s += strspn(s, " ");
        a->usual &= !h->status; /* no redirect */
        *h = (struct head){.length = -1,
                           .range_first = -1,
                           .range_total = -1,
                           .retry_after_us = -1,
                           .status = (int)text_number(&s)};
        text_clean(h->reason, sizeof h->reason, s + strspn(s, " "), '?');
        a->transfer->host->shares = a->transfer->host->tls && line[5] >= '2';
    } else if (!h->decided && (colon = strchr(line, ':')) != NULL) {
        *colon++ = '\0';
        head_field(h, line, colon + strspn(colon, " \t"));
    }
    return size;
}

/* -- what the answer means for the body ------------------------------------------------------ */
/* What proves that bytes of two answers belong together; NULL: nothing does. A weak ETag (W/"...")
 * says "much the same", which isn't enough to join two halves. A Last-Modified proves as much as
 * a strong ETag only if the document had been left alone for a while when it was sent (RFC 9110,
 * 8.8.2.2; a minute is the older and safer rule). To read dates is slow, so it waits until here. */
static const char *validator(struct body *b) {
    if (b->no_range)
        return NULL;
    if (b->proof.etag[0] == '"' && !b->no_etag)
        return b->proof.etag;
    if (b->modified_sure < 0) {
        time_t modified = curl_getdate(b->proof.modified, NULL);
        time_t date = curl_getdate(b->proof.date, NULL);
        b->modified_sure = modified >= 0 && date >= 0 && date >= modified + 60;
    }
    return b->modified_sure ? b->proof.modified : NULL;
}

static const char *request_method(const struct fetcher_request *rq) {
    return rq->method ? rq->method : rq->body ? "POST" : "GET";
}

static int ask_again(struct attempt *a) {
    a->again = true;
    return -1;
}

/* Is an answer about another document than the one we have a part of? */
static bool document_differs(const struct proof *h, const struct proof *b) {
    bool etags = h->etag[0] && b->etag[0],
         strong = etags && h->etag[0] == '"' && b->etag[0] == '"';
    if (etags && strcmp(h->etag, b->etag))
        return true;
    return !strong && h->modified[0] && b->modified[0] &&
           strcmp(h->modified, b->modified);
}

/* A 206 has to start where we stopped, in the same document; else we ask for the whole. */
static int accept_part(struct attempt *a) {
    struct body *b = a->transfer->body;
    const struct head *h = &a->head;
    if (!a->from &&
        (!a->transfer->own_range || (b->have && a->transfer->rq.on_data)))
        return fail(a->transfer, FETCHER_PROTOCOL,
                    "the server sent a part that was not asked for");
    b->no_range |= a->from && (h->range_first != b->have ||
                               document_differs(&h->proof, &b->proof) ||
                               (h->range_total >= 0 && b->length >= 0 &&
                                h->range_total != b->length));
    if (a->from && b->no_range)
        return ask_again(a);
    if (!a->from || h->range_total >= 0)
        b->length = a->from ? h->range_total : -1;
    b->skip = 0;
    return 0;
}

/* A 200: the whole, though we may have a part of it. Some servers know If-Range with a date
 * only: if the ETag is the same, that is worth one more request. A stream can't be taken back:
 * it goes on if the bytes are proved the same, and those that were handed on are skipped. */
static int accept_whole(struct attempt *a) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    const struct head *h = &a->head;
    bool same =
        h->proof.etag[0] == '"' && strcmp(h->proof.etag, b->proof.etag) == 0;
    if (a->from && same && !b->no_etag && !t->rq.on_data) {
        b->no_etag = true;
        if (validator(b))
            return ask_again(a);
        b->no_etag = false;
    }
    if (b->have && t->rq.on_data && !same)
        return fail(t, FETCHER_CUT_SHORT,
                    "cut short, and the document may have changed since");
    *(t->rq.on_data ? &b->skip : &b->have) = t->rq.on_data ? b->have : 0;
    b->length = t->rq.flags & FETCHER_COMPRESSED ? -1 : h->length;
    b->proof = h->proof;
    b->modified_sure = -1;
    return 0;
}

/* An error, but for the 416 that says we have all there is. Its page may be of use to a
 * person: it is kept in memory, if that is where the body goes and nothing better is there. */
static int accept_error(struct attempt *a) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    const struct head *h = &a->head;
    if (h->status == 416 && a->from) {
        a->complete = h->range_total == b->have &&
                      !document_differs(&h->proof, &b->proof) &&
                      b->length <= b->have;
        b->no_range |= !a->complete;
        return a->complete ? 0 : ask_again(a);
    }
    fail(t, FETCHER_HTTP, "%d %s", h->status, h->reason);
    if (h->retry_after_us >= 0 &&
        a->f->now + h->retry_after_us > t->host->rest) {
        t->host->rest = a->f->now + h->retry_after_us;
        timer_arm(a->f, &t->host->timer, t->host->rest);
        host_place(a->f, t->host);
    }
    b->page = !t->rq.path && !t->rq.on_data && b->have == 0;
    return 0;
}

/* Called once for each final answer: with its first piece of body, or at its end if it has none. */
static int decide(struct attempt *a) {
    struct transfer *t = a->transfer;
    int status = t->status = a->head.status;
    a->head.decided = true;
    t->unchanged = status == 304 && t->body->whole;
    if (status < 200 || status > 299)
        return t->unchanged ? 0 : accept_error(a);
    t->body->whole = false;
    if ((status == 206 ? accept_part(a) : accept_whole(a)) < 0)
        return -1;
    if (t->rq.max_bytes >= 0 && t->body->length > t->rq.max_bytes &&
        strcmp(request_method(&t->rq), "HEAD") != 0)
        return fail(t, FETCHER_TOO_BIG,
                    "%" PRId64 " bytes are more than allowed", t->body->length);
    return t->sink->begin(t);
}

/* -- the body -------------------------------------------------------------------------------- */
static void turn_ear(struct fetcher *f, void *arg) {
    (void)arg;
    f->deaf = !f->deaf;
    f->silence = f->now - f->silence; /* see listening() */
}

/* The rate is limited by not listening: what we don't read the kernel doesn't acknowledge, and
 * the sender waits. A tenth of a second's bytes may be saved up; and once in debt we listen
 * again only when there is enough for 20 ms, or each packet would cost a turn. */
static void count_bytes(struct fetcher *f, struct transfer *t, int64_t n) {
    usec elapsed = f->now - t->speed_since;
    t->received += n;
    f->received += n;
    t->speed_bytes += n;
    if (elapsed >= 1000000) {
        t->speed = t->speed_bytes * 1000000 / elapsed;
        t->speed_bytes = 0;
        t->speed_since = f->now;
    }
    if (!f->rate)
        return;
    f->budget +=
        (int64_t)((double)f->rate * (double)(f->now - f->filled) / 1e6);
    f->filled = f->now;
    f->budget = (f->budget > f->rate / 10 ? f->rate / 10 : f->budget) - n;
    if (f->budget < 0 && !f->deaf)
        turn_ear(f, NULL);
    if (f->deaf)
        timer_arm(f, &f->hear, f->now + 20000 - f->budget * 1000000 / f->rate);
}

/* One call to libcurl may go on for as long as data keeps coming (7.88 read 12 MB in one, 60 ms).
 * So when the slice or the budget is spent it is paused, until the finish phase lets it go. */
static size_t on_body(char *data, size_t one, size_t n, void *arg) {
    struct attempt *a = arg;
    struct fetcher *f = a->f;
    struct transfer *t = a->transfer;
    bool fed = f->meter.fed;
    int result = 0;
    (void)one;
    if (!t || (t->want & WANT_CANCEL))
        return n + 1; /* anything but n ends it */
    f->meter.fed = true;
    if (fed && (f->deaf || clock_us() + f->skew >= f->slice_end)) {
        a->breath.key = (int64_t)++f->serial;
        tree_add(&f->breathless, &a->breath);
        return CURL_WRITEFUNC_PAUSE;
    }
    f->meter.touched = (fetcher_id)t->id.key;
    a->moved = listening(f);
    if (a->again || (!a->head.decided && decide(a) < 0))
        return n + 1;
    const struct body *b = t->body;
    if (a->complete ||
        (t->code != FETCHER_OK && !b->page)) /* nobody wants it */
        result = (a->drained += n) > DRAIN_MAX ? -1 : 0;
    else if (t->rq.max_bytes >= 0 &&
             (int64_t)n - b->skip > t->rq.max_bytes - b->have)
        result = fail(t, FETCHER_TOO_BIG, "more than %" PRId64 " bytes",
                      t->rq.max_bytes);
    else
        result = t->sink->take(t, data, n);
    if (result < 0)
        return n + 1;
    if (result == FETCHER_PAUSE) {
        t->held = true;
        set_state(f, t, FETCHER_PAUSED);
        return CURL_WRITEFUNC_PAUSE;
    }
    count_bytes(f, t, (int64_t)n);
    if (t->rq.on_progress && f->now >= t->progressed + PROGRESS_US)
        set_state(f, t, t->state);
    return n;
}

/* There is always room for a NUL too. What was announced is taken at once, if it is not absurd;
 * else it grows by half, so that all copying together stays a small part of the work. */
static int memory_take(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;
    size_t need = (size_t)b->have + n + 1, room = b->room + b->room / 2;
    if ((uint64_t)b->have + n > SIZE_MAX / 2)
        return fail_memory(t);
    if (need > b->room) {
        if ((int64_t)room <= b->length && b->length < MEMORY_USUAL &&
            !t->rq.path)
            room = (size_t)b->length + 1;
        if (room < need)
            room = need;
        char *longer = realloc(b->data, room);
        if (!longer)
            return fail_memory(t);
        b->data = longer;
        b->room = room;
    }
    memcpy(b->data + b->have, data, n);
    b->have += (int64_t)n;
    b->data[b->have] = '\0';
    return 0;
}

static int memory_commit(struct transfer *t) {
    return memory_take(t, "", 0);
}

static int nothing(struct transfer *t) {
    (void)t;
    return 0;
}
static const struct sink memory_sink = {nothing, nothing, memory_take,
                                        memory_commit};

static int stream_take(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;
    size_t skip = b->skip < (int64_t)n ? (size_t)b->skip : n;
    int result =
        n > skip ? t->rq.on_data(t->f, data + skip, n - skip, t->rq.arg) : 0;
    if (result < 0)
        return fail(t, FETCHER_REFUSED, "its reader refused the data");
    if (result == FETCHER_PAUSE)
        return FETCHER_PAUSE; /* all of it comes again */
    b->skip -= (int64_t)skip;
    b->have += (int64_t)(n - skip);
    return 0;
}
static const struct sink stream_sink = {nothing, nothing, stream_take, nothing};

/* -- an attempt ------------------------------------------------------------------------------ */
static void header_add(struct attempt *a, const char *name, const char *value) {
    char *line = text_join(name, value);
    struct curl_slist *longer =
        line ? curl_slist_append(a->headers, line) : NULL;
    if (longer)
        a->headers = longer;
    else
        fail_memory(a->transfer);
    free(line);
}

/* The whole document of an earlier round makes a request conditional; a part asks for the rest. */
static int attempt_new(struct fetcher *f, struct transfer *t) {
    const struct fetcher_request *rq = &t->rq;
    const char *method = request_method(rq);
    struct body *b = t->body;
    const struct proof *p = &b->proof;
    char range[48];
    bool usual = !rq->method && !rq->body && !(rq->headers && *rq->headers) &&
                 !rq->setup && !(rq->flags & FETCHER_COMPRESSED) &&
                 !strchr(rq->url, '@');
    unsigned bad = 0;
    struct attempt *a = attempt_make(f, usual, &bad);
    if (!a)
        return fail_memory(t);
    CURL *e = a->easy;
    t->attempt = a;
    a->transfer = t;
    a->began = a->moved = listening(f);
    for (int i = 0; rq->headers && rq->headers[i]; i++)
        header_add(a, "", rq->headers[i]);
    if (b->whole && p->etag[0])
        header_add(a, "If-None-Match: ", p->etag);
    else if (b->whole && p->modified[0])
        header_add(a, "If-Modified-Since: ", p->modified);
    else if (!b->whole && b->have > 0 && validator(b)) {
        a->from = b->have;
        snprintf(range, sizeof range, "%" PRId64 "-", b->have);
        header_add(a, "Range: bytes=", range);
        header_add(a, "If-Range: ", validator(b));
    }
    SET(URL, rq->url);
    SET(HTTPHEADER, a->headers);
    SET(PIPEWAIT, (long)t->host->shares);
    SET(HEADERFUNCTION, on_header);
    SET(WRITEFUNCTION, on_body);
    if (rq->flags & FETCHER_COMPRESSED)
        SET(ACCEPT_ENCODING, "");
    if (rq->body)
        SET(POSTFIELDSIZE_LARGE, (curl_off_t)rq->body_size),
            SET(POSTFIELDS, rq->body);
    if (strcmp(method, "HEAD") == 0)
        SET(NOBODY, 1L);
    else if (strcmp(method, rq->body ? "POST" : "GET") != 0)
        SET(CUSTOMREQUEST, method);
    if (bad)
        fail(t, FETCHER_OTHER, "libcurl does not take a setting");
    if (t->code != FETCHER_OK)
        return -1;
    return rq->setup && rq->setup(e, rq->arg) < 0
               ? fail(t, FETCHER_OTHER, "its set-up failed")
               : 0;
}

/* -- time limits ----------------------------------------------------------------------------- */
/* Until it is connected connect_ms counts, then the silence; but bytes of its own that go out are
 * no silence, nor is a reader that paused it. It is looked at once more after stall_ms, for then it
 * may be connected; where others wait for that, sooner. Returns false if the limit is reached. */
static bool deadline_arm(struct fetcher *f, struct transfer *t) {
    const struct fetcher_request *rq = &t->rq;
    struct attempt *a = t->attempt;
    usec total = t->began + limit_us(rq->total_ms), heard = listening(f), due;
    int64_t sent = rq->body ? time_of(a->easy, CURLINFO_SIZE_UPLOAD_T) : 0;
    if (sent > a->sent) {
        a->sent = sent;
        a->moved = heard;
    }
    if (t->held)
        due = f->now + FOREVER;
    else if (!connected(a))
        due = f->now + limit_us(rq->connect_ms) - (heard - a->began);
    else
        due = f->now + limit_us(rq->stall_ms) - (heard - a->moved) +
              (a->head_bytes ? 0 : connect_time(a));
    if (due > total)
        due = total;
    usec look =
        f->now + (a->scout && !a->lookup ? SCOUT_US : limit_us(rq->stall_ms));
    timer_arm(f, &t->timer, due < look ? due : look);
    return due > f->now;
}

/* A transfer's one timer: the end of a wait, or a limit, looked at when due, not at each byte. */
static void transfer_due(struct fetcher *f, void *arg) {
    struct transfer *t = arg;
    const struct fetcher_request *rq = &t->rq;
    bool over = f->now - t->began >= limit_us(rq->total_ms), there;
    if (!t->attempt && (t->attempts == 0 || !over)) {
        enqueue(f, t, false);
        return;
    }
    there = t->attempt && connected(t->attempt);
    if (there && t->attempt->scout)
        scout_over(t->attempt, true);
    if (t->attempt && deadline_arm(f, t))
        return;
    fail(t, FETCHER_TIMEOUT,
         over    ? "not done after %g s"
         : there ? "stalled: no data for %g s"
                 : "no connection after %g s",
         MS(over    ? rq->total_ms
            : there ? rq->stall_ms
                    : rq->connect_ms));
    mark(f, t, WANT_END);
}

/* -- failure and retry ----------------------------------------------------------------------- */
/* libcurl's reasons, by ours. What isn't here is FETCHER_OTHER. */
static const struct {
    enum fetcher_code code;
    unsigned char curl[8];
} reason[] = {
    {FETCHER_NO_HOST,
     {CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_RESOLVE_PROXY}},
    {FETCHER_NO_CONNECTION, {CURLE_COULDNT_CONNECT, CURLE_INTERFACE_FAILED}},
    {FETCHER_TLS,
     {CURLE_SSL_CONNECT_ERROR, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CIPHER,
      CURLE_SSL_CACERT_BADFILE, CURLE_SSL_CERTPROBLEM, CURLE_SSL_ISSUER_ERROR,
      CURLE_SSL_PINNEDPUBKEYNOTMATCH, CURLE_SSL_INVALIDCERTSTATUS}},
    {FETCHER_CUT_SHORT,
     {CURLE_PARTIAL_FILE, CURLE_GOT_NOTHING, CURLE_SEND_ERROR, CURLE_RECV_ERROR,
      CURLE_HTTP2, CURLE_HTTP2_STREAM}},
    {FETCHER_REDIRECT,
     {CURLE_TOO_MANY_REDIRECTS, CURLE_URL_MALFORMAT,
      CURLE_UNSUPPORTED_PROTOCOL}},
    {FETCHER_PROTOCOL, {CURLE_WEIRD_SERVER_REPLY, CURLE_BAD_CONTENT_ENCODING}},
    {FETCHER_NO_MEMORY, {CURLE_OUT_OF_MEMORY}},
};

/* Say it in words for a person: what, where (that may be where a redirect led), and why. */
static void fail_curl(struct attempt *a, CURLcode c) {
    struct transfer *t = a->transfer;
    const struct body *b = t->body;
    const char *why = a->error[0] ? a->error : curl_easy_strerror(c);
    enum fetcher_code code = FETCHER_OTHER;
    char origin[512], *url = NULL, *host;
    long os = 0;
    curl_easy_getinfo(a->easy, CURLINFO_EFFECTIVE_URL, &url);
    curl_easy_getinfo(a->easy, CURLINFO_OS_ERRNO, &os);
    for (size_t i = 0; i < COUNT_OF(reason); i++)
        if (memchr(reason[i].curl, (int)c, sizeof reason[i].curl))
            code = reason[i].code;
    if (c == CURLE_UNSUPPORTED_PROTOCOL && a->head.status == 0)
        code = FETCHER_PROTOCOL; /* HTTP/0.9, or what looks like it */
    if (!url || url_origin(url, origin, sizeof origin))
        strcpy(origin, "://the host:");
    host = strstr(origin, "://") + 3;
    if (code == FETCHER_NO_HOST && c == CURLE_COULDNT_RESOLVE_HOST)
        fail(t, code, "could not find host %.*s",
             (int)(strrchr(host, ':') - host), host);
    else if (code == FETCHER_NO_CONNECTION)
        fail(t, code, "could not connect to %s: %s", host,
             os ? strerror((int)os) : why);
    else if (code == FETCHER_TLS)
        fail(t, code, "cannot trust %s: %s", host, why);
    else if (code == FETCHER_CUT_SHORT && b->length > 0)
        fail(t, code, "cut short after %" PRId64 " of %" PRId64 " bytes",
             b->have, b->length);
    else
        fail(t, code,
             code == FETCHER_REDIRECT    ? "a redirect can't be followed: %s"
             : code == FETCHER_CUT_SHORT ? "cut short: %s"
                                         : "%s",
             why);
}

static bool listed(const char *what, const char *list) {
    const char *found = strstr(list, what);
    return found && (found == list || found[-1] == ' ') &&
           strchr(" ", found[strlen(what)]);
}

/* Only what may pass is tried again, and where the server may have acted only what does no harm. */
static bool may_retry(struct fetcher *f, const struct transfer *t) {
    bool harmless =
        listed(request_method(&t->rq), "GET HEAD PUT DELETE OPTIONS");
    char status[16];
    if (f->closing || t->failures >= t->rq.retries ||
        f->now - t->began >= limit_us(t->rq.total_ms))
        return false;
    snprintf(status, sizeof status, "%d", t->status);
    if (t->code == FETCHER_HTTP)
        return listed(status,
                      harmless ? "408 425 429 500 502 503 504" : "429 503");
    if (t->code == FETCHER_TIMEOUT || t->code == FETCHER_CUT_SHORT ||
        t->code == FETCHER_PROTOCOL)
        return harmless;
    return t->code == FETCHER_NO_HOST || t->code == FETCHER_NO_CONNECTION;
}

/* Backoff with full jitter, so that many that failed together don't come back together. */
static void retry_later(struct fetcher *f, struct transfer *t) {
    usec bound = (usec)BACKOFF_FIRST_US << (t->failures < 6 ? t->failures : 6);
    usec total = t->began + limit_us(t->rq.total_ms);
    usec due = f->now +
               random_below(f, bound < BACKOFF_MAX_US ? bound : BACKOFF_MAX_US);
    t->failures++;
    if (due < t->host->rest)
        due = t->host->rest;
    timer_arm(f, &t->timer, due < total ? due : total);
    set_state(f, t, FETCHER_RETRYING);
}

/* ========================================================================================= Files
 * A file appears under its name only when it is whole. Its first 16 KiB stay in memory, so that a
 * small file is made, written and renamed in one go; a larger one grows in NAME.part. Beside it
 * stands NAME.part.meta, which says what the bytes belong to: so another process can go on, and
 * no file of somebody else's is taken for one of ours. A .part is locked while it is written.
 * Names come from outside and are made safe, no symbolic link is followed, and what is in the way
 * is gone round or refused, not overwritten. write() to a file can block, and there is no portable
 * remedy: so writes are small, and nothing is flushed. */
/* -- names ----------------------------------------------------------------------------------- */
/* A name from outside, as it may stand in a directory: no path, not hidden, not empty, nothing that
 * a terminal would act on; if too long, cut before the extension on a character's boundary. */
static void name_make_safe(char *to, size_t room, const char *from) {
    for (const char *s = from; *s; s++)
        if (*s == '/' || *s == '\\')
            from = s + 1;
    text_clean(to, room, *from ? from : "index.html", '_');
    for (char *c = to; *c == '.'; c++)
        *c = '_';
    char *dot = strrchr(to, '.');
    size_t n = strlen(to), tail = dot && strlen(dot) <= 16 ? strlen(dot) : 0;
    size_t keep = NAME_CUT - tail;
    if (n <= NAME_CUT)
        return;
    while (keep > 0 && (to[keep] & 0xc0) == 0x80)
        keep--;
    memmove(to + keep, to + n - tail, tail + 1);
}

/* The name in a Content-Disposition: filename* before filename (RFC 6266). The value of filename*
 * is charset'language'percent-encoded (RFC 8187, which knows UTF-8 only). */
static bool disposition_name(const char *s, char *name, size_t room) {
    char value[600];
    bool extended = false, quoted;
    *name = '\0';
    while (!extended && (s = strchr(s, ';')) != NULL) {
        const char *key = s + 1 + strspn(s + 1, " \t");
        size_t n = strcspn(key, "=; \t"), got = 0;
        s = key + n + strspn(key + n, " \t");
        if (*s != '=')
            continue;
        s += 1 + strspn(s + 1, " \t");
        quoted = *s == '"';
        for (s += quoted; *s && !strchr(quoted ? "\"" : "; \t", *s); s++) {
            s += quoted && *s == '\\' && s[1];
            if (got + 1 < sizeof value)
                value[got++] = *s;
        }
        value[got] = '\0';
        extended = n == 9 && strncasecmp(key, "filename*", n) == 0;
        char *text = extended ? strchr(value, '\'') : NULL, *plain = NULL;
        if (text && (text = strchr(text + 1, '\'')) != NULL)
            plain = curl_easy_unescape(NULL, text + 1, 0, NULL);
        if (extended || (n == 8 && strncasecmp(key, "filename", n) == 0))
            text_field(name, room, plain ? plain : value);
        curl_free(plain);
    }
    return *name != '\0';
}

/* "dir/name.ext" and 2 make "dir/name (2).ext"; 0 makes a plain copy. */
static char *name_numbered(const char *path, unsigned long number,
                           const char *suffix) {
    size_t size = strlen(path) + strlen(suffix) + 32;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    int stem = (int)(dot && dot != name ? dot - path : (ptrdiff_t)strlen(path));
    char *to = number ? malloc(size) : text_join(path, suffix);
    if (to && number)
        snprintf(to, size, "%.*s (%lu)%s%s", stem, path, number, path + stem,
                 suffix);
    return to;
}

/* A long path is told by its end, so that the reason is not lost. */
static int fail_file(struct transfer *t, const char *what, const char *path) {
    size_t n = strlen(path), most = 100;
    return fail(t, FETCHER_FILE, "could not %s %s%s: %s", what,
                n > most ? "..." : "", n > most ? path + n - most : path,
                strerror(errno));
}

/* Does the request name a directory, and the server or the URL the file? */
static bool in_directory(const struct transfer *t) {
    return t->rq.path[strlen(t->rq.path) - 1] == '/';
}

/* No server may write what we would believe: where a .part comes from. */
static int path_set(struct transfer *t, char **path, const char *name) {
    char safe[1024] = "";
    size_t n;
    if (name)
        name_make_safe(safe, sizeof safe, name);
    if ((n = strlen(safe)) > 9 && !strcasecmp(safe + n - 10, ".part.meta"))
        safe[n - 5] = '_';
    free(*path);
    *path = text_join(t->rq.path, safe);
    return *path ? 0 : fail_memory(t);
}

/* -- the .meta: a line each for the URL, the validator and the length ------------------------ */
struct meta {
    char text[4096]; /* what is longer isn't written, and so not resumed */
    const char *url, *validator;
    int64_t length;
};

/* False: there is none, or an empty one. Without a url: it is none of ours. */
static bool meta_read(const char *part, struct meta *m) {
    char *path = text_join(part, ".meta");
    int fd =
        path ? open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) : -1;
    ssize_t n = fd < 0 ? -1 : read(fd, m->text, sizeof m->text - 1);
    free(path);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return false;
    m->text[n] = '\0';
    m->url = "";
    char *validator = strchr(m->text, '\n'),
         *end = validator ? strchr(validator + 1, '\n') : NULL;
    if (strncasecmp(m->text, "http", 4) != 0 || !end)
        return true;
    *validator = *end = '\0';
    m->validator = validator + 1;
    const char *length = end + 1;
    m->length = text_number(&length);
    if (*length == '\n' || strcmp(length, "-1\n") == 0)
        m->url = m->text;
    return true;
}

static void meta_remove(struct body *b) {
    char *path = text_join(b->part, ".meta");
    if (path)
        unlink(path);
    free(path);
    b->meta = false;
}

/* Written in one piece, while the .part is empty: so it never speaks of bytes that are not there.
 * Best effort: without one the download works, and can't be continued by another process. */
static void meta_write(struct transfer *t) {
    struct body *b = t->body;
    struct meta m;
    bool foreign = !b->meta && meta_read(b->part, &m) && !*m.url;
    char *path = foreign ? NULL : text_join(b->part, ".meta");
    int flags =
        O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = path ? open(path, flags, 0600) : -1;
    int n = snprintf(m.text, sizeof m.text, "%s\n%s\n%" PRId64 "\n",
                     shown_url(t), validator(b) ? validator(b) : "", b->length);
    free(path);
    if (fd < 0)
        return;
    b->meta = true;
    if (n >= (int)sizeof m.text || write(fd, m.text, (size_t)n) != n)
        meta_remove(b);
    close(fd);
}

/* -- the .part ------------------------------------------------------------------------------- */
/* Is this file open at fd the one that stands under the name? */
static bool stands_as(int fd, const char *path) {
    struct stat st, other;
    return fstat(fd, &st) == 0 && lstat(path, &other) == 0 &&
           S_ISREG(other.st_mode) && other.st_dev == st.st_dev &&
           other.st_ino == st.st_ino;
}

/* -1 with EWOULDBLOCK: somebody writes it; EEXIST: it is no plain file of ours, or renamed. Files
 * need no place below FD_SETSIZE, sockets do: so one with a low number moves up if it can. */
static int part_lock(const char *part, int flags) {
    int fd = open(part, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | flags,
                  0666),
        why = EEXIST;
    struct stat st;
    struct rlimit limit = {0, 0};
    int higher = -1;
    if (fd < 0)
        return -1;
    bool new = flags &O_EXCL, locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (!locked && errno == EWOULDBLOCK)
        why = errno;
    else if ((locked || new) &&
             fstat(fd, &st) == 0 && /* some file systems have no locks */
             (new ? st.st_size == 0
                  : st.st_uid == geteuid() && stands_as(fd, part))) {
        if (fd >= FD_SETSIZE / 4)
            getrlimit(RLIMIT_NOFILE, &limit);
        if (limit.rlim_cur > FD_SETSIZE + 64)
            higher = fcntl(fd, F_DUPFD_CLOEXEC, FD_SETSIZE);
        if (higher < 0)
            return fd;
    }
    close(fd);
    return higher < 0 ? err(why) : higher;
}

/* Something is in the way of this .part: try it again (0), or the next number (1), or fail (-1). */
static int part_obstacle(struct transfer *t, char *part, bool ours) {
    struct node *all = t->f->transfers;
    int result = ENOENT;
    switch (errno) {
    case ENOENT: /* make what is missing on the way; if nothing is, fail */
        for (char *s = part + 1; (s = strchr(s, '/')) != NULL; *s++ = '/') {
            *s = '\0';
            if (mkdir(part, 0777) == 0)
                result = 0;
            else if (errno != EEXIST)
                result = errno;
        }
        errno = result;
        return result ? fail_file(t, "make", part) : 0;
    case EWOULDBLOCK: /* by another transfer of this fetcher? */
        for (struct node *n = tree_first(all); n; n = tree_next(all, n)) {
            const struct body *b = container_of(n, struct transfer, id)->body;
            if (b && b->fd >= 0 && strcmp(b->part, part) == 0)
                return 1;
        }
        if (in_directory(t) && !ours)
            return 1;
        return fail(t, FETCHER_FILE, "%s is being written by another process",
                    part);
    case EEXIST:
    case EISDIR:
    case ELOOP:
    case ENXIO:
    case EMLINK:
        return 1;
    default:
        return fail_file(t, "make", part);
    }
}

/* A .part of our own: a new one, or one left over, emptied, under the first number that is free.
 * Such a one needs a .meta: otherwise it is somebody's file that is named like one of ours. And
 * what another URL left is only given up where its name was asked for. */
static int part_open(struct transfer *t) {
    struct body *b = t->body;
    struct meta m;
    struct stat st;
    unsigned long number = 0;
    for (int step = 0; step >= 0; number += (unsigned)step) {
        free(b->part);
        if ((b->part = name_numbered(b->base, number, ".part")) == NULL)
            return fail_memory(t);
        if ((b->fd = part_lock(b->part, O_CREAT | O_EXCL)) >= 0)
            return 0;
        if (errno == EEXIST && (b->fd = part_lock(b->part, 0)) >= 0) {
            bool meta = meta_read(b->part, &m), ours = meta && *m.url;
            bool other =
                !ours || (in_directory(t) && strcmp(m.url, shown_url(t)) != 0);
            if (fstat(b->fd, &st) == 0 &&
                !(st.st_size == 0 ? meta && !ours : other) &&
                ftruncate(b->fd, 0) == 0) {
                meta_remove(b); /* after the bytes that it spoke of */
                return 0;
            }
            close(b->fd);
            errno = EEXIST;
        }
        b->fd = -1;
        step = part_obstacle(t, b->part, false);
    }
    return -1;
}

/* Take up what an earlier run has left, if there is proof of what it is a part of. */
static int part_find(struct transfer *t) {
    struct body *b = t->body;
    struct meta m;
    struct stat st;
    for (unsigned long number = 0; b->fd < 0; number++) {
        free(b->part);
        if ((b->part = name_numbered(b->base, number, ".part")) == NULL)
            return fail_memory(t);
        if (!meta_read(b->part, &m))
            return 0;
        if (strcmp(m.url, shown_url(t)) != 0 ||
            (b->fd = part_lock(b->part, 0)) >= 0)
            continue;
        if (errno == ENOENT)
            meta_remove(b); /* killed after the rename: only that is left */
        else if (part_obstacle(t, b->part, true) < 0)
            return -1;
    }
    if (!meta_read(b->part, &m) || strcmp(m.url, shown_url(t)) != 0)
        return 0; /* a moment ago */
    bool etag = *m.validator == '"';
    text_field(b->proof.etag, sizeof b->proof.etag, etag ? m.validator : "");
    text_field(b->proof.modified, sizeof b->proof.modified,
               etag ? "" : m.validator);
    b->meta = true;
    b->length = m.length;
    b->modified_sure = b->proof.modified[0] != '\0';
    if (fstat(b->fd, &st) == 0 && validator(b) &&
        (m.length < 0 || st.st_size <= m.length))
        b->have = st.st_size;
    return 0;
}

static int part_write(struct transfer *t, const char *data, size_t n) {
    for (ssize_t written; n > 0; data += written, n -= (size_t)written) {
        while ((written = write(t->body->fd, data, n)) < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return fail_file(t, "write", t->body->part);
        t->body->have += written;
    }
    return 0;
}

/* What is in memory moves to disk. */
static int part_spill(struct transfer *t) {
    struct body *b = t->body;
    size_t n = (size_t)b->have;
    char *data = b->data;
    b->data = NULL;
    b->room = 0;
    b->have = 0;
    int result = part_write(t, data, n);
    free(data);
    return result;
}

/* -- the sink -------------------------------------------------------------------------------- */
/* Is something there that we may not replace (-1), or that makes fetching needless (1)? */
static int file_look(struct transfer *t) {
    struct stat st;
    const struct body *b = t->body;
    if (b->placed || t->rq.existing == FETCHER_KEEP_BOTH ||
        lstat(b->path, &st) < 0)
        return 0;
    if (t->rq.existing == FETCHER_SKIP)
        return 1;
    return S_ISREG(st.st_mode) || S_ISLNK(st.st_mode)
               ? 0
               : fail(t, FETCHER_FILE, "%s is not a file", b->path);
}

/* The usual name: the last of the URL's path, decoded first, to see "%2e%2e%2f" for what it is. */
static int file_open(struct transfer *t) {
    struct body *b = t->body;
    char *name = NULL;
    if (b->path)
        return file_look(t); /* not the first attempt */
    const char *path = strstr(t->rq.url, "://") + 3,
               *end = path + strcspn(path, "?#"), *s = end;
    while (s > path && s[-1] != '/')
        s--;
    if (s > path && end > s)
        name = curl_easy_unescape(NULL, s, (int)(end - s), NULL);
    int result =
        path_set(t, &b->base, in_directory(t) ? name ? name : "" : NULL);
    curl_free(name);
    if (result < 0 || (b->path = text_join(b->base, "")) == NULL)
        return fail_memory(t);
    if ((result = file_look(t)) < 0 || b->no_range ||
        (t->rq.flags & FETCHER_FRESH))
        return result;
    if (part_find(t) < 0 && result == 0)
        return -1;
    t->code = FETCHER_OK; /* what is skipped may be written by whom it will */
    return result;
}

static int file_begin(struct transfer *t) {
    struct body *b = t->body;
    char name[600];
    if (in_directory(t) && !b->placed &&
        disposition_name(t->attempt->head.disposition, name, sizeof name) &&
        path_set(t, &b->path, name) < 0)
        return -1;
    if (b->fd < 0)
        return 0;
    if (!b->data &&
        (ftruncate(b->fd, b->have) < 0 || lseek(b->fd, b->have, SEEK_SET) < 0))
        return fail_file(t, "cut", b->part);
    if (b->have == 0)
        meta_write(t);
    return 0;
}

/* What is no longer small gets a .part with a .meta, and moves there with the next piece: so that a
 * step is one write, however slow the disk. */
static int file_take(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;
    bool open = b->fd >= 0, first = b->have == 0;
    if (open && !first && !b->data)
        return part_write(t, data, n);
    if (memory_take(t, data, n) < 0)
        return -1;
    if (open)
        return first ? 0 : part_spill(t);
    if (b->have <= SMALL_MAX)
        return 0;
    if (part_open(t) < 0)
        return -1;
    meta_write(t);
    return 0;
}

static bool name_taken(const char *path, unsigned long number) {
    char *name = name_numbered(path, number, "");
    struct stat st;
    bool taken = name && lstat(name, &st) == 0;
    free(name);
    return taken;
}

/* The name that was asked for, or the first free one with a number, guessed by doubling and then
 * halving: a thousand files of one name cost ten looks each. The rename finds out. */
static int place_beside(struct transfer *t) {
    struct body *b = t->body;
    unsigned long taken = 0, number = 0, middle;
    for (char *path; (path = name_numbered(b->path, number, "")) != NULL;
         number++) {
        if (rename_new(b->part, path) == 0) {
            free(b->path);
            b->path = path;
            return 0;
        }
        if (errno != EEXIST)
            fail_file(t, "make", path);
        free(path);
        if (t->code != FETCHER_OK)
            return -1;
        if (number)
            continue;
        for (number = 1; name_taken(b->path, number); number *= 2)
            taken = number;
        while (taken + 1 < number) {
            middle = taken + (number - taken) / 2;
            *(name_taken(b->path, middle) ? &taken : &number) = middle;
        }
        number--;
    }
    return fail_memory(t);
}

/* Some file systems tell of a full disk only when a file is closed; but to close this one gives up
 * the lock. So of a large one a copy of the descriptor is closed first, if there is room. Nobody
 * may have moved our .part away while it grew, and put another in its place. */
static int file_commit(struct transfer *t) {
    struct body *b = t->body;
    bool replace = b->placed || t->rq.existing == FETCHER_OVERWRITE;
    struct timespec times[2] = {{0, UTIME_OMIT}, {-1, 0}};
    if ((b->fd < 0 && part_open(t) < 0) || (b->data && part_spill(t) < 0))
        return -1;
    if (t->rq.flags & FETCHER_FILE_TIME)
        times[1].tv_sec = curl_getdate(b->proof.modified, NULL);
    if (times[1].tv_sec >= 0)
        (void)futimens(b->fd, times); /* best effort */
    int copy = b->meta ? dup(b->fd) : -1, bad;
    if (copy >= 0 && close(copy) < 0)
        return fail_file(t, "write", b->part);
    if (b->meta && !stands_as(b->fd, b->part))
        return fail(t, FETCHER_FILE, "%s was taken away", b->part);
    if (!replace && t->rq.existing == FETCHER_KEEP_BOTH) {
        if (place_beside(t) < 0)
            return -1;
    } else if (replace && file_look(t) < 0)
        return -1;
    else if ((replace ? rename(b->part, b->path)
                      : rename_new(b->part, b->path)) < 0) {
        if (replace || errno != EEXIST)
            return fail_file(t, "make", b->path);
        t->unchanged = true; /* to be skipped, but its name came late */
        unlink(b->part);
    }
    if (b->meta)
        meta_remove(b);
    bad = close(b->fd);
    b->fd = -1;
    b->placed |= !t->unchanged;
    return bad ? fail_file(t, "write", b->path) : 0;
}

/* A .part stays if another process can continue it. */
static void body_free(struct transfer *t) {
    struct body *b = t->body;
    if (b->fd >= 0) {
        if (b->data)
            (void)part_spill(t);
        if ((b->have == 0 || !b->meta || !validator(b)) &&
            stands_as(b->fd, b->part)) {
            unlink(b->part);
            if (b->meta)
                meta_remove(b);
        }
        close(b->fd);
    }
    free(b->data);
    free(b->part);
    free(b->base);
    free(b->path);
    free(b);
}
static const struct sink file_sink = {file_open, file_begin, file_take,
                                      file_commit};

/* ======================================================================================= Repeats
 * A repeating transfer sleeps between its rounds. They lie on a grid of its interval, so nothing
 * drifts; those that the machine slept through are left out, so nothing bursts; a little jitter on
 * each lets many that began together spread. Rounds that fail double the interval, up to an hour.
 */
/* A whole document makes the next request conditional, and gives its bytes back; a part is kept. */
static void sleep_until_round(struct fetcher *f, struct transfer *t) {
    usec every = limit_us(t->rq.every_ms), step = every,
         late = f->now - t->round;
    struct body *b = t->body;
    if (b)
        b->whole |= t->code == FETCHER_OK;
    if (b && (b->whole || b->page || t->rq.on_data)) {
        free(b->data);
        b->data = NULL;
        b->room = 0;
        b->have = b->skip = 0;
        b->page = false;
    }
    for (int i = 0; i < t->failed_rounds && step < HOUR_US; i++)
        step *= 2;
    if (late >= 0 || late < -every || t->failed_rounds)
        t->round += step * (late / step + 1);
    t->attempts = t->failures = t->status = 0;
    timer_arm(f, &t->timer, t->round + random_below(f, every / 20));
    set_state(f, t, FETCHER_SLEEPING);
}

/* ========================================================================================= Life */
/* -- the end --------------------------------------------------------------------------------- */
/* Off the queue, the clock and the wire. The handle is kept to be asked; with a lookup, parked. */
static void transfer_stop(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;
    dequeue(f, t);
    timer_disarm(f, &t->timer);
    f->running -= t->in_flight;
    t->host->running -= t->in_flight;
    t->in_flight = t->held = false;
    if (a) {
        tree_remove(&f->breathless, &a->breath);
        scout_over(a, false);
    }
    if (a && a->lookup) {
        a->transfer = NULL;
        t->attempt = NULL;
    } else if (a) {
        lookup_set(a, false);
        curl_multi_remove_handle(f->multi, a->easy);
    }
    host_place(f, t->host);
}

static void tell(struct fetcher *f, struct transfer *t, bool last) {
    struct body *b = t->body;
    bool memory = b && b->data && !t->rq.path;
    CURL *e = t->attempt ? t->attempt->easy : NULL;
    char clean[200] = "", *url = NULL, *type = NULL, *shown = NULL;
    struct fetcher_result r = {
        .id = (fetcher_id)t->id.key,
        .code = t->code,
        .status = t->status,
        .message = t->code        ? t->message
                   : t->unchanged ? "unchanged"
                                  : "done",
        .url = shown_url(t),
        .final_url = shown_url(t),
        .content_type = clean,
        .path = b && t->code == FETCHER_OK ? b->path : NULL,
        .data = memory ? b->data : NULL,
        .size = memory ? (size_t)b->have : 0,
        .bytes = b ? b->have : 0,
        .received = t->received,
        .attempts = t->attempts,
        .changed = !t->unchanged,
        .last = last,
    };
    if (memory)
        b->data[b->have] = '\0'; /* an earlier attempt may have left more */
    if (e) {                     /* what only libcurl knows */
        curl_easy_getinfo(e, CURLINFO_EFFECTIVE_URL, &url);
        curl_easy_getinfo(e, CURLINFO_CONTENT_TYPE, &type);
        if (url && strcmp(url, t->rq.url) && (shown = url_shown(url)) != NULL)
            r.final_url = shown;
        text_clean(clean, sizeof clean, type ? type : "", '?');
        r.lookup_us = time_of(e, CURLINFO_NAMELOOKUP_TIME_T);
        r.connect_us = time_of(e, CURLINFO_CONNECT_TIME_T);
        r.tls_us = time_of(e, CURLINFO_APPCONNECT_TIME_T);
        r.first_byte_us = time_of(e, CURLINFO_STARTTRANSFER_TIME_T);
        r.total_us = time_of(e, CURLINFO_TOTAL_TIME_T);
    }
    if (t->rq.on_done)
        t->rq.on_done(f, &r, t->rq.arg);
    free(shown);
}

/* Tell, when all is in order, for the callback may do anything. Then sleep, or go (false). */
static bool round_over(struct fetcher *f, struct transfer *t) {
    bool last = !t->rq.every_ms || t->code == FETCHER_CANCELLED ||
                t->code == FETCHER_BAD_URL;
    *(t->code == FETCHER_OK          ? &f->done
      : t->code == FETCHER_CANCELLED ? &f->cancelled
                                     : &f->failed) += 1;
    t->failed_rounds = t->code == FETCHER_OK ? 0 : t->failed_rounds + 1;
    t->state = last ? FETCHER_ENDED : FETCHER_SLEEPING;
    if (last) {
        tree_remove(&f->transfers, &t->id);
        f->count--;
    }
    tell(f, t, last);
    attempt_free(t->attempt);
    while (!f->transfers && f->spare)
        handle_free(spare_take(f));
    if (!last) {
        sleep_until_round(f, t);
        return true;
    }
    if (t->body)
        body_free(t);
    timer_disarm(f, &t->timer);
    tree_remove(&f->marked, &t->mark);
    t->host->users--;
    host_forget(f, t->host);
    free(t->shown);
    free(t);
    return false;
}

static void cancel_now(struct fetcher *f, struct transfer *t) {
    transfer_stop(f, t);
    t->code = FETCHER_OK;
    fail(t, FETCHER_CANCELLED, "cancelled");
    round_over(f, t);
}

/* An attempt is over, and maybe its transfer (false). libcurl knows the length of the answer only:
 * behind a part there may be more. One that its reader paused goes on only when that says so. */
static bool attempt_over(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;
    struct body *b = t->body;
    bool held = t->held;
    if (a && a->done) {
        if (a->result != CURLE_OK && !a->again && !a->complete)
            fail_curl(a, a->result);
        else if (!a->head.decided)
            decide(a); /* an answer without a body */
        if (t->code == FETCHER_OK && !a->again && a->from &&
            b->length > b->have) {
            if (b->have > a->from)
                a->again = true;
            else
                fail_curl(a, CURLE_PARTIAL_FILE);
        }
    }
    bool again = a && a->again;
    t->want &= ~(unsigned)WANT_END;
    transfer_stop(f, t);
    if (!again && t->code == FETCHER_OK && !t->unchanged)
        t->sink->commit(t);
    if (!again && (t->code == FETCHER_OK || !may_retry(f, t)))
        return round_over(f, t);
    attempt_free(t->attempt);
    if (held)
        set_state(f, t, FETCHER_PAUSED);
    else if (again)
        enqueue(f, t, true);
    else
        retry_later(f, t);
    return true;
}

/* -- the beginning --------------------------------------------------------------------------- */
/* The kick lets libcurl begin: else a hundred new handles would, in one call outside any slice. */
static int transfer_launch(struct fetcher *f, struct transfer *t) {
    struct body *b = t->body;
    if (!b) {
        if ((b = t->body = calloc(1, sizeof *b)) == NULL)
            return fail_memory(t);
        b->length = b->fd = -1;
        b->no_range = t->own_range || (t->rq.flags & FETCHER_COMPRESSED) ||
                      strcmp(request_method(&t->rq), "GET") != 0;
    }
    int result = t->sink->open(t);
    t->unchanged = result > 0; /* nothing is to be fetched */
    if (result != 0)
        return -1;
    if (b->page || (!t->rq.on_data && !validator(b)))
        b->have = 0; /* it can't be continued */
    b->page = false;
    if (attempt_new(f, t) < 0)
        return -1;
    struct attempt *a = t->attempt;
    if (!host_known(f, t->host)) {
        a->scout = true;
        t->host->looking++;
    }
    t->attempts++;
    t->in_flight = true;
    f->running++;
    t->host->running++;
    set_state(f, t, FETCHER_RUNNING);
    if (curl_multi_add_handle(f->multi, a->easy) != CURLM_OK)
        return fail_memory(t);
    a->all.key = (int64_t)++f->serial;
    tree_add(&f->attempts, &a->all);
    socket_action(f, CURL_SOCKET_TIMEOUT, 0);
    if (!a->lookup && connected(a))
        scout_over(a, true); /* by one that was there */
    return 0;
}

/* What has ended according to libcurl is marked like everything else. */
static void collect(struct fetcher *f) {
    struct attempt *a = NULL;
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(f->multi, &left)) != NULL;) {
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &a);
        a->done = true;
        a->result = m->data.result;
        lookup_set(a, false);
        if (a->transfer)
            mark(f, a->transfer, WANT_END);
        else
            attempt_free(a); /* it was parked */
    }
}

static void start_phase(struct fetcher *f) {
    struct host *h;
    int steps = 0;
    while (f->running < f->limit_total && (h = host_next(f)) &&
           slice_left(f, steps++)) {
        struct transfer *t =
            container_of(tree_first(h->queue), struct transfer, queued);
        tree_remove(h->ready_in, &h->ready);
        h->ready.seq = ++f->serial; /* now the other hosts come first */
        dequeue(f, t);
        f->meter.touched = (fetcher_id)t->id.key;
        t->code = FETCHER_OK;
        t->message[0] = '\0';
        t->status = 0;
        if (t->attempts == 0) {
            t->began = f->now;
            t->received = 0;
        }
        t->speed_since = f->now;
        t->speed = t->speed_bytes = 0;
        if (transfer_launch(f, t) < 0)
            mark(f, t, WANT_END);
        else
            deadline_arm(f, t);
        host_place(f, h);
        step_done(f, IN_START, -1);
    }
}

/* When does libcurl want the next kick? And an answer may be there already. */
static void guest_ask(struct fetcher *f) {
    long ms = -1, most = f->limit_total < 16 ? 16 : f->limit_total;
    collect(f);
    /* Fewer connections in the cache would lose keep-alive; many more would use up descriptors. */
    (void)curl_multi_setopt(f->multi, CURLMOPT_MAXCONNECTS, most);
    f->more |= f->marked != NULL;
    if (curl_multi_timeout(f->multi, &ms) != CURLM_OK || ms < 0 ||
        ms > SLEEP_MAX_MS)
        ms = SLEEP_MAX_MS;
    timer_disarm(f, &f->kick);
    if (f->attempts && !f->kick_due)
        timer_arm(f, &f->kick, f->now + ms * 1000);
}

/* -- what was marked, and what has ended ----------------------------------------------------- */
/* What was held comes from inside curl_easy_pause. Before 7.65 libcurl then forgets the socket. */
static void let_go(struct fetcher *f, struct attempt *a) {
    tree_remove(&f->breathless, &a->breath);
    a->usual = false;
    CURLcode c = curl_easy_pause(a->easy, CURLPAUSE_CONT);
    if (c != CURLE_OK) { /* it says so here, and nowhere else */
        a->done = true;
        a->result = c;
        mark(f, a->transfer, WANT_END);
    }
    for (int fd = 0; fd <= f->top && f->curl_version < 0x074100; fd++)
        if (f->watch[fd].class == GUEST)
            socket_action(f, fd, CURL_CSELECT_IN);
    f->kick_due = f->more = true; /* what it does next, it does in a kick */
}

/* To be paused, a GET gives its connection back, and will ask for the rest. A stream, or a request
 * that can't be sent twice, is held by libcurl, which stops reading. */
static void attend(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;
    unsigned want = t->want;
    t->want = 0;
    tree_remove(&f->marked, &t->mark);
    f->meter.touched = (fetcher_id)t->id.key;
    host_place(f, t->host); /* a lookup may be over */
    if (want & WANT_CANCEL)
        cancel_now(f, t);
    else if (want & WANT_END) {
        want &=
            WANT_PAUSE | WANT_RESUME; /* for what goes on after the attempt */
        if (attempt_over(f, t) && want &&
            !(t->want & (WANT_PAUSE | WANT_RESUME)))
            mark(f, t, want);
    } else if ((want & WANT_PAUSE) && t->state != FETCHER_PAUSED) {
        if (t->in_flight && (t->rq.on_data || t->body->no_range)) {
            t->held = true;
            scout_over(a, false);
            tree_remove(&f->breathless, &a->breath);
            a->usual = false;
            curl_easy_pause(a->easy, CURLPAUSE_ALL);
        } else {
            transfer_stop(f, t);
            attempt_free(t->attempt);
        }
        set_state(f, t, FETCHER_PAUSED);
    } else if ((want & WANT_RESUME) && t->held) {
        t->held = false;
        a->moved = listening(f);
        set_state(f, t, FETCHER_RUNNING);
        deadline_arm(f, t);
        let_go(f, a);
    } else if ((want & WANT_RESUME) && t->state >= FETCHER_RETRYING &&
               t->state <= FETCHER_PAUSED)
        enqueue(f, t, false);
}

static void finish_phase(struct fetcher *f) {
    collect(f);
    for (int steps = 0; f->marked && slice_left(f, steps); steps++) {
        attend(f, container_of(tree_first(f->marked), struct transfer, mark));
        step_done(f, IN_FINISH, -1);
    }
}

static void breathe(struct fetcher *f) {
    for (int steps = 0; f->breathless && !f->deaf && slice_left(f, steps);
         steps++) {
        let_go(f,
               container_of(tree_first(f->breathless), struct attempt, breath));
        step_done(f, IN_FINISH, -1);
    }
}

/* -- the caller's side ----------------------------------------------------------------------- */
/* Copy a piece behind the `size` bytes at `at`, and count it; with at NULL only that. */
static void *stow(char *at, size_t *size, const void *from, size_t n) {
    void *to = at && from ? memcpy(at + *size, from, n) : NULL;
    *size += from ? n : 0;
    return to;
}

static char *stow_text(char *at, size_t *size, const char *text) {
    return stow(at, size, text, text ? strlen(text) + 1 : 0);
}

/* Copy all that a request points to behind the transfer: called twice, first (at is NULL) to
 * find out how much that is. The pointers come first, for their alignment. */
static size_t request_copy(struct fetcher_request *to,
                           const struct fetcher_request *r, char *at) {
    size_t size = 0, count = 0, n = strcspn(r->url, ":/?#");
    while (r->headers && r->headers[count])
        count++;
    const char **headers =
        stow(at, &size, r->headers, (count + 1) * sizeof *headers);
    *to = *r;
    to->headers = headers;
    for (size_t i = 0; i < count; i++) {
        char *copy = stow_text(at, &size, r->headers[i]);
        if (headers)
            headers[i] = copy;
    }
    if (r->body && !r->body_size)
        to->body_size = strlen(r->body);
    to->body = stow(at, &size, r->body, to->body_size);
    to->method = stow_text(at, &size, r->method);
    to->path = stow_text(at, &size, r->path);
    to->url = at ? at + size : NULL;
    /* Was the scheme left out? People type "example.org/x": a host with a dot, or localhost. */
    if (strncmp(r->url + n, "://", 3) != 0 &&
        (memchr(r->url, '.', n) ||
         (n == 9 && strncmp(r->url, "localhost", 9) == 0)))
        stow(at, &size, "http://", 7);
    stow_text(at, &size, r->url);
    return size;
}

/* What is usual; and is the URL good? One that isn't ends in a turn. */
static int transfer_prepare(struct fetcher *f, struct transfer *t) {
    struct fetcher_request *rq = &t->rq;
    bool memory = !rq->path && !rq->on_data;
    const char *wrong =
        strlen(rq->url) > URL_MAX ? "the URL is too long" : NULL;
    bool fit = true; /* for the eye */
    if (!rq->connect_ms)
        rq->connect_ms = LIMIT_USUAL_MS;
    if (!rq->stall_ms)
        rq->stall_ms = LIMIT_USUAL_MS;
    if (!rq->total_ms)
        rq->total_ms = -1;
    if (!rq->max_bytes)
        rq->max_bytes = memory ? MEMORY_USUAL : -1;
    if (!rq->retries)
        rq->retries = RETRIES_USUAL;
    if (rq->path)
        rq->flags &= ~FETCHER_COMPRESSED;
    if (rq->every_ms && rq->existing == FETCHER_KEEP_BOTH)
        rq->existing = FETCHER_OVERWRITE;
    for (const char *const *h = rq->headers; h && *h; h++)
        t->own_range |= strncasecmp(*h, "Range:", 6) == 0;
    t->sink = memory ? &memory_sink : rq->path ? &file_sink : &stream_sink;
    for (const char *s = rq->url; *s; s++) {
        fit &= *s > ' ' && *s < 0x7f && *s != '@';
        if ((unsigned char)*s <= ' ' || *s == 0x7f)
            wrong = "not a URL: a space or control character is in it";
    }
    if (!fit && (t->shown = url_shown(rq->url)) == NULL)
        return -1;
    if ((t->host = url_host(f, rq->url, &wrong)) == NULL)
        return -1;
    if (wrong)
        fail(t, FETCHER_BAD_URL, "%s", wrong);
    t->host->users++;
    return 0;
}

fetcher_id fetcher_start(struct fetcher *f, const struct fetcher_request *rq) {
    struct fetcher_request copy;
    bool good =
        rq->url && !(rq->on_data && rq->path) && (!rq->path || *rq->path) &&
        !f->closing && !(rq->method && strpbrk(rq->method, " \r\n\t")) &&
        (unsigned)rq->existing <= FETCHER_SKIP && rq->connect_ms >= -1 &&
        rq->stall_ms >= -1 && rq->total_ms >= -1 && rq->max_bytes >= -1 &&
        rq->retries >= -1 && (rq->every_ms == 0 || rq->every_ms >= 1000);
    for (const char *const *h = rq->headers; h && *h; h++)
        good &= !strpbrk(*h, "\r\n");
    struct transfer *t =
        good ? calloc(1, sizeof *t + request_copy(&copy, rq, NULL)) : NULL;
    if (t)
        request_copy(&t->rq, rq, (char *)(t + 1));
    if (!t || transfer_prepare(f, t) < 0) {
        if (t)
            free(t->shown);
        free(t);
        errno = f->closing ? EBUSY : good ? ENOMEM : EINVAL;
        return 0;
    }
    if (!f->busy)
        clock_read(f);
    t->f = f;
    t->timer.call = (struct call){transfer_due, t};
    t->round = f->now;
    t->id.key = (int64_t)++f->last_id;
    tree_add(&f->transfers, &t->id);
    f->count++;
    if (t->code == FETCHER_OK)
        enqueue(f, t, false);
    else {
        t->state = FETCHER_ENDED;
        mark(f, t, WANT_END);
    }
    return (fetcher_id)t->id.key;
}

fetcher_id fetcher_get(struct fetcher *f, const char *url,
                       void (*on_done)(struct fetcher *,
                                       const struct fetcher_result *, void *),
                       void *arg) {
    return fetcher_start(f, &(struct fetcher_request){
                                .url = url, .on_done = on_done, .arg = arg});
}

static struct transfer *transfer_find(struct fetcher *f, fetcher_id id) {
    struct node *n = tree_find(f->transfers, id);
    if (!n)
        errno = ENOENT;
    return n ? container_of(n, struct transfer, id) : NULL;
}

/* Note what is wanted, in place of its opposite. */
static int want(struct fetcher *f, fetcher_id id, unsigned what,
                unsigned opposite) {
    struct transfer *t = transfer_find(f, id);
    if (!t)
        return -1;
    t->want &= ~opposite;
    if (t->state != FETCHER_ENDED)
        mark(f, t, what);
    return 0;
}

int fetcher_cancel(struct fetcher *f, fetcher_id id) {
    return want(f, id, WANT_CANCEL, 0);
}

int fetcher_pause(struct fetcher *f, fetcher_id id) {
    return want(f, id, WANT_PAUSE, WANT_RESUME);
}

int fetcher_resume(struct fetcher *f, fetcher_id i) {
    return want(f, i, WANT_RESUME, WANT_PAUSE);
}

int fetcher_priority(struct fetcher *f, fetcher_id id, int priority) {
    struct transfer *t = transfer_find(f, id);
    if (!t)
        return -1;
    t->rq.priority = priority;
    if (!t->queued.in)
        return 0;
    tree_remove(&t->host->queue, &t->queued);
    t->queued.key = -2 * (int64_t)priority;
    tree_add(&t->host->queue, &t->queued);
    host_place(f, t->host);
    return 0;
}

int fetcher_limit(struct fetcher *f, int total, int per_host,
                  int64_t bytes_per_second) {
    if (total < -1 || per_host < -1 || bytes_per_second < -1)
        return err(EINVAL);
    if (!f->busy)
        clock_read(f);
    if (total)
        f->limit_total = total > 0 && total < f->capacity ? total : f->capacity;
    if (per_host)
        f->limit_host = per_host;
    if (bytes_per_second) { /* a new rate begins without debts */
        bool any =
            bytes_per_second < 0 || bytes_per_second > INT64_MAX / 2000000;
        f->rate = any ? 0 : bytes_per_second;
        f->budget = 0;
        f->filled = f->now;
        timer_disarm(f, &f->hear);
        if (f->deaf)
            turn_ear(f, NULL);
    }
    for (struct node *n = tree_first(f->hosts); n; n = tree_next(f->hosts, n))
        host_place(f, container_of(n, struct host, name));
    f->more |= !f->busy && f->transfers;
    return 0;
}

int fetcher_info(struct fetcher *f, fetcher_id id, struct fetcher_info *info) {
    struct transfer *t = transfer_find(f, id);
    if (!t)
        return -1;
    const struct body *b = t->body;
    usec silence = f->now - t->speed_since;
    bool waits = t->state == FETCHER_RETRYING || t->state == FETCHER_SLEEPING;
    usec until = waits && t->timer.due.in      ? t->timer.due.key
                 : t->state == FETCHER_WAITING ? t->host->rest
                                               : 0;
    *info = (struct fetcher_info){
        .id = id,
        .state = t->state,
        .url = shown_url(t),
        .path = b && b->path ? b->path : t->rq.path,
        .message = t->message,
        .status = t->status,
        .attempts = t->attempts,
        .priority = t->rq.priority,
        .bytes = b ? b->have : 0,
        .total = b ? b->length : -1,
        .speed = !t->in_flight       ? 0
                 : silence < 2000000 ? t->speed
                                     : t->speed_bytes * 1000000 / silence,
        .wait_ms = until > f->now ? (until - f->now) / 1000 : -1,
    };
    return 0;
}

size_t fetcher_count(struct fetcher *f) {
    return f->count;
}

const char *fetcher_strerror(enum fetcher_code code) {
    static const char *const word[] = {
        "ok",      "cancelled", "bad_url",  "no_host",  "no_connection",
        "tls",     "timeout",   "http",     "redirect", "cut_short",
        "too_big", "file",      "protocol", "refused",  "no_memory",
        "other"};
    return (unsigned)code < COUNT_OF(word) ? word[code] : "other";
}

/* -- a fetcher ------------------------------------------------------------------------------- */
struct fetcher *fetcher_new(void) {
    bool ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    struct fetcher *f = ready ? calloc(1, sizeof *f) : NULL;
    struct rlimit limit = {64, 64};
    if (!f) {
        errno = ENOMEM;
        return NULL;
    }
    f->top = f->pipe[0] = f->pipe[1] = -1;
    /* Transfers that there are descriptors for: a socket each, and a file each where files can't be
     * moved up; 96 are left to the host, to lookups and the rest. */
    getrlimit(RLIMIT_NOFILE, &limit);
    int most = limit.rlim_cur < 2 * FD_SETSIZE ? ((int)limit.rlim_cur - 96) / 2
                                               : FD_SETSIZE;
    f->capacity = most > FD_SETSIZE - 96 ? FD_SETSIZE - 96
                  : most > 1             ? most
                                         : 1;
    f->hear.call.cb = turn_ear;
    f->meter.record.fd = -1;
    clock_read(f);
    f->random = (uint64_t)f->now ^ (uint64_t)getpid() << 32 ^ 1;
    bool piped = pipe(f->pipe) == 0;
    /* Linux enlarges a process's table of descriptors as they come, and if there is a thread, of a
     * lookup for instance, it waits for 15 ms each time. So now, while there may be none. */
    most =
        limit.rlim_cur < 2 * FD_SETSIZE ? (int)limit.rlim_cur : 2 * FD_SETSIZE;
    int high = piped ? fcntl(f->pipe[0], F_DUPFD_CLOEXEC, most - 1) : -1;
    if (high >= 0)
        close(high);
    if (piped && set_flags(f->pipe[0], O_NONBLOCK) == 0 &&
        set_flags(f->pipe[1], O_NONBLOCK) == 0 &&
        watch_set(f, f->pipe[0], POST, FETCHER_READ, post_ready, NULL) == 0 &&
        guest_open(f) == 0 && fetcher_limit(f, 16, 6, 0) == 0)
        return f;
    fetcher_free(f);
    return NULL;
}

/* At the very end handles may still be parked. A libcurl that can leave a lookup behind is told to;
 * with an older one they and their multi are left to the operating system rather than wait. */
void fetcher_free(struct fetcher *f) {
    int saved = errno;
    if (!f || f->busy)
        return;
    f->busy = f->closing = true;
    while (f->transfers)
        cancel_now(f, container_of(f->transfers, struct transfer, id));
    while (f->hosts)
        host_forget(f, container_of(f->hosts, struct host, name));
    while (f->timer_ids)
        fetcher_timer_stop(f, (fetcher_id)f->timer_ids->key);
    bool quick = f->curl_version >= 0x075700, parked = f->attempts != NULL;
    while (f->attempts && quick) {
        struct attempt *a = container_of(f->attempts, struct attempt, all);
        (curl_easy_setopt)(a->easy, (CURLoption)OPT_QUICK_EXIT, 1L);
        attempt_free(a);
    }
    if (parked && quick)
        (void)(curl_multi_setopt)(f->multi, (CURLMoption)MOPT_QUICK_EXIT, 1L);
    if (quick || !parked)
        curl_multi_cleanup(f->multi);
    free(f->capath);
    for (int i = 0; i < 2; i++)
        if (f->pipe[i] >= 0)
            close(f->pipe[i]);
    free(f);
    curl_global_cleanup();
    errno = saved;
}

#ifdef FETCHER_MAIN
/* ======================================================================================= Program
 * The program begins here. All that people see and do goes one way round: a line, a key or an
 * option becomes a command; a command starts or changes a transfer; its events change the rows of
 * the model; and a front end draws them. No front end touches a transfer but by a command. */
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <wchar.h>

enum {
    OUT_FULL = 65536,
    SLICE_INPUT_US = 1000,
    FAILED_KEPT = 1000,
    SPEEDS = 120,
    HISTORY = 50,
    LINES = 500,
    FRAME_US = 50000,
    TICK_US = 200000
};

struct settings {
    struct fetcher_request rq; /* what each transfer asks for */
    char *output, *dir, *list, *agent, *user, *proxy, *cacert, *trace, *cookies,
        *session, *color;
    char *method, *data;
    const char **headers;
    int header_count;
    int64_t jobs, per_host, retries, rate;
    bool quiet, verbose, json, plain, stats, insecure, netrc, compressed,
        remote_time, no_clobber;
    bool overwrite, again, no_continue, window, dark, help, version;
};

struct out {       /* output that nobody waits for */
    int fd, error; /* -1: only a buffer; errno of a write, 0: none */
    bool tty, watched, was_full,
        chunked; /* chunked: PIPE_BUF a time, if select() says so */
    char *data;
    size_t used, room;
    struct call drained; /* it was full, and is empty */
};

struct job { /* a row: a transfer, or one that has failed */
    struct program *p;
    struct node id,
        row; /* by its number; as it is shown: running, waiting, failed */
    fetcher_id transfer; /* 0: it has failed */
    uint64_t saved;      /* in the session file of this number */
    int64_t every_ms;
    int priority;
    bool paused;       /* is to be */
    char *failed;      /* its URL, fit for the eye; and why, behind the NUL */
    char *name, url[]; /* name: stands behind the URL; NULL: none was given */
};

struct input { /* lines of commands */
    const char *name;
    int fd;
    bool eof, polled, ready, skipping, held; /* ready: a read does not block */
    unsigned long line;
    size_t begin, end; /* what has been read and not yet taken */
    char text[2 * URL_MAX + 4096];
};

enum { SESSION, LIST, PROMPT, INPUTS };

struct prompt {                 /* a line that is being edited */
    bool open, stays, too_long; /* stays: open when a line has been entered */
    size_t caret, mark, length,
        from; /* selected between caret and mark; shown behind from */
    char text[URL_MAX], *history[HISTORY];
    int entries, entry; /* of the history; the one that is shown */
};

struct view { /* the terminal's or the window's */
    void (*show)(struct program *),
        (*off)(struct program *); /* show NULL: there is no view */
    struct out *out;
    struct window *window; /* where lines end; NULL: it is the terminal's */
    bool on, keys, rows, utf8, color, paste, asking, redraw;
    bool chosen,
        fresh; /* the selected row, by a person; more bytes of a key may follow */
    struct out log, picture,
        key; /* what is to be shown; lines; bytes not yet understood */
    uint64_t shown[LINES]; /* the hash of each line as it is on the screen */
    int count;             /* of them; of a terminal, those that are shown */
    usec drawn, due, pace; /* the last frame, the next, and least between two */
    fetcher_id timer, key_timer;
};

struct program {
    struct settings s;
    struct fetcher *f;
    struct out out, err;
    struct input input[INPUTS], *source; /* source: of the present command */
    struct node *jobs, *rows;
    uint64_t refused, last_number,
        base; /* lines; of a job; see command_line() */
    size_t row_count, failed_count, paused,
        repeating; /* the last two: of those not ended */
    struct job *selected;
    fetcher_id feed_timer;
    int offset, firsts,
        status; /* offset: the rows shown above the selected one */
    bool feeding, closing, stay, keep,
        bare; /* keep what failed; the command is just a URL */

    struct {
        const struct command *command;
        int64_t next;
        int count;
    } sweep;

    struct {
        FILE *file, *last;
        struct node at;
        bool armed, dirty, told;
        unsigned long line;
        uint64_t number;
    } save; /* of the file */

    usec began, sampled;
    int64_t received,
        speed[SPEEDS]; /* at the last sample; newest second first */
    struct prompt prompt;
    struct view view;
    CURLSH *cookies;
    FILE *trace;
};

/* ================================================================================== Plain output
 * Output goes through the same loop as everything else: what the reader of a pipe or a stopped
 * terminal does not take waits in a buffer, and whoever fills it is told to wait as well. */
static bool out_broken(const struct out *o) {
    return o->error && !o->tty;
} /* or just gone */

static bool out_full(struct out *o) {
    return o->was_full |= o->used >= OUT_FULL;
}

/* O_NONBLOCK on an inherited descriptor would reach the shell, which shares it. So a terminal or a
 * pipe is opened once more by its name; where that can't be, it's written to in small pieces. */
static void out_open(struct out *o, int fd) {
    char name[32];
    struct stat st;
    bool pipe =
        fstat(fd, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode));
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    o->tty = isatty(fd);
    o->fd = o->tty || pipe ? open(o->tty && ttyname(fd) ? ttyname(fd) : name,
                                  O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
                           : fd;
    if ((o->chunked = o->fd < 0))
        o->fd = fd;
}

static void out_ready(struct fetcher *f, int fd, int events, void *arg);

/* Write what the descriptor takes; the rest is watched for. A terminal may vanish: no matter. */
static void out_flush(struct fetcher *f, struct out *o, bool ready) {
    while (o->fd >= 0 && o->used > 0 && (ready || !o->chunked) && !o->error) {
        ssize_t n =
            write(o->fd, o->data,
                  o->chunked && o->used > PIPE_BUF ? PIPE_BUF : o->used);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno != EINTR)
            o->error = errno;
        if (n > 0)
            memmove(o->data, o->data + n, o->used -= (size_t)n);
        ready = false;
    }
    if (o->error)
        o->used = 0;
    if (o->watched != (o->used > 0))
        (void)fetcher_watch(f, o->fd,
                            (o->watched = o->used > 0) ? FETCHER_WRITE : 0,
                            out_ready, o);
    if (!o->drained.cb)
        return; /* without stderr it goes on, without stdout not */
    if (out_broken(o))
        fetcher_stop(f);
    else if (o->was_full && o->used == 0) {
        o->was_full = false;
        o->drained.cb(f, o->drained.arg);
    }
}

static void out_ready(struct fetcher *f, int fd, int events, void *arg) {
    (void)fd, (void)events;
    out_flush(f, arg, true);
}

static void out_add(struct out *o, const char *data, size_t n) {
    if (n == 0)
        return;
    size_t need = o->used + n,
           room = need > o->room ? need + o->room + 1024 : o->room;
    char *larger = room > o->room ? realloc(o->data, room) : o->data;
    if (!larger) {
        o->error = ENOMEM;
        return;
    }
    memcpy(larger + o->used, data, n);
    o->data = larger;
    o->room = room;
    o->used = need;
}

static void out_printf(struct out *o, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    out_add(o, text, strlen(text));
}

/* Text from outside, of any length: for the eye, or between the quotes of JSON. */
static void out_text(struct out *o, const char *text, bool json) {
    for (size_t good; *text; text += good ? good : 1) {
        good = utf8_length(text);
        if (json && (*text == '"' || *text == '\\'))
            out_printf(o, "\\%c", *text);
        else if (good)
            out_add(o, text, good);
        else if (json && (unsigned char)*text < 0x80)
            out_printf(o, "\\u%04x", (unsigned)*text);
        else
            out_printf(o, json ? "\xef\xbf\xbd" : "?");
    }
}

/* An object begins: an event, a number (0: none), keys and their texts (NULL: none), a NULL. */
static void out_json(struct out *o, const char *event, int64_t id, ...) {
    const char *key, *text;
    va_list args;
    out_printf(o, "{\"event\":\"%s\"", event);
    if (id)
        out_printf(o, ",\"id\":%" PRId64, id);
    va_start(args, id);
    while ((key = va_arg(args, const char *)) != NULL) {
        if ((text = va_arg(args, const char *)) == NULL)
            continue;
        out_printf(o, ",\"%s\":\"", key);
        out_text(o, text, true);
        out_printf(o, "\"");
    }
    va_end(args);
}

static void frame(struct fetcher *f, void *arg);

/* Draw then, if not sooner. */
static void frame_at(struct program *p, usec due) {
    struct view *v = &p->view;
    if (!v->show || (v->timer && v->due <= due))
        return;
    usec wait = due > p->f->now ? due - p->f->now : 0;
    (void)fetcher_timer_stop(p->f, v->timer);
    v->due = due;
    v->timer = fetcher_timer(p->f, (wait + 999) / 1000, frame, p);
}

static void changed(struct program *p) {
    frame_at(p, p->view.drawn + TICK_US);
}

/* Where a line goes: on a terminal with a view that's above it. JSON is not for the window. */
static struct out *line_out(struct program *p, bool error) {
    struct out *o = error ? &p->err : &p->out;
    return p->view.on && (o->tty || (p->view.window && (error || !p->s.json)))
               ? &p->view.log
               : o;
}

static void line_end(struct program *p, struct out *o) {
    out_add(o, "\n", 1);
    out_flush(p->f, o, false);
    changed(p);
}

static void complain(struct program *p, const char *what, const char *why) {
    struct out *o = line_out(p, true);
    bool red = o == &p->view.log && p->view.color && !p->view.window;
    out_printf(o, "%sfetcher: ", red ? "\033[31m" : "");
    out_text(o, what, false);
    out_printf(o, *what ? ": " : "");
    out_text(o, why, false);
    out_printf(o, red ? "\033[m" : "");
    line_end(p, o);
}

/* What came of a command; text from outside may be in it. */
static void reply(struct program *p, bool good, int64_t number,
                  const char *format, ...) {
    struct input *in = p->source;
    struct out *o = line_out(p, false);
    bool silent = p->s.quiet || p->bare || in == &p->input[SESSION];
    char text[1024], where[64] = "";
    va_list args;
    if (good && silent && !p->s.json)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (*in->name)
        snprintf(where, sizeof where, "%.40s:%lu", in->name, in->line);
    if (p->s.json) {
        out_json(o, good ? "answer" : "failed", number, "line", where, "code",
                 good ? NULL : "bad_line", "message", text, NULL);
        out_printf(o, "}\n");
    } else if (good) {
        out_text(o, text, false);
        line_end(p, o);
    }
    if (good)
        return;
    complain(p, where, text);
    if (in == &p->input[SESSION])
        p->s.session = NULL; /* it stays as it is: nothing is lost */
    if (in == &p->input[PROMPT])
        return;
    p->refused++;
    p->status = p->status ? p->status : 1;
}

/* 1536 becomes "1.5 KiB". */
static const char *size_text(char *to, size_t room, double bytes) {
    int i = 0;
    for (; bytes >= 1023.95 && i < 5; i++)
        bytes /= 1024;
    snprintf(to, room, i ? "%.1f %ciB" : "%.0f %cytes", bytes, "bKMGTP"[i]);
    return to;
}

/* 75 becomes "1:15"; what is not known "-:--". */
static const char *time_text(char *to, size_t room, double seconds) {
    long s = seconds >= 0 && seconds < 360000 ? (long)seconds : -1;
    if (s < 0)
        snprintf(to, room, "-:--");
    else if (s < 3600)
        snprintf(to, room, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(to, room, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    return to;
}

/* ====================================================================================== Options */
enum kind { FLAG, TEXT, SECRET, HEADER, DATA, COUNT, TIME, SIZE };

static const struct option {
    char letter;
    const char *name, *arg;
    enum kind kind;
    size_t field;
    const char *help;
} option[] = {

#define AT(field) offsetof(struct settings, field)
    {'A', "user-agent", "NAME", TEXT, AT(agent), "call yourself NAME"},
    {'b', "dark", NULL, FLAG, AT(dark), "a dark window"},
    {0, "cacert", "FILE", TEXT, AT(cacert),
     "trust the certificates in FILE, and no others"},
    {0, "color", "WHEN", TEXT, AT(color),
     "use colors: auto (usual), always or never"},
    {0, "compressed", NULL, FLAG, AT(compressed),
     "accept gzip and the like (for -o -)"},
    {0, "connect-timeout", "SECONDS", TIME, AT(rq.connect_ms),
     "give up connecting after (30)"},
    {'c', "continue", NULL, FLAG, AT(again),
     "go on with what an earlier run has left (usual)"},
    {0, "cookies", "FILE", TEXT, AT(cookies),
     "read cookies from FILE and keep them there"},
    {'d', "dir", "DIR", TEXT, AT(dir), "save into DIR"},
    {0, "data", "DATA", DATA, AT(data),
     "send DATA in a POST; @FILE sends a file's lines"},
    {0, "every", "TIME", TIME, AT(rq.every_ms),
     "fetch again every TIME: 30s, 5m, 1h"},
    {'H', "header", "LINE", HEADER, AT(headers), "send the header LINE too"},
    {'h', "help", NULL, FLAG, AT(help), "show this help and exit"},
    {'i', "input-file", "FILE", TEXT, AT(list),
     "read URL [NAME] or a command a line (-: stdin)"},
    {'k', "insecure", NULL, FLAG, AT(insecure), "trust any server"},
    {'j', "jobs", "N", COUNT, AT(jobs), "fetch N at the same time (16)"},
    {0, "json", NULL, FLAG, AT(json), "tell in JSON, an object a line"},
    {0, "limit-rate", "RATE", SIZE, AT(rate),
     "take RATE bytes a second, all together: 20k, 1.5M"},
    {0, "max-filesize", "SIZE", SIZE, AT(rq.max_bytes),
     "refuse what is larger"},
    {'m', "max-time", "SECONDS", TIME, AT(rq.total_ms),
     "give each URL up after SECONDS"},
    {0, "netrc", NULL, FLAG, AT(netrc),
     "take names and passwords from ~/.netrc"},
    {0, "no-clobber", NULL, FLAG, AT(no_clobber), "skip what exists"},
    {0, "no-continue", NULL, FLAG, AT(no_continue), "start over"},
    {'o', "output", "FILE", TEXT, AT(output), "save as FILE (-: stdout)"},
    {0, "overwrite", NULL, FLAG, AT(overwrite),
     "replace what exists (usual: name (1).ext)"},
    {0, "per-host", "N", COUNT, AT(per_host),
     "but N from one host at most (6)"},
    {0, "plain", NULL, FLAG, AT(plain), "tell in lines, also on a terminal"},
    {'x', "proxy", "URL", TEXT, AT(proxy), "fetch through a proxy"},
    {'q', "quiet", NULL, FLAG, AT(quiet), "tell of failures only"},
    {'R', "remote-time", NULL, FLAG, AT(remote_time),
     "give files the time the server says"},
    {'X', "request", "METHOD", TEXT, AT(method), "send METHOD in place of GET"},
    {0, "retry", "N", COUNT, AT(retries),
     "try again N times what may pass (5)"},
    {0, "session", "FILE", TEXT, AT(session),
     "keep the queue in FILE, and go on with it"},
    {0, "stall-timeout", "SECONDS", TIME, AT(rq.stall_ms),
     "give up after SECONDS of silence (30)"},
    {0, "stats", NULL, FLAG, AT(stats), "at the end tell what the loop did"},
    {0, "trace", "FILE", TEXT, AT(trace),
     "write a line about each turn of the loop"},
    {'u', "user", "NAME:PASSWORD", SECRET, AT(user), "log in"},
    {'V', "version", NULL, FLAG, AT(version), "show versions and exit"},
    {'v', "verbose", NULL, FLAG, AT(verbose), "tell more"},
    {'w', "window", NULL, FLAG, AT(window), "show a window (X11)"},
};

/* One clear line, before the loop is there to print it; arguments come from outside as well. */
static int refuse(int status, const char *format, ...) {
    char text[600], clean[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text_clean(clean, sizeof clean, text, '?');
    fprintf(stderr, "fetcher: %s\n%s", clean,
            status == 2 ? "Try fetcher --help.\n" : "");
    return status;
}

static bool dash(const char *name) {
    return name && strcmp(name, "-") == 0;
}

/* A decimal number and a unit of its kind. -1: it is none. */
static int64_t read_amount(const char *text, enum kind kind) {
    static const double ms[] = {1000, 1000, 60000, 3600000, 86400000};
    static const double bytes[] = {1,       1024,       1024,      1048576,
                                   1048576, 1073741824, 1073741824};
    const char *units = kind == TIME ? "ssmhd" : kind == SIZE ? "bkKmMgG" : "";
    char *end;
    double value = strtod(text, &end);
    const char *unit = !*end ? units : end[1] ? NULL : strchr(units, *end);
    if (!isdigit((unsigned char)*text) || !isdigit((unsigned char)end[-1]) ||
        !unit)
        return -1;
    value *= (kind == TIME ? ms : bytes)[unit - units];
    return value < (kind == COUNT ? 1e6 + 1 : 9e15) ? (int64_t)value : -1;
}

/* One --data after the other, joined by '&'; of a file, as curl does it, without its line ends. */
static int read_data(char **data, const char *text) {
    FILE *file = *text == '@' ? fopen(text + 1, "rb") : NULL, *to;
    char *all;
    size_t size;
    int c;
    if (*text == '@' && !file)
        return refuse(2, "cannot read %s: %s", text + 1, strerror(errno));
    if ((to = open_memstream(&all, &size)) == NULL)
        return refuse(2, "out of memory");
    if (*data && **data)
        fprintf(to, "%s&", *data);
    if (!file)
        fputs(text, to);
    while (file && (c = getc(file)) != EOF)
        if (!strchr("\r\n", c))
            putc(c, to); /* nor a NUL */
    if (file)
        fclose(file);
    free(*data);
    *data = fclose(to) == 0 ? all : NULL;
    return *data ? 0 : refuse(2, "out of memory");
}

static int option_set(struct settings *s, const struct option *o, char *value) {
    void *field = (char *)s + o->field;
    int64_t n;
    switch (o->kind) {
    case FLAG:
        *(bool *)field = true;
        return 0;
    case DATA:
        return read_data(field, value);
    case SECRET: /* what others see of it (by ps) is overwritten */
        free(s->user);
        s->user = text_join(value, "");
        memset(value, '*', strlen(value));
        return s->user ? 0 : refuse(2, "out of memory");
    case TEXT:
        *(char **)field = value;
        return *value
                   ? 0
                   : refuse(2, "--%s needs a value that isn't empty", o->name);
    case HEADER:
        s->headers[s->header_count++] = value;
        return !strpbrk(value, "\r\n") && strpbrk(value, ":;")
                   ? 0
                   : refuse(2, "not a header: %s", value);
    default:
        n = *(int64_t *)field = read_amount(value, o->kind);
        if (n > 0 ||
            (n == 0 && (o->kind != COUNT || strcmp(o->name, "retry") == 0)))
            return 0;
        return refuse(2, "--%s: not a %s: %s", o->name,
                      o->kind == TIME ? "time" : "number", value);
    }
}

/* Options and URLs in any order, as GNU does it: -oFILE, -o FILE, --output=FILE, -qv, and "--" ends
 * them. The URLs are gathered. Returns 0, or an exit status. */
static int options_read(struct settings *s, char **argv, char **url) {
    const struct option *o, *end = option + COUNT_OF(option);
    bool over = false;
    int bad = 0;
    for (char *arg; !bad && (arg = *++argv) != NULL;) {
        if (over || *arg != '-' || !arg[1]) {
            *url++ = arg;
            continue;
        }
        if ((over = strcmp(arg, "--") == 0))
            continue;
        bool is_long = arg[1] == '-';
        char *value = is_long ? strchr(arg, '=') : arg + 1;
        size_t n = strcspn(arg + 2, "=");
        for (o = option; o < end && (is_long ? strlen(o->name) != n ||
                                                   memcmp(o->name, arg + 2, n)
                                             : o->letter != arg[1]);
             o++)
            continue;
        if (o == end)
            return refuse(2, "unknown option %s", arg);
        value = value && (is_long || value[1]) ? value + 1 : NULL;
        if (o->arg && !value && (value = *++argv) == NULL)
            return refuse(2, "%s needs %s", arg, o->arg);
        if (!o->arg && value && is_long)
            return refuse(2, "--%s takes no value", o->name);
        if (!o->arg && value) {
            *--value = '-';
            *argv-- = value;
        } /* of -qv, -v is left */
        bad = option_set(s, o, value);
    }
    return bad;
}

/* Do the options go together? Then what the transfers ask for is put together of them. */
static int options_check(struct settings *s, char **url) {
    bool to_stdout = dash(s->output);
    struct stat st;
    if (s->output && stat(s->output, &st) == 0 && S_ISDIR(st.st_mode))
        return refuse(2, "-o %s: this is a directory; -d saves into one",
                      s->output);
    if (s->dir && access(s->dir, W_OK | X_OK) < 0 && errno != ENOENT)
        return refuse(2, "cannot write to %s: %s", s->dir, strerror(errno));
    if (s->output && (s->list || s->session || !url[0] || url[1]))
        return refuse(2, "-o names one file, and so takes one URL");
    if (to_stdout && (s->json || s->rq.every_ms || s->remote_time))
        return refuse(
            2, "-o - leaves no room for --json, --every or --remote-time");
    if ((s->no_clobber && s->overwrite) || (s->again && s->no_continue))
        return refuse(2, "%s contradict each other",
                      s->again && s->no_continue
                          ? "--continue and --no-continue"
                          : "--no-clobber and --overwrite");
    if (s->rq.every_ms && s->rq.every_ms < 1000)
        return refuse(2, "--every: at least 1s");
    if (s->color && !listed(s->color, "auto always never"))
        return refuse(2, "--color: auto, always or never, not %s", s->color);
    s->rq.headers = s->headers;
    s->rq.method = s->method;
    s->rq.body = s->data;
    s->rq.retries = s->retries ? (int)s->retries : -1;
    s->rq.existing = s->no_clobber  ? FETCHER_SKIP
                     : s->overwrite ? FETCHER_OVERWRITE
                                    : 0;
    s->rq.flags = (s->no_continue ? FETCHER_FRESH : 0) |
                  (s->remote_time ? FETCHER_FILE_TIME : 0) |
                  (s->compressed ? FETCHER_COMPRESSED : 0);
    return 0;
}

static int help(void) {
    puts("Usage: fetcher [OPTION]... URL...\n"
         "Fetch URLs (http, https), many at the same time, and save them as "
         "files.\n\nOptions:");
    for (const struct option *o = option; o < option + COUNT_OF(option); o++) {
        int n = o->letter ? printf("  -%c, ", o->letter) : printf("      ");
        n += printf(o->arg ? "--%s=%s" : "--%s", o->name, o->arg);
        printf("%*s %s\n", 33 - n, "", o->help);
    }
    puts("\nA file appears under its name only when it is whole; until then it "
         "is NAME.part,\n"
         "and the next run goes on with it. Sizes take k, M or G; times s, m, "
         "h or d.\n\n"
         "On a terminal, ? shows the keys; without a URL fetcher waits for "
         "commands there.\n"
         "With -i - the commands come from stdin; the command help shows "
         "them.\n\n"
         "Exit status: 0 all was fetched, 1 not all was, 2 wrong usage; 130 "
         "and 143 after\n"
         "an interrupt and SIGTERM.");
    return fflush(stdout) || ferror(stdout) ? 1 : 0;
}

static int version(void) {
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
    const char *resolver =
        !(v->features & CURL_VERSION_ASYNCHDNS)
            ? "blocking: a slow name lookup holds up everything"
        : v->ares_num ? "c-ares"
                      : "a thread of libcurl's for each lookup";
    printf("fetcher %s\nlibcurl %s, TLS: %s, name lookups: %s\n\n"
           "License 0BSD: do with it what you like. There is no warranty.\n",
           FETCHER_VERSION, v->version,
           v->ssl_version ? v->ssl_version : "none", resolver);
    return fflush(stdout) || ferror(stdout) ? 1 : 0;
}

/* ========================================================================================= Model
 * The rows: what was asked for and has not ended, and what has failed. They stand in one tree in
 * the order of the eye (what runs, what is held, what waits, what has failed), so any front end
 * shows a hundred thousand at the cost of those that it draws. */
static void feed(struct fetcher *f, void *arg), leave(struct program *p);
static void session_touch(struct program *p),
    session_job(struct program *p, struct job *j);

static struct job *row_job(struct node *n) {
    return n ? container_of(n, struct job, row) : NULL;
}

static struct job *row_after(struct program *p, const struct job *j) {
    return row_job(j ? tree_next(p->rows, &j->row) : tree_first(p->rows));
}

static struct job *row_before(struct program *p, const struct job *j) {
    return row_job(tree_near(p->rows, j ? j->row.key : INT64_MAX,
                             j ? j->row.seq : 0, true));
}

static void row_place(struct program *p, struct job *j,
                      enum fetcher_state state) {
    static const int rank[] = {2, 0, 1, 1,
                               1, 3}; /* of a waiting one, a running one, ... */
    if (!p->keep && !p->view.show)
        return; /* nobody will look */
    if (p->save.file)
        session_job(p, j); /* before it moves behind the writer's back */
    tree_remove(&p->rows, &j->row);
    j->row.key = ((int64_t)rank[state] << 32) - j->priority;
    j->row.seq = (uint64_t)j->id.key;
    tree_add(&p->rows, &j->row);
    changed(p);
}

static void job_free(struct program *p, struct job *j) {
    if (p->selected == j)
        p->selected = row_after(p, j) ? row_after(p, j) : row_before(p, j);
    tree_remove(&p->jobs, &j->id);
    tree_remove(&p->rows, &j->row);
    p->row_count--;
    p->failed_count -= j->failed != NULL;
    session_touch(p);
    changed(p);
    free(j->failed);
    free(j);
}

static struct fetcher_info job_info(struct program *p, const struct job *j) {
    struct fetcher_info info = {
        .state = FETCHER_ENDED, .total = -1, .wait_ms = -1};
    if (j->transfer && fetcher_info(p->f, j->transfer, &info) == 0)
        return info;
    info.url = j->failed ? j->failed : "";
    info.message = info.url + strlen(info.url) + (j->failed != NULL);
    return info;
}

static void job_tell(struct program *p, const struct job *j,
                     const struct fetcher_result *r) {
    const char *file = !r->path                         ? ""
                       : strncmp(r->path, "./", 2) == 0 ? r->path + 2
                                                        : r->path;
    bool to_stdout = dash(p->s.output),
         cancelled = r->code == FETCHER_CANCELLED;
    char size[32];
    struct out *o = line_out(p, to_stdout);
    if (p->s.json) {
        out_json(o,
                 !r->code    ? "done"
                 : cancelled ? "cancelled"
                             : "failed",
                 j->id.key, "url", r->url, "code",
                 r->code ? fetcher_strerror(r->code) : NULL,
                 r->code ? "message" : "file", r->code ? r->message : file,
                 NULL);
        out_printf(o,
                   ",\"status\":%d,\"bytes\":%" PRId64
                   ",\"ms\":%.1f,\"attempts\":%d%s}\n",
                   r->status, r->bytes, MS(r->total_us), r->attempts,
                   r->code      ? ""
                   : r->changed ? ",\"changed\":true"
                                : ",\"changed\":false");
    } else if (r->code && !cancelled)
        complain(p, r->url, r->message);
    if (p->s.json || r->code || p->s.quiet || (to_stdout && !p->s.verbose))
        return;
    out_text(o, r->path ? file : r->url, false);
    out_printf(o,
               r->changed    ? ": %s in %.2f s"
               : r->attempts ? ": unchanged"
                             : ": exists, skipped",
               size_text(size, sizeof size, (double)r->bytes),
               MS(r->total_us) / 1000);
    if (p->s.verbose) {
        out_printf(o, " from ");
        out_text(o, r->final_url, false);
        out_printf(o,
                   " (status %d, attempts %d; ms: lookup %.1f, connect %.1f, "
                   "TLS %.1f, "
                   "first byte %.1f)",
                   r->status, r->attempts, MS(r->lookup_us), MS(r->connect_us),
                   MS(r->tls_us), MS(r->first_byte_us));
    }
    line_end(p, o);
}

/* A row that has failed stays, where somebody may retry it; but not for ever. */
static void job_done(struct fetcher *f, const struct fetcher_result *r,
                     void *arg) {
    struct job *j = arg;
    struct program *p = j->p;
    size_t n = strlen(r->url) + 1;
    bool failed = r->code && (r->code != FETCHER_CANCELLED || p->closing);
    if (failed && !p->status)
        p->status = 1;
    job_tell(p, j, r);
    p->paused -= r->last && j->paused;
    p->repeating -= r->last && j->every_ms;
    if (r->last && p->keep && failed &&
        (j->failed = malloc(n + strlen(r->message) + 1))) {
        memcpy(j->failed, r->url, n);
        strcpy(j->failed + n, r->message);
        j->transfer = 0;
        row_place(p, j, FETCHER_ENDED);
        if (++p->failed_count > FAILED_KEPT && !p->s.session)
            job_free(p, row_job(tree_from(p->rows, ((int64_t)3 << 32) - INT_MAX,
                                          0)));
    } else if (r->last)
        job_free(p, j);
    feed(f, p);
}

/* What is tried again is worth a line: somebody may wait for it. */
static void job_progress(struct fetcher *f, const struct fetcher_info *info,
                         void *arg) {
    struct job *j = arg;
    struct program *p = j->p;
    char why[300];
    row_place(p, j, info->state);
    if (info->state != FETCHER_RETRYING)
        return;
    int64_t wait_ms = info->wait_ms < 0 ? 0 : info->wait_ms;
    if (p->s.json) {
        out_json(&p->out, "retry", j->id.key, "url", info->url, "message",
                 info->message, NULL);
        out_printf(&p->out, ",\"attempts\":%d,\"wait_ms\":%" PRId64 "}\n",
                   info->attempts, wait_ms);
        out_flush(f, &p->out, false);
    } else if (!p->s.quiet) {
        snprintf(why, sizeof why, "%s; attempt %d in %.1f s", info->message,
                 info->attempts + 1, MS(wait_ms));
        complain(p, info->url, why);
    }
}

/* Back-pressure: while the reader of stdout is slow, the transfer waits. */
static int job_data(struct fetcher *f, const void *data, size_t size,
                    void *arg) {
    struct out *o = &((struct job *)arg)->p->out;
    if (!dash(((struct job *)arg)->p->s.output))
        return 0; /* -o /dev/null */
    if (out_full(o))
        return FETCHER_PAUSE;
    out_add(o, data, size);
    out_flush(f, o, false);
    return 0;
}

/* Options that are libcurl's own business. Trust is in the file alone: in no directory. With no
 * handle it fails if there is anything to set. */
static int job_setup(void *e, void *arg) {
    struct program *p = ((struct job *)arg)->p;
    struct settings *s = &p->s;
    unsigned bad = 0;
    if (s->agent)
        SET(USERAGENT, s->agent);
    if (s->user)
        SET(USERPWD, s->user);
    if (s->proxy)
        SET(PROXY, s->proxy);
    if (s->cacert) {
        SET(CAINFO, s->cacert);
        SET(CAPATH, NULL);
    }
    if (s->insecure) {
        SET(SSL_VERIFYPEER, 0L);
        SET(SSL_VERIFYHOST, 0L);
    }
    if (s->netrc)
        SET(NETRC, (long)CURL_NETRC_OPTIONAL);
    if (p->cookies) {
        SET(SHARE, p->cookies);
        SET(COOKIEFILE, "");
    }
    return bad ? -1 : 0;
}

static bool job_launch(struct program *p, struct job *j) {
    struct settings *s = &p->s;
    bool stream = s->output && listed(s->output, "- /dev/null");
    const char *name = j->name ? j->name : "",
               *dir = *name == '/' || (*name && !s->dir) ? ""
                      : s->dir                           ? s->dir
                               : "."; /* without a name the library finds one */
    char *base = text_join(dir, *dir && dir[strlen(dir) - 1] != '/' ? "/" : "");
    char *path = base && !stream ? text_join(base, name) : NULL;
    struct fetcher_request rq = s->rq;
    rq.url = j->url;
    rq.path = path;
    rq.every_ms = j->every_ms;
    rq.priority = j->priority;
    rq.arg = j;
    rq.on_data = stream ? job_data : NULL;
    rq.on_progress = job_progress;
    rq.on_done = job_done;
    if (job_setup(NULL, j) < 0)
        rq.setup = job_setup; /* else handles may be used again */
    j->transfer = stream || path ? fetcher_start(p->f, &rq) : 0;
    free(base);
    free(path);
    if (!j->transfer)
        return false;
    p->failed_count -= j->failed != NULL;
    p->repeating += j->every_ms > 0;
    free(j->failed);
    j->failed = NULL;
    j->paused = false;
    row_place(p, j, FETCHER_WAITING);
    session_touch(p);
    return true;
}

static struct job *job_start(struct program *p, const char *url,
                             const char *name, int64_t every) {
    size_t n = strlen(url) + 1, m = name ? strlen(name) + 1 : 0;
    struct job *j = calloc(1, sizeof *j + n + m);
    if (j) {
        memcpy(j->url, url, n);
        j->name = name ? memcpy(j->url + n, name, m) : NULL;
        j->p = p;
        j->every_ms = every;
        j->id.key = (int64_t)p->last_number + 1;
    }
    if (!j || !job_launch(p, j)) {
        complain(p, "cannot start a transfer", strerror(errno));
        p->status = 1;
        free(j);
        return NULL;
    }
    tree_add(&p->jobs, &j->id);
    p->row_count++;
    p->last_number++;
    return j;
}

static const char *const state_word[] = {"waiting",  "running", "retrying",
                                         "sleeping", "paused",  "failed"};

/* How a row reads: its name, and behind it all the rest: speed and time left, or the state. */
static const char *row_name(const struct fetcher_info *i, char *to,
                            size_t room) {
    bool file = i->path && i->path[strlen(i->path) - 1] != '/';
    const char *text = file ? i->path : i->url, *last = strrchr(text, '/');
    int n = (int)strcspn(last && last[1] ? last + 1 : text, file ? "" : "?#");
    if (n == 0)
        last = NULL, n = INT_MAX;
    snprintf(to, room, "%.*s", n, last && last[1] ? last + 1 : text);
    return to;
}

static const char *row_state(const struct fetcher_info *i, char *to,
                             size_t room) {
    char speed[32], left[32];
    double seconds = (double)i->wait_ms / 1000;
    time_text(left, sizeof left,
              i->state != FETCHER_RUNNING ? seconds + .999
              : i->total > 0 && i->speed > 0
                  ? (double)(i->total - i->bytes) / (double)i->speed
                  : -1);
    if (i->state == FETCHER_RUNNING && i->bytes)
        snprintf(to, room, "%10s/s %7s",
                 size_text(speed, sizeof speed, (double)i->speed), left);
    else if (i->state == FETCHER_RUNNING)
        snprintf(to, room, "asking");
    else if (i->state == FETCHER_SLEEPING ||
             (i->state == FETCHER_WAITING && i->wait_ms > 0))
        snprintf(to, room, "again in %s", left);
    else if (i->state == FETCHER_RETRYING)
        snprintf(to, room, "again in %s: %s", left, i->message);
    else
        snprintf(to, room, "%s%s%s", state_word[i->state],
                 *i->message ? ": " : "", i->message);
    return to;
}

/* Seconds left, at the speed of the last three that brought anything: for what is known of those
 * that run, and for each that waits as much again; but never less than for one. -1: who knows. */
static double time_left(struct program *p, const struct fetcher_stats *st) {
    int seconds = !!p->speed[0] + !!p->speed[1] + !!p->speed[2];
    double speed = (double)(p->speed[0] + p->speed[1] + p->speed[2]) /
                   (seconds + !seconds);
    double rest = 0, sizes = 0, most = 0;
    int known = 0;
    for (struct job *j = row_after(p, NULL); j && j->row.key <= INT_MAX;
         j = row_after(p, j)) {
        struct fetcher_info i = job_info(p, j);
        double left = (double)(i.total - i.bytes);
        if (i.total <= 0 || i.state != FETCHER_RUNNING)
            continue;
        rest += left;
        sizes += (double)i.total;
        known++;
        if (i.speed > 0 && left / (double)i.speed > most)
            most = left / (double)i.speed;
    }
    if (known)
        rest = (rest + sizes / known * (double)st->waiting) / (speed + 1);
    return !known || speed <= 0 || !p->input[LIST].eof ? -1
           : rest > most                               ? rest
                                                       : most;
}

/* The speed of each second, for a graph; those in which nobody looked count as the mean. */
static void speed_sample(struct program *p, int64_t received) {
    int64_t seconds = (p->f->now - p->sampled) / 1000000,
            n = seconds < SPEEDS ? seconds : SPEEDS;
    if (seconds <= 0)
        return;
    memmove(p->speed + n, p->speed, (size_t)(SPEEDS - n) * sizeof *p->speed);
    for (int64_t i = 0; i < n; i++)
        p->speed[i] = (received - p->received) / seconds;
    p->sampled += seconds * 1000000;
    p->received = received;
}

/* ====================================================================================== Commands
 * One small language, parsed in one place, for the lines of stdin and of lists, the prompt and the
 * session. What is to be done to all downloads is done in slices, between the turns of the loop. */
struct command {
    const char *name, *args, *help;
    int least, most; /* words that follow */
    void (*run)(struct program *,
                char **word); /* once; or, where it is NULL, ... */
    bool (*apply)(struct program *,
                  struct job *); /* to each download. Was it of use? */
    const char *done;            /* what has then happened to it */
};

/* "add" or "every". The name in a list comes from outside: it stays below the directory. */
static void do_add(struct program *p, char **word) {
    bool again = strcmp(*word, "every") == 0;
    struct job *j;
    int64_t every = again ? read_amount(word[1], TIME) : p->s.rq.every_ms;
    const char *url = word[1 + again], *name = word[2 + again];
    if (name && !*name)
        name = NULL;
    bool escapes = name && (*name == '/' || name[strlen(name) - 1] == '/');
    for (const char *s = name; s && (s = strstr(s, "..")) != NULL; s += 2)
        escapes |= (s == name || s[-1] == '/') && (s[2] == '/' || !s[2]);
    if (again && every < 1000)
        reply(p, false, 0, "not a time of at least 1s: %s", word[1]);
    else if (escapes && p->source != &p->input[SESSION])
        reply(p, false, 0, "the name leads out of the directory");
    else if ((j = job_start(p, url, name, every)) != NULL)
        reply(p, true, j->id.key, "added %" PRId64 ": %s", j->id.key,
              job_info(p, j).url);
}

static void do_jobs(struct program *p, char **word) {
    int64_t n = read_amount(word[1], COUNT);
    if (n < 1)
        reply(p, false, 0, "not a number of jobs: %s", word[1]);
    else if (!fetcher_limit(p->f, (int)n, 0, 0))
        reply(p, true, 0, "%d at the same time", (int)n);
}

static void do_limit(struct program *p, char **word) {
    int64_t rate = read_amount(word[1], SIZE);
    char size[32];
    if (rate < 0) {
        reply(p, false, 0, "not a rate: %s", word[1]);
        return;
    }
    (void)fetcher_limit(p->f, 0, 0, rate ? rate : -1);
    size_text(size, sizeof size, (double)rate);
    reply(p, true, 0, rate ? "%s a second" : "no limit", size);
}

/* Also at the end, without words, and then to stderr. */
static void do_stats(struct program *p, char **word) {
    struct fetcher_stats st;
    double seconds = (double)(clock_us() - p->began) / 1e6;
    char size[32];
    fetcher_stats(p->f, &st);
    st.failed += p->refused;
    double most = MS(st.stall_max_us), p99 = MS(st.stall_p99_us);
    if (p->s.json)
        out_printf(&p->out,
                   "{\"event\":\"stats\",\"done\":%" PRIu64
                   ",\"failed\":%" PRIu64 ",\"bytes\":%" PRId64
                   ",\"seconds\":%.3f,\"turns\":%" PRIu64
                   ",\"stall_max_ms\":%.3f,\"stall_p99_ms\":%.3f,\"culprit\":"
                   "\"%s\"}\n",
                   st.done, st.failed, st.received, seconds, st.turns, most,
                   p99, st.culprit);
    else
        out_printf(word ? line_out(p, false) : &p->err,
                   "%" PRIu64 " done, %" PRIu64 " failed, "
                   "%s in %.2f s; %" PRIu64
                   " turns, longest wait %.2f ms (%s), 99%% below %.2f "
                   "ms\n",
                   st.done, st.failed,
                   size_text(size, sizeof size, (double)st.received), seconds,
                   st.turns, most, st.culprit, p99);
}

static bool do_list(struct program *p, struct job *j) {
    struct fetcher_info i = job_info(p, j);
    struct out *o = line_out(p, false);
    char state[300], size[32], name[300];
    row_name(&i, name, sizeof name);
    row_state(&i, state, sizeof state);
    if (p->s.json) {
        out_json(o, "row", j->id.key, "url", i.url, "file", name, "state",
                 state_word[i.state], "message", i.message, NULL);
        out_printf(o,
                   ",\"bytes\":%" PRId64 ",\"total\":%" PRId64
                   ",\"speed\":%" PRId64 "}\n",
                   i.bytes, i.total, i.speed);
    } else {
        out_printf(o, "%5" PRId64 "  ", j->id.key);
        out_text(o, name, false);
        out_printf(o, "  %s  %s\n",
                   size_text(size, sizeof size, (double)i.bytes),
                   state + strspn(state, " "));
    }
    return true;
}

static bool job_pause(struct program *p, struct job *j, bool paused) {
    p->paused += (size_t)paused - j->paused;
    j->paused = paused;
    session_touch(p);
    return (paused ? fetcher_pause : fetcher_resume)(p->f, j->transfer) == 0;
}

static bool do_pause(struct program *p, struct job *j) {
    return j->transfer && !j->paused && job_pause(p, j, true);
}

static bool do_retry(struct program *p, struct job *j) {
    if (!j->transfer)
        return job_launch(p, j);
    return job_info(p, j).state == FETCHER_RETRYING && job_pause(p, j, false);
}

static bool do_resume(struct program *p, struct job *j) {
    bool held = j->paused || job_info(p, j).state == FETCHER_SLEEPING;
    return j->transfer && (held ? job_pause(p, j, false) : do_retry(p, j));
}

static bool do_cancel(struct program *p, struct job *j) {
    if (j->transfer)
        return fetcher_cancel(p->f, j->transfer) == 0;
    if (!p->closing)
        job_free(p, j); /* what has failed stays in the session */
    return !p->closing;
}

static bool do_first(struct program *p, struct job *j) {
    j->priority = ++p->firsts;
    if (j->transfer)
        (void)fetcher_priority(p->f, j->transfer, j->priority);
    row_place(p, j, job_info(p, j).state);
    session_touch(p);
    return true;
}

static bool do_clear(struct program *p, struct job *j) {
    return !j->transfer && do_cancel(p, j);
}

static void do_quit(struct program *p, char **word) {
    (void)word;
    reply(p, true, 0, "bye");
    leave(p);
}

static const struct command commands[] = {
    {"add", "URL [FILE]", "fetch it (the word add may be left out)", 1, 2,
     do_add, NULL, NULL},
    {"every", "TIME URL [FILE]", "fetch it again and again", 2, 3, do_add, NULL,
     NULL},
    {"pause", "N|all", "hold it; what is there of it stays", 1, 1, NULL,
     do_pause, "paused"},
    {"resume", "N|all", "let it go on, at once", 1, 1, NULL, do_resume,
     "resumed"},
    {"retry", "N|all", "try again what failed", 1, 1, NULL, do_retry,
     "tried again"},
    {"cancel", "N|all", "give it up", 1, 1, NULL, do_cancel, "cancelled"},
    {"first", "N", "fetch it before the others", 1, 1, NULL, do_first,
     "put first"},
    {"jobs", "N", "fetch N at the same time", 1, 1, do_jobs, NULL, NULL},
    {"limit", "RATE", "take RATE bytes a second (0: any)", 1, 1, do_limit, NULL,
     NULL},
    {"list", "", "show what runs, waits or has failed", 0, 0, NULL, do_list,
     "listed"},
    {"clear", "", "forget what has failed", 0, 0, NULL, do_clear, "forgotten"},
    {"stats", "", "tell what the loop did", 0, 0, do_stats, NULL, NULL},
    {"help", "", "show the commands", 0, 0, NULL, NULL, NULL},
    {"quit", "", "end; what is there of files stays", 0, 0, do_quit, NULL,
     NULL},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL}};

/* Words, in place. A quote at the beginning of one goes to the next, and a backslash takes the
 * meaning of spaces, quotes and itself away. Returns how many there are; -1: a quote is open. */
static int words_split(char *s, char **word, int most) {
    int n = 0;
    for (s += strspn(s, " \t"); *s; s += strspn(s, " \t")) {
        char *to = s, quote = *s == '"' || *s == '\'' ? *s++ : '\0';
        if (n++ < most)
            word[n - 1] = to;
        for (; *s && (quote ? *s != quote : !strchr(" \t", *s)); *to++ = *s++)
            s += *s == '\\' && s[1] && strchr(" \t\"'\\", s[1]);
        if (quote && !*s)
            return -1;
        s += *s != '\0';
        *to = '\0';
    }
    return n;
}

/* The one door for every command, wherever it comes from. */
static void command_line(struct program *p, char *line) {
    char *words[6] = {"add"}, *which;
    const struct command *c = commands;
    int n = words_split(line, words + 1, 4);
    bool url = n > 0 && (strpbrk(words[1], ":/.?") ||
                         strcmp(words[1], "localhost") == 0);
    char **word = words + !url;
    int args = n - !url;
    while (n > 0 && c->name && strcmp(c->name, *word) != 0)
        c++;
    p->bare = url;
    if (n < 1)
        reply(p, false, 0, n ? "a quote is not closed" : "the line is empty");
    else if (!c->name)
        reply(p, false, 0, "%s: not a URL and not a command; try help", *word);
    else if (args < c->least || args > c->most)
        reply(p, false, 0, "%s words: it is %s %s",
              args < c->least ? "too few" : "too many", c->name, c->args);
    else if (c->run)
        c->run(p, word);
    else if (!c->apply) /* help */
        for (c = commands; c->name; c++)
            reply(p, true, 0, "  %-7s %-16s %s", c->name, c->args, c->help);
    else if ((which = word[1]) == NULL ||
             (strcmp(which, "all") == 0 && strchr(c->args, '|'))) {
        p->sweep.command = c;
        p->sweep.next = p->sweep.count = 0; /* feed_one() does it */
    } else {
        const char *end = which;
        int64_t number = text_number(&end);
        if (number > 0 && p->source == &p->input[SESSION])
            number += (int64_t)p->base;
        struct node *node = *end ? NULL : tree_find(p->jobs, (uint64_t)number);
        if (!node)
            reply(p, false, 0, "there is no download %s", which);
        else if (!c->apply(p, container_of(node, struct job, id)))
            reply(p, false, 0, "%s has nothing to %s", which, c->name);
        else
            reply(p, true, number, "%s %s", which, c->done);
    }
}

/* -- where lines come from ------------------------------------------------------------------- */
/* Take a line out of what has been read. False: there is none, or it would add to a full queue: a
 * list is read only as fast as that drains, so a pipe of a million URLs is never held in memory. */
static bool input_take(struct program *p, struct input *in) {
    char *line = in->text + in->begin,
         *newline = memchr(line, '\n', in->end - in->begin);
    size_t n = newline ? (size_t)(newline - line) : in->end - in->begin;
    bool too_long = !newline && n + 1 == sizeof in->text, rest = in->skipping;
    if (!newline && !too_long && (!in->eof || n == 0))
        return false;
    size_t jobs = (size_t)p->f->limit_total,
           most = jobs > 500 ? jobs * 2 : 1000;
    const char *first = line + strspn(line, " \t"),
               *end = first + strcspn(first, " \t\n:/.?");
    in->held = in == &p->input[LIST] && !rest &&
               fetcher_count(p->f) >= most + p->paused + p->repeating &&
               (!strncmp(first, "add", 3) || !strncmp(first, "every", 5) ||
                (*end && strchr(":/.?", *end)));
    if (in->held)
        return false;
    in->begin += n + (newline != NULL);
    line[n] = '\0';
    in->skipping = too_long;
    if (rest)
        return true; /* of a line that was too long */
    p->source = in;
    in->line++;
    while (n > 0 && line[n - 1] == '\r')
        line[--n] = '\0';
    if (too_long)
        reply(p, false, 0, "the line is too long");
    else if (strlen(line) != n)
        reply(p, false, 0, "a NUL is in the line");
    else if (*first != '#')
        command_line(p, line);
    return true;
}

static void input_ready(struct fetcher *f, int fd, int events, void *arg) {
    (void)fd, (void)events;
    ((struct program *)arg)->input[LIST].ready = true;
    feed(f, arg);
}

static bool input_left(const struct input *in) {
    return !in->eof || in->begin < in->end;
}

/* The next command, or the next download of one for all. False: there is none to be had now. */
static bool feed_one(struct program *p) {
    const struct command *c = p->sweep.command;
    struct node *n = c ? tree_from(p->jobs, p->sweep.next, 0) : NULL;
    if (!p->closing && (out_broken(&p->out) || out_full(&p->out) ||
                        p->view.log.used >= OUT_FULL))
        return false;
    if (n) {
        p->sweep.next = n->key + 1;
        p->sweep.count += c->apply(p, container_of(n, struct job, id));
    } else if (c) {
        p->sweep.command = NULL;
        reply(p, true, 0, "%d %s", p->sweep.count, c->done);
    }
    for (int i = 0; i < INPUTS && !c; i++) {
        struct input *in = &p->input[i];
        if (input_take(p, in))
            return true;
        if (in->held || in->eof || !in->ready)
            continue;
        memmove(in->text, in->text + in->begin, in->end -= in->begin);
        in->begin = 0;
        ssize_t got =
            read(in->fd, in->text + in->end, sizeof in->text - 1 - in->end);
        bool error = got < 0 && errno != EAGAIN && errno != EINTR;
        in->end += got > 0 ? (size_t)got : 0;
        in->eof |= got == 0 || error;
        in->ready = !in->polled;
        if (error) {
            complain(p, in->name, strerror(errno));
            p->status = 1;
        }
        return true;
    }
    return c != NULL;
}

/* A file is always ready: where there is room it is read, a millisecond before each other turn. */
static void feed(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct input *list = &p->input[LIST];
    usec end = clock_us() + SLICE_INPUT_US;
    bool more = true;
    if (p->feeding)
        return; /* what is flushed below calls back */
    p->feeding = true;
    while (more && clock_us() < end)
        more = feed_one(p);
    more |= p->out.was_full; /* it may have been made room for now */
    out_flush(f, &p->out, false);
    more &= !p->out.was_full;
    p->feeding = false;
    (void)fetcher_timer_stop(f, p->feed_timer);
    p->feed_timer = more ? fetcher_timer(f, 0, feed, p) : 0;
    bool listen = !list->ready && !list->eof && !list->held;
    (void)fetcher_watch(f, list->fd, listen ? FETCHER_READ : 0, input_ready, p);
    for (int i = 0; i < INPUTS; i++)
        more |= input_left(&p->input[i]);
    size_t left = fetcher_count(f),
           idle = p->closing || p->view.keys ? 0 : p->paused;
    if (p->view.log.used)
        changed(p);
    if (more || (p->prompt.open && !p->closing) || p->sweep.command ||
        left > idle)
        return;
    if (left == 0)
        fetcher_stop(f);
    else { /* nobody will let them go on */
        complain(p, "the end", "what is paused stays so");
        p->status = 1;
        leave(p);
    }
}

static void stdout_drained(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct node *n = tree_first(p->jobs);
    struct job *j = n && p->s.output ? container_of(n, struct job, id) : NULL;
    if (j && job_info(p, j).state == FETCHER_PAUSED)
        (void)fetcher_resume(f, j->transfer);
    feed(f, p);
}

/* Give all up, and end: what is there of a file is kept. */
static void leave(struct program *p) {
    if (input_left(&p->input[SESSION]))
        p->s.session = NULL; /* half read: it stays as it is */
    for (int i = 0; i < INPUTS; i++)
        p->input[i].eof = true, p->input[i].begin = p->input[i].end;
    p->closing = true;
    p->prompt.open = false;
    p->source = &p->input[PROMPT];
    command_line(p, (char[]){"cancel all"});
    p->bare = true;
    feed(p->f, p);
}

/* -- the session: what is left to do, as commands -------------------------------------------- */
static void write_word(FILE *file, const char *word) {
    for (putc(' ', file); *word; putc(*word++, file))
        if (strchr(" \t\"'\\", *word))
            putc('\\', file);
    if (word[-1] == '\r')
        putc(' ', file); /* at a line's end it would be none of the name */
}

/* What no line can hold is left out: it has failed, or the next start would. */
static void session_job(struct program *p, struct job *j) {
    FILE *file = p->save.file;
    size_t n = strlen(j->url) + (j->name ? strlen(j->name) : 0);
    if (j->saved == p->save.number || !*j->url || strpbrk(j->url, "\r\n") ||
        2 * n + 100 >
            sizeof p->input->text) /* each byte may need a backslash */
        return;
    j->saved = p->save.number;
    if (j->every_ms)
        fprintf(file, "every %.3f", MS(j->every_ms));
    else
        fprintf(file, "add");
    write_word(file, j->url);
    if (j->name)
        write_word(file, j->name);
    fprintf(file, j->paused ? "\npause %lu\n" : "\n", ++p->save.line);
}

/* Another file takes the name and the lock of the session when it is whole: written in slices, at
 * most once a second from its beginning; at the end of the program at once. */
static int session_slice(struct program *p, const char *path, usec end) {
    if (!p->save.file) {
        (void)unlink(path);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0 && (p->save.file = fdopen(fd, "w")) == NULL)
            close(fd);
        if (!p->save.file || flock(fd, LOCK_EX | LOCK_NB) < 0)
            return -1;
        fputs("# fetcher: a session\n", p->save.file);
        p->save.at.key = INT64_MIN;
        p->save.line = 0;
        p->save.number++;
        p->save.dirty = false;
    }
    for (struct node *n;
         (n = tree_from(p->rows, p->save.at.key, p->save.at.seq)) != NULL;) {
        if (clock_us() >= end)
            return 1;
        p->save.at.key = n->key;
        p->save.at.seq = n->seq + 1;
        session_job(p, row_job(n));
    }
    if (fflush(p->save.file) || ferror(p->save.file) ||
        rename(path, p->s.session) < 0)
        return -1;
    if (p->save.last)
        fclose(p->save.last);
    p->save.last = p->save.file;
    p->save.file = NULL;
    return 0;
}

/* A slice; or all, outside of a turn: from the beginning, since what is half written may be old. */
static void session_save(struct fetcher *f, void *arg) {
    struct program *p = arg;
    usec end = f->busy ? clock_us() + SLICE_INPUT_US : FOREVER;
    if (!p->s.session)
        return; /* given up meanwhile */
    char *path = text_join(p->s.session, ".new");
    if (p->save.file && !f->busy) {
        fclose(p->save.file);
        p->save.file = NULL;
    }
    int left = !path                            ? -1
               : input_left(&p->input[SESSION]) ? 2
                                                : session_slice(p, path, end);
    if (left < 0 && !p->save.told)
        complain(p, p->s.session, strerror(errno));
    if (left < 0 && p->save.file) {
        fclose(p->save.file);
        p->save.file = NULL;
    }
    if (left < 0 && !p->status)
        p->status = 1;
    p->save.armed = left > 0 && fetcher_timer(f, left == 1 ? 0 : 1000,
                                              session_save, p) != 0;
    p->save.told = left < 0;
    free(path);
    if (left < 0 || (p->save.dirty && left == 0))
        session_touch(p);
}

static void session_touch(struct program *p) {
    if (!p->s.session || p->closing)
        return;
    p->save.dirty = true;
    if (!p->save.armed)
        p->save.armed = fetcher_timer(p->f, 1000, session_save, p) != 0;
}

/* ====================================================================================== Terminal
 * What has ended scrolls away above as one line each; below stand the rows of what has not, and a
 * last line of totals. The cursor rests at the beginning of the first row: whatever a terminal
 * makes of a resize, all that is ours is behind it. Only escape sequences that xterm, the Linux
 * console, tmux and screen share, and no alternate screen: what was said stays to be read.
 * A frame is drawn when something has changed, 20 times a second at most, and not while the
 * terminal takes nothing (^S). In the background nothing is read, and nothing drawn. */
enum { /* keys: the first eight in X's order; SHIFT may be added */
       HOME = 256,
       LEFT,
       UP,
       RIGHT,
       DOWN,
       PAGE_UP,
       PAGE_DOWN,
       END,
       DELETE,
       PASTE,
       PASTED,
       NO,
       SHIFT = 512,
       SEQUENCE_MAX = 16,
       SUSPEND = 5 /* of an escape; in handled[] */
};

static const struct {
    const char *text;
    int key;
} sequences[] = {{"[A", UP},
                 {"[B", DOWN},
                 {"[C", RIGHT},
                 {"[D", LEFT},
                 {"[H", HOME},
                 {"[F", END},
                 {"[1~", HOME},
                 {"[4~", END},
                 {"[7~", HOME},
                 {"[8~", END},
                 {"[3~", DELETE},
                 {"[5~", PAGE_UP},
                 {"[6~", PAGE_DOWN},
                 {"[200~", PASTE},
                 {"[201~", PASTED},
                 {"[1;2D", SHIFT + LEFT},
                 {"[1;2C", SHIFT + RIGHT},
                 {"[1;2H", SHIFT + HOME},
                 {"[1;2F", SHIFT + END}};

/* What a handler may need; nothing else in this file is changed behind the loop's back. */
static struct {
    struct program *program;
    struct termios cooked;
    int fd;                          /* or the connection to the X server */
    volatile sig_atomic_t raw, seen; /* seen: the signal that ends us */
} tty;

/* Are we in the foreground? In the background the terminal is another's. */
static bool tty_ours(void) {
    return tcgetpgrp(tty.fd) == getpgrp();
}

/* Give the terminal back as it was: safe in a handler. IXON off for a moment ends a ^S. */
static const char tty_text[] = "\r\033[J\033[?2004l\033[?25h";

static void tty_restore(bool text) {
    struct termios t = tty.cooked;
    if (!tty.raw)
        return;
    t.c_iflag &= ~(tcflag_t)IXON;
    tcsetattr(tty.fd, TCSANOW, &t);
    if (text && write(tty.fd, tty_text, sizeof tty_text - 1) < 0)
        errno = 0; /* best effort */
    tcsetattr(tty.fd, TCSANOW, &tty.cooked);
    tty.raw = false;
}

/* A character as the terminal shows it: what it can't show is a '?'. */
struct glyph {
    const char *text;
    size_t size, bytes;
    int columns;
}; /* bytes: of the source */

static struct glyph glyph_at(const struct view *v, const char *text) {
    uint32_t c = 0;
    size_t n = utf8_decode(text, &c);
    int width = n > 0 && (v->utf8 || c < 0x80) ? wcwidth((wchar_t)c) : -1;
    return width >= 0 ? (struct glyph){text, n, n, width}
                      : (struct glyph){"?", 1, n ? n : 1, 1};
}

/* Exactly so many columns of a text: cut with an ellipsis, or filled with spaces. */
static void fit(const struct view *v, struct out *o, const char *text,
                int columns) {
    int width = 0, room;
    struct glyph g;
    for (const char *s = text; *s; s += g.bytes)
        width += (g = glyph_at(v, s)).columns;
    room = width > columns ? columns - 1 : columns;
    for (width = 0; *text && width + (g = glyph_at(v, text)).columns <= room;
         text += g.bytes) {
        width += g.columns;
        out_add(o, g.text, g.size);
    }
    if (*text && columns > 0) {
        out_printf(o, "%s", v->utf8 ? "\u2026" : "~");
        width++;
    }
    out_printf(o, "%*s", columns > width ? columns - width : 0, "");
}

static void draw_bar(const struct view *v, struct out *o,
                     struct fetcher_info *i, int columns) {
    double part = i->total > 0 ? (double)i->bytes / (double)i->total : 0;
    int eighths = (int)((part > 1 ? 1 : part) * 8 * columns);
    for (int c = 0; c < columns; c++, eighths -= 8) {
        char block[4] =
            "\xe2\x96\x88"; /* U+2588 to U+258f: full to an eighth */
        if (eighths < 8)
            block[2] = (char)(block[2] + 8 - eighths);
        out_printf(o, "%s",
                   !v->utf8                    ? eighths >= 8 ? "#" : "."
                   : eighths > 0               ? block
                   : v->window && i->total > 0 ? "\u2591"
                                               : " ");
    }
}

static const char *sgr(const struct view *v, const char *code) {
    return v->color ? code : "";
}

/* How much of it there is room for depends on the width; a long number takes from the name. */
static void draw_row(struct program *p, struct out *o, struct job *j,
                     int columns) {
    static const char color[][6] = {"\033[2m",  "",         "\033[33m",
                                    "\033[36m", "\033[33m", "\033[31m"};
    const struct view *v = &p->view;
    struct fetcher_info i = job_info(p, j);
    char state[300], size[32], pc[8] = "", text[300], mark[40];
    bool wide = columns > 56, chosen = j == p->selected && v->keys;
    int bar = columns > 130  ? columns / 4
              : columns > 66 ? columns / 7
                             : 0,
        tail = wide ? 21 : 13;
    int number = snprintf(mark, sizeof mark, "%c%4" PRId64 "  ",
                          chosen ? '>' : ' ', j->id.key);
    int name =
        columns - number - tail - (bar ? bar + 3 : 0) - (wide ? 11 : 0) - 5;
    row_state(&i, state, sizeof state);
    if (!wide && i.state == FETCHER_RUNNING)
        state[12] = '\0'; /* the speed alone */
    size_text(size, sizeof size, (double)(i.total > 0 ? i.total : i.bytes));
    if (i.total > 0 && i.bytes)
        snprintf(pc, sizeof pc, "%3d%%", (int)(100 * i.bytes / i.total));
    out_printf(o, "%s%s", chosen ? sgr(v, "\033[1m") : "", mark);
    int room = name > 8 ? name : columns > number ? columns - number : 0;
    fit(v, o, row_name(&i, text, sizeof text), room);
    if (name > 8) {
        out_printf(o, bar ? " %s" : "", sgr(v, "\033[32m"));
        draw_bar(v, o, &i, bar);
        out_printf(o, bar ? "%s%s " : "", sgr(v, "\033[m"),
                   chosen ? sgr(v, "\033[1m") : "");
        out_printf(o, wide ? " %4s %10s " : " %4s ", pc,
                   i.bytes || i.total > 0 ? size : "");
        out_printf(
            o, "%s",
            chosen && i.state == FETCHER_RUNNING ? "" : sgr(v, color[i.state]));
        fit(v, o, state + (wide ? 0 : strspn(state, " ")), tail - 1);
    }
    out_printf(o, "%s", sgr(v, "\033[m"));
}

/* The totals, the last ones only where there is room; between them the last seconds as bars. */
static void draw_totals(struct program *p, struct out *o, int columns) {
    struct fetcher_stats st;
    char part[5][64] = {"", "", "        "}, size[32], left[32];
    int used = 0, all = 0;
    int64_t most = 1;
    fetcher_stats(p->f, &st);
    speed_sample(p, st.received);
    snprintf(part[0], 64, "%" PRIu64 " done, %" PRIu64 " failed, %zu waiting%s",
             st.done, st.failed, st.waiting, p->input[LIST].eof ? "" : "+");
    snprintf(part[1], 64, "  %s/s ",
             size_text(size, sizeof size, (double)p->speed[0]));
    snprintf(part[3], 64, "  %s left",
             time_text(left, sizeof left, time_left(p, &st)));
    snprintf(part[4], 64, "  longest wait %.1f ms", MS(st.stall_max_us));
    for (int i = 0; i < 5; i++)
        all += (int)strlen(part[i]);
    int bars = p->view.window      ? 0
               : all <= columns    ? 8
               : all - columns < 6 ? 8 - all + columns
                                   : 0;
    part[2][bars] = '\0';
    for (int i = 0; i < bars; i++)
        most = p->speed[i] > most ? p->speed[i] : most;
    for (int i = 0; i < 5 && (used += (int)strlen(part[i])) <= columns; i++) {
        if (i != 2)
            out_printf(o, "%s", part[i]);
        while (i == 2 && bars-- > 0) {
            int level = (int)(p->speed[bars] * 7 / most);
            char block[4] = {'\xe2', '\x96', (char)(0x81 + level), '\0'};
            out_add(o, p->view.utf8 ? block : &"_.:-=+*#"[level],
                    p -> view.utf8 ? 3 : 1);
        }
    }
}

/* Where the character before, or behind, this place of the line is. */
static size_t prompt_step(const struct prompt *e, size_t at, int by) {
    if (by < 0 ? at == 0 : !e->text[at])
        return at;
    do
        at += by < 0 ? (size_t)-1 : 1;
    while (at && (e->text[at] & 0xc0) == 0x80);
    return at;
}

/* The edited line, around its caret: underlined in the window's picture, where it becomes a bar. */
static void draw_prompt(struct program *p, struct out *o, int columns) {
    struct prompt *e = &p->prompt;
    const struct view *v = &p->view;
    struct glyph g;
    size_t low = e->caret < e->mark ? e->caret : e->mark,
           high = e->caret + e->mark - low;
    e->from = e->caret;
    for (int width = 0; e->from > 0 && width < columns - 6; width += g.columns)
        g = glyph_at(v, e->text + (e->from = prompt_step(e, e->from, -1)));
    out_printf(o, v->window ? "" : ": ");
    columns -= v->window ? 0 : 3;
    for (const char *s = e->text + e->from;; s += g.bytes) {
        size_t at = (size_t)(s - e->text);
        bool marked = at >= low && at < high;
        bool caret = at == e->caret && e->open;
        g = *s ? glyph_at(v, s) : (struct glyph){" ", 1, 1, 1};
        if ((columns -= g.columns) < 0)
            break;
        out_printf(o, marked ? "\033[7m" : "");
        out_printf(o, !caret ? "" : v->window ? "\033[4m" : "\033[7m");
        out_add(o, g.text, g.size);
        out_printf(o, caret || marked ? "\033[24m\033[27m" : "");
        if (!*s)
            break;
    }
}

/* The rows that there is room for, and a line that counts the others. The chosen one stays where it
 * was, and no line is wasted. Returns how many lines. */
static int draw_rows(struct program *p, struct out *o, int columns, int rows) {
    bool more = rows > 0 && p->row_count > (size_t)rows;
    int below = 0, above = 0, n = 0;
    if (!p->selected || !p->view.chosen)
        p->selected = row_after(p, NULL);
    struct job *top = p->selected, *j = top;
    rows -= more;
    while (below < rows - 1 && j && (j = row_after(p, j)) != NULL)
        below++;
    if (p->offset < rows - 1 - below)
        p->offset = rows - 1 - below;
    if (p->offset > rows - 1)
        p->offset = rows - 1;
    for (; above < p->offset && top && (j = row_before(p, top)) != NULL;
         above++)
        top = j;
    for (p->offset = above, j = top; j && n < rows; j = row_after(p, j), n++) {
        draw_row(p, o, j, columns);
        out_printf(o, "\n");
    }
    if (more)
        out_printf(o, "       + %zu more\n", p->row_count - (size_t)n);
    return n + more;
}

/* Draw what has changed since the last frame; all, if lines have come above, or their number. */
static void paint(struct program *p, int columns, int most) {
    struct view *v = &p->view;
    struct out *o = v->out, *lines = &v->picture;
    int extra = 1 + (p->prompt.open || v->asking), n, at = 0;
    lines->used = 0;
    n = extra + draw_rows(p, lines, columns,
                          v->rows ? (most < LINES ? most : LINES) - extra : 0);
    if (p->stay && !p->row_count && !p->prompt.open && ++n)
        out_printf(lines, "%.*s\n", columns,
                   " a: enter a URL   ?: help   q: quit");
    draw_totals(p, lines, columns);
    if (v->asking)
        out_printf(lines, "\n%.*s", columns,
                   "downloads are not done: quit? (y/n)");
    if (p->prompt.open) {
        out_printf(lines, "\n");
        draw_prompt(p, lines, columns);
    }
    out_printf(lines, "\n");
    v->redraw |= n != v->count || v->log.used;
    if (v->redraw) {
        out_printf(o, "\r\033[J");
        out_add(o, v->log.data, v->log.used);
        out_add(o, lines->data, lines->used - 1);
        out_printf(o, n > 1 ? "\033[%dA\r" : "\r", n - 1);
    }
    for (const char *s = lines->data; at < n; at++, s = strchr(s, '\n') + 1) {
        size_t len = strcspn(s, "\n");
        uint64_t before = v->shown[at];
        if ((v->shown[at] = text_hash(s, len)) == before || v->redraw)
            continue;
        if (at)
            out_printf(o, "\033[%dB", at);
        out_add(o, s, len);
        out_printf(o, at ? "\033[K\033[%dA\r" : "\033[K\r", at);
    }
    v->log.used = 0;
    v->redraw = false;
    v->count = n;
}

/* -- keys ------------------------------------------------------------------------------------ */
/* A command, typed or of a key: it goes the way of all lines. False: there is no room. */
static bool submit(struct program *p, const char *verb, const char *rest) {
    struct input *in = &p->input[PROMPT];
    size_t n = strlen(verb) + strlen(rest);
    memmove(in->text, in->text + in->begin, in->end -= in->begin);
    in->begin = 0;
    if (in->end + n + 2 > sizeof in->text)
        return false;
    in->end += (size_t)sprintf(in->text + in->end, "%s%s\n", verb, rest);
    return true;
}

static void choose(struct program *p, int by) {
    struct job *j = p->selected;
    p->view.chosen = true;
    for (int step = by < 0 ? -1 : 1; by && j; by -= step) {
        if ((j = step < 0 ? row_before(p, j) : row_after(p, j)) == NULL)
            return;
        p->selected = j;
        p->offset += p->offset + step >= 0 ? step : 0;
    }
}

/* Replace the n bytes at `at` of the line; the caret stands behind them. */
static void prompt_edit(struct prompt *e, size_t at, size_t n, const char *with,
                        size_t m) {
    e->too_long |= e->length - n + m >= sizeof e->text;
    if (e->length - n + m >= sizeof e->text)
        return;
    memmove(e->text + at + m, e->text + at + n, e->length - at - n + 1);
    memcpy(e->text + at, with, m);
    e->caret = e->mark = at + m;
    e->length += m - n;
}

static void prompt_history(struct prompt *e, int by) {
    int entry = e->entry + by;
    if (entry < 0 || entry < e->entries - HISTORY || entry > e->entries)
        return;
    const char *line =
        (e->entry = entry) < e->entries ? e->history[entry % HISTORY] : "";
    prompt_edit(e, 0, e->length, line, strlen(line));
}

static void prompt_enter(struct program *p) {
    struct prompt *e = &p->prompt;
    char *copy = e->length && !e->too_long ? text_join(e->text, "") : NULL;
    char **oldest = &e->history[e->entries % HISTORY];
    if (copy) {
        free(*oldest);
        *oldest = copy;
        e->entries++;
    }
    if (e->too_long)
        complain(p, "", "the line is too long");
    else if (e->length)
        (void)submit(p, e->text, "");
    e->entry = e->entries;
    e->open = e->stays || p->view.paste;
    e->too_long = false;
    prompt_edit(e, 0, e->length, "", 0);
}

static void prompt_key(struct program *p, int k) {
    struct prompt *e = &p->prompt;
    char c = (char)k;
    bool shift = k >= SHIFT;
    size_t back = prompt_step(e, e->caret, -1),
           ahead = prompt_step(e, e->caret, 1);
    size_t at = e->caret < e->mark ? e->caret : e->mark,
           n = e->caret + e->mark - 2 * at;
    switch (shift ? k - SHIFT : k) {
    case '\r':
    case '\n':
        prompt_enter(p);
        break;
    case 27:
        prompt_edit(e, 0, e->length, "", 0);
        e->open = false;
        break;
    case PASTED:
        e->open = e->stays || e->length > 0;
        break;
    case LEFT:
    case 2:
        e->caret = back;
        break;
    case RIGHT:
    case 6:
        e->caret = ahead;
        break;
    case HOME:
    case 1:
        e->caret = 0;
        break;
    case END:
    case 5:
        e->caret = e->length;
        break;
    case UP:
    case 16:
        prompt_history(e, -1);
        break;
    case DOWN:
    case 14:
        prompt_history(e, 1);
        break;
    case 8:
    case 127:
        prompt_edit(e, n ? at : back, n ? n : e->caret - back, "", 0);
        break;
    case DELETE:
    case 4:
        prompt_edit(e, at, n ? n : ahead - at, "", 0);
        break;
    case 11:
        prompt_edit(e, e->caret, e->length - e->caret, "", 0);
        break;
    case 21:
        prompt_edit(e, 0, e->caret, "", 0);
        break;
    case 23:
        while (back > 0 && e->text[back - 1] != ' ')
            back--;
        prompt_edit(e, back, e->caret - back, "", 0);
        break;
    default:
        if (k >= ' ' && k < 256)
            prompt_edit(e, at, n, &c, 1);
    }
    if (!shift)
        e->mark = e->caret;
}

static void view_key(struct program *p, int k) {
    struct view *v = &p->view;
    struct job *j = p->selected;
    const char *verb = NULL;
    int64_t number = j ? j->id.key : 0;
    char text[32];
    bool paused = j && job_info(p, j).state == FETCHER_PAUSED,
         busy = fetcher_count(p->f) > 0;
    if (v->asking && k != 'y' && k != 'Y' && k != PASTE)
        k = NO;
    switch (k) {
    case UP:
    case 'k':
        choose(p, -1);
        break;
    case DOWN:
    case 'j':
        choose(p, 1);
        break;
    case PAGE_UP:
        choose(p, -v->count);
        break;
    case PAGE_DOWN:
        choose(p, v->count);
        break;
    case HOME:
    case 'g':
        v->chosen = false;
        p->selected = row_after(p, NULL);
        break;
    case END:
    case 'G':
        v->chosen = true;
        p->selected = row_before(p, NULL);
        break;
    case 'p':
        verb = paused ? "resume" : "pause";
        break;
    case 'r':
        verb = "retry";
        break;
    case 'c':
        verb = "cancel";
        break;
    case 'f':
        verb = "first";
        break;
    case '+':
    case '-':
        verb = "jobs";
        number = p->f->limit_total + (k == '+' ? 1 : -1);
        break;
    case 'a':
    case ':':
    case PASTE:
        p->prompt.open = true;
        break;
    case '?':
        out_printf(&v->log,
                   "  up down page home end (or j k g G)   choose a row\n"
                   "  p pause or resume   r retry   c cancel   f first   + - "
                   "more or less at a time\n"
                   "  a or : a URL or a command, such as: "
                   "https://example.org/x   limit 200k   help\n"
                   "  ? this help   q quit   ^Z suspend\n");
        break;
    case 12:
        v->redraw = true;
        break;
    case 'y':
    case 'Y':
        if (v->asking)
            (void)submit(p, "quit", "");
        break;
    case 'q':
        if (!busy)
            (void)submit(p, "quit", "");
        break;
    }
    v->asking = k == 'q' && busy;
    snprintf(text, sizeof text, " %" PRId64, number);
    if (verb && number)
        (void)submit(p, verb, text);
}

/* What key do these bytes begin with? Returns how many they are; 0: more must come. */
static size_t key_read(const char *s, size_t n, int *key) {
    size_t used = 2;
    *key = (unsigned char)*s;
    if (*s != 27 || (n > 1 && s[1] != '[' && s[1] != 'O'))
        return 1;
    while (used < n && (s[used] < '@' || s[used] > '~'))
        used++;
    if (used >= n)
        return 0;
    *key = NO;
    for (size_t i = 0; i < COUNT_OF(sequences); i++)
        if (strlen(sequences[i].text) == used &&
            !memcmp(s + 2, sequences[i].text + 1, used - 1))
            *key = sequences[i].key;
    return used + 1;
}

/* Draw, and once more where times or speeds go on, or when we may come to the front. */
static void frame(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct view *v = &p->view;
    v->timer = 0;
    if (v->show)
        v->show(p); /* it may be gone */
    if (!v->on || fetcher_count(f) > 0 || v->log.used || p->speed[0])
        frame_at(p, f->now + (v->on && f->running ? TICK_US : 1000000));
}

static void keys_ready(struct fetcher *f, int fd, int events, void *arg);

/* Take keys, as long as each line that they end is executed at once; for a slice, or until the rest
 * is the beginning of an escape sequence: it counts as an ESC when no more comes. What is left is
 * looked at again; while it is much, no more is read. */
static void keys_pump(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct view *v = &p->view;
    struct input *in = &p->input[PROMPT];
    struct out *key = &v->key;
    usec end = clock_us() + SLICE_INPUT_US;
    size_t at = 0, used;
    bool all = v->window || (!v->fresh && key->used <= SEQUENCE_MAX);
    for (int k; at < key->used && in->begin == in->end && clock_us() < end;
         at += used) {
        if ((used = key_read(key->data + at, key->used - at, &k)) == 0 &&
            !all && key->used - at <= SEQUENCE_MAX)
            break;
        used += used == 0;
        if (k == PASTE || k == PASTED)
            v->paste = k == PASTE;
        if (v->paste && (k < ' ' || k == 127) && k != '\r' && k != '\n')
            k = ' ';
        p->prompt.open |= v->paste && k != PASTE; /* its bytes are never keys */
        if (p->prompt.open)
            prompt_key(p, k);
        else
            view_key(p, k);
        if (in->begin < in->end || !p->prompt.open)
            feed(f, p);
    }
    if (at)
        memmove(key->data, key->data + at, key->used -= at);
    bool many = key->used > SEQUENCE_MAX;
    (void)fetcher_timer_stop(f, v->key_timer);
    v->key_timer =
        key->used ? fetcher_timer(f, many && at ? 1 : 50, keys_pump, p) : 0;
    v->fresh = false;
    if (v->on && v->keys && !v->window)
        (void)fetcher_watch(f, tty.fd, many ? 0 : FETCHER_READ,
                            many ? NULL : keys_ready, p);
    frame_at(p, v->drawn + v->pace);
}

/* -- modes ----------------------------------------------------------------------------------- */
/* In the background the terminal is another's, and nothing of it may be touched. */
static void view_off(struct program *p) {
    struct view *v = &p->view;
    bool ours = tty_ours();
    if (!v->on)
        return;
    if (v->keys)
        (void)fetcher_watch(p->f, tty.fd, 0, NULL, NULL);
    if (ours)
        out_printf(v->out, "\r\033[J");
    out_add(v->out, v->log.data, v->log.used);
    if (ours) {
        out_printf(v->out, "%s", tty_text);
        tty_restore(false);
    }
    out_flush(p->f, v->out, false);
    tty.raw = v->on = false;
    v->log.used = 0;
}

static void view_show(struct program *p) {
    struct view *v = &p->view;
    struct winsize size;
    bool ours = tty_ours();
    if (v->on && !ours)
        view_off(p);
    if (!v->on && ours && tcgetattr(tty.fd, &tty.cooked) == 0) {
        struct termios t = tty.cooked;
        t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        t.c_cc[VMIN] = 1;
        t.c_cc[VTIME] = 0;
        tty.raw = v->on = v->redraw = true;
        if (v->keys)
            tcsetattr(tty.fd, TCSANOW, &t);
        if (v->keys)
            (void)fetcher_watch(p->f, tty.fd, FETCHER_READ, keys_ready, p);
        out_printf(v->out, v->keys ? "\033[?25l\033[?2004h" : "\033[?25l");
        out_flush(p->f, v->out, false);
    }
    if (!v->on || v->out->used > 0)
        return;
    if (ioctl(v->out->fd, TIOCGWINSZ, &size) < 0 || size.ws_col < 2 ||
        size.ws_row < 2)
        size = (struct winsize){24, 80, 0, 0};
    v->drawn = p->f->now;
    paint(p, size.ws_col - 1, size.ws_row * 2 / 3);
    out_flush(p->f, v->out, false);
    feed(p->f, p); /* the log has room again */
}

static void view_resized(struct fetcher *f, void *arg) {
    ((struct program *)arg)->view.redraw = true;
    frame_at(arg, f->now);
}

/* The terminal, or the window, is gone. What is on the way goes on without it. */
static void view_lost(struct fetcher *f, void *arg) {
    struct program *p = arg;
    p->view.off(p);
    p->view.show = NULL;
    p->view.keys = p->prompt.open = false;
    p->view.key.used = 0;
    p->input[PROMPT].eof = true;
    feed(f, p);
}

static void keys_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;
    char bytes[4096];
    ssize_t n = read(fd, bytes, sizeof bytes);
    bool error = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    (void)events;
    bool behind = tcgetpgrp(fd) > 0 && !tty_ours();
    p->view.fresh = true;
    if (error && behind) {
        view_off(p);
        frame_at(p, f->now);
    } else if (error)
        view_lost(f, p);
    else {
        out_add(&p->view.key, bytes, n > 0 ? (size_t)n : 0);
        keys_pump(f, p);
    }
}

static void suspend(struct fetcher *f, void *arg);

static void give_up(struct fetcher *f, void *arg) {
    (void)arg;
    fetcher_stop(f);
}

static void interrupted(struct fetcher *f, void *arg) {
    struct program *p = arg;
    p->status = 128 + (int)tty.seen;
    leave(p);
    if (p->out.watched)
        (void)fetcher_timer(f, 500, give_up, p); /* its reader has stopped? */
    if (!p->s.quiet)
        complain(p, "interrupted",
                 "what there is of files is kept for the next run");
}

/* Handlers only post. The first signal that is to end us does so cleanly, the second at once. */
static const struct {
    int number;
    call_fn *call;
} handled[] = {{SIGINT, interrupted},
               {SIGTERM, interrupted}, /* from here on only with a view */
               {SIGHUP, view_lost},
               {SIGWINCH, view_resized},
               {SIGCONT, view_resized},
               {SIGTSTP, suspend},
               {SIGSEGV, NULL},
               {SIGBUS, NULL},
               {SIGFPE, NULL},
               {SIGILL, NULL},
               {SIGABRT, NULL},
               {SIGQUIT, NULL}};

static void on_signal(int number) {
    bool ends = number == SIGINT || number == SIGTERM;
    int saved = errno, i = 0;
    while (handled[i].number != number)
        i++;
    if (!handled[i].call || (ends && tty.seen))
        tty_restore(true);
    if (!handled[i].call)
        raise(number); /* SA_RESETHAND: now it has its usual effect */
    if (ends && tty.seen)
        _exit(128 + number);
    if (ends)
        tty.seen = number;
    if (handled[i].call)
        (void)fetcher_post(tty.program->f, handled[i].call, tty.program);
    errno = saved;
}

/* What was ignored from the beginning (by nohup, or a shell's &) stays so. */
static void signals_set(void (*handler)(int), size_t from, size_t to) {
    struct sigaction action = {.sa_handler = handler}, old;
    for (size_t i = from; i < to; i++) {
        action.sa_flags = handled[i].call ? SA_RESTART : (int)SA_RESETHAND;
        if (sigaction(handled[i].number, NULL, &old) == 0 &&
            old.sa_handler != SIG_IGN)
            sigaction(handled[i].number, &action, NULL);
    }
}

/* ^Z: the shell gets its terminal back, and we ours when we go on. */
static void suspend(struct fetcher *f, void *arg) {
    view_off(arg);
    signals_set(SIG_DFL, SUSPEND, SUSPEND + 1);
    usec before = clock_us();
    raise(SIGTSTP);
    f->skew -= clock_us() - before; /* this time has not been */
    signals_set(on_signal, SUSPEND, SUSPEND + 1);
    view_resized(f, arg);
}

/* Is there a terminal to draw on, and somebody in front of it? */
static void view_open(struct program *p) {
    struct view *v = &p->view;
    struct settings *s = &p->s;
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR"),
               *name = ttyname(0);
    bool both = isatty(0) && p->out.tty;
    if (s->plain || s->quiet || s->json || !term || !*term ||
        !strcmp(term, "dumb") || !(p->out.tty || p->err.tty) ||
        (both && dash(s->list)) || (dash(s->output) && p->out.tty))
        return;
    v->out = p->out.tty ? &p->out : &p->err;
    v->rows = p->out.tty;
    v->keys =
        both && name && tcgetpgrp(0) == getpgrp() &&
        (tty.fd = open(name, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)) >= 0;
    if (!v->keys)
        tty.fd = v->out->fd;
    v->utf8 =
        setlocale(LC_CTYPE, "") && strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    v->color = s->color && strcmp(s->color, "auto")
                   ? strcmp(s->color, "always") == 0
                   : !no_color || !*no_color;
    v->show = view_show;
    v->off = view_off;
    v->pace = FRAME_US;
    signal(SIGTTOU, SIG_IGN); /* the background is no reason to stop, */
    if (v->keys)
        signal(SIGTTIN, SIG_IGN); /* but for a list that somebody types */
    signals_set(on_signal, SUSPEND - 3, COUNT_OF(handled));
    frame_at(p, p->f->now);
}

/* ======================================================================================== Window
 * One more terminal, with a better pen: keys become the bytes that a terminal would send, what is
 * pasted comes as a bracketed paste, and the lines of the picture are painted on a grid.
 * Xlib may have read events into a queue of its own, where select() does not see them: so whatever
 * calls it ends with window_events(), which empties that. Once the window is there nothing waits
 * for the server, but for what a paste or a drop brings: it is drawn a line at a time, and only
 * while select() says that the connection takes it. So a stopped server costs frames, no time. */
#ifdef FETCHER_X11
#include <X11/Xatom.h>
#include <X11/Xft/Xft.h>
#include <X11/Xutil.h>

enum { FONTS = 16, PASTE_MAX = 262144, WINDOW_PACE_US = 33334 };

enum ink {
    PAPER,
    INK,
    DIM,
    BAR,
    TRACK,
    CHOSEN,
    RED,
    AMBER,
    CYAN,
    FIELD,
    EDGE,
    MARKED,
    INKS
};

static const unsigned palette[2][INKS] =
    {/* light, dark */
     {0xfafafa, 0x2b2f36, 0x8a919c, 0x58a07a, 0xe3e6ea, 0xe2ebf5, 0xc0392b,
      0xa9741a, 0x2b7a9b, 0xffffff, 0xcdd3da, 0xbcd5f0},
     {0x1e2227, 0xd7dae0, 0x7d8590, 0x5aa17a, 0x3a424c, 0x2b3747, 0xe06c75,
      0xd9a35b, 0x61afcf, 0x262b31, 0x414954, 0x3b5675}};

enum atom {
    PROTOCOLS,
    DELETE_WINDOW,
    NET_NAME,
    NET_PID,
    UTF8,
    TARGETS,
    INCR,
    CLIPBOARD,
    DND_AWARE,
    DND_POSITION,
    DND_STATUS,
    DND_DROP,
    DND_FINISHED,
    DND_SELECTION,
    DND_COPY,
    URI_LIST,
    ATOMS
};

static struct window {
    Display *d;
    Window id, source; /* source: of what is dropped */
    GC gc;
    Pixmap back;
    XftDraw *draw;
    XIC ic;
    XftColor ink[INKS];
    Atom atom[ATOMS];
    FcPattern *pattern;
    FcFontSet *set;
    XftFont *font[FONTS]; /* the set: all, the best first */
    int fonts, width, height, cell, line,
        pad;                   /* in pixels: a column, a line, the margin */
    int columns, lines, graph; /* the grid; pixels of the graph, or 0 */
    bool dead, leaving, dragging;
    Atom wanted;
    usec graphed; /* the selection asked for; the newest second of the graph */
    struct out said;
    size_t since; /* the last lines; where the last key's begin */
    char *copied[2], title[100]; /* copied: the selections we own */
} window;

/* -- the pen --------------------------------------------------------------------------------- */
static void fill(struct window *w, enum ink ink, int x, int y, int width,
                 int height) {
    XSetForeground(w->d, w->gc, w->ink[ink].pixel);
    if (width > 0 && height > 0)
        XFillRectangle(w->d, w->back, w->gc, x, y, (unsigned)width,
                       (unsigned)height);
}

static bool font_open(struct window *w, int i) {
    FcPattern *pattern =
        FcFontRenderPrepare(NULL, w->pattern, w->set->fonts[i]);
    XftFont *font = pattern ? XftFontOpenPattern(w->d, pattern) : NULL;
    if (!font && pattern)
        FcPatternDestroy(pattern);
    if (font)
        w->font[w->fonts++] = font;
    return font != NULL;
}

/* The first font that has it; colored ones are left out: an Xft before 2.3.5 can't draw them. */
static XftGlyphFontSpec glyph_spec(struct window *w, uint32_t c, int x, int y) {
    int found = 0;
    FcCharSet *has;
    FcBool color;
    while (found < w->fonts && !XftCharExists(w->d, w->font[found], c))
        found++;
    for (int i = 0; found == w->fonts && w->fonts < FONTS && i < w->set->nfont;
         i++)
        if (FcPatternGetCharSet(w->set->fonts[i], FC_CHARSET, 0, &has) ==
                FcResultMatch &&
            FcCharSetHasChar(has, c) &&
            (FcPatternGetBool(w->set->fonts[i], FC_COLOR, 0, &color) !=
                 FcResultMatch ||
             !color) &&
            font_open(w, i))
            break;
    XftFont *font =
        w->font[found < w->fonts ? found : 0]; /* where none has it: a box */
    y += (w->line - w->font[0]->ascent - w->font[0]->descent) / 2 +
         w->font[0]->ascent;
    return (XftGlyphFontSpec){font, XftCharIndex(w->d, font, c), (short)x,
                              (short)y};
}

static bool server_listens(struct window *w) {
    fd_set wr;
    struct timeval now = {0, 0};
    if (!w->dead)
        XFlush(w->d); /* what it said yes to before */
    FD_ZERO(&wr);
    FD_SET(tty.fd, &wr);
    return !w->dead && select(tty.fd + 1, NULL, &wr, NULL, &now) > 0;
}

/* A line of the picture: characters on a grid, and of the escape sequences those that we use. The
 * blocks of a bar become rectangles, an underlined place a caret. New glyphs are large, so the
 * server is asked now and then whether it still listens. */
static bool draw_line(struct window *w, const char *s, const char *end, int x,
                      int y) {
    static const enum ink color[] = {INK, RED, BAR, AMBER, INK, INK, CYAN, INK};

    XftGlyphFontSpec spec[32];
    int n = 0, bar = w->line * 2 / 5, code;
    enum ink ink = INK;
    bool marked = false, caret = false;
    uint32_t c = 0;
    for (size_t size; s < end; s += size) {
        bool escape = *s == 27;
        size = escape ? 3 : utf8_decode(s, &c);
        int width = escape || size == 0 ? 0 : wcwidth((wchar_t)c),
            part = 0x2590 - (int)c;
        if ((escape || n == (int)COUNT_OF(spec)) && n > 0) {
            XftDrawGlyphFontSpec(w->draw, &w->ink[ink], spec, n);
            n = 0;
            if (!escape && !server_listens(w))
                return false;
        }
        if (escape) {
            char *m;
            code = (int)strtol(s + 2, &m, 10);
            size = (size_t)(m - s) + 1;
            if (code == 7 || code == 27)
                marked = code == 7;
            else if (code == 4 || code == 24)
                caret = code == 4;
            else if (code != 1)
                ink = code == 2   ? DIM
                      : code < 30 ? INK
                                  : color[(code - 30) & 7];
            continue;
        }
        size += size == 0;
        width = width < 0 ? 1 : width;
        if (marked)
            fill(w, MARKED, x, y, width * w->cell, w->line);
        if (caret)
            fill(w, INK, x, y, w->cell / 6 + 1, w->line);
        if (ink == BAR && (c == 0x2591 ||
                           (c > 0x2587 && c < 0x2590))) { /* none, or eighths */
            fill(w, TRACK, x, y + (w->line - bar) / 2, w->cell, bar);
            fill(w, ink, x, y + (w->line - bar) / 2,
                 part < 0 ? 0 : w->cell * part / 8, bar);
        } else if (c != ' ')
            spec[n++] = glyph_spec(w, c, x, y);
        x += width * w->cell;
    }
    if (n > 0)
        XftDrawGlyphFontSpec(w->draw, &w->ink[ink], spec, n);
    return true;
}

static void copy_out(struct window *w, int x, int y, int width, int height) {
    XCopyArea(w->d, w->back, w->id, w->gc, x, y, (unsigned)width,
              (unsigned)height, x, y);
}

/* The entry, the rows and what was said, the graph, the totals: from top to bottom. */
static int line_y(const struct window *w, int line) {
    return line == 0              ? w->pad + w->pad / 2
           : line == w->lines - 1 ? w->height - w->pad - w->line
                                  : 3 * w->pad + line * w->line;
}

static bool show_line(struct window *w, int i, const char *s, size_t n) {
    int y = line_y(w, i), x = i == 0 ? 2 * w->pad : w->pad,
        edge = i == 0 ? w->pad : 0;
    bool chosen = n > 4 && memcmp(s, "\033[1m>", 5) == 0;
    fill(w, i == 0 ? FIELD : PAPER, edge, y, w->width - 2 * edge, w->line);
    if (chosen) {
        fill(w, CHOSEN, w->pad / 2, y, w->width - w->pad, w->line);
        fill(w, BAR, w->pad / 2, y, w->pad / 4, w->line);
    }
    bool whole =
        draw_line(w, s + (chosen ? 5 : 0), s + n, chosen ? x + w->cell : x, y);
    copy_out(w, 0, y, w->width, w->line);
    return whole;
}

/* The speed of the last two minutes. */
static void show_graph(struct program *p, struct window *w) {
    int y = line_y(w, w->lines - 1) - w->pad - w->graph,
        wide = w->width - 2 * w->pad;
    int64_t most = 1;
    char peak[64] = "\033[2mpeak ", size[32];
    for (int i = 0; i < SPEEDS; i++)
        most = p->speed[i] > most ? p->speed[i] : most;
    fill(w, PAPER, 0, y, w->width, w->graph);
    fill(w, TRACK, w->pad, y + w->graph - 1, wide, 1);
    for (int i = 0; i < SPEEDS; i++) {
        int height = (int)(p->speed[i] * (w->graph - w->line) / most),
            n = SPEEDS - 1 - i;
        int x = wide * n / SPEEDS, next = wide * (n + 1) / SPEEDS;
        fill(w, BAR, w->pad + x, y + w->graph - 1 - height,
             next - x - (next - x > 4), height);
    }
    snprintf(peak + 9, sizeof peak - 9, "%s/s in two minutes",
             size_text(size, sizeof size, (double)most));
    if (most > 1)
        (void)draw_line(w, peak, peak + strlen(peak), w->pad, y);
    copy_out(w, 0, y, w->width, w->graph);
    w->graphed = p->sampled;
}

/* -- the picture ----------------------------------------------------------------------------- */
/* The last lines that were said: a fifth of the window, or what the last key or command brought. */
static int draw_said(struct program *p, struct out *o) {
    struct window *w = p->view.window;
    char *s = w->said.data, *end = s + w->said.used;
    int most = w->lines / 5 + 1, n = 0, all = 0;
    for (char *c = s; c < end; c = strchr(c, '\n') + 1)
        all++, n += c >= s + w->since;
    n = n > w->lines / 2 ? w->lines / 2
        : n > most       ? n
        : all > most     ? most
                         : all;
    for (int i = 0; o && i < all; i++, s = end + 1) {
        end = strchr(s, '\n');
        if (i < all - n)
            continue;
        *end = '\0';
        out_printf(o, "%s",
                   strncmp(s, "fetcher: ", 9) ? "\033[2m" : "\033[31m");
        fit(&p->view, o, s, w->columns);
        out_printf(o, "\n");
        *end = '\n';
    }
    return n;
}

static void window_compose(struct program *p, struct window *w, struct out *o) {
    struct view *v = &p->view;
    int said = draw_said(p, NULL), gap = said > 0, n;
    int rows = w->lines - 2 - said - gap - v->asking;
    o->used = 0;
    if (p->prompt.open || p->prompt.length)
        draw_prompt(p, o, w->columns - 2 * w->pad / w->cell);
    else
        out_printf(o, "\033[2m%.*s", w->columns, "a: enter a URL or a command");
    out_printf(o, "\n");
    v->count = n = draw_rows(p, o, w->columns, rows);
    if (!p->row_count && ++n)
        out_printf(o, "\033[2m%.*s\n", w->columns,
                   "Type, paste or drop URLs. Tab goes from the "
                   "line above to the rows; there ? shows the keys.");
    for (; n < rows + gap; n++)
        out_printf(o, "\n");
    (void)draw_said(p, o);
    if (v->asking)
        out_printf(o, "\033[33m%.*s\n", w->columns,
                   "Downloads are not done: quit? "
                   "(y/n, or close the window again)");
    draw_totals(p, o, w->columns);
    out_printf(o, "\n");
}

/* Title and icon tell how far it is. */
static void show_title(struct program *p, struct window *w) {
    size_t left = p->row_count - p->failed_count;
    char title[100], size[32];
    snprintf(title, sizeof title,
             left ? "%" PRIu64 "/%" PRIu64 " - %s/s - fetcher" : "fetcher",
             p->f->done, p->f->done + left,
             size_text(size, sizeof size, (double)p->speed[0]));
    if (strcmp(title, w->title) == 0)
        return;
    strcpy(w->title, title);
    XStoreName(w->d, w->id, title);
    XChangeProperty(w->d, w->id, w->atom[NET_NAME], w->atom[UTF8], 8,
                    PropModeReplace, (const unsigned char *)title,
                    (int)strlen(title));
    title[strcspn(title, " ")] = '\0';
    XSetIconName(w->d, w->id, title);
}

/* The window has another size: so has what is behind it, and all is drawn anew. */
static void window_resize(struct program *p, struct window *w) {
    if (w->back)
        XFreePixmap(w->d, w->back);
    w->back =
        XCreatePixmap(w->d, w->id, (unsigned)w->width, (unsigned)w->height,
                      (unsigned)DefaultDepth(w->d, DefaultScreen(w->d)));
    if (w->draw)
        XftDrawChange(w->draw, w->back);
    w->graph = w->height > 16 * w->line ? 3 * w->line : 0;
    w->columns =
        w->width < 2 * w->pad + w->cell ? 1 : (w->width - 2 * w->pad) / w->cell;
    w->lines =
        2 + (w->height - (w->graph ? 6 : 5) * w->pad - 2 * w->line - w->graph) /
                w->line;
    w->lines = w->lines < 2 ? 2 : w->lines < LINES ? w->lines : LINES;
    fill(w, PAPER, 0, 0, w->width, w->height);
    fill(w, EDGE, w->pad - 1, w->pad - 1, w->width - 2 * w->pad + 2,
         w->line + w->pad + 2);
    fill(w, FIELD, w->pad, w->pad, w->width - 2 * w->pad, w->line + w->pad);
    copy_out(w, 0, 0, w->width, w->height);
    memset(p->view.shown, 0, sizeof p->view.shown);
    w->graphed = -1;
    p->view.redraw = false;
}

static void window_events(struct fetcher *f, int fd, int events, void *arg);

/* What was said goes to the standard output as well. A frame that the server does not take is
 * tried again later: its lines are still marked as old. */
static void window_show(struct program *p) {
    struct view *v = &p->view;
    struct window *w = v->window;
    const char *s;
    int i = 0;
    out_add(v->out, v->log.data, v->log.used);
    out_add(&w->said, v->log.data, v->log.used);
    out_flush(p->f, v->out, false);
    v->log.used = 0;
    out_add(&w->said, "", 1);
    w->said.used--;
    if (w->said.used > 16384) {
        size_t cut = w->said.used - 8192;
        memmove(w->said.data, w->said.data + cut, (w->said.used -= cut) + 1);
        w->since = w->since > cut ? w->since - cut : 0;
    }
    bool listens = server_listens(w);
    if (listens && v->redraw)
        window_resize(p, w);
    if (listens) {
        window_compose(p, w, &v->picture);
        v->drawn = p->f->now;
    }
    for (s = v->picture.data; listens && i < w->lines;
         i++, s = strchr(s, '\n') + 1) {
        size_t n = strcspn(s, "\n");
        uint64_t hash = text_hash(s, n);
        if (v->shown[i] == hash)
            continue;
        listens = server_listens(w) && show_line(w, i, s, n);
        v->shown[i] = listens ? hash : 0;
    }
    if (listens && w->graph && w->graphed != p->sampled)
        show_graph(p, w);
    if (listens)
        show_title(p, w);
    else
        frame_at(p, p->f->now + TICK_US);
    window_events(p->f, 0, 0, p);
    feed(p->f, p); /* the log has room again */
}

/* -- events ---------------------------------------------------------------------------------- */
/* Copy what is selected of the entry; for ^C, where the rows have the keys, the row's URL. */
static void copy(struct program *p, int which, Time time) {
    struct window *w = p->view.window;
    struct prompt *e = &p->prompt;
    size_t at = e->caret < e->mark ? e->caret : e->mark,
           n = e->caret + e->mark - 2 * at;
    const char *url = which && p->selected ? job_info(p, p->selected).url : "";
    char *text = e->open ? strndup(e->text + at, n) : strdup(url);
    if (!text || !*text) {
        free(text);
        return;
    }
    free(w->copied[which]);
    w->copied[which] = text;
    XSetSelectionOwner(w->d, which ? w->atom[CLIPBOARD] : XA_PRIMARY, w->id,
                       time);
}

static void selection_want(struct window *w, Atom selection, Atom target,
                           Time time) {
    w->wanted = selection;
    XConvertSelection(w->d, selection, target, selection, w->id, time);
}

static void window_key(struct program *p, XKeyEvent *e) {
    struct window *w = p->view.window;
    struct prompt *line = &p->prompt;
    char text[64];
    struct out *to = &p->view.key;
    int key = 0, i = 0;
    bool shift = e->state & ShiftMask;
    KeySym sym = NoSymbol;
    Status status = 0;
    int n = w->ic
                ? Xutf8LookupString(w->ic, e, text, sizeof text, &sym, &status)
                : XLookupString(e, text, sizeof text, &sym, NULL);
    w->since = w->said.used;
    if (n < 0 || status == XBufferOverflow)
        n = 0;
    if (sym >= XK_Home && sym <= XK_End)
        key = HOME + (int)(sym - XK_Home);
    if (sym >= XK_KP_Home && sym <= XK_KP_End)
        key = HOME + (int)(sym - XK_KP_Home);
    if (sym == XK_Delete || sym == XK_KP_Delete)
        key = DELETE;
    if (shift && (key == LEFT || key == RIGHT || key == HOME || key == END))
        key += SHIFT;
    int c = n == 1 ? (unsigned char)*text : 0;
    if (c == 22 || (sym == XK_Insert && shift))
        selection_want(w, c ? w->atom[CLIPBOARD] : XA_PRIMARY, w->atom[UTF8],
                       e->time);
    else if (c == 3 || c == 24)
        copy(p, 1, e->time);
    else if (c == 1 && line->open) {
        line->mark = 0;
        line->caret = line->length;
    } else if (c == '\t' && !p->view.asking)
        line->open = !line->open;
    if (c == 24 && line->open && line->caret != line->mark)
        key = DELETE;
    while (key && sequences[i].key != key)
        i++;
    if (key)
        out_printf(to, "\033%s", sequences[i].text);
    else if (c > 0x7f && !w->ic)
        out_printf(to, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 0x3f));
    else if (!c || !strchr("\001\003\t\026\030", c))
        out_add(to, text, (size_t)n);
    keys_pump(p->f, p);
}

/* The caret goes where the pointer is. The line may be shorter than when it was drawn. */
static void caret_to(struct program *p, int x) {
    struct prompt *e = &p->prompt;
    struct window *w = p->view.window;
    struct glyph g;
    int column = (x - 2 * w->pad) / w->cell;
    e->caret = e->from < e->length ? e->from : e->length;
    for (; e->text[e->caret]; e->caret += g.bytes, column -= g.columns)
        if (column < (g = glyph_at(&p->view, e->text + e->caret)).columns)
            break;
}

static void window_click(struct program *p, XButtonEvent *e) {
    struct view *v = &p->view;
    struct window *w = v->window;
    int offset = p->offset;
    int row = (e->y - line_y(w, 1)) / w->line;
    bool entry = e->y < line_y(w, 1);
    v->asking = false;
    if (e->button == Button2)
        selection_want(w, XA_PRIMARY, w->atom[UTF8], e->time);
    else if (e->button == Button4 ||
             e->button == Button5) { /* the wheel moves the rows */
        choose(p, e->button == Button4 ? -3 : 3);
        p->offset = offset;
    } else if (e->button == Button1 && entry) {
        p->prompt.open = w->dragging = true;
        caret_to(p, e->x);
        p->prompt.mark = p->prompt.caret;
    } else if (e->button == Button1 && row < v->count) {
        p->prompt.open = false;
        choose(p, row - p->offset);
    }
}

static void dnd_reply(struct window *w, enum atom type, bool good) {
    XEvent e = {.xclient = {.type = ClientMessage,
                            .window = w->source,
                            .format = 32,
                            .message_type = w->atom[type]}};
    e.xclient.data.l[0] = (long)w->id;
    e.xclient.data.l[1] = good;
    e.xclient.data.l[type == DND_STATUS ? 4 : 2] =
        good ? (long)w->atom[DND_COPY] : 0;
    XSendEvent(w->d, w->source, False, NoEventMask, &e);
}

/* Somebody's selection has come, as one property, or not at all: a paste, or a list of URIs (RFC
 * 2483), which are added, whatever they may be, as long as there is room. */
static void selection_take(struct program *p, XSelectionEvent *e) {
    struct view *v = &p->view;
    struct window *w = v->window;
    bool drop = e->selection == w->atom[DND_SELECTION];
    const char *wrong = NULL;
    Atom type = None;
    int format = 0;
    unsigned long n = 0, left = 0;
    unsigned char *data = NULL;
    if (e->selection != w->wanted || (e->property && e->property != w->wanted))
        return;
    w->wanted = None; /* nobody else may bring us something */
    if (e->property != None)
        XGetWindowProperty(w->d, w->id, e->property, 0, PASTE_MAX / 4, True,
                           AnyPropertyType, &type, &format, &n, &left, &data);
    if (w->dead)
        return;
    if (type == w->atom[INCR] || left > 0)
        wrong = "it is too large";
    else if (format != 8 || n == 0)
        wrong = "there is no text in it";
    else if (drop) {
        for (char *s = strtok((char *)data, "\r\n"); s;
             s = strtok(NULL, "\r\n"))
            if (*s != '#' && !submit(p, "add ", s))
                wrong = "it is too large";
        feed(p->f, p);
    } else {
        for (unsigned char *c = data; c < data + n;
             c++) /* could end it, or be a key */
            if ((*c < ' ' && *c != '\n') || *c == 127)
                *c = ' ';
        out_printf(&v->key, "\033[200~");
        out_add(&v->key, (char *)data, n);
        out_printf(&v->key, "\033[201~");
        p->prompt.open = true;
        v->asking = false;
        keys_pump(p->f, p);
    }
    if (left > 0)
        XDeleteProperty(w->d, w->id, e->property);
    if (wrong)
        complain(p, drop ? "the drop" : "the paste", wrong);
    if (drop)
        dnd_reply(w, DND_FINISHED, !wrong);
    if (data)
        XFree(data);
}

/* Give others what we have copied. */
static void selection_give(struct window *w, XSelectionRequestEvent *r) {
    const char *text = w->copied[r->selection == w->atom[CLIPBOARD]];
    Atom list[] = {w->atom[TARGETS], w->atom[UTF8]};
    Atom property = r->property ? r->property : r->target;
    if (text && r->target == w->atom[TARGETS])
        XChangeProperty(w->d, r->requestor, property, XA_ATOM, 32,
                        PropModeReplace, (unsigned char *)list, 2);
    else if (text && r->target == w->atom[UTF8])
        XChangeProperty(w->d, r->requestor, property, r->target, 8,
                        PropModeReplace, (const unsigned char *)text,
                        (int)strlen(text));
    else
        property = None;
    XEvent e = {.xselection = {.type = SelectionNotify,
                               .requestor = r->requestor,
                               .time = r->time,
                               .selection = r->selection,
                               .target = r->target,
                               .property = property}};
    XSendEvent(w->d, r->requestor, False, NoEventMask, &e);
}

/* It is to be closed (where stdin brings commands we go on), or something is dragged or dropped. */
static void window_message(struct program *p, XClientMessageEvent *e) {
    struct view *v = &p->view;
    struct window *w = v->window;
    const long *l = e->data.l;
    Atom type = e->message_type;
    if (type == w->atom[PROTOCOLS] && (Atom)l[0] == w->atom[DELETE_WINDOW]) {
        w->leaving = dash(p->input[LIST].name) && input_left(&p->input[LIST]);
        bool quits = v->asking || fetcher_count(p->f) == 0;
        if (!w->leaving && quits) {
            (void)submit(p, "quit", "");
            feed(p->f, p);
        } else if (!w->leaving) {
            v->asking = true;
            p->prompt.open = false;
        }
    } else if (type == w->atom[DND_POSITION]) {
        w->source = (Window)l[0];
        dnd_reply(w, DND_STATUS, true);
    } else if (type == w->atom[DND_DROP]) {
        w->source = (Window)l[0];
        selection_want(w, w->atom[DND_SELECTION], w->atom[URI_LIST],
                       (Time)l[2]);
    }
}

static void window_event(struct program *p, XEvent *e) {
    struct view *v = &p->view;
    struct window *w = v->window;
    switch (e->type) {
    case Expose:
        if (w->back)
            copy_out(w, e->xexpose.x, e->xexpose.y, e->xexpose.width,
                     e->xexpose.height);
        break;
    case ConfigureNotify:
        v->redraw |= e->xconfigure.width != w->width ||
                     e->xconfigure.height != w->height;
        w->width = e->xconfigure.width;
        w->height = e->xconfigure.height;
        break;
    case KeyPress:
        window_key(p, &e->xkey);
        break;
    case ButtonPress:
        window_click(p, &e->xbutton);
        break;
    case MotionNotify:
        if (w->dragging)
            caret_to(p, e->xmotion.x);
        break;
    case ButtonRelease:
        if (w->dragging)
            copy(p, 0, e->xbutton.time);
        w->dragging = false;
        break;
    case SelectionNotify:
        selection_take(p, &e->xselection);
        break;
    case SelectionRequest:
        selection_give(w, &e->xselectionrequest);
        break;
    case ClientMessage:
        window_message(p, &e->xclient);
        break;
    }
    frame_at(p, v->drawn + v->pace);
}

/* The end of the window. XCloseDisplay would wait for a server that may be stopped. */
static void window_off(struct program *p) {
    struct window *w = p->view.window;
    if (!p->view.on)
        return;
    if (server_listens(w)) {
        XDestroyWindow(w->d, w->id);
        XFlush(w->d);
    }
    view_off(p);
    close(tty.fd);
    free(w->said.data);
    free(w->copied[0]);
    free(w->copied[1]);
}

static void window_again(struct fetcher *f, void *arg) {
    window_events(f, 0, 0, arg);
}

/* Take events, for a slice; what Xlib holds then is taken in the next turn. */
static void window_events(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;
    struct window *w = p->view.window;
    XEvent e;
    (void)fd, (void)events;
    usec end = clock_us() + SLICE_INPUT_US;
    while (!w->dead && !w->leaving && XPending(w->d) > 0 && clock_us() < end) {
        XNextEvent(w->d, &e);
        if (!w->dead && !XFilterEvent(&e, None))
            window_event(p, &e);
    }
    if (p->view.on && !w->dead && XQLength(w->d) > 0)
        (void)fetcher_timer(f, 0, window_again, p);
    if (!p->view.on || (!w->dead && !w->leaving))
        return;
    view_lost(f, p);
    complain(p, w->dead ? "the X server is gone" : "the window is closed",
             "downloads go on");
}

static int error_ignored(Display *d, XErrorEvent *e) {
    (void)d, (void)e;
    return 0;
}

static int server_gone(Display *d) {
    (void)d;
    window.dead = true;
    return 0;
}

static void server_left(Display *d, void *arg) {
    (void)d, (void)arg;
} /* and don't exit */

/* -- the beginning --------------------------------------------------------------------------- */
static bool pens_open(struct window *w, bool dark) {
    int screen = DefaultScreen(w->d);
    FcResult result;
    XGlyphInfo zero;
    if (!(w->pattern = FcNameParse((const FcChar8 *)"monospace:size=10")))
        return false;
    FcConfigSubstitute(NULL, w->pattern, FcMatchPattern);
    XftDefaultSubstitute(w->d, screen,
                         w->pattern); /* the size follows Xft.dpi */
    w->set = FcFontSort(NULL, w->pattern, FcTrue, NULL, &result);
    for (int i = 0; w->set && i < w->set->nfont && !w->fonts; i++)
        (void)font_open(w, i);
    if (!w->fonts)
        return false;
    XftTextExtents8(w->d, w->font[0], (const FcChar8 *)"0", 1, &zero);
    w->cell = zero.xOff > 1 ? zero.xOff : 2;
    w->line = (w->font[0]->ascent + w->font[0]->descent) * 5 / 4 + 1;
    w->pad = w->line * 3 / 4 + 1;
    for (int i = 0; i < INKS; i++) {
        unsigned rgb = palette[dark][i], red = rgb >> 16,
                 green = rgb >> 8 & 255, blue = rgb & 255;
        XRenderColor c = {(unsigned short)(red * 257),
                          (unsigned short)(green * 257),
                          (unsigned short)(blue * 257), 0xffff};
        if (!XftColorAllocValue(w->d, DefaultVisual(w->d, screen),
                                DefaultColormap(w->d, screen), &c, &w->ink[i]))
            return false;
    }
    return true;
}

static void window_create(struct window *w) {
    XSizeHints size = {.flags = PMinSize,
                       .min_width = 40 * w->cell,
                       .min_height = 12 * w->line};
    XWMHints hints = {.flags = InputHint, .input = True};
    char name[] = "fetcher", class[] = "Fetcher";
    XClassHint classes = {name, class};
    long pid = getpid();
    Atom version = 5;
    XIM im;
    w->width = 100 * w->cell;
    w->height = 30 * w->line;
    w->id = XCreateSimpleWindow(w->d, DefaultRootWindow(w->d), 0, 0,
                                (unsigned)w->width, (unsigned)w->height, 0, 0,
                                w->ink[PAPER].pixel);
    w->gc = XCreateGC(w->d, w->id, 0, NULL);
    XSetGraphicsExposures(w->d, w->gc, False);
    XSelectInput(w->d, w->id,
                 KeyPressMask | ButtonPressMask | ButtonReleaseMask |
                     Button1MotionMask | ExposureMask | StructureNotifyMask);
    Xutf8SetWMProperties(w->d, w->id, name, name, NULL, 0, &size, &hints,
                         &classes);
    XSetWMProtocols(w->d, w->id, &w->atom[DELETE_WINDOW], 1);
    XChangeProperty(w->d, w->id, w->atom[NET_PID], XA_CARDINAL, 32,
                    PropModeReplace, (unsigned char *)&pid, 1);
    XChangeProperty(w->d, w->id, w->atom[DND_AWARE], XA_ATOM, 32,
                    PropModeReplace, (unsigned char *)&version, 1);
    w->draw =
        XftDrawCreate(w->d, w->id, DefaultVisual(w->d, DefaultScreen(w->d)),
                      DefaultColormap(w->d, DefaultScreen(w->d)));
    /* An input method that is a program could make us wait: so only dead keys and Compose. */
    im = XSetLocaleModifiers("@im=none") ? XOpenIM(w->d, NULL, NULL, NULL)
                                         : NULL;
    if (im)
        w->ic = XCreateIC(im, XNInputStyle,
                          XIMPreeditNothing | XIMStatusNothing, XNClientWindow,
                          w->id, XNFocusWindow, w->id, (char *)NULL);
    (void)XKeysymToKeycode(w->d,
                           XK_a); /* the keyboard's map is asked for now */
    XMapWindow(w->d, w->id);
}

static int window_open(struct program *p) {
    static char *name[ATOMS] = {
        "WM_PROTOCOLS", "WM_DELETE_WINDOW", "_NET_WM_NAME",   "_NET_WM_PID",
        "UTF8_STRING",  "TARGETS",          "INCR",           "CLIPBOARD",
        "XdndAware",    "XdndPosition",     "XdndStatus",     "XdndDrop",
        "XdndFinished", "XdndSelection",    "XdndActionCopy", "text/uri-list"};
    struct view *v = &p->view;
    struct window *w = v->window = &window;
    if (setlocale(LC_CTYPE, "") == NULL ||
        strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        (void)setlocale(LC_CTYPE, "C.UTF-8"); /* for wcwidth() */
    v->utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    if ((w->d = XOpenDisplay(NULL)) == NULL)
        return refuse(2, "cannot open a window: no X server at display \"%s\"",
                      XDisplayName(NULL));
    XSetErrorHandler(error_ignored);
    XSetIOErrorHandler(server_gone);
    XSetIOErrorExitHandler(w->d, server_left, NULL);
    tty.fd = ConnectionNumber(w->d);
    if (!XInternAtoms(w->d, name, ATOMS, False, w->atom) ||
        !pens_open(w, p->s.dark))
        return refuse(2, "cannot open a window: there is no font for it, such "
                         "as DejaVu Sans Mono");
    window_create(w);
    if (!w->draw ||
        fetcher_watch(p->f, tty.fd, FETCHER_READ, window_events, p) < 0)
        return refuse(2, "cannot open a window: %s", strerror(errno));
    v->on = v->keys = v->rows = v->color = v->redraw = p->prompt.open =
        p->prompt.stays = true;
    v->out = p->s.json || dash(p->s.output) ? &p->err : &p->out;
    v->show = window_show;
    v->off = window_off;
    v->pace = WINDOW_PACE_US;
    out_add(&w->said, "", 1);
    w->said.used = 0;
    frame_at(p, p->f->now);
    return 0;
}
#else
static int window_open(struct program *p) {
    (void)p;
    return refuse(2, "this fetcher was built without a window");
}
#endif

/* ========================================================================================= Main */
static void trace(struct fetcher *f, const char *s, void *to) {
    (void)f;
    fprintf(to, "%s\n", s);
}

/* Cookies are read and written once, by a handle of their own; if it is NULL, libcurl refuses. */
static int cookies_move(struct program *p, bool save) {
    int fd = open(p->s.cookies, O_WRONLY | O_CREAT | O_CLOEXEC,
                  0600); /* can it be written? */
    CURL *e = curl_easy_init();
    unsigned bad = fd < 0;
    if (fd >= 0)
        close(fd);
    if (!p->cookies)
        p->cookies = curl_share_init();
    bad |=
        curl_share_setopt(p->cookies, CURLSHOPT_SHARE, CURL_LOCK_DATA_COOKIE);
    SET(SHARE, p->cookies);
    if (save)
        SET(COOKIEJAR, p->s.cookies);
    else {
        SET(COOKIEFILE, p->s.cookies);
        SET(COOKIELIST, "RELOAD");
    }
    curl_easy_cleanup(e);
    return bad ? refuse(2, "cannot use %s for cookies", p->s.cookies) : 0;
}

/* The list is read; the session too, after it is made sure that it is one, and nobody else's. */
static int inputs_open(struct program *p) {
    struct input *list = &p->input[LIST], *session = &p->input[SESSION];
    struct stat st;
    char first[10] = "";
    ssize_t n;
    p->source = &p->input[PROMPT];
    p->source->name = "";
    p->source->eof = !p->stay;
    list->name = p->s.list;
    list->eof = !list->name;
    session->name = p->s.session;
    session->eof = !session->name;
    session->ready = true;
    if (list->name) {
        list->fd =
            dash(list->name) ? 0 : open(list->name, O_RDONLY | O_CLOEXEC);
        if (list->fd < 0 || fstat(list->fd, &st) < 0 ||
            (S_ISDIR(st.st_mode) && (errno = EISDIR)))
            return refuse(1, "cannot read %s: %s", list->name, strerror(errno));
        list->polled = !(list->ready = S_ISREG(st.st_mode));
    }
    if (!session->name)
        return 0;
    session->fd =
        open(session->name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (session->fd < 0 || flock(session->fd, LOCK_EX | LOCK_NB) < 0 ||
        fstat(session->fd, &st) < 0 ||
        (!S_ISREG(st.st_mode) && (errno = EINVAL)) ||
        (!stands_as(session->fd, session->name) && (errno = EWOULDBLOCK)) ||
        (n = pread(session->fd, first, sizeof first - 1, 0)) < 0)
        return refuse(1, "cannot use %s: %s", session->name,
                      errno == EWOULDBLOCK ? "another fetcher does"
                                           : strerror(errno));
    return n == 0 || strcmp(first, "# fetcher") == 0
               ? 0
               : refuse(1, "%s is not a session of fetcher's", session->name);
}

/* What is left to say is waited for; after a signal for half a second. */
static void outputs_drain(struct program *p) {
    for (usec end = 0; p->out.watched || p->err.watched;) {
        if (tty.seen && !end)
            end = clock_us() + 500000;
        if ((end && clock_us() >= end) ||
            fetcher_step(p->f, end ? 50 : -1) <= 0)
            break;
    }
    if (tty.seen)
        p->status = 128 + (int)tty.seen;
}

static int program_close(struct program *p) {
    session_save(p->f, p);
    p->s.session = NULL;
    if (p->view.off)
        p->view.off(p);
    if (p->s.stats)
        do_stats(p, NULL);
    else if (p->view.show && !p->view.window)
        out_printf(p->view.out, "%" PRIu64 " done, %" PRIu64 " failed\n",
                   p->f->done, p->f->failed);
    p->view.show = NULL; /* below, a frame would bring it back */
    out_flush(p->f, &p->out, false);
    out_flush(p->f, &p->err, false);
    outputs_drain(p);
    bool bad = out_broken(&p->out);
    if (bad)
        complain(p, "cannot write to standard output", strerror(p->out.error));
    bad |= p->trace && (ferror(p->trace) || fclose(p->trace));
    if ((p->s.cookies && cookies_move(p, true)) || bad)
        p->status = 1;
    signals_set(SIG_DFL, 0,
                COUNT_OF(handled)); /* a handler must find a fetcher */
    p->keep = false;
    fetcher_free(p->f);
    while (p->jobs)
        job_free(p, container_of(p->jobs, struct job, id));
    for (int i = 0; i < HISTORY; i++)
        free(p->prompt.history[i]);
    if (p->cookies)
        curl_share_cleanup(p->cookies);
    if (p->save.last)
        fclose(p->save.last);
    free(p->out.data);
    free(p->err.data);
    free(p->view.log.data);
    free(p->view.picture.data);
    free(p->view.key.data);
    return p->status;
}

static int program_run(struct program *p, char **url) {
    if (options_check(&p->s, url) != 0)
        return 2;
    if ((p->f = fetcher_new()) == NULL)
        return refuse(2, "cannot start: %s", strerror(errno));
    tty.program = p;
    signal(SIGPIPE, SIG_IGN);
    out_open(&p->out, 1);
    out_open(&p->err, 2);
    p->view.log.fd = -1;
    p->out.drained = (struct call){stdout_drained, p};
    p->began = p->sampled = p->f->now;
    if (p->s.trace && (p->trace = fopen(p->s.trace, "w")) == NULL)
        return refuse(1, "cannot write %s: %s", p->s.trace, strerror(errno));
    if (p->trace)
        fetcher_trace(p->f, trace, p->trace);
    fetcher_limit(p->f, (int)p->s.jobs, (int)p->s.per_host, p->s.rate);
    if (p->s.cookies && cookies_move(p, false) != 0)
        return 2;
    if (p->s.window)
        p->status = window_open(p);
    else
        view_open(p);
    p->stay = p->view.keys && (p->s.window || (!*url && !p->s.list));
    if (!*url && !p->s.list && !p->stay && isatty(0) && isatty(1))
        p->s.list = "-";
    p->keep = p->view.keys || p->s.session || dash(p->s.list);
    bool work = *url || p->s.list || p->s.session || p->stay;
    if (p->status == 0)
        p->status = work ? inputs_open(p) : refuse(2, "no URL");
    if (p->status) {
        p->s.session = NULL;
        return program_close(p);
    } /* not ours to write */
    if (!(curl_version_info(CURLVERSION_NOW)->features &
          CURL_VERSION_ASYNCHDNS))
        complain(p, "warning",
                 "this libcurl has no asynchronous resolver: a slow name "
                 "blocks all");
    for (; *url; url++)
        (void)job_start(p, *url, p->s.output, p->s.rq.every_ms);
    p->base = p->last_number;
    signals_set(on_signal, 0, 2); /* until here they end it at once */
    feed(p->f, p);
    fetcher_run(p->f);
    return program_close(p);
}

/* Descriptors 0 to 2 are taken up, so that no error message is written into a file of ours;
 * for reading, so that output which was closed stays an error. */
int main(int argc, char **argv) {
    struct program *p = calloc(1, sizeof *p);
    char **url = calloc((size_t)argc + 1, sizeof *url);
    const char **headers = calloc((size_t)argc + 1, sizeof *headers);
    int fd, status;
    struct rlimit limit;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0 && fd <= 2)
        continue;
    if (fd > 2)
        close(fd);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 4096) {
        limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
        (void)setrlimit(RLIMIT_NOFILE,
                        &limit); /* room for files beside the sockets */
    }
    if (!p || !url || !headers)
        return refuse(2, "out of memory");
    p->s.headers = headers;
    p->s.retries = RETRIES_USUAL;
    if ((status = options_read(&p->s, argv, url)) == 0)
        status = p->s.help      ? help()
                 : p->s.version ? version()
                                : program_run(p, url);
    free(p->s.data);
    free(p->s.user);
    free(headers);
    free(url);
    free(p);
    return status;
}
#endif
