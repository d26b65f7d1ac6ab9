/* SPDX-License-Identifier: 0BSD
 *
 * fetcher.c - fetch URLs without ever freezing the program around it.
 *
 * The manual is fetcher.h. This file is the library; with -DFETCHER_MAIN, and
 * linked with -lcurl, it is the program too (-DFETCHER_X11: with its window).
 * With -DFETCHER_LOOP it is the event loop alone, without libcurl.
 *
 * ===================================================================== Story
 *
 * "My program freezes while it fetches something. Which kind of thread do I
 * need?" None. A program freezes because it waits in one place for one thing.
 * So let it wait in one place for everything, and never work for long between
 * two waits. One turn of the loop:
 *
 *     +--> prepare   which descriptors, and how long may we sleep?
 *     |    select    ... the only place where this program waits
 *     |    post      calls from signal handlers and other threads
 *     |    app       the application's descriptors: the person comes first
 *     |    timers    what was due when the turn began
 *     |    sockets   ready transfers, from a rotating start    \
 *     |    finish    transfers that came to an end              > the network's
 *     +--- start     transfers that wait for their turn        /  slice: 2 ms
 *
 * The slice is the heart. A loop that feeds 300 ready sockets before it looks
 * at the keyboard again is as deaf as one that blocks. Here, when 2 ms are
 * spent, what is left over waits for the next turn, whose sleep is then 0. What
 * got nothing comes first then, so nothing can starve. (Timers have such a
 * slice of their own.)
 *
 * libcurl runs many transfers in one thread if we do the waiting:
 *   - By a callback it tells us which sockets to watch, and for what.
 *   - When one is ready we call curl_multi_socket_action(); it calls us back
 *     with headers and data.
 *   - When curl_multi_timeout() says that time is up, we call it for
 *     CURL_SOCKET_TIMEOUT: a kick.
 *   - curl_multi_info_read() tells which transfers have ended.
 * Inside its callbacks nearly every call to libcurl is forbidden. So callbacks
 * and public functions only mark what is to be done, and the turn does it.
 *
 * How to read: the loop is one lecture, the library an afternoon, the program
 * another. A section uses only what stands above it, and begins with its own
 * structs; forward declarations are for callbacks. The sections:
 *
 *     Portability         what differs between systems and libcurls
 *     Tools               an ordered set (skip it)
 *     The loop            descriptors, timers, post, the meter, the turn
 *     Text                UTF-8, and text from outside made safe
 *     The nouns           host, transfer, attempt, body
 *     libcurl as a guest  its sockets and lookups in our loop
 *     Transfers           queue, limits, judging the answer, retry
 *     Files               names, the .part and its .meta, placing
 *     Repeats             the same document again and again
 *     Life                how a transfer starts, and how it ends
 *     The caller's side   the functions of fetcher.h
 *     the program         Model, Output, Options, Commands, Terminal, Window,
 *                         Main: a customer of fetcher.h like any other
 */

/* =============================================================== Portability
 * The conditional compilation of the library, and every version number and
 * workaround, each with its reason. What stands below may rely on C99,
 * POSIX.1-2008 and libcurl 7.62; what is newer is asked for here, and done
 * without where it is missing.
 */
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
#include <netinet/in.h>
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
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#if defined FETCHER_MAIN && defined __GLIBC__
#include <malloc.h> /* mallopt */
#endif
#ifndef FETCHER_LOOP
#include <curl/curl.h>
#ifdef __linux__
#include <sys/xattr.h>
#endif
#endif

#include "fetcher.h"

/* Not every callback needs all that it is given. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* In glibc from 2.43 on strstr() and the like are macros with a word of C11. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wc11-extensions"
#endif

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
#define container_of(ptr, type, member)                                        \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

typedef int64_t usec; /* all times of the library are microseconds */

#define FOREVER (INT64_MAX / 4) /* may be added to a time */
#define MS(us)  ((double)(us) / 1000)

static usec clock_us(void) {
    struct timespec ts = {0, 0};

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (usec)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

#ifndef FETCHER_LOOP
/* Of this thread alone: however busy the machine is. 0 where nobody knows. */
static usec cpu_us(void) {
    struct timespec ts = {0, 0};

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (usec)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}
#endif

/* How many descriptors the process may have. */
static rlim_t descriptors_limit(void) {
    struct rlimit limit = {64, 64};

    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

static int set_errno(int code) {
    errno = code;
    return -1;
}

/* Of a descriptor just made: some systems have no pipe2(), and no
 * SOCK_CLOEXEC. */
static int set_flags(int fd, int flags) {
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -1;
    return flags ? fcntl(fd, F_SETFL, flags) : 0;
}

#ifndef FETCHER_LOOP
/* A file, to the disk: on macOS fsync() stops at the disk's own memory. */
static int flush_file(int fd) {
#ifdef __APPLE__
    if (fcntl(fd, F_FULLFSYNC) == 0)
        return 0;
#endif
    return fsync(fd);
}

/* Rename, unless the new name exists (EEXIST): in one step by renameat2() on
 * Linux, by link() elsewhere; on a file system without either (FAT) with a gap
 * between look and leap. */
static int rename_new(const char *from, const char *to) {
    static const int no_links[] = {EPERM, EOPNOTSUPP, ENOTSUP, ENOSYS, EMLINK};
    struct stat st;

#ifdef RENAME_NOREPLACE
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
#endif
    if (link(from, to) == 0)
        return unlink(from);
    for (size_t i = 0; i < COUNT_OF(no_links); i++) {
        if (errno == no_links[i])
            return lstat(to, &st) == 0 ? set_errno(EEXIST) : rename(from, to);
    }
    return -1;
}

/* A file that has no name in this directory, and how it gets one: Linux, most
 * file systems. Before Linux 6.10 only root may give it without a way round by
 * /proc, which is slower than the rename of a file with a name. */
static int nameless_make(const char *directory) {
#ifdef O_TMPFILE
    return open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
#else
    return set_errno(ENOSYS);
#endif
}

static int nameless_name(int fd, const char *path) {
#ifdef O_TMPFILE
    return linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH);
#else
    return set_errno(ENOSYS);
#endif
}

/* Is it open nowhere but here? */
static bool is_open_once(int fd) {
#ifdef F_SETLEASE
    return fcntl(fd, F_SETLEASE, F_WRLCK) == 0 &&
           fcntl(fd, F_SETLEASE, F_UNLCK) == 0;
#else
    return false;
#endif
}

/* Blocks for the next bytes of a file: so a rename that replaces another has
 * none to find. Best effort. */
static void blocks_reserve(int fd, off_t from, off_t size) {
#ifdef FALLOC_FL_KEEP_SIZE
    (void)!fallocate(fd, FALLOC_FL_KEEP_SIZE, from, size);
#endif
}

/* When a file was made, and by which mount it is seen, as words; "" where
 * nobody knows. The number of an inode is used again, that of a mount isn't
 * (since Linux 6.8). */
static void file_birth(int fd, char *birth, char *mount, size_t room) {
    *birth = '\0';
    *mount = '\0';
#if defined STATX_MNT_ID && !defined __TINYC__ /* its statx has no such field */
    enum { MOUNT_UNIQUE = 0x4000 };
    struct statx x;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME | MOUNT_UNIQUE, &x) < 0)
        return;
    if (x.stx_mask & STATX_BTIME)
        snprintf(birth, room, "%lld.%09u", (long long)x.stx_btime.tv_sec,
                 (unsigned)x.stx_btime.tv_nsec);
    if (x.stx_mask & MOUNT_UNIQUE)
        snprintf(mount, room, "%llu", (unsigned long long)x.stx_mnt_id);
#endif
}

/* When it was changed, of its last second. */
static long changed_ns(const struct stat *st) {
#ifdef __APPLE__
    return st->st_mtimespec.tv_nsec;
#else
    return st->st_mtim.tv_nsec;
#endif
}

/* A note that a file keeps of itself: an extended attribute, on Linux. 0 or -1:
 * some file systems have none. */
static int note_write(int fd, const char *text) {
#ifdef __linux__
    return fsetxattr(fd, "user.fetcher", text, strlen(text), 0);
#else
    return set_errno(ENOTSUP);
#endif
}

static int note_read(int fd, char *text, size_t room) {
    ssize_t n = -1;

#ifdef __linux__
    n = fgetxattr(fd, "user.fetcher", text, room - 1);
#else
    errno = ENOTSUP;
#endif
    text[n > 0 ? n : 0] = '\0';
    return n > 0 ? 0 : -1;
}

/* Which boot of the machine is this? "" where nobody knows. */
static void boot_id(char *id, size_t room) {
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = -1;

    if (fd >= 0) {
        n = read(fd, id, room - 1);
        close(fd);
    }
    id[n > 0 ? n : 0] = '\0';
    id[strcspn(id, "\n")] = '\0';
}

/* libcurl's options by their numbers, since the libcurl found at run time may
 * know more than the headers found at build time. One that is unknown is an
 * error to be ignored, or has an older twin. The parentheses around a
 * function's name keep its macro from checking the type by the name. */
enum {
    OPT_PROTOCOLS = 181,           /* a mask, to be gone; 182: of redirects */
    OPT_PROTOCOLS_STR = 10318,     /* 7.85; 10319: of redirects */
    OPT_QUICK_EXIT = 322,          /* 7.87 */
    OPT_HTTP09_ALLOWED = 285,      /* 7.64; 7.66 and newer don't by default */
    MOPT_QUICK_EXIT = 21,          /* 8.20 */
    MOPT_RESOLVE_THREADS_MAX = 20, /* 8.20 */
    MASK_HTTP_HTTPS = 3            /* CURLPROTO_HTTP | CURLPROTO_HTTPS */
};

/* Its newer errors, likewise. */
enum {
    ERROR_PROXY = 97,     /* 7.73: a SOCKS proxy refuses */
    ERROR_TOO_LARGE = 100 /* 8.6: a line of the head */
};

/* Has a SOCKS proxy refused us for good: for our name, our password, or what we
 * want of it? (7.73) */
static bool proxy_rejects(CURL *easy) {
    enum {
        INFO = 0x200000 + 59,
        NO_AUTH = 12,
        NOT_ALLOWED = 23,
        REJECTED = 33
    };

    CURLINFO info = (CURLINFO)INFO;
    long why = 0;

    (void)(curl_easy_getinfo)(easy, info, &why);
    return why == NO_AUTH || why == NOT_ALLOWED || why == REJECTED;
}

/* What a libcurl does that others don't. */
struct quirks {
    /* 8.20.0 forgets to read its wake-up descriptor after a lookup, and the
     * loop would spin: we read it empty. */
    bool wakeup_unread;
    /* Before 7.65 a transfer that goes on after a pause forgets its socket. */
    bool pause_forgets;
    /* Before 8.7 frames of HTTP/2 are read for as long as they come, not a
     * buffer at a time. */
    bool reads_frames;
    /* 7.87 and newer can leave a lookup behind when they end. */
    bool quick_exit;
    /* Before 7.66 a POST of unknown size is not sent in chunks by itself. */
    bool posts_unchunked;
    /* From 7.84 until 8.1 a handle that is used again remembers its last
     * header, which is freed: a first line that begins with a space frees it
     * twice. So no handle is used again. */
    bool header_dangles;
    /* 8.22 and newer connect to the addresses of one family while they still
     * look for those of the other: a socket does not prove that a lookup is
     * over. */
    bool connects_early;
    /* 8.20 and newer have a pool of threads for lookups. */
    bool lookup_pool;
};

static struct quirks curl_quirks(unsigned version) {
    return (struct quirks){
        .wakeup_unread = version == 0x081400,
        .pause_forgets = version < 0x074100,
        .posts_unchunked = version < 0x074200,
        .quick_exit = version >= 0x075700,
        .header_dangles = version >= 0x075400 && version < 0x080100,
        .connects_early = version >= 0x081600,
        .lookup_pool = version >= 0x081400,
        .reads_frames = version < 0x080700,
    };
}

/* The wake-up descriptor is the one whose easy handle isn't ours: it has no
 * CURLOPT_PRIVATE. */
static bool is_wakeup(const struct quirks *q, CURL *easy) {
    char *private = NULL;

    if (!q->wakeup_unread)
        return false;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &private);
    return !private;
}

static void wakeup_drain(int fd) {
    char unread[64];

    if (!(fcntl(fd, F_GETFL) & O_NONBLOCK))
        return;
    while (read(fd, unread, sizeof unread) > 0)
        continue;
}

/* http and https only, for redirects as well: other schemes block (telnet,
 * file), or reach what a URL from outside must not. The masks are old, and
 * quick; where they are gone, there are lists. HTTP/0.9 is no HTTP: anything is
 * an answer there. */
static CURLcode set_protocols(CURL *easy) {
    CURLcode bad = CURLE_OK;

    (void)(curl_easy_setopt)(easy, (CURLoption)OPT_HTTP09_ALLOWED, 0L);
    for (int i = 0; i < 2 && bad == CURLE_OK; i++) {
        CURLoption mask = (CURLoption)(OPT_PROTOCOLS + i);
        CURLoption list = (CURLoption)(OPT_PROTOCOLS_STR + i);
        bad = (curl_easy_setopt)(easy, mask, (long)MASK_HTTP_HTTPS);
        if (bad == CURLE_UNKNOWN_OPTION)
            bad = (curl_easy_setopt)(easy, list, "http,https");
    }
    return bad;
}

/* From 8.20 on lookups share a pool of 20 threads, two for each: twelve names
 * that hang would hold up the thirteenth. And the multi would wait at its end
 * for all that still run, those included whose transfer has long ended. */
static void set_lookup_pool(CURLM *multi, long threads) {
    CURLMoption most = (CURLMoption)MOPT_RESOLVE_THREADS_MAX;
    CURLMoption quick = (CURLMoption)MOPT_QUICK_EXIT;

    (void)(curl_multi_setopt)(multi, most, threads);
    (void)(curl_multi_setopt)(multi, quick, 1L);
}

/* Where OpenSSL can look a certificate up by its hash; NULL: unknown, as before
 * 7.70. */
static const char *default_capath(const curl_version_info_data *v) {
    const char *capath = NULL;

#if LIBCURL_VERSION_NUM >= 0x074600
    if (v->age >= CURLVERSION_SEVENTH)
        capath = v->capath;
#endif
    if (!v->ssl_version || strncmp(v->ssl_version, "OpenSSL/", 8) != 0)
        return NULL;
    return capath;
}
#endif

#if defined FETCHER_MAIN
/* glibc gives the heap back in one call when its last block is freed: 50 ms
 * after a million transfers. So it is kept; what is large stands beside it, as
 * before, and goes back. */
static void heap_keep(void) {
#ifdef __GLIBC__
    (void)mallopt(M_TRIM_THRESHOLD, -1);
    (void)mallopt(M_MMAP_THRESHOLD, 1024 * 1024);
#endif
}
#endif

/* ===================================================================== Tools
 * An ordered set, which serves wherever something has to be found or to come
 * in an order: ids, deadlines, queues, hosts. Skip this section: all that
 * matters below is
 *
 *     tree_add, tree_remove   O(log n), and nothing that could fail, since the
 *                             node stands inside of what is ordered:
 *                             container_of() leads back to that
 *     tree_first, tree_next, tree_find, tree_bound
 *
 * It is a treap: ordered by key from left to right and by weight from top to
 * bottom. Weights that look random make it as deep as a random tree, which is
 * some 2 log2(n).
 *
 *             d 9                 add b 7: go down while weights are larger
 *            /   \                (past d and a), then split what is there
 *         a 8     e 5             by key, left and right of the new node
 *            \
 *             c 4                 remove: merge the two subtrees likewise
 */
enum side { BEFORE, BEHIND };

struct node {
    int64_t key;           /* the order ... */
    uint64_t seq;          /* ... and that among equal keys */
    struct node *child[2]; /* before it, behind it */
    bool in;               /* in a tree */
};

static bool node_before(const struct node *a, const struct node *b) {
    return a->key != b->key ? a->key < b->key : a->seq < b->seq;
}

/* Where to go from `at` to get to n. */
static enum side side_of(const struct node *at, const struct node *n) {
    return node_before(at, n) ? BEHIND : BEFORE;
}

static uint64_t node_weight(const struct node *n) {
    uint64_t w = ((uint64_t)n->key ^ n->seq << 32) * 0x9e3779b97f4a7c15u;

    return (w ^ w >> 29) * 0xbf58476d1ce4e5b9u;
}

static void tree_add(struct node **at, struct node *n) {
    struct node **low = &n->child[BEFORE];
    struct node **high = &n->child[BEHIND];
    uint64_t weight = node_weight(n);
    struct node *rest;

    while (*at && node_weight(*at) > weight)
        at = &(*at)->child[side_of(*at, n)];
    rest = *at;
    while (rest) { /* split what is there in two */
        if (node_before(rest, n)) {
            *low = rest;
            low = &rest->child[BEHIND];
            rest = *low;
        } else {
            *high = rest;
            high = &rest->child[BEFORE];
            rest = *high;
        }
    }
    *low = NULL;
    *high = NULL;
    *at = n;
    n->in = true;
}

static void tree_remove(struct node **at, struct node *n) {
    struct node *low = n->child[BEFORE];
    struct node *high = n->child[BEHIND];

    if (!n->in)
        return;
    while (*at != n)
        at = &(*at)->child[side_of(*at, n)];
    while (low && high) { /* merge what it leaves behind */
        if (node_weight(low) < node_weight(high)) {
            *at = high;
            at = &high->child[BEFORE];
            high = *at;
        } else {
            *at = low;
            at = &low->child[BEHIND];
            low = *at;
        }
    }
    *at = low ? low : high;
    n->in = false;
}

/* The first node that is not before (key, seq); or, with `last`, the last one
 * that is. */
static struct node *tree_bound(struct node *n, int64_t key, uint64_t seq,
                               bool last) {
    struct node probe = {key, seq, {NULL, NULL}, false};
    struct node *best = NULL;

    while (n) {
        bool before = node_before(n, &probe);
        if (before == last)
            best = n;
        n = n->child[before ? BEHIND : BEFORE];
    }
    return best;
}

#define lower_bound(tree, key, seq) tree_bound(tree, key, seq, false)
#define tree_first(tree)            lower_bound(tree, INT64_MIN, 0)
#define tree_next(tree, n)          lower_bound(tree, (n)->key, (n)->seq + 1)

static struct node *tree_find(struct node *tree, uint64_t id) {
    struct node *n = lower_bound(tree, (int64_t)id, 0);

    return n && n->key == (int64_t)id ? n : NULL;
}

/* ================================================================== The loop
 * An event loop that knows nothing of libcurl. It waits for descriptors,
 * timers and posted calls, and hands the network's share of a turn to a hook.
 * Of its owner it knows the name only: `struct fetcher` stays opaque until The
 * nouns, and serves as what callbacks are given. -DFETCHER_LOOP ends the file
 * after this section.
 *
 * Its rules, in short (fetcher.h has them all, by these numbers):
 *
 *     3  callbacks may call anything but what turns or frees the loop
 *     4  a watch that was changed never gets news of the one before
 *     5  a timer made during a turn runs in a later one
 *     6  a descriptor that an fd_set can't hold is refused
 *     7  post is the one call that is safe from elsewhere
 *
 * Its clocks, in microseconds:
 *
 *     now       what timers go by; read at each step, and at no other time
 *     away      how much of it we were kept from listening: what a server was
 *               silent then is not its fault
 */
enum {
    SLICE_US = 2000,    /* a turn's work for the network, as usual: see Story */
    LOOK_US = 250,      /* of it, without a look at the application's side */
    WORK_US = 10000,    /* a turn's work that is none of the silence's */
    SLEEP_MAX_MS = 1000 /* a lost wake-up costs a second, not the program */
};

#define IDLE_US (24 * 3600 * (usec)1000000) /* as long as select() may take */

#define TIMER_ID ((int64_t)1 << 62) /* no timer has the id of a transfer */

typedef void call_fn(struct fetcher *f, void *arg);
typedef void watch_fn(struct fetcher *f, int fd, int events, void *arg);
typedef void trace_fn(struct fetcher *f, const char *line, void *arg);

/* Whose a descriptor is decides in which phase it is served. */
enum owner { FREE, LOOP, APP, NETWORK };

struct watch {
    enum owner owner;
    int events;     /* FETCHER_READ | FETCHER_WRITE; 0: free */
    watch_fn *cb;   /* what to call, ... */
    void *arg;      /* ... and with what */
    uint64_t since; /* the number of this watch, of all: rule 4 */
};

struct call { /* also what goes through the self-pipe */
    call_fn *cb;
    void *arg;
};

struct timer {
    struct node due; /* in one of loop.timers; key: when, on the loop's clock */
    struct node id;  /* in loop.timer_ids; key 0: one of the library's own */
    struct call call;
};

enum phase {
    IN_POST,
    IN_APP,
    IN_TIMERS,
    IN_SOCKETS,
    IN_FINISH,
    IN_START,
    PHASES
};

struct step { /* a piece of work, to be blamed for a stall */
    enum phase phase;
    usec took;
    int fd;              /* -1: no descriptor */
    fetcher_id transfer; /* 0: none */
};

struct meter {          /* what a turn costs */
    usec began;         /* of this turn: when select() returned */
    usec slept;         /* how long it slept before, ... */
    usec may_sleep;     /* ... and how long it would have */
    usec took[PHASES];  /* spent in each phase */
    int steps[PHASES];  /* pieces of work in each */
    int woke;           /* a descriptor that ended the sleep, or -1 */
    usec mark;          /* when the present step began */
    fetcher_id touched; /* the transfer it works for */
    bool fed;           /* it has brought data: see must_yield */
    struct step worst;  /* the longest step of this turn */
    struct step record; /* that of the longest stall ... */
    usec record_us;     /* ... and how long that was */
    uint64_t turns;     /* since the beginning */
    uint64_t stalls[FETCHER_BUCKETS]; /* turns, by how long they took */
    trace_fn *trace;                  /* told of each turn; NULL: nobody */
    void *trace_arg;
};

struct loop {
    struct fetcher *f;                 /* whom callbacks are told of */
    void (*network)(struct fetcher *); /* its share of a turn, or NULL */
    size_t pending;                    /* what the owner waits for: transfers */
    bool throttled; /* the network's sockets are not read from */

    struct watch watch[FD_SETSIZE];
    int top;         /* the highest descriptor watched, or -1 */
    int app_watches; /* how many are the application's */
    fd_set rd;       /* ready for reading: the set at hand */
    fd_set wr;       /* ready for writing */
    int pipe[2];     /* the self-pipe: read, write */

    struct node *timers[2]; /* by deadline: the application's, our own */
    struct node *timer_ids; /* the application's, by id */
    uint64_t serial;        /* the last number of all that comes in an order */

    usec now;             /* the clock, read at each step */
    usec skew;            /* added to it: the tests put it forward */
    usec expected;        /* by then it is turned on, without skew; ... */
    usec away;            /* ... how long it was not: see count_away */
    usec slice;           /* how long a turn may work for the network */
    usec slice_end;       /* when the present slice is spent */
    usec look;            /* in it: when to look for the application next */
    fd_set app_rd;        /* its descriptors, as last prepared, ... */
    fd_set app_wr;        /* ... to look at within the slice */
    int app_top;          /* the highest of them, or -1 */
    usec turn_now;        /* when the turn began, ... */
    uint64_t turn_serial; /* ... and the timers made until then: rule 5 */
    uint64_t asked; /* watches up to this number are in the sets of the last
                       fetcher_prepare; ... */
    uint64_t heard; /* ... in those of the present turn: these */

    bool busy;    /* in a turn: rule 3 */
    bool more;    /* work was left over: don't sleep */
    bool stopped; /* by fetcher_stop */
    struct meter meter;
};

/* A fetcher begins with its loop. */
static struct loop *loop_of(struct fetcher *f) {
    return (struct loop *)(void *)f;
}

/* -- descriptors ----------------------------------------------------------
 * select() takes descriptors below FD_SETSIZE only, and FD_SET past that
 * writes to memory that isn't ours: so everything that is watched passes the
 * one check in watch_set. */

static int watch_set(struct loop *l, int fd, struct watch with) {
    struct watch *w;

    if (fd < 0 || fd >= FD_SETSIZE)
        return set_errno(fd < 0 ? EINVAL : EMFILE);
    w = &l->watch[fd];
    if (with.owner == APP && w->owner != APP && w->owner != FREE)
        return set_errno(EBUSY);
    if (w->owner == APP)
        l->app_watches--;

    /* Rule 4: what select said is of the watch that was. libcurl uses numbers
     * again in one call. */
    with.since = ++l->serial;
    if (!with.events)
        with.owner = FREE;
    *w = with;
    if (w->owner == APP)
        l->app_watches++;
    if (w->events && fd > l->top)
        l->top = fd;
    while (l->top >= 0 && l->watch[l->top].owner == FREE)
        l->top--;
    return 0;
}

int fetcher_watch(struct fetcher *f, int fd, int events, watch_fn *cb,
                  void *arg) {
    if ((events & ~(FETCHER_READ | FETCHER_WRITE)) || (events && !cb))
        return set_errno(EINVAL);
    return watch_set(loop_of(f), fd, (struct watch){APP, events, cb, arg, 0});
}

/* What select() said of a descriptor, as far as its watch wants to know. Of a
 * later watch it said nothing: what is known is of the one before. */
static int watch_ready(const struct loop *l, int fd) {
    const struct watch *w = &l->watch[fd];
    int events = 0;

    if (w->since > l->heard)
        return 0;
    if (FD_ISSET(fd, &l->rd))
        events |= FETCHER_READ;
    if (FD_ISSET(fd, &l->wr))
        events |= FETCHER_WRITE;
    return events & w->events;
}

/* Somebody closed a descriptor and left its watch: to go on with that would
 * spin. */
static void drop_closed(struct loop *l) {
    for (int fd = l->top; fd >= 0; fd--) {
        struct watch w = l->watch[fd];

        if (w.owner == FREE || fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
            continue;
        watch_set(l, fd, (struct watch){.owner = FREE});
        w.cb(l->f, fd, FETCHER_GONE, w.arg);
    }
}

/* -- timers ---------------------------------------------------------------- */

/* Later than `now`, if a step is on its way. */
static usec clock_now(const struct loop *l) {
    return clock_us() + l->skew;
}

static void clock_read(struct loop *l) {
    l->now = clock_now(l);
}

/* Outside of a turn the clock stands where the last one left it. */
static void clock_refresh(struct loop *l) {
    if (!l->busy)
        clock_read(l);
}

int64_t fetcher_now(struct fetcher *f) {
    return loop_of(f)->now / 1000;
}

const char *fetcher_version(void) {
    return FETCHER_VERSION;
}

static usec usec_of_ms(int64_t ms) {
    return ms < FOREVER / 1000 ? ms * 1000 : FOREVER;
}

static struct node **timers_of(struct loop *l, const struct timer *t) {
    return &l->timers[t->id.key == 0];
}

static void timer_disarm(struct loop *l, struct timer *t) {
    tree_remove(timers_of(l, t), &t->due);
}

static void timer_arm(struct loop *l, struct timer *t, usec due) {
    timer_disarm(l, t);
    t->due.key = due;
    t->due.seq = ++l->serial;
    tree_add(timers_of(l, t), &t->due);
}

/* What is due first, of all timers. */
static struct node *timer_first(const struct loop *l) {
    struct node *a = tree_first(l->timers[0]);
    struct node *b = tree_first(l->timers[1]);

    if (!a || !b)
        return a ? a : b;
    return a->key < b->key || (a->key == b->key && a->seq < b->seq) ? a : b;
}

fetcher_id fetcher_timer(struct fetcher *f, int64_t ms, call_fn *cb,
                         void *arg) {
    struct loop *l = loop_of(f);
    struct timer *t;

    if (ms < 0 || !cb) {
        errno = EINVAL;
        return 0;
    }
    t = calloc(1, sizeof *t);
    if (!t) {
        errno = ENOMEM;
        return 0;
    }
    t->call = (struct call){cb, arg};
    t->id.key = TIMER_ID | (int64_t)++l->serial;
    tree_add(&l->timer_ids, &t->id);
    clock_refresh(l);
    timer_arm(l, t, l->now + usec_of_ms(ms));
    return (fetcher_id)t->id.key;
}

static void timer_free(struct loop *l, struct timer *t) {
    timer_disarm(l, t);
    tree_remove(&l->timer_ids, &t->id);
    free(t);
}

int fetcher_timer_stop(struct fetcher *f, fetcher_id id) {
    struct loop *l = loop_of(f);
    struct node *n = tree_find(l->timer_ids, id);

    if (!n)
        return set_errno(ENOENT);
    timer_free(l, container_of(n, struct timer, id));
    return 0;
}

/* -- post -----------------------------------------------------------------
 * The self-pipe: the one door for signal handlers and other threads. Both may
 * call write(), and what is not longer than PIPE_BUF goes into a pipe whole or
 * not at all: so it carries the calls themselves, in order, without lock or
 * memory. And a signal that comes just before select() ends that at once,
 * where a flag would be seen too late. */

int fetcher_post(struct fetcher *f, call_fn *cb, void *arg) {
    struct call call = {cb, arg};
    int saved = errno;
    ssize_t n;

    do {
        n = write(loop_of(f)->pipe[1], &call, sizeof call);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -1;
    errno = saved;
    return 0;
}

/* What one read brings, no more: a callback that posts again must not keep the
 * loop here. Calls are never split, since all that is read and written are
 * multiples of one. */
static void post_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct call call[64];
    ssize_t n = read(fd, call, sizeof call);

    for (ssize_t i = 0; i < n / (ssize_t)sizeof *call; i++)
        call[i].cb(f, call[i].arg);
}

/* -- the stall meter -------------------------------------------------------
 * Every turn is measured, from the return of select() until the loop is ready
 * to look at the application's descriptors again: so long the program was
 * deaf. It costs one clock read a step, and names the culprit. */

static const char *const phase_names[] = {"post",    "app",    "timers",
                                          "sockets", "finish", "start"};

/* Exclusive, of bucket i. */
static usec bucket_bound(int i) {
    return ((usec)125 << i) / 2;
}

/* A step of a phase is over: charge it, and read the clock for the next. */
static void step_done(struct loop *l, enum phase phase, int fd) {
    struct meter *m = &l->meter;
    usec took;

    clock_read(l);
    took = l->now - m->mark;
    m->took[phase] += took;
    m->steps[phase]++;
    if (took > m->worst.took)
        m->worst = (struct step){phase, took, fd, m->touched};
    m->mark = l->now;
    m->touched = 0;
    m->fed = false;
}

static void meter_begin(struct loop *l, usec asleep) {
    struct meter *m = &l->meter;

    m->began = l->now;
    m->mark = l->now;
    m->slept = l->now - asleep;
    m->worst = (struct step){IN_POST, 0, -1, 0};
    m->touched = 0;
    memset(m->took, 0, sizeof m->took);
    memset(m->steps, 0, sizeof m->steps);
    m->woke = -1;
    for (int fd = l->top; fd >= 0 && m->trace; fd--) {
        if (FD_ISSET(fd, &l->rd) || FD_ISSET(fd, &l->wr))
            m->woke = fd;
    }
}

static void trace_line(struct loop *l, usec stall) {
    struct meter *m = &l->meter;
    char why[32] = "work left over, or time";
    char line[400];
    size_t n;

    if (m->woke >= 0)
        snprintf(why, sizeof why, "descriptor %d", m->woke);
    else if (m->steps[IN_TIMERS])
        strcpy(why, "a timer");
    snprintf(line, sizeof line,
             "turn %" PRIu64 ": slept %.2f of %.0f ms, woke for %s", m->turns,
             MS(m->slept), MS(m->may_sleep), why);
    for (int i = 0; i < PHASES; i++) {
        n = strlen(line);
        if (m->steps[i])
            snprintf(line + n, sizeof line - n, "; %s %d in %.2f ms",
                     phase_names[i], m->steps[i], MS(m->took[i]));
    }
    n = strlen(line);
    snprintf(line + n, sizeof line - n, "; all %.2f ms%s", MS(stall),
             l->more ? ", more left over" : "");
    m->trace(l->f, line, m->trace_arg);
}

static void meter_end(struct loop *l) {
    struct meter *m = &l->meter;
    usec stall = l->now - m->began;
    uint64_t serial = l->serial;
    int i = 0;

    while (i < FETCHER_BUCKETS - 1 && stall >= bucket_bound(i))
        i++;
    m->stalls[i]++;
    m->turns++;
    if (stall > m->record_us) {
        m->record_us = stall;
        m->record = m->worst;
    }
    if (m->trace)
        trace_line(l, stall);
    if (l->serial != serial) /* the trace's callback has started something */
        l->more = true;
}

int fetcher_trace(struct fetcher *f, trace_fn *cb, void *arg) {
    struct meter *m = &loop_of(f)->meter;

    m->trace = cb;
    m->trace_arg = arg;
    return 0;
}

/* What 99 of 100 turns stayed below, as well as the buckets tell. */
static usec meter_p99(const struct meter *m) {
    uint64_t seen = m->stalls[0];
    int i = 0;

    while (i < FETCHER_BUCKETS - 1 && seen < m->turns - m->turns / 100) {
        i++;
        seen += m->stalls[i];
    }
    return bucket_bound(i) < m->record_us ? bucket_bound(i) : m->record_us;
}

static void meter_stats(const struct meter *m, struct fetcher_stats *s) {
    const struct step *r = &m->record;
    char fd[32] = "";
    char transfer[40] = "";

    s->turns = m->turns;
    s->stall_max_us = m->record_us;
    s->stall_p99_us = meter_p99(m);
    if (r->fd >= 0)
        snprintf(fd, sizeof fd, ", descriptor %d", r->fd);
    if (r->transfer)
        snprintf(transfer, sizeof transfer, ", transfer %" PRIu64, r->transfer);
    snprintf(s->culprit, sizeof s->culprit, "%s %.2f ms%s%s",
             phase_names[r->phase], MS(r->took), fd, transfer);
    memcpy(s->stalls, m->stalls, sizeof s->stalls);
}

/* -- the turn -------------------------------------------------------------- */

/* The network's ends also when a timer of the application is due. But a little
 * work is done in each turn, whatever the application does. */
static void slice_begin(struct loop *l) {
    const struct node *timer = tree_first(l->timers[0]);

    l->slice_end = l->now + l->slice;
    l->look = l->now + LOOK_US;
    if (timer && timer->key < l->slice_end)
        l->slice_end = timer->key > l->look ? timer->key : l->look;
}

int fetcher_slice(struct fetcher *f, int us) {
    if (us < 0 || us > 1000000)
        return set_errno(EINVAL);
    loop_of(f)->slice = us ? us : SLICE_US;
    return 0;
}

/* Does one of its descriptors wait? Looked for now and then within the slice:
 * nobody is to wait for the whole of it. */
static bool app_waits(struct loop *l) {
    struct timeval none = {0, 0};
    fd_set rd = l->app_rd;
    fd_set wr = l->app_wr;

    if (l->app_top < 0 || l->now < l->look)
        return false;
    l->look = l->now + LOOK_US;
    return select(l->app_top + 1, &rd, &wr, NULL, &none) != 0;
}

/* May there be one more step of a part, after so many? Its first is free. */
static bool slice_left(struct loop *l, int steps) {
    if (steps == 0)
        return true;
    if (l->now < l->slice_end && app_waits(l))
        l->slice_end = l->now;
    if (l->now < l->slice_end)
        return true;
    l->more = true;
    return false;
}

static void watch_call(struct loop *l, int fd, int events, enum phase phase) {
    const struct watch *w = &l->watch[fd];

    w->cb(l->f, fd, events, w->arg);
    step_done(l, phase, fd);
}

/* The loop's own descriptor, and the application's: these are never put off. */
static void serve(struct loop *l, enum owner owner, enum phase phase) {
    for (int fd = 0; fd <= l->top; fd++) {
        int events = l->watch[fd].owner == owner ? watch_ready(l, fd) : 0;

        if (events)
            watch_call(l, fd, events, phase);
    }
}

/* Was it due, and made, when the turn began? Rule 5. */
static struct timer *timer_due(struct loop *l) {
    struct node *n = timer_first(l);

    if (!n || n->key > l->turn_now || n->seq > l->turn_serial)
        return NULL;
    return container_of(n, struct timer, due);
}

/* An application's timer is gone before its callback. */
static void run_timers(struct loop *l) {
    struct timer *t;

    while ((t = timer_due(l)) != NULL) {
        struct call call = t->call;

        if (!slice_left(l, l->meter.steps[IN_TIMERS]))
            return;
        if (t->id.key)
            timer_free(l, t);
        else
            timer_disarm(l, t);
        call.cb(l->f, call.arg);
        step_done(l, IN_TIMERS, -1);
    }
}

static usec sleep_us(struct loop *l) {
    const struct node *next = timer_first(l);
    usec wait = SLEEP_MAX_MS * 1000;

    if (l->more)
        return 0;
    if (next && next->key - l->now < wait)
        wait = next->key - l->now;
    return wait > 0 ? wait : 0;
}

static void sets_add(fd_set *rd, fd_set *wr, int fd, int events) {
    if (events & FETCHER_READ)
        FD_SET(fd, rd);
    if (events & FETCHER_WRITE)
        FD_SET(fd, wr);
}

/* What to wait for at a descriptor. In debt to the rate limit the network's are
 * not listened to. */
static int watch_wants(const struct loop *l, int fd) {
    const struct watch *w = &l->watch[fd];

    if (w->owner == NETWORK && l->throttled)
        return w->events & ~FETCHER_READ;
    return w->events;
}

/* The loop comes by here twice a turn, before and after its sleep. If it was
 * away for longer than it slept and may have worked (^Z, a debugger, a callback
 * that took its time), then what was silent meanwhile is not to be blamed for
 * it. */
static void count_away(struct loop *l, usec sleep) {
    usec now = l->now - l->skew;

    if (now > l->expected)
        l->away += now - l->expected;
    l->expected = now + sleep + WORK_US;
}

/* What to look at within the slice: the application's descriptors, and the pipe
 * that signals come by. */
static void prepare_app(struct loop *l) {
    FD_ZERO(&l->app_rd);
    FD_ZERO(&l->app_wr);
    l->app_top = -1;
    for (int fd = 0; fd <= l->top; fd++) {
        const struct watch *w = &l->watch[fd];

        if (w->owner != APP && w->owner != LOOP)
            continue;
        sets_add(&l->app_rd, &l->app_wr, fd, w->events);
        l->app_top = fd;
    }
}

int fetcher_prepare(struct fetcher *f, fd_set *rd, fd_set *wr, int *maxfd) {
    struct loop *l = loop_of(f);

    clock_read(l);
    prepare_app(l);
    for (int fd = 0; fd <= l->top && rd; fd++)
        sets_add(rd, wr, fd, watch_wants(l, fd));
    if (maxfd && l->top > *maxfd)
        *maxfd = l->top;
    l->asked = l->serial;
    l->meter.may_sleep = sleep_us(l);
    count_away(l, l->meter.may_sleep);
    return (int)((l->meter.may_sleep + 999) / 1000); /* rounded up */
}

int fetcher_wants(struct fetcher *f, struct fetcher_want *wants, int n) {
    struct loop *l = loop_of(f);
    int count = 0;

    for (int fd = 0; fd <= l->top; fd++) {
        int events = watch_wants(l, fd);

        if (!events)
            continue;
        if (count < n)
            wants[count] = (struct fetcher_want){fd, events};
        count++;
    }
    return count;
}

static void turn_begin(struct loop *l, const fd_set *rd, const fd_set *wr) {
    usec asleep = l->now;

    l->busy = true;
    l->more = false;
    l->rd = *rd;
    l->wr = *wr;
    clock_read(l);
    count_away(l, 0);
    l->turn_now = l->now;
    l->turn_serial = l->serial;
    l->heard = l->asked; /* a callback may prepare the next turn */
    meter_begin(l, asleep);
}

/* Wait for what the sets hold. If that fails they say nothing; and after EINTR
 * what the handler posted ends the next select. */
static void sets_wait(struct loop *l, fd_set *rd, fd_set *wr,
                      struct timeval *most) {
    if (select(l->top + 1, rd, wr, NULL, most) >= 0)
        return;
    if (errno == EBADF) {
        l->busy = true;
        drop_closed(l);
        l->busy = false;
    }
    FD_ZERO(rd);
    FD_ZERO(wr);
}

static void turn(struct loop *l, const fd_set *rd, const fd_set *wr) {
    turn_begin(l, rd, wr);
    serve(l, LOOP, IN_POST);
    serve(l, APP, IN_APP);
    l->slice_end = l->now + l->slice;
    l->look = l->slice_end;
    run_timers(l);
    slice_begin(l);
    if (l->network)
        l->network(l->f);
    meter_end(l);
    l->busy = false;
}

int fetcher_dispatch(struct fetcher *f, const fd_set *rd, const fd_set *wr) {
    struct loop *l = loop_of(f);
    struct timeval none = {0, 0};
    fd_set own_rd;
    fd_set own_wr;

    if (l->busy)
        return set_errno(EBUSY);
    if (!rd) { /* nobody has looked: so we do, without waiting */
        FD_ZERO(&own_rd);
        FD_ZERO(&own_wr);
        (void)fetcher_prepare(f, &own_rd, &own_wr, NULL);
        sets_wait(l, &own_rd, &own_wr, &none);
        rd = &own_rd;
        wr = &own_wr;
    }
    turn(l, rd, wr);
    return 0;
}

/* Can anything still happen? Lookups that were given up and idle connections
 * don't count: nobody waits for them. */
static bool alive(const struct loop *l) {
    return l->pending > 0 || l->timer_ids || l->app_watches > 0;
}

/* Nothing is on its way that could be lost, and no time to keep: only what
 * wakes select() can happen. */
static bool is_idle(const struct loop *l) {
    return l->pending == 0 && !l->more && !l->timers[0] && !l->timers[1];
}

int fetcher_step(struct fetcher *f, int64_t max_ms) {
    struct loop *l = loop_of(f);
    struct timeval tv;
    fd_set rd;
    fd_set wr;
    usec wait;

    if (l->busy)
        return set_errno(EBUSY);
    FD_ZERO(&rd);
    FD_ZERO(&wr);
    (void)fetcher_prepare(f, &rd, &wr, NULL);
    if (is_idle(l) && alive(l))
        l->meter.may_sleep = IDLE_US;
    wait = l->meter.may_sleep;
    if (max_ms >= 0 && wait > usec_of_ms(max_ms))
        wait = max_ms * 1000;
    tv.tv_sec = (time_t)(wait / 1000000);
    tv.tv_usec = (int)(wait % 1000000);
    sets_wait(l, &rd, &wr, &tv);
    turn(l, &rd, &wr);
    return alive(l);
}

int fetcher_run(struct fetcher *f) {
    struct loop *l = loop_of(f);

    if (l->busy)
        return set_errno(EBUSY);
    while (!l->stopped && alive(l))
        fetcher_step(f, -1);
    l->stopped = false;
    return 0;
}

int fetcher_stop(struct fetcher *f) {
    loop_of(f)->stopped = true;
    return 0;
}

/* Linux enlarges a process's table of descriptors as they come, and if there
 * is a thread, of a lookup for instance, it waits for 15 ms each time. So now,
 * while there may be none. */
static void enlarge_descriptor_table(int fd) {
    rlim_t limit = descriptors_limit();
    int most = 2 * FD_SETSIZE;
    int high;

    if (limit < (rlim_t)most)
        most = (int)limit;
    high = fcntl(fd, F_DUPFD_CLOEXEC, most - 1);
    if (high >= 0)
        close(high);
}

/* -1 with errno: what is there by then is loop_close's. */
static int loop_open(struct loop *l, struct fetcher *f) {
    l->f = f;
    l->slice = SLICE_US;
    l->top = -1;
    l->pipe[0] = -1;
    l->pipe[1] = -1;
    l->meter.record.fd = -1;
    clock_read(l);
    l->expected = l->now + WORK_US;
    if (pipe(l->pipe) < 0)
        return -1;
    enlarge_descriptor_table(l->pipe[0]);
    for (int i = 0; i < 2; i++) {
        if (set_flags(l->pipe[i], O_NONBLOCK) < 0)
            return -1;
    }
    return watch_set(l, l->pipe[0],
                     (struct watch){LOOP, FETCHER_READ, post_ready, NULL, 0});
}

static void loop_close(struct loop *l) {
    while (l->timer_ids)
        timer_free(l, container_of(l->timer_ids, struct timer, id));
    for (int i = 0; i < 2; i++) {
        if (l->pipe[i] >= 0)
            close(l->pipe[i]);
    }
}

#ifdef FETCHER_LOOP
struct fetcher {
    struct loop loop;
};

struct fetcher *fetcher_new(void) {
    struct fetcher *f = calloc(1, sizeof *f);

    if (f && loop_open(&f->loop, f) < 0) {
        fetcher_free(f);
        return NULL;
    }
    return f;
}

void fetcher_free(struct fetcher *f) {
    int saved = errno;

    if (!f || f->loop.busy)
        return;
    loop_close(&f->loop);
    free(f);
    errno = saved;
}

int fetcher_stats(struct fetcher *f, struct fetcher_stats *s) {
    memset(s, 0, sizeof *s);
    meter_stats(&f->loop.meter, s);
    return 0;
}
#else

/* ====================================================================== Text
 * What comes from outside (a URL, a header, a file's name) is hostile until
 * made safe, also before it is printed.
 */

/* Not fit to be shown: controls, separators, and marks that turn the direction
 * of text, and so make "exe.txt" of "txt.exe". */
static bool rune_is_unfit(uint32_t c) {
    static const uint32_t unfit[][2] = {
        {0, 0x1f},        {0x7f, 0x9f},     {0x61c, 0x61c},
        {0x200e, 0x200f}, {0x2028, 0x202e}, {0x2066, 0x2069},
        {0xd800, 0xdfff}, {0xfeff, 0xfeff}, {0x110000, UINT32_MAX}};

    if (c >= ' ' && c < 0x7f)
        return false;
    for (size_t i = 0; i < COUNT_OF(unfit); i++) {
        if (c >= unfit[i][0] && c <= unfit[i][1])
            return true;
    }
    return false;
}

/* The bytes of the UTF-8 character at text, and what it is. 0 if it is broken
 * (over-long forms hide a '/' from a careless check). */
static size_t utf8_scan(const char *text, uint32_t *rune) {
    static const unsigned char size[] = {1, 1, 1, 1, 1, 1, 1, 1,
                                         0, 0, 0, 0, 2, 2, 3, 4};
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    size_t n = *s < 0xf8 ? size[*s >> 4] : 0;
    uint32_t c = n == 1 ? *s : *s & (0x7fu >> n);

    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    *rune = c;
    return c < least[n] ? 0 : n;
}

/* The same; 0 too if it is unfit. */
static size_t utf8_decode(const char *text, uint32_t *rune) {
    size_t n = utf8_scan(text, rune);

    return n > 0 && rune_is_unfit(*rune) ? 0 : n;
}

static size_t utf8_length(const char *text) {
    uint32_t rune;

    return utf8_decode(text, &rune);
}

/* What looks like a control of C1 is no text: it is another charset. */
static bool is_utf8(const char *text) {
    while (*text) {
        uint32_t rune = 0;
        size_t n = utf8_scan(text, &rune);

        if (n == 0 || (rune >= 0x80 && rune < 0xa0))
            return false;
        text += n;
    }
    return true;
}

/* Copy text from outside for the eye: whole characters only, what is unsafe
 * replaced. It may also be moved to its left. */
static void text_clean(char *to, size_t room, const char *from, char instead) {
    while (*from) {
        size_t good = utf8_length(from);
        size_t n = good ? good : 1;

        if (room <= n)
            break;
        memmove(to, good ? from : &instead, n);
        from += n;
        to += n;
        room -= n;
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
    size_t na = strlen(a);
    size_t nb = strlen(b);
    char *joined = malloc(na + nb + 1);

    if (!joined)
        return NULL;
    memcpy(joined, a, na);
    memcpy(joined + na, b, nb + 1);
    return joined;
}

/* A number of a protocol: digits only, no sign, no overflow; -1 if there is
 * none. *s moves on. */
static int64_t text_number(const char **s) {
    int64_t n = isdigit((unsigned char)**s) ? 0 : -1;

    while (isdigit((unsigned char)**s)) {
        n = n > INT64_MAX / 20 ? INT64_MAX / 10 : n * 10 + (**s - '0');
        (*s)++;
    }
    return n;
}

/* Of base64 (RFC 4648, 4). */
static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                    "abcdefghijklmnopqrstuvwxyz0123456789+/";

/* As a login has it in a header. */
static char *text_base64(const char *text) {
    size_t n = strlen(text);
    char *coded = malloc((n + 2) / 3 * 4 + 1);
    char *to = coded;

    for (size_t i = 0; coded && i < n; i += 3) {
        const unsigned char *s = (const unsigned char *)text + i;
        unsigned bits = (unsigned)s[0] << 16;

        if (i + 1 < n)
            bits |= (unsigned)s[1] << 8;
        if (i + 2 < n)
            bits |= s[2];
        to[0] = base64_digits[bits >> 18];
        to[1] = base64_digits[bits >> 12 & 63];
        to[2] = '=';
        to[3] = '=';
        if (i + 1 < n)
            to[2] = base64_digits[bits >> 6 & 63];
        if (i + 2 < n)
            to[3] = base64_digits[bits & 63];
        to += 4;
    }
    if (coded)
        *to = '\0';
    return coded;
}

/* Is the word one of a list, which are separated by spaces? */
static bool listed(const char *word, const char *list) {
    size_t n = strlen(word);

    for (const char *s = strstr(list, word); s && n; s = strstr(s + n, word)) {
        if ((s == list || s[-1] == ' ') && (s[n] == ' ' || !s[n]))
            return true;
    }
    return false;
}

/* Is a file open at fd a plain one, ours, and under one name only? What is
 * another user's is not believed, nor written to; and a second name would see
 * what is written. */
static bool is_ours(int fd) {
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
           st.st_uid == geteuid() && st.st_nlink == 1;
}

/* Is this file open at fd the one that stands under the name? */
static bool stands_as(int fd, const char *path) {
    struct stat st;
    struct stat other;

    return fstat(fd, &st) == 0 && lstat(path, &other) == 0 &&
           S_ISREG(other.st_mode) && other.st_dev == st.st_dev &&
           other.st_ino == st.st_ino;
}

/* -- names ------------------------------------------------------------------
 * Of files, as a server or a URL calls them.
 */

/* Where the extension begins, ".gz" or ".tar.gz"; at the end if there is
 * none. */
static const char *extension(const char *name) {
    const char *dot = strrchr(name, '.');

    if (!dot || dot == name)
        return name + strlen(name);
    if (dot - name > 4 && strncasecmp(dot - 4, ".tar", 4) == 0)
        return dot - 4;
    return dot;
}

/* How many of the n bytes at text may stay, so that no more than `most` do and
 * no character is cut. */
static size_t cut_size(const char *text, size_t n, size_t most) {
    if (n <= most)
        return n;
    while (most > 0 && (text[most] & 0xc0) == 0x80)
        most--;
    return most;
}

/* Make a name from outside, in place, as it may stand in a directory: no path,
 * not hidden, nothing that a terminal would act on; if too long, cut before the
 * extension, so that a number has room. "" if nothing is left. */
static void name_make_safe(char *name) {
    enum { CUT = 240, TAIL_MOST = 16 };

    const char *from = name;
    const char *tail;
    size_t n;

    for (const char *s = from; *s; s++) {
        if (*s == '/' || *s == '\\')
            from = s + 1;
    }
    from += strspn(from, " ");
    text_clean(name, strlen(from) + 1, from, '_');
    n = strlen(name);
    while (n > 0 && name[n - 1] == ' ')
        n--;
    name[n] = '\0';
    for (char *c = name; *c == '.'; c++)
        *c = '_';

    if (n <= CUT)
        return;
    tail = extension(name);
    if (strlen(tail) > TAIL_MOST)
        tail = name + n;
    n = cut_size(name, (size_t)(tail - name), CUT - strlen(tail));
    memmove(name + n, tail, strlen(tail) + 1);
}

/* The charsets in which names come; any other is as good as none. */
enum charset { UNKNOWN, UTF_8, LATIN_1 };

static enum charset charset_of(const char *s, size_t n) {
    static const char *const names[] = {"utf-8", "utf8", "us-ascii",
                                        "iso-8859-1", "iso88591"};

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strncasecmp(s, names[i], n) == 0 && !names[i][n])
            return i < 3 ? UTF_8 : LATIN_1;
    }
    return UNKNOWN;
}

/* Make UTF-8 of ISO 8859-1, in place and from the end on, since it grows, up to
 * twofold. Returns its new end. */
static char *latin_widen(char *text, char *end) {
    char *from = end;
    char *to;

    for (const char *s = text; s < from; s++)
        end += (unsigned char)*s >> 7;
    to = end;
    while (from < to) {
        unsigned c = (unsigned char)*--from;

        if (c >= 0x80) {
            *--to = (char)(0x80 | (c & 0x3f));
            c = 0xc0 | c >> 6;
        }
        *--to = (char)c;
    }
    return end;
}

/* Bytes as "%e4" or, with the other mark, as "=E4", where '_' is a space; the
 * rest has to be ASCII. Returns the end of what was written; NULL: it is
 * broken. */
static char *hex_decode(const char *s, const char *end, char mark, char *to) {
    for (; s < end; s++) {
        char c = *s;

        if (c & 0x80)
            return NULL;
        if (c == '_' && mark == '=')
            c = ' ';
        if (c == mark) {
            if (strspn(s + 1, "0123456789abcdefABCDEF") < 2)
                return NULL;
            c = (char)strtol((char[]){s[1], s[2], '\0'}, NULL, 16);
            s += 2;
        }
        *to = c;
        to++;
    }
    return to;
}

static char *base64_decode(const char *s, const char *end, char *to) {
    unsigned bits = 0;
    int count = 0;

    for (; s < end && *s != '='; s++) {
        const char *digit = strchr(base64_digits, *s);

        if (!digit)
            return NULL;
        bits = bits << 6 | (unsigned)(digit - base64_digits);
        count += 6;
        if (count >= 8) {
            count -= 8;
            *to = (char)(bits >> count);
            to++;
        }
    }
    return to;
}

/* The value of filename* is charset'language'percent-encoded (RFC 8187). Decode
 * it in place; false if that can't be done. */
static bool extended_decode(char *value) {
    const char *quote = strchr(value, '\'');
    const char *text = quote ? strchr(quote + 1, '\'') : NULL;
    enum charset charset = UNKNOWN;
    char *end = NULL;

    if (text)
        charset = charset_of(value, (size_t)(quote - value));
    if (charset != UNKNOWN)
        end = hex_decode(text + 1, text + strlen(text), '%', value);
    if (!end)
        return false;
    if (charset == LATIN_1)
        end = latin_widen(value, end);
    *end = '\0';
    if (!is_utf8(value))
        return false;
    name_make_safe(value);
    return *value != '\0';
}

/* Does a word such as "=?utf-8?Q?a=CC=88?=" begin here? */
static bool is_encoded(const char *s) {
    if (strncmp(s, "=?", 2) != 0)
        return false;
    s += 2 + strcspn(s + 2, "?");
    return *s && s[1] && s[2] == '?';
}

/* Decode it, and move behind it and what parts it from the next. NULL: it is
 * broken. */
static char *encoded_decode(const char **s, char *to) {
    const char *charset = *s + 2;
    size_t n = strcspn(charset, "?");
    enum charset known = charset_of(charset, n);
    const char *text = charset + n + 3;
    const char *end = strstr(text, "?=");
    char *begin = to;

    if (known == UNKNOWN || !end || end[2] == '?' || end[2] == '=')
        return NULL;
    *s = end + 2 + strspn(end + 2, " ");
    if (tolower((unsigned char)text[-2]) == 'b')
        to = base64_decode(text, end, to);
    else
        to = hex_decode(text, end, '=', to);
    return to && known == LATIN_1 ? latin_widen(begin, to) : to;
}

/* The value of filename: in UTF-8, else in ISO 8859-1, and with encoded words,
 * which don't belong here (RFC 2047, 5) and are sent all the same. "" if one is
 * broken. */
static void plain_decode(const char *value, char *name) {
    bool begins = true; /* a word */
    char *to = name;

    while (*value) {
        if (begins && is_encoded(value)) {
            char *end = encoded_decode(&value, to);

            to = end ? end : name;
            if (!end)
                break;
            continue;
        }
        begins = *value == ' ';
        *to = *value;
        to++;
        value++;
    }
    *to = '\0';
    if (!is_utf8(name))
        *latin_widen(name, to) = '\0';
    name_make_safe(name);
}

/* The value of a parameter: all up to the next ';', as servers forget the
 * quotes; or what is in them, where a backslash stands before what it takes
 * literally. Returns where the parameter ends. */
static const char *parameter_value(const char *s, char *value) {
    char end = ';';
    bool quoted;

    s += strspn(s, " \t");
    quoted = *s == '"';
    if (quoted) {
        end = '"';
        s++;
    }
    while (*s && *s != end) {
        if (quoted && *s == '\\' && s[1])
            s++;
        *value = *s;
        if (*s == '\t')
            *value = ' ';
        value++;
        s++;
    }
    *value = '\0';
    return s + strcspn(s, ";");
}

#define DISPOSITION_ROOM(s) (3 * strlen(s) + 2)

/* The name in a Content-Disposition, made safe; "" if there is none. The first
 * filename* that can be decoded counts, else the first filename (RFC 6266). A
 * type may be missing; behind anything else that is no parameter nothing is
 * believed. The value stands behind the name, to be decoded there. */
static void disposition_name(const char *s, char *name) {
    char *value = name + 2 * strlen(s) + 1;
    bool extended = false;
    const char *key;
    size_t n = strcspn(s, "=;\"");

    *name = '\0';
    if (s[n] == ';')
        s += n; /* the type */
    for (;;) {
        key = s + strspn(s, "; \t");
        n = strcspn(key, "=;\" \t");
        s = key + n + strspn(key + n, " \t");
        if (*s != '=')
            return;
        s = parameter_value(s + 1, value);
        if (extended || n < 8 || strncasecmp(key, "filename*", n) != 0)
            continue;
        if (n > 8) {
            extended = extended_decode(value);
            if (extended)
                strcpy(name, value);
        } else if (!*name)
            plain_decode(value, name);
    }
}

/* -- passwords --------------------------------------------------------------
 * A message repeats what somebody typed, and that may hold a password: in a
 * URL, in what was to become one, in a proxy's. So what goes out for people to
 * read is copied with "***" in its place. Rather too much is hidden than too
 * little; but the names of files and the URLs of results are exact (and these
 * without a password: url_shown() sees to that).
 */

static const char *last_at(const char *from, const char *end) {
    const char *at = NULL;

    for (; from < end; from++) {
        if (*from == '@')
            at = from;
    }
    return at;
}

/* A number with an end, or nothing. */
static bool is_port(const char *s, bool may_be_none) {
    size_t n = strspn(s, "0123456789");

    return (n > 0 || may_be_none) &&
           (!s[n] || strchr(" \t\r\n/?#:,;.'\")", s[n]));
}

/* Where the password ends that follows a colon; NULL: there is none. It may
 * hold what it should not, '@' or '/'; behind "//" a blank as well, and there
 * its '@' may be missing, cut off or forgotten. What is looked for further on
 * must not cost more the longer the text is. */
static const char *password_end(const char *s, bool slashes) {
    enum { FAR = 256 };

    const char *part = s + strcspn(s, "/?# \t\r\n");
    const char *far = s + strnlen(s, FAR);
    const char *word = s + strcspn(s, " \t\r\n");
    const char *at = last_at(s, part);

    if (at)
        return at;
    if (is_port(s, slashes))
        return NULL;
    at = last_at(s, word < far ? word : far);
    if (at || !slashes)
        return at;
    for (word = s; word < far && strncmp(word, "//", 2) != 0; word++) {
        if (*word == '@')
            at = word;
    }
    return at ? at : part;
}

/* The bytes of "[::1", whose colons part nothing. */
static size_t address_size(const char *s) {
    size_t n = strspn(s, "[0123456789abcdefABCDEF:.%");

    return s[0] == '[' && s[n] == ']' ? n : 0;
}

/* The first password in a text, and its end; NULL: there is none. It follows
 * the first colon of a word, or, behind "//", of an authority. */
static const char *password_find(const char *s, const char **end) {
    bool slashes = false;
    bool over = false; /* this word has no place for one any more */

    for (; *s; s++) {
        if (strchr(" \t\r\n", *s))
            slashes = over = false;
        else if (s[0] == '/' && s[1] == '/') {
            slashes = true;
            over = false;
            s += strspn(s, "/") - 1;
            s += address_size(s + 1);
        } else if (slashes && strchr("/?#", *s))
            over = true;
        else if (*s == ':' && !over && strncmp(s, "://", 3) != 0) {
            over = true;
            *end = password_end(s + 1, slashes);
            if (*end && *end > s + 1)
                return s + 1;
        }
    }
    return NULL;
}

/* A copy of a text without its passwords; NULL: there is no memory for it. */
static char *passwords_hide(const char *text) {
    char *copy = malloc(3 * strlen(text) + 1);
    char *to = copy;
    const char *end;
    const char *s;

    if (!copy)
        return NULL;
    while ((s = password_find(text, &end)) != NULL) {
        memcpy(to, text, (size_t)(s - text));
        to += s - text;
        memcpy(to, "***", 3);
        to += 3;
        text = end;
    }
    strcpy(to, text);
    return copy;
}

/* -- SHA-256 -----------------------------------------------------------------
 * As FIPS 180-4 has it, and with its names: libcurl has one, but keeps it to
 * itself.
 */
struct sha256 {
    uint32_t state[8];
    uint64_t size; /* bytes so far */
    unsigned char block[64];
};

static const uint32_t sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

/* The message schedule. */
static void sha256_words(uint32_t w[64], const unsigned char *s) {
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)s[4 * i] << 24 | (uint32_t)s[4 * i + 1] << 16 |
               (uint32_t)s[4 * i + 2] << 8 | s[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15];
        uint32_t b = w[i - 2];

        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
               (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
}

static void sha256_block(uint32_t state[8], const unsigned char *s) {
    uint32_t w[64];
    uint32_t a = state[0];
    uint32_t b = state[1];
    uint32_t c = state[2];
    uint32_t d = state[3];
    uint32_t e = state[4];
    uint32_t f = state[5];
    uint32_t g = state[6];
    uint32_t h = state[7];

    sha256_words(w, s);
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                      ((e & f) ^ (~e & g)) + sha256_k[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
                      ((a & b) ^ (a & c) ^ (b & c));

        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
}

static void sha256_begin(struct sha256 *h) {
    static const uint32_t first[] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372,
                                     0xa54ff53a, 0x510e527f, 0x9b05688c,
                                     0x1f83d9ab, 0x5be0cd19};

    memcpy(h->state, first, sizeof first);
    h->size = 0;
}

static void sha256_add(struct sha256 *h, const void *data, size_t n) {
    const unsigned char *s = data;

    while (n > 0) {
        size_t have = h->size % 64;
        size_t more = n < 64 - have ? n : 64 - have;

        if (more == 64)
            sha256_block(h->state, s);
        else {
            memcpy(h->block + have, s, more);
            if (have + more == 64)
                sha256_block(h->state, h->block);
        }
        h->size += more;
        s += more;
        n -= more;
    }
}

/* Has a text the form of one? */
static bool is_sha256(const char *hex) {
    return strlen(hex) == 64 && strspn(hex, "0123456789abcdefABCDEF") == 64;
}

/* The sum, in hex, of what there is: that may go on. */
static void sha256_text(struct sha256 h, char hex[65]) {
    static const unsigned char pad[64] = {0x80};
    uint64_t bits = h.size * 8;
    unsigned char size[8];

    for (int i = 0; i < 8; i++)
        size[i] = (unsigned char)(bits >> (56 - 8 * i));
    sha256_add(&h, pad, 64 - (h.size + 8) % 64);
    sha256_add(&h, size, sizeof size);
    for (int i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08" PRIx32, h.state[i]);
}

/* ================================================================= The nouns
 * Who owns whom, and for how long:
 *
 *     fetcher
 *      |
 *      |-- hosts ------> host       by its origin, while a transfer needs it or
 *      |                  |         it wants to be left alone
 *      |                  | queue: the transfers that wait for their turn
 *      |                  v
 *      |-- transfers --> transfer   from fetcher_start to the last on_done
 *      |                  |    |
 *      |                  |    +--> body     what there is of the document:
 *      |                  |                  from the first attempt to the end,
 *      |                  v                  over retries and rounds
 *      |-- attempts ---> attempt    one request on the wire, with libcurl's
 *      |                            handle: from its start until it ended, or,
 *      |                            given up in a lookup, until that is over
 *      |                            (parked: it has no transfer then)
 *      +-- pool -------> attempt    has ended well; its handle serves again,
 *                                   as long as there are transfers
 *
 * What stands still, and who lets it go on:
 *
 *     queued      in its host's queue             start_phase, by limits
 *     yielded     the slice was spent             resume_yielded, next turn
 *     throttled   all: in debt to the rate limit  a timer, when it is paid
 *     held        by its reader, or a paused      fetcher_resume
 *                 stream: libcurl has the rest
 *     awaiting    its sender had nothing yet      fetcher_resume
 *     paused      a download: it gave its         fetcher_resume
 *                 connection back
 *     slow        in a lookup of over 250 ms: it  flight_rejoin, when that is
 *                 gave up its place in flight     over
 *     parked      given up in a lookup            nobody: it ends with that
 *
 * A transfer's states, and what leads from one to the next:
 *
 *     WAITING --start--> RUNNING --on_done, last--> ENDED
 *        ^                 |  |  \
 *        |  backoff is over|  |   --a round is over--> SLEEPING --its time--+
 *        +--- RETRYING <---+  +--pause--> PAUSED --resume--+                |
 *        +-------------------------------------------------+----------------+
 */

/* What tells documents apart, and a part from another's: each "" if absent or
 * too long (RFC 9110, 8.8). */
struct validators {
    char etag[200];
    char modified[48]; /* Last-Modified */
    char date[48];     /* when the server said so */
    char encoding[48]; /* Content-Encoding, of which an ETag may say nothing */
};

/* A host is scheme, name and port: what is limited, cooled down, and looked
 * up. */
struct host {
    struct node name;       /* in fetcher.hosts; key: hash of the origin */
    struct node *queue;     /* its transfers that wait */
    struct node ready;      /* it may start one, ... */
    struct node **ready_in; /* ... in one of fetcher.ready, or in .full */
    struct timer timer;     /* the end of its rest */
    size_t users;           /* transfers */
    int running;            /* those in flight */
    int looking;            /* 1: its scout is on the way, see scout_over */
    bool hung;              /* its last lookup took long */
    bool numeric;           /* it needs no lookup */
    bool tls;               /* https */
    bool shares;            /* many share a connection: HTTP/2 */
    bool flooded;           /* HTTP/2 is not for it */
    usec known;             /* its address is known until then */
    usec rest;              /* until then it wants to be left alone, ... */
    int64_t counted_key;    /* ... and who waits has seen its time count: in */
    uint64_t counted_seq;   /* the queue's order, from there on not yet */
};

enum { NOTE_SIZE = 100 }; /* of the first line of a file's note */

/* A check of bytes as they come: of the last MiB that isn't full. */
struct check {
    uint64_t
        lane[4];   /* each takes every fourth word: a CPU does four at once */
    uint64_t word; /* the one that isn't full, and ... */
    size_t size;   /* ... how many bytes there were */
};

/* What there is of a document: of use to later attempts and rounds as long as
 * its validator holds. */
struct body {
    char *data;         /* in memory: all, or a file's first bytes */
    size_t room;        /* bytes that fit there */
    int64_t have;       /* bytes kept (of a stream: handed on) */
    int64_t skip;       /* bytes that come once more, of a stream */
    int64_t length;     /* of the whole; -1: not known */
    int64_t first;      /* where the caller's own range begins, or 0 */
    int fd;             /* the .part; -1: not open */
    bool nameless;      /* it has no name yet, nor a .part */
    bool page;          /* it is an error page, of no use later */
    bool whole;         /* it is complete: that of the last round */
    bool no_etag;       /* If-Range with an ETag is ignored */
    bool no_range;      /* nothing may be continued */
    bool ask_whole;     /* ranges are answered wrongly: ask without */
    bool dated;         /* modified_sure has been found out */
    bool modified_sure; /* Last-Modified proves as much as a strong ETag */
    bool meta;          /* the .part has its .meta, ... */
    size_t records;     /* ... whose checks begin there; 0: it has none */
    struct check check; /* of the bytes in the .part */
    char proof[72];     /* "sha256:HEX" of the whole, or "", ... */
    bool by_sum; /* ... by which it goes on, wherever its bytes come from */
    struct sha256 sum;  /* of the bytes that are there, ... */
    struct sha256 kept; /* ... and of those up to the last full MiB */
    int64_t reserved;   /* its blocks are found up to there */
    int64_t unproved;   /* bytes of a .part that are to be looked through */
    bool trusted;       /* they were written in this boot */
    char
        note[NOTE_SIZE]; /* the first line of its file's note, as it was made */
    uint64_t place;      /* who sent it, by a hash: see place_of */
    bool by_time;        /* its file's time is all that is known of that, ... */
    int64_t by_size;     /* ... and its size */
    bool exists;         /* something had the name before */
    bool placed;         /* path is ours, from an earlier round */
    char *base; /* from the URL: known before the request, so that a later run
                   finds the .part */
    char *part; /* base, maybe a number, and ".part" */
    char *path; /* the file's name: base, or what the server calls it */
    struct validators validators;
};

/* "bytes 100-199/1000": each is -1 if it isn't given. */
struct content_range {
    int64_t first;
    int64_t last;
    int64_t total;
};

static const struct content_range NO_RANGE = {-1, -1, -1};

/* The head of the answer that is coming in; that of a redirect is
 * overwritten. Numbers are -1 if not given. */
struct head {
    int status;
    long request;      /* which it answers: the number of redirects before */
    bool ended;        /* by its empty line */
    bool judged;       /* the body has been given its place */
    bool coded;        /* Transfer-Encoding, which outdoes the length */
    bool folded;       /* the field that is read has more than one line */
    bool leads;        /* Location: ... */
    bool away;         /* ... to another server than the URL's */
    const char *wrong; /* what makes it worthless; NULL: nothing */
    int64_t length;    /* Content-Length */
    bool ranged;       /* Content-Range: ... */
    struct content_range range; /* ... this */
    int64_t fresh_s; /* how long it is not worth asking again; -1: unsaid */
    int64_t age_s;   /* of that has gone by */
    struct validators validators;
    char reason[80]; /* "Not Found" */
    char retry_after[60];
    char name[256]; /* what the server calls it, made safe; "": nothing */
};

/* One request on the wire. */
struct attempt {
    struct fetcher *f;
    struct transfer *transfer;  /* NULL: parked */
    CURL *easy;                 /* libcurl's handle */
    struct curl_slist *headers; /* of the request; its end is ... */
    struct curl_slist *open;    /* ... those that any server may see */
    bool login;                 /* the first is the login, as Basic, ... */
    bool refused;               /* ... which some server did not take */
    bool away;                  /* a redirect led to another server */
    long buffer;                /* the size of libcurl's buffer */
    bool reusable;              /* nothing but our own settings: the pool */
    struct attempt *next;       /* in the pool */
    struct node all;            /* in fetcher.attempts */
    struct node yielded;        /* in fetcher.yielded: made to stop reading */
    bool lookup;                /* it has one running */
    bool early;                 /* likewise, though it has a socket */
    usec asked;                 /* when that began, and ... */
    usec found_us;              /* ... what libcurl said then of its lookups */
    struct host *scout;         /* others for this host wait for it */
    struct node young;          /* in fetcher.young: its lookup just began */
    bool complete;              /* the rest is nothing (416) */
    bool again;                 /* ask once more, without waiting */
    bool done;                  /* libcurl says so, ... */
    CURLcode result;            /* ... and how it ended */
    int64_t from;               /* where the range asked for begins */
    int64_t to;                 /* what body->have is then at the end; 0: ? */
    bool awaits;                /* its own body: its sender had nothing yet */
    int64_t given;              /* bytes of that which libcurl has, ... */
    int64_t sent;               /* ... and that went out, when last looked */
    usec began;                 /* its connection; on the listening clock */
    usec moved;                 /* when the last byte came or went, likewise */
    usec before_us;             /* took the connections before that one */
    bool heard;                 /* it has brought a line of a head */
    size_t head_bytes;          /* of all heads so far */
    size_t drained;             /* bytes of a body that nobody wants */
    usec wasted;    /* CPU time of long steps that brought nothing, ... */
    usec wasted_at; /* ... and when the last of them was */
    struct head head;
    char *fields; /* of the head, each "NAME\0VALUE\0": these bytes, ... */
    size_t fields_size; /* ... and behind them the last one as it came, ... */
    size_t field_size;  /* ... which the next line may continue; 0: none */
    size_t fields_room; /* bytes that fit there */
    char error[CURL_ERROR_SIZE];
};

/* What came of handing on a piece of the body. */
enum taken { TAKEN, NOT_NOW, NOT_TAKEN };

/* What comes of looking for what is there already: a request or not. */
enum verdict { GO_ON, NEEDLESS, IMPOSSIBLE };

/* Where a body goes: memory, a stream's reader, or a file. Who fails has called
 * fail(). */
struct sink {
    enum verdict (*open)(struct transfer *); /* before a request */
    int (*begin)(struct transfer *); /* a body comes: cut to body->have */
    enum taken (*take)(struct transfer *, const char *, size_t);
    int (*commit)(struct transfer *); /* it is whole */
};

/* What the finish phase is to do with a transfer. */
enum {
    ACT_CANCEL = 1,
    ACT_PAUSE = 2,
    ACT_RESUME = 4,
    ACT_END = 8,
    ACT_PROVE = 16,
    ACT_ASK = 32 /* its sender again, if it awaits that */
};

struct transfer {
    struct fetcher *f;
    struct fetcher_request rq; /* its strings stand behind this struct */
    struct host *host;
    struct body *body;       /* NULL until the first attempt */
    struct attempt *attempt; /* NULL if not running */
    const struct sink *sink;
    struct node id;        /* in fetcher.transfers */
    struct node queued;    /* in its host; key: -2 * priority, less 1 to go
                              first */
    struct node scheduled; /* in fetcher.scheduled, ... */
    unsigned actions;      /* ... for these: ACT_ */
    struct timer timer;    /* a time limit, the next attempt or round */
    enum fetcher_state state;
    bool in_flight;      /* counted as running: not in a slow lookup */
    bool held;           /* paused, with libcurl holding the rest */
    int64_t own_first;   /* of the caller's own range, if it is a single ... */
    int64_t own_last;    /* ... one: as there; -1: not said, or no such */
    bool own_range;      /* the caller's headers have a Range, or ... */
    bool own_condition;  /* ... ask for what has changed only */
    bool unchanged;      /* 304, or skipped */
    bool doubted;        /* its sum was wrong, once */
    bool hopeless;       /* to try again would end the same */
    char *shown;         /* the URL fit for the eye; NULL: it is so already */
    int attempts;        /* of this round */
    int failures;        /* in this round */
    int failed_rounds;   /* in a row */
    bool counting;       /* the time for this round, ... */
    usec began;          /* ... since then, on the serving clock */
    usec rest;           /* the server asked not to be asked until then */
    usec round;          /* when this round was due, without jitter */
    usec fresh;          /* until then its server says that it is so */
    usec progressed;     /* when on_progress was last called */
    usec speed_since;    /* since then ... */
    int64_t speed_bytes; /* ... so many bytes; before, ... */
    int64_t speed;       /* ... so many a second */
    int64_t given;       /* bytes of its own body that went out at most */
    int64_t received;    /* bytes of body, of this round */
    enum fetcher_code code; /* what on_done will be told: these three */
    int status;
    char message[200];
};

enum {
    LOOKUPS_MAX = 256, /* each a thread of libcurl's, or two, ... */
    YOUNG_MAX = 16     /* ... of which so many may have begun just now */
};

/* The network's parts of a turn, as network() has them. */
enum { KICK, SOCKETS, FINISH, YIELDED, START, NETWORK_PARTS };

/* What the directory of the last file held: so most files need no look for a
 * part of their own. */
enum looked {
    NOT_LOOKED,   /* one file was to be made there */
    LOOKING,      /* some of its entries are read */
    HOLDS_NONE,   /* no .meta was there */
    LOOK_FOR_EACH /* one was, or there are too many entries */
};

struct directory {
    char *path; /* NULL, or what stands before the name */
    DIR *entries;
    int count;
    enum looked state;
};

/* A file without a name whose blocks are given back a few at a time. */
struct remains {
    struct remains *next;
    int fd;
    off_t size;
    usec due; /* not before */
};

struct fetcher {
    struct loop loop; /* stands first: see loop_of */

    CURLM *multi;
    struct quirks quirks;
    bool inflates;            /* libcurl can: it has zlib */
    char *capath;             /* hashed, to be read a certificate at a time */
    struct timer kick;        /* libcurl's own timer, ... */
    bool kick_due;            /* ... which is over */
    struct node *attempts;    /* libcurl's handles */
    struct node *yielded;     /* those to go on when there is time */
    struct attempt *pool;     /* handles to be used again */
    int pooled;               /* how many */
    int lookups;              /* names being looked up, given up or not, ... */
    int younger;              /* ... and those that began just now, ... */
    struct node *young;       /* ... by their age, ... */
    struct timer young_timer; /* ... until this one is slow */
    usec stray[LOOKUPS_MAX];  /* lookups that libcurl left: their ends */
    int strays;               /* how many there are ... */
    int first_stray;          /* ... from this one on, in a ring */
    struct timer stray_timer;
    int next_part;    /* of the network's share: it got nothing */
    int first_socket; /* where sockets are begun with */
    usec heard;     /* when a socket's step brought something, or began, ... */
    usec heard_cpu; /* ... and what CPU time had been used then */

    struct node *transfers; /* by id */
    struct node *scheduled; /* those that the finish phase has to look at */
    struct node *hosts;     /* by the hash of their origin */
    struct node *ready[3];  /* hosts that may start one, by ADDRESS_...; */
    struct node *full;      /* ... those that might if they were not full */
    struct host *last;      /* that of the last URL, ... */
    char authority[128];    /* ... and how it was written there */
    size_t waiting;         /* transfers in queues */
    int running;            /* transfers in flight */
    int limit_total;        /* how many may be: all together, ... */
    int limit_host;         /* ... and to one host; 0 or less: any */
    int capacity;           /* what descriptors leave room for, ... */
    int lookups_most;       /* ... and how many lookups */

    int64_t rate;                /* bytes a second; 0: no limit */
    int64_t tokens;              /* bytes that may come; below 0: debt */
    usec filled;                 /* when tokens were last added */
    struct timer throttle_timer; /* the end of a debt */
    unsigned debts;              /* how many are paid, ... */
    bool paid;                   /* ... the last of them in this turn */
    usec throttled_at;           /* when it began, and ... */
    usec silence;                /* ... how long all were: see listening() */

    struct directory directory;
    struct remains *remains;
    struct transfer *told; /* its on_done is being called */

    enum { UNTRIED, WORKS, FAILS } nameless; /* to make files without a name */

    bool starved;  /* libcurl was short of memory, see starve() */
    bool closing;  /* in fetcher_free */
    char boot[40]; /* see boot_id */
    uint64_t last_id;
    uint64_t random;
    uint64_t done; /* transfers that ended, by how */
    uint64_t failed;
    uint64_t cancelled;
    int64_t received; /* bytes of body */
};

/* Is a host's address known? Or did its last lookup take long? */
enum { ADDRESS_KNOWN, ADDRESS_UNKNOWN, ADDRESS_HUNG };

enum {
    YOUNG_US = 250000,  /* a lookup that takes longer is slow */
    STRAY_US = 5000000, /* a resolver waits so long for an answer */
    POOL_MAX = 256,
    FIELDS_USUAL = 4096, /* bytes of a head, kept with a handle in the pool */
    REDIRECTS_MAX = 20,  /* as browsers do */
    URL_MAX = 65536,
    HEAD_MAX = 256 * 1024, /* a head without end must end somewhere */
    DRAIN_MAX = 65536,     /* of an error page, to keep the connection */
    WASTE_US = 5000,       /* CPU time that a step may take for nothing, ... */
    WASTE_MAX_US = 25000, /* ... and all such steps of an attempt; of one ... */
    WASTE_COUNTED_US = 10000, /* ... counts no more, ... */
    WASTE_SURE_US = 50000,    /* ... unless it is as long as that */
    WASTE_FORGIVEN = 100,     /* of the time since the last such step, a part */
    FLOOD_REST_US = 30000000, /* a host that floods is left alone */
    SMALL_MAX = 16384,     /* a file this small is written when it is whole */
    NAME_MOST = 255,       /* bytes of a name, on all usual file systems */
    NUMBERS_TRIED = 8,     /* of .parts, if something has the name */
    CHECKED = 1024 * 1024, /* bytes for which the .meta has a check */
    PROVE_STEP = 32768,    /* bytes of it that are looked at in a step */
    PROGRESS_US = 100000,
    SCOUT_US = 50000,
    KNOWN_US = 50000000, /* libcurl remembers an address for 60 s */
    MEMORY_USUAL = 64 * 1024 * 1024,
    LIMIT_USUAL_MS = 30000,
    RETRIES_USUAL = 5,
    BACKOFF_FIRST_US = 1000000,
    BACKOFF_MAX_US = 60000000
};

#define HOUR_US (3600 * (usec)1000000)

/* xorshift64*: jitter has to be spread, not secret. */
static int64_t random_below(struct fetcher *f, int64_t below) {
    f->random ^= f->random >> 12;
    f->random ^= f->random << 25;
    f->random ^= f->random >> 27;
    if (below <= 0)
        return 0;
    return (int64_t)(f->random * 0x2545f4914f6cdd1du % (uint64_t)below);
}

/* Time limits go by two more clocks. This one stands while we are away:
 * total_ms. */
static usec serving(const struct fetcher *f) {
    return f->loop.now - f->loop.away;
}

/* And this one also while we are in debt to the rate limit and so don't listen:
 * connect_ms and stall_ms. Silence of our own making is no stall. */
static usec listening(const struct fetcher *f) {
    usec now = f->loop.throttled ? f->throttled_at : serving(f);

    return now - f->silence;
}

/* Have the finish phase look at a transfer: the one way to what libcurl's
 * callbacks forbid. */
static void schedule(struct fetcher *f, struct transfer *t, unsigned actions) {
    t->actions |= actions;
    if (!f->loop.busy)
        f->loop.more = true;
    if (t->scheduled.in)
        return;
    t->scheduled.key = (int64_t)++f->loop.serial;
    tree_add(&f->scheduled, &t->scheduled);
}

/* The present step works for this transfer: it is to blame if it takes long. */
static void touch(struct fetcher *f, const struct transfer *t) {
    f->loop.meter.touched = (fetcher_id)t->id.key;
}

/* Why a transfer failed: the first reason counts, cleaned of what came from
 * outside. Returns -1. */
static int fail(struct transfer *t, enum fetcher_code code, const char *format,
                ...) {
    char text[4 * sizeof t->message];
    va_list args;
    char *hidden;

    if (t->code != FETCHER_OK)
        return -1;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    hidden = passwords_hide(text);
    t->code = code;
    text_clean(t->message, sizeof t->message, hidden ? hidden : "", '?');
    free(hidden);
    return -1;
}

static int fail_memory(struct transfer *t) {
    return fail(t, FETCHER_NO_MEMORY, "out of memory");
}

static bool has_body(const struct fetcher_request *rq) {
    return rq->body || rq->on_send;
}

static const char *shown_url(const struct transfer *t) {
    return t->shown ? t->shown : t->rq.url;
}

/* ======================================================== libcurl as a guest
 * libcurl is a user of the loop like others: it watches sockets, and has a
 * timer.
 * - A kick is needed once for each handle that is added, and whenever
 *   curl_multi_timeout() says so. We ask that once a turn instead of being
 *   called back: it costs the same, and nothing re-enters.
 * - A name lookup can't be given up: to remove its handle joins libcurl's
 *   resolver thread, for seconds. So we know when one runs, and a transfer
 *   given up meanwhile leaves its handle parked in the multi until the lookup
 *   ends by itself; it is refused a socket then.
 * - A name that hangs must not hold up the others. Few lookups may begin at a
 *   time, but one is slow soon, parked or not, and then takes no place of
 *   theirs: there may be many slow ones, a thread and two descriptors each.
 */

static usec time_of(CURL *easy, CURLINFO info) {
    curl_off_t us = 0;

    return curl_easy_getinfo(easy, info, &us) == CURLE_OK ? us : 0;
}

/* How long did it take until the request could go out? 0: there is no
 * connection yet. libcurl adds up what it took before each redirect. */
static usec connect_time(const struct attempt *a) {
    return time_of(a->easy, CURLINFO_PRETRANSFER_TIME_T) - a->before_us;
}

static bool connected(const struct attempt *a) {
    return a->heard || connect_time(a) > 0;
}

/* One more is made, to where a redirect leads: its time counts from now on. */
static void connect_anew(struct attempt *a) {
    if (!a->transfer || !connected(a))
        return;
    a->began = listening(a->f);
    a->moved = a->began;
    a->before_us += connect_time(a);
    a->heard = false;
    timer_arm(&a->f->loop, &a->transfer->timer, a->f->loop.now);
}

/* What libcurl doesn't wait for any more it doesn't tell us the end of. Such a
 * lookup keeps its thread and a descriptor; so it counts for as long as a
 * resolver usually waits. */
static void stray_add(struct fetcher *f, usec asked) {
    if (f->strays == LOOKUPS_MAX)
        return;
    f->stray[(f->first_stray + f->strays) % LOOKUPS_MAX] = asked + STRAY_US;
    f->strays++;
    if (f->strays == 1)
        timer_arm(&f->loop, &f->stray_timer, asked + STRAY_US);
}

static void strays_end(struct fetcher *f, void *arg) {
    while (f->strays && f->stray[f->first_stray] <= f->loop.now) {
        f->first_stray = (f->first_stray + 1) % LOOKUPS_MAX;
        f->strays--;
    }
    if (f->strays)
        timer_arm(&f->loop, &f->stray_timer, f->stray[f->first_stray]);
}

/* Has the other family been found as well, since the lookup began? */
static bool found_all(const struct attempt *a) {
    return !a->f->quirks.connects_early ||
           time_of(a->easy, CURLINFO_NAMELOOKUP_TIME_T) != a->found_us;
}

static void flight_begin(struct fetcher *f, struct transfer *t) {
    t->in_flight = true;
    f->running++;
    t->host->running++;
}

static void flight_end(struct fetcher *f, struct transfer *t) {
    if (!t->in_flight)
        return;
    t->in_flight = false;
    f->running--;
    t->host->running--;
}

/* How many may be in flight: a slow lookup has the descriptors of two, but a
 * few have those that are left for lookups. */
static int flights_most(const struct fetcher *f) {
    int slow = f->lookups - f->younger + f->strays;
    int most = f->capacity;

    if (slow > YOUNG_MAX)
        most -= 2 * (slow - YOUNG_MAX);
    if (most < 1)
        most = 1;
    return most < f->limit_total ? most : f->limit_total;
}

/* Has it as many in flight as a host may have? */
static bool host_full(const struct fetcher *f, const struct host *h) {
    return f->limit_host > 0 && h->running >= f->limit_host;
}

static void lookup_age(struct attempt *a) {
    if (!a->young.in)
        return;
    tree_remove(&a->f->young, &a->young);
    a->f->younger--;
}

/* What waits for a slow lookup has nothing on the wire, and gives its place
 * among those in flight to others. */
static void lookups_age(struct fetcher *f, void *arg) {
    while (f->young) {
        struct node *first = tree_first(f->young);
        struct attempt *a = container_of(first, struct attempt, young);

        if (a->asked + YOUNG_US > f->loop.now) {
            timer_arm(&f->loop, &f->young_timer, a->asked + YOUNG_US);
            return;
        }
        lookup_age(a);
        if (!a->scout || !a->lookup)
            continue;
        a->scout->hung = true;
        if (a->transfer)
            flight_end(f, a->transfer);
    }
}

static void lookup_begin(struct attempt *a) {
    struct fetcher *f = a->f;

    if (!a->lookup && !a->early)
        f->lookups++;
    a->lookup = true;
    a->early = false;
    a->asked = f->loop.now;
    a->found_us = time_of(a->easy, CURLINFO_NAMELOOKUP_TIME_T);
    lookup_age(a);
    if (!f->young)
        timer_arm(&f->loop, &f->young_timer, a->asked + YOUNG_US);
    a->young.key = a->asked;
    a->young.seq = ++f->loop.serial;
    tree_add(&f->young, &a->young);
    f->younger++;
}

static void lookup_end(struct attempt *a) {
    lookup_age(a);
    if (a->lookup || a->early)
        a->f->lookups--;
    if (a->early && !found_all(a))
        stray_add(a->f, a->asked);
    a->lookup = false;
    a->early = false;
}

/* The first transfer to a host is its scout: the others wait until it has
 * found the address, and with TLS an answer, for then it is known whether all
 * can share one connection. libcurl can wait like that too (CURLOPT_PIPEWAIT),
 * but then starts hundreds in one call. Who was no scout, and yet has to look
 * the name up, becomes one: libcurl has forgotten it. */
static void scout_begin(struct attempt *a) {
    struct host *h = a->transfer->host;

    if (a->scout)
        return;
    a->scout = h;
    h->known = 0;
    h->looking++;
}

static void scout_over(struct attempt *a) {
    if (!a->scout)
        return;
    a->scout->looking--;
    a->scout = NULL;
    schedule(a->f, a->transfer, 0); /* run_actions() lets the others start */
}

/* Its address is known, and there is a way to it. */
static void host_found(struct attempt *a) {
    if (a->scout)
        a->scout->known = a->f->loop.now + KNOWN_US;
    lookup_end(a);
    scout_over(a);
}

/* After a slow lookup it is in flight again; or, where others have taken all
 * places meanwhile, it is asked for once more when there is one, and libcurl
 * knows the address. */
static bool flight_rejoin(struct attempt *a) {
    struct fetcher *f = a->f;
    struct transfer *t = a->transfer;

    if (t->in_flight)
        return true;
    if (a->again)
        return false;
    if (f->running < flights_most(f) && !host_full(f, t->host)) {
        flight_begin(f, t);
        return true;
    }
    a->again = true;
    t->attempts--;
    return false;
}

/* While its thread runs a handle must not find the address in libcurl's cache,
 * where another may have put it: it would go on with that, and its end would
 * join the thread. */
static int on_resolver_start(void *resolver, void *reserved, void *arg) {
    struct attempt *a = arg;

    connect_anew(a);
    if (a->transfer && a->head.status == 0 && !a->transfer->host->numeric)
        scout_begin(a);
    if (a->transfer)
        lookup_begin(a);
    return curl_easy_setopt(a->easy, CURLOPT_DNS_CACHE_TIMEOUT, 0L) != CURLE_OK;
}

/* The lookup is over, or has found enough: the others for its host wait for the
 * connection then, lest each of them leaves a stray. A parked handle gets no
 * socket: that ends it, before it reads anything that belonged to its transfer.
 * A descriptor that select() can't watch is refused as well. */
static curl_socket_t on_open_socket(void *arg, curlsocktype purpose,
                                    struct curl_sockaddr *addr) {
    struct attempt *a = arg;
    int fd;

    connect_anew(a);
    if (a->scout)
        a->scout->hung = false;
    if (found_all(a))
        lookup_end(a);
    a->early = a->lookup || a->early;
    a->lookup = false;
    (void)curl_easy_setopt(a->easy, CURLOPT_DNS_CACHE_TIMEOUT, 60L);
    if (!a->transfer)
        return CURL_SOCKET_BAD;
    if (!a->transfer->host->tls && !a->early)
        host_found(a);
    else if (a->scout) /* look soon whether the connection is there */
        timer_arm(&a->f->loop, &a->transfer->timer, a->f->loop.now + SCOUT_US);
    if (!flight_rejoin(a))
        return CURL_SOCKET_BAD;
    fd = socket(addr->family, addr->socktype, addr->protocol);
    if (fd < 0 || (fd < FD_SETSIZE && set_flags(fd, 0) == 0))
        return fd;
    close(fd);
    return CURL_SOCKET_BAD;
}

/* libcurl had no memory to note who uses a socket. It keeps half of the note,
 * and (7.88) divides by zero when that descriptor comes again. So all that has
 * a connection leaves this multi at once, and there is a new one when its last
 * lookup has ended. */
static void starve(struct fetcher *f) {
    struct node *n;

    f->starved = true;
    for (n = tree_first(f->attempts); n; n = tree_next(f->attempts, n)) {
        struct attempt *a = container_of(n, struct attempt, all);

        if (!a->transfer)
            continue;
        if (!a->lookup)
            curl_multi_remove_handle(f->multi, a->easy);
        fail_memory(a->transfer);
        schedule(f, a->transfer, ACT_END);
    }
}

/* Other errors need no answer here: a transfer learns of them by its DONE
 * message, or its time limit. */
static void socket_action(struct fetcher *f, curl_socket_t fd, int mask) {
    int running;

    if (curl_multi_socket_action(f->multi, fd, mask, &running) ==
        CURLM_OUT_OF_MEMORY)
        starve(f);
}

/* A step begins, or has brought something. A millisecond is near enough: to ask
 * for CPU time takes longer than to look at the clock. */
static void hear(struct fetcher *f, usec now) {
    if (now - f->heard < 1000)
        return;
    f->heard = now;
    f->heard_cpu = cpu_us();
}

static int local_port(int fd) {
    struct sockaddr_storage at = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof at;
    void *where = &at;

    if (getsockname(fd, where, &size) < 0)
        return 0;
    if (at.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)where)->sin6_port);
    if (at.ss_family == AF_INET)
        return ntohs(((struct sockaddr_in *)where)->sin_port);
    return 0;
}

static bool is_at(const struct attempt *a, int port) {
    long own = 0;

    curl_easy_getinfo(a->easy, CURLINFO_LOCAL_PORT, &own);
    return own == port;
}

/* Does it use this connection, with a request that went out before the present
 * step began? A handshake may take its time, and so may a body that is sent. */
static bool waits_at(const struct attempt *a, int port) {
    usec ready = time_of(a->easy, CURLINFO_PRETRANSFER_TIME_T);

    return a->transfer && is_at(a, port) && ready > 0 &&
           (!has_body(&a->transfer->rq) || a->head_bytes > 0) &&
           a->began + ready < listening(a->f);
}

/* One such step proves nothing: a virtual machine that was left waiting takes
 * that for CPU time. It takes some, one soon after the other. */
static void waste_add(struct attempt *a, usec cpu) {
    usec now = clock_now(&a->f->loop);
    usec kept = a->wasted - (now - a->wasted_at) / WASTE_FORGIVEN;

    if (cpu > WASTE_COUNTED_US && cpu < WASTE_SURE_US)
        cpu = WASTE_COUNTED_US;
    a->wasted = cpu + (kept > 0 ? kept : 0);
    a->wasted_at = now;
}

/* What comes at this connection for those who have yielded brings nothing for
 * now, and is no flood. */
static bool somebody_yielded_at(const struct fetcher *f, int port) {
    struct node *n;

    for (n = tree_first(f->yielded); n; n = tree_next(f->yielded, n))
        if (is_at(container_of(n, struct attempt, yielded), port))
            return true;
    return false;
}

/* Frames of HTTP/2 that bring no body, a chunk's extension without end, empty
 * blocks of gzip: libcurl reads on and calls nobody, so on_body() can't stop
 * it. It takes CPU time for nothing; and who makes it do so again and again is
 * not worth another answer. */
static void flood_judge(struct fetcher *f, int fd) {
    usec cpu = cpu_us() - f->heard_cpu;
    int port = local_port(fd);
    struct node *n;

    if (cpu < WASTE_US || !port || somebody_yielded_at(f, port))
        return;
    for (n = tree_first(f->attempts); n; n = tree_next(f->attempts, n)) {
        struct attempt *a = container_of(n, struct attempt, all);

        if (!waits_at(a, port))
            continue;
        waste_add(a, cpu);
        if (a->wasted < WASTE_MAX_US)
            continue;
        a->reusable = false;
        (void)curl_easy_setopt(a->easy, CURLOPT_FORBID_REUSE, 1L);
        fail(a->transfer, FETCHER_PROTOCOL,
             "the server floods us with what is no answer");
        schedule(f, a->transfer, ACT_END);
    }
}

static void socket_ready(struct fetcher *f, int fd, int events, void *wakeup) {
    int mask = 0;

    if (wakeup)
        wakeup_drain(fd);
    if (events & FETCHER_READ)
        mask |= CURL_CSELECT_IN;
    if (events & FETCHER_WRITE)
        mask |= CURL_CSELECT_OUT;
    if (events & FETCHER_GONE)
        mask |= CURL_CSELECT_ERR;
    hear(f, f->loop.now);
    socket_action(f, fd, mask);
    if (clock_now(&f->loop) - f->heard >= WASTE_US)
        flood_judge(f, fd);
}

/* A descriptor out of select()'s range can only be one of libcurl's resolver,
 * which it polls by its timeout as well. Never return -1: that ends every
 * transfer. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg,
                     void *unused) {
    struct fetcher *f = arg;
    struct watch w = {NETWORK, 0, socket_ready, NULL, 0};

    if (what != CURL_POLL_REMOVE)
        w.events = what; /* CURL_POLL_IN, OUT and INOUT are as ours */
    if (is_wakeup(&f->quirks, easy))
        w.arg = f;
    if (fd >= 0 && fd < FD_SETSIZE)
        (void)watch_set(&f->loop, fd, w);
    return 0;
}

/* libcurl's sockets. Where the slice ends, or the rate limit's budget, the next
 * turn begins: by this rotation the last of 900 is heard. In debt to the rate
 * limit nothing is read. */
static void serve_sockets(struct fetcher *f) {
    struct loop *l = &f->loop;
    int count = l->top + 1;
    int first = f->first_socket;
    int steps = 0;
    bool indebted = l->throttled;

    for (int i = 0; i < count; i++) {
        int fd = (first + i) % count;
        int events = l->watch[fd].owner == NETWORK ? watch_ready(l, fd) : 0;

        if (l->throttled && !indebted && (events & FETCHER_READ)) {
            f->first_socket = fd;
            indebted = true;
        }
        if (l->throttled)
            events &= ~FETCHER_READ;
        if (!events)
            continue;
        if (!slice_left(l, steps)) {
            f->first_socket = fd;
            return;
        }
        watch_call(l, fd, events, IN_SOCKETS);
        steps++;
    }
}

static void kick_over(struct fetcher *f, void *arg) {
    f->kick_due = true;
}

/* A kick may read from sockets too: so there is none while in debt to the rate
 * limit. */
static void curl_timer_fired(struct fetcher *f) {
    if (!f->kick_due || f->loop.throttled)
        return;
    f->kick_due = false;
    socket_action(f, CURL_SOCKET_TIMEOUT, 0);
    step_done(&f->loop, IN_SOCKETS, -1);
}

/* -- handles ---------------------------------------------------------------
 * SET, in a function that has the handle `e` and a sum of errors `bad`. */
#define SET(option, value)                                                     \
    (bad |= (unsigned)curl_easy_setopt(e, CURLOPT_##option, value))

/* For 1 GiB a buffer of 512 KiB takes half the CPU time of one of 16 KiB; for
 * small files it is all the same. So few get much, and many little, 1 MiB in
 * all. A low rate limit wants small ones. With TLS no more than a record comes
 * at a time, and a buffer is how much of HTTP/2's frames 8.7 and newer read
 * without asking us. What is to be inflated may become a thousand times as
 * much, which libcurl keeps while the transfer is paused: 64 MiB, and then it
 * gives up. */
static long buffer_size(const struct fetcher *f, const struct transfer *t) {
    size_t most = (size_t)f->limit_total;
    size_t many = f->loop.pending < most ? f->loop.pending : most;
    bool record = t->host->tls && !f->quirks.reads_frames;
    long size = record ? 16384 : 512 * 1024;

    if (t->rq.flags & FETCHER_COMPRESSED)
        return 1024;
    while (size > 16384 && size * (long)many > 1024 * 1024)
        size /= 2;
    while (size > 1024 && f->rate && size > f->rate / 64)
        size /= 2;
    return size;
}

/* libcurl's own time limits join its resolver thread, ours don't: so its limit
 * for connecting is far away (0 would be its usual 300 s). */
static unsigned set_common(struct attempt *a) {
    CURL *e = a->easy;
    unsigned bad = (unsigned)set_protocols(e);

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
    return bad;
}

/* To read the bundle of all certificates costs 20 ms, and for each connection
 * if CAPATH is set (as distributions do), which turns its cache off. With
 * OpenSSL a hashed directory alone is better: only one is read. Both options
 * are unknown to a libcurl without TLS. */
static void set_trust(struct attempt *a) {
    if (a->f->capath)
        (void)curl_easy_setopt(a->easy, CURLOPT_CAINFO, NULL);
    (void)curl_easy_setopt(a->easy, CURLOPT_CAPATH, a->f->capath);
}

static void handle_free(struct attempt *a) {
    curl_easy_cleanup(a->easy);
    curl_slist_free_all(a->headers);
    free(a->fields);
    free(a);
}

static struct attempt *pool_take(struct fetcher *f) {
    struct attempt *a = f->pool;

    if (a) {
        f->pool = a->next;
        f->pooled--;
    }
    return a;
}

/* To the pool, or freed. Only a handle without a running lookup may come here.
 * If nothing has happened to it that could leave a trace it serves again: a new
 * one costs a tenth of what a small file does. */
static void attempt_release(struct attempt *a) {
    struct fetcher *f;
    long os_errno = 0;

    if (!a)
        return;
    f = a->f;
    if (a->transfer)
        a->transfer->attempt = NULL;
    curl_easy_getinfo(a->easy, CURLINFO_OS_ERRNO, &os_errno);
    lookup_end(a);
    tree_remove(&f->yielded, &a->yielded);
    tree_remove(&f->attempts, &a->all);
    curl_multi_remove_handle(f->multi, a->easy);
    if (!f->transfers || f->pooled >= POOL_MAX || f->quirks.header_dangles ||
        !a->reusable || os_errno || a->headers || !a->done ||
        a->result != CURLE_OK || a->fields_room > FIELDS_USUAL) {
        handle_free(a);
        return;
    }
    a->next = f->pool;
    f->pool = a;
    f->pooled++;
}

static struct attempt *attempt_alloc(struct attempt *blank) {
    struct attempt *a;

    blank->easy = curl_easy_init();
    if (!blank->easy)
        return NULL;
    a = malloc(sizeof *a);
    if (a)
        *a = *blank;
    else
        curl_easy_cleanup(blank->easy);
    return a;
}

/* A new one; or one from the pool, if its buffer has the right size. */
static struct attempt *attempt_make(struct transfer *t, bool reusable,
                                    unsigned *bad) {
    struct fetcher *f = t->f;
    struct attempt blank = {.f = f, .reusable = reusable};
    struct attempt *a = reusable ? pool_take(f) : NULL;

    blank.buffer = buffer_size(f, t);
    if (a && a->buffer == blank.buffer) {
        blank.easy = a->easy;
        blank.fields = a->fields;
        blank.fields_room = a->fields_room;
        *a = blank;
        return a;
    }
    if (a)
        handle_free(a);
    a = attempt_alloc(&blank);
    if (!a)
        return NULL;
    *bad = set_common(a);
    set_trust(a);
    return a;
}

/* Does OpenSSL find certificates in this directory? */
static bool is_hashed(const char *capath) {
    DIR *dir = capath ? opendir(capath) : NULL;
    struct dirent *e;
    bool hashed = false;

    if (!dir)
        return false;
    while (!hashed && (e = readdir(dir)) != NULL)
        hashed = strspn(e->d_name, "0123456789abcdef") == 8 &&
                 strcmp(e->d_name + 8, ".0") == 0;
    closedir(dir);
    return hashed;
}

static int multi_open(struct fetcher *f) {
    CURLM *m = curl_multi_init();

    f->multi = m;
    if (!m ||
        curl_multi_setopt(m, CURLMOPT_SOCKETFUNCTION, on_socket) != CURLM_OK ||
        curl_multi_setopt(m, CURLMOPT_SOCKETDATA, f) != CURLM_OK)
        return set_errno(ENOMEM);
    set_lookup_pool(m, 2 * LOOKUPS_MAX);
    f->starved = false;
    return 0;
}

static int curl_open(struct fetcher *f) {
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
    const char *capath = default_capath(v);

    f->quirks = curl_quirks(v->version_num);
    f->inflates = v->features & CURL_VERSION_LIBZ;
    f->kick.call.cb = kick_over;
    f->young_timer.call.cb = lookups_age;
    f->stray_timer.call.cb = strays_end;
    if (multi_open(f) < 0)
        return -1;
    if (!is_hashed(capath))
        return 0;
    f->capath = text_join(capath, "");
    return f->capath ? 0 : set_errno(ENOMEM);
}

static int multi_renew(struct fetcher *f) {
    CURLM *old = f->multi;
    CURLM *gone = old;
    int result = multi_open(f);

    if (result < 0) {
        gone = f->multi;
        f->multi = old;
    }
    curl_multi_cleanup(gone);
    return result;
}

/* At the very end handles may still be parked. A libcurl that can leave a
 * lookup behind is told to; with an older one they and their multi are left to
 * the operating system rather than wait. */
static void curl_close(struct fetcher *f) {
    bool parked = f->attempts != NULL;

    if (parked && !f->quirks.quick_exit)
        return;
    while (f->attempts) {
        struct attempt *a = container_of(f->attempts, struct attempt, all);
        CURLoption quick = (CURLoption)OPT_QUICK_EXIT;

        (void)(curl_easy_setopt)(a->easy, quick, 1L);
        attempt_release(a);
    }
    curl_multi_cleanup(f->multi);
}

/* ================================================================= Transfers
 * A transfer waits in its host's queue, is attempted, and ends or is attempted
 * again. Ours are the queue (libcurl's own holds everything up in single calls
 * of 50 ms), the limits, the time limits (libcurl's wait for its resolver),
 * and what an answer means for the bytes that are there.
 */

/* -- hosts and the queue --------------------------------------------------- */

static bool host_known(const struct fetcher *f, const struct host *h) {
    return h->known > f->loop.now || (h->numeric && !h->tls);
}

/* May this host start one? As long as it is unknown only a scout: two would
 * look the name up. And none while the lookup of one that was given up goes on:
 * it would take as long. One that is full stands apart, until a place is free,
 * or the limit is another. */
static void host_place(struct fetcher *f, struct host *h) {
    struct node *first = tree_first(h->queue);
    bool known = host_known(f, h);
    int kind = h->hung ? ADDRESS_HUNG : ADDRESS_UNKNOWN;

    tree_remove(h->ready_in, &h->ready);
    if (!first || h->rest > f->loop.now || (!known && h->looking))
        return;
    if (known || h->numeric)
        kind = ADDRESS_KNOWN;
    h->ready_in = &f->ready[kind];
    if (host_full(f, h))
        h->ready_in = &f->full;
    h->ready.key = first->key;
    tree_add(h->ready_in, &h->ready);
}

/* A host that nobody uses is forgotten, unless it asked for rest, or is still
 * looked up. */
static void host_forget(struct fetcher *f, struct host *h) {
    if (h->users || (h->rest > f->loop.now && !f->closing))
        return;
    if (h->looking && !f->closing)
        return;
    tree_remove(h->ready_in, &h->ready);
    tree_remove(&f->hosts, &h->name);
    timer_disarm(&f->loop, &h->timer);
    if (f->last == h)
        f->last = NULL;
    free(h);
}

static usec limit_us(int64_t ms) {
    return ms < 0 ? FOREVER : usec_of_ms(ms);
}

/* The time for all attempts of a round counts from now on, or does already. */
static void time_count(struct fetcher *f, struct transfer *t) {
    if (!t->counting)
        t->began = serving(f);
    t->counting = true;
}

/* When, on the loop's clock, the time for all attempts is over. */
static usec total_due(const struct fetcher *f, const struct transfer *t) {
    return f->loop.now + limit_us(t->rq.total_ms) - (serving(f) - t->began);
}

/* While a host rests, the time of those that wait for it counts. There may be a
 * million: some at a time. */
static void host_due(struct fetcher *f, void *arg) {
    struct host *h = arg;

    for (int i = 0; i < 256 && h->rest > f->loop.now; i++) {
        struct node *n = lower_bound(h->queue, h->counted_key, h->counted_seq);
        struct transfer *t;

        if (!n) {
            timer_arm(&f->loop, &h->timer, h->rest);
            return;
        }
        t = container_of(n, struct transfer, queued);
        h->counted_key = n->key;
        h->counted_seq = n->seq + 1;
        time_count(f, t);
        timer_arm(&f->loop, &t->timer, total_due(f, t));
    }
    if (h->rest > f->loop.now)
        timer_arm(&f->loop, &h->timer, f->loop.now);
    host_place(f, h);
    host_forget(f, h);
}

/* Literal addresses and localhost need no lookup. */
static bool is_numeric(const char *name) {
    return *name == '[' || strncmp(name, "localhost:", 10) == 0 ||
           strspn(name, "0123456789.:") == strlen(name);
}

/* Hashes that collide share limits, no more. */
static struct host *host_get(struct fetcher *f, const char *origin) {
    uint64_t hash = text_hash(origin, strlen(origin));
    struct node *n = tree_find(f->hosts, hash);
    struct host *h;

    if (n)
        return container_of(n, struct host, name);
    h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->name.key = (int64_t)hash;
    h->ready.seq = ++f->loop.serial;
    h->ready_in = f->ready;
    h->timer.call = (struct call){host_due, h};
    h->tls = strncmp(origin, "https", 5) == 0;
    h->numeric = is_numeric(strstr(origin, "://") + 3);
    tree_add(&f->hosts, &h->name);
    return h;
}

static bool lookup_may_begin(const struct fetcher *f) {
    return f->younger < YOUNG_MAX && f->lookups + f->strays < f->lookups_most;
}

/* A host that is to be looked up. Those whose lookup has hung come last. */
static struct node *unknown_next(struct fetcher *f) {
    struct node *unknown = tree_first(f->ready[ADDRESS_UNKNOWN]);
    struct node *hung = tree_first(f->ready[ADDRESS_HUNG]);

    if (!lookup_may_begin(f))
        return NULL;
    if (!unknown || (hung && hung->key < unknown->key))
        return hung;
    return unknown;
}

/* Whose turn is it? The higher priority's, then the host's that has waited
 * longest. While all lookups are in use, only a host whose address is known
 * can start. */
static struct host *host_next(struct fetcher *f) {
    for (;;) {
        struct node *best = tree_first(f->ready[ADDRESS_KNOWN]);
        struct node *unknown = unknown_next(f);
        struct host *h;

        if (unknown && (!best || node_before(unknown, best)))
            best = unknown;
        if (!best)
            return NULL;
        h = container_of(best, struct host, ready);
        if (!host_full(f, h) &&
            (best == unknown || h->numeric || host_known(f, h)))
            return h;
        host_place(f, h); /* its address is old, or the limit new */
    }
}

static void tell_state(struct fetcher *f, struct transfer *t,
                       enum fetcher_state state) {
    struct fetcher_info info;

    t->state = state;
    if (!t->rq.on_progress || fetcher_info(f, (fetcher_id)t->id.key, &info) < 0)
        return;
    t->progressed = f->loop.now;
    t->rq.on_progress(f, &info, t->rq.arg);
}

/* Without a call of on_progress, since we may be in fetcher_start. */
static void enqueue(struct fetcher *f, struct transfer *t, bool in_front) {
    timer_disarm(&f->loop, &t->timer);
    t->queued.key = -2 * (int64_t)t->rq.priority;
    if (in_front)
        t->queued.key--;
    t->queued.seq = ++f->loop.serial;
    tree_add(&t->host->queue, &t->queued);
    f->waiting++;
    host_place(f, t->host);
    t->state = FETCHER_WAITING;
    if (t->host->rest > f->loop.now)
        time_count(f, t);
    if (t->counting)
        timer_arm(&f->loop, &t->timer, total_due(f, t));
    if (!f->loop.busy)
        f->loop.more = true;
}

static void dequeue(struct fetcher *f, struct transfer *t) {
    if (!t->queued.in)
        return;
    tree_remove(&t->host->queue, &t->queued);
    f->waiting--;
    host_place(f, t->host);
}

/* -- URLs ------------------------------------------------------------------ */

static char *url_part(CURLU *u, CURLUPart part, unsigned flags) {
    char *text = NULL;

    return curl_url_get(u, part, &text, flags) == CURLUE_OK ? text : NULL;
}

/* Was the scheme left out? People type "example.org/x" or "me:pw@host": a host
 * with a dot, localhost, or what follows a name, is taken for one of http. What
 * to put before it. */
static const char *url_missing_scheme(const char *url) {
    size_t n = strcspn(url, ":/?#");

    if (strncmp(url + n, "://", 3) == 0)
        return "";
    if (memchr(url, '.', n) || (n == 9 && strncmp(url, "localhost", 9) == 0))
        return "http://";
    if (memchr(url, '@', strcspn(url, "/?#")) && *url != '@' &&
        strncasecmp(url, "http:", 5) != 0 &&
        strncasecmp(url, "https:", 6) != 0 &&
        strncasecmp(url, "mailto:", 7) != 0)
        return "http://";
    return "";
}

/* A copy in which all is encoded that a browser does: in the path and in the
 * query, but no '%', which is there already. */
static void url_encode(char *to, const char *url) {
    const char *unfit = NULL;
    const char *path = strstr(url, "://");

    path = path ? path + 3 + strcspn(path + 3, "/?#") : url + strlen(url);
    for (; *url; url++) {
        if (url == path)
            unfit = " \"<>^`{|}";
        if (unfit && *url == '?')
            unfit = "' \"<>^`{|}";
        if (unfit && ((*url & 0x80) || strchr(unfit, *url)))
            to += sprintf(to, "%%%02X", (unsigned char)*url);
        else {
            *to = *url;
            to++;
        }
    }
    *to = '\0';
}

/* As people paste it, without spaces around it and with a scheme; behind that
 * it stands encoded. NULL: out of memory. */
static char *url_complete(const char *url, const char **encoded) {
    const char *scheme;
    char *asked;
    char *to;
    size_t n;

    url += strspn(url, " ");
    n = strlen(url);
    while (n > 0 && url[n - 1] == ' ')
        n--;
    scheme = url_missing_scheme(url);
    asked = malloc(4 * (strlen(scheme) + n) + 2);
    if (!asked)
        return NULL;
    sprintf(asked, "%s%.*s", scheme, (int)n, url);
    to = asked + strlen(asked) + 1;
    url_encode(to, asked);
    *encoded = to;
    return asked;
}

/* Put an origin together, in small letters. Returns what is wrong with it. */
static const char *origin_build(CURLU *u, char *origin, size_t room) {
    char *scheme = url_part(u, CURLUPART_SCHEME, 0);
    char *host = url_part(u, CURLUPART_HOST, 0);
    char *port = url_part(u, CURLUPART_PORT, CURLU_DEFAULT_PORT);
    const char *wrong = "not a URL";

    if (scheme && strcasecmp(scheme, "http") && strcasecmp(scheme, "https"))
        wrong = "only http and https are fetched";
    else if (scheme && host && *host && port &&
             snprintf(origin, room, "%s://%s:%s", scheme, host, port) <
                 (int)room)
        wrong = NULL;
    for (char *s = origin; !wrong && *s; s++)
        *s = (char)tolower((unsigned char)*s);
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    return wrong;
}

/* The origin of a URL, such as "https://example.org:443". Returns what is
 * wrong with it, or NULL. */
static const char *url_origin(const char *url, char *origin, size_t room) {
    CURLU *u = curl_url();
    CURLUcode c = CURLUE_OUT_OF_MEMORY;
    const char *wrong = "not a URL";

    if (u)
        c = curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME);
    if (c == CURLUE_BAD_PORT_NUMBER)
        wrong = "not a URL: its port is out of range";
    if (c == CURLUE_OK)
        wrong = origin_build(u, origin, room);
    curl_url_cleanup(u);
    return wrong;
}

/* The bytes of a URL up to its path: scheme and authority. 0: it has not that
 * form. libcurl takes http:/x and http:///x as well, we don't. */
static size_t authority_size(const char *url) {
    size_t n = strcspn(url, ":/?#");

    if (strncmp(url + n, "://", 3) != 0 || strchr("/?#", url[n + 3]))
        return 0;
    return n + 3 + strcspn(url + n + 3, "/?#");
}

/* The host of a URL; what is not a URL has one too, of no name. To take a URL
 * apart is slow, and most come in runs from one host: so the last one is known
 * by its beginning. */
static struct host *url_host(struct fetcher *f, const char *url,
                             const char **wrong) {
    char origin[512] = "://";
    size_t n = authority_size(url);
    bool fits = n > 0 && n < sizeof f->authority && url[n] == '/' && !*wrong;
    struct host *h;

    if (fits && f->last && strncmp(url, f->authority, n) == 0 &&
        !f->authority[n])
        return f->last;
    if (!*wrong)
        *wrong = url_origin(url, origin, sizeof origin);
    if (!*wrong && n == 0)
        *wrong = "not a URL";
    h = host_get(f, origin);
    if (!fits || *wrong || !h)
        return h;
    memcpy(f->authority, url, n);
    f->authority[n] = '\0';
    f->last = h;
    return h;
}

/* A copy for the eye, without any password: what libcurl can't take apart is
 * shown from '@' on. */
static char *url_shown(const char *url) {
    const char *at = strrchr(url, '@');
    CURLU *u = at ? curl_url() : NULL;
    char *part = NULL;
    char *clean;

    if (u &&
        curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) ==
            CURLUE_OK &&
        curl_url_set(u, CURLUPART_PASSWORD, NULL, 0) == CURLUE_OK)
        part = url_part(u, CURLUPART_URL, 0);
    if (at)
        url = part ? part : at;
    clean = malloc(strlen(url) + 1);
    if (clean)
        text_clean(clean, strlen(url) + 1, url, '?');
    curl_free(part);
    curl_url_cleanup(u);
    return clean;
}

/* -- the head of the answer ------------------------------------------------
 * One reader for all versions: libcurl's own, of 7.83, only answers when the
 * head is whole. */

/* A date in the forms of RFC 9110, 5.6.7, which begin with the day's name:
 * libcurl takes much more for a date. -1: it is none. */
static time_t http_date(const char *s) {
    char day[4] = "";

    memcpy(day, s, strnlen(s, sizeof day - 1));
    if (!listed(day, "Mon Tue Wed Thu Fri Sat Sun"))
        return -1;
    return curl_getdate(s, NULL);
}

/* Seconds or a date, which counts from the answer's own, since clocks differ;
 * and an hour at most. -1: neither. */
static usec read_retry_after(const char *s, const char *answered) {
    int64_t seconds = text_number(&s);

    if (seconds < 0 || *s) {
        time_t date = http_date(s);
        time_t from = http_date(answered);

        if (date < 0)
            return -1;
        seconds = (int64_t)date - (int64_t)(from < 0 ? time(NULL) : from);
    }
    if (seconds > 3600)
        return HOUR_US;
    return seconds > 0 ? seconds * 1000000 : 0;
}

/* One that is repeated is the same each time, here and in a list such as
 * "5, 5"; two that differ leave open where the body ends (RFC 9112, 6.3). */
static void read_length(struct head *h, const char *value) {
    bool good = *value != '\0';

    while (good && *value) {
        int64_t length = text_number(&value);

        good = length >= 0 && length < INT64_MAX / 20 &&
               (h->length < 0 || length == h->length);
        h->length = length;
        value += strspn(value, " \t");
        if (*value == ',')
            value += 1 + strspn(value + 1, " \t");
        else if (*value)
            good = false;
    }
    if (!good)
        h->wrong = "the answer's length is broken: Content-Length";
}

/* Before 8.14 libcurl inflates what comes as "gzip, chunked", though nobody
 * asked for that. */
static void read_coding(struct head *h, const char *value) {
    h->coded = true;
    if (!*value)
        h->wrong = "the answer's head is broken";
    else if (strcasecmp(value, "chunked") != 0 &&
             strcasecmp(value, "identity") != 0)
        h->wrong = "the answer is coded as it was not asked to be";
}

/* And it inflates whatever it can, again and again, once it was told to inflate
 * anything. */
static void read_encoding(struct head *h, const char *value) {
    const struct attempt *a = container_of(h, struct attempt, head);
    struct validators *v = &h->validators;

    if (strcasecmp(value, "identity") == 0 || strcasecmp(value, "none") == 0)
        return;
    if ((a->transfer->rq.flags & FETCHER_COMPRESSED) &&
        (v->encoding[0] ||
         (strcasecmp(value, "gzip") != 0 && strcasecmp(value, "x-gzip") != 0 &&
          strcasecmp(value, "deflate") != 0)))
        h->wrong = "the answer is coded as it was not asked to be";
    snprintf(v->encoding, sizeof v->encoding, "%s", value);
}

/* Do two origins belong to one server? It may ask for TLS. */
static bool same_server(const char *from, const char *to) {
    size_t n = strlen(from);
    bool plain = strncmp(from, "http:", 5) == 0;
    char secure[520] = "";

    if (plain && strcmp(from + n - 3, ":80") == 0)
        snprintf(secure, sizeof secure, "https%.*s:443", (int)(n - 7),
                 from + 4);
    return strcmp(from, to) == 0 || strcmp(secure, to) == 0;
}

/* Where a redirect leads, as libcurl will see it. */
static bool leads_away(const struct attempt *a, const char *location) {
    char from[512];
    char to[512];
    char *url = NULL;
    CURLU *u = curl_url();
    bool away = true;

    curl_easy_getinfo(a->easy, CURLINFO_EFFECTIVE_URL, &url);
    if (u && url && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
        curl_url_set(u, CURLUPART_URL, location, CURLU_URLENCODE) ==
            CURLUE_OK &&
        !origin_build(u, to, sizeof to) &&
        !url_origin(a->transfer->rq.url, from, sizeof from))
        away = !same_server(from, to);
    curl_url_cleanup(u);
    return away;
}

/* In doubt it leads away, as where there are two: to compare takes its time.
 * That is of interest only if there is something to be kept back. */
static void read_location(struct head *h, const char *value) {
    const struct attempt *a = container_of(h, struct attempt, head);

    if (a->headers != a->open && !h->away)
        h->away = h->leads || h->folded || leads_away(a, value);
    h->leads = true;
}

/* A star stands for a total that isn't known and, with a 416, for the range. */
static int64_t range_number(const char **s) {
    if (**s != '*')
        return text_number(s);
    (*s)++;
    return -1;
}

static void read_range(struct head *h, const char *value) {
    const struct content_range old = h->range;
    struct content_range *r = &h->range;

    *r = NO_RANGE;
    if (strncasecmp(value, "bytes ", 6) == 0) {
        value += 6;
        r->first = range_number(&value);
        if (*value == '-') {
            value++;
            r->last = text_number(&value);
        }
        if (*value == '/') {
            value++;
            r->total = range_number(&value);
        }
        if (*value)
            r->last = -1;
    }
    if (h->ranged && memcmp(&old, r, sizeof old) != 0)
        *r = NO_RANGE; /* two that differ say nothing */
    h->ranged = true;
}

static void read_age(struct head *h, const char *value) {
    int64_t seconds = text_number(&value);

    h->age_s = seconds > 0 ? seconds : 0;
}

/* Of several the longest counts; and "no-cache" outdoes them all. (RFC 9111,
 * 5.2.2) */
static void read_cache(struct head *h, const char *value) {
    while (*value) {
        value += strspn(value, ", \t");
        if (strncasecmp(value, "no-cache", 8) == 0 ||
            strncasecmp(value, "no-store", 8) == 0)
            h->fresh_s = 0;
        if (strncasecmp(value, "max-age=", 8) == 0 && h->fresh_s != 0) {
            const char *number = value + 8 + strspn(value + 8, "\"");
            int64_t seconds = text_number(&number);

            if (seconds > h->fresh_s)
                h->fresh_s = seconds;
        }
        value += strcspn(value, ",");
    }
}

static const struct {
    const char *name;
    void (*read)(struct head *, const char *value); /* NULL: a text, ... */
    size_t field; /* ... which goes there, whole or not at all */
    size_t room;
} fields[] = {

#define HEAD_TEXT(member)                                                      \
    NULL, offsetof(struct head, member), sizeof((struct head *)NULL)->member
    {"ETag", HEAD_TEXT(validators.etag)},
    {"Date", HEAD_TEXT(validators.date)},
    {"Last-Modified", HEAD_TEXT(validators.modified)},
    {"Retry-After", HEAD_TEXT(retry_after)},
    {"Transfer-Encoding", read_coding, 0, 0},
    {"Content-Encoding", read_encoding, 0, 0},
    {"Content-Length", read_length, 0, 0},
    {"Content-Range", read_range, 0, 0},
    {"Location", read_location, 0, 0},
    {"Cache-Control", read_cache, 0, 0},
    {"Age", read_age, 0, 0},
};

static void head_field(struct head *h, const char *name, const char *value) {
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        if ((*name | 0x20) != (*fields[i].name | 0x20) || /* most differ here */
            strcasecmp(name, fields[i].name) != 0)
            continue;
        if (fields[i].read)
            fields[i].read(h, value);
        else
            text_field((char *)h + fields[i].field, fields[i].room, value);
    }
}

/* What is kept of it is the name alone. */
static void read_disposition(struct attempt *a, const char *value) {
    char *name = malloc(DISPOSITION_ROOM(value));

    if (!name) {
        fail_memory(a->transfer);
        return;
    }
    disposition_name(value, name);
    if (*name)
        text_field(a->head.name, sizeof a->head.name, name);
    free(name);
}

/* Of "HTTP/1.1 200 OK" the status; -1: it has not that form (RFC 9112, 4). */
static int read_status(const char *line) {
    const char *version = line + 5;
    const char *s = version + strcspn(version, " ");
    bool good = isdigit((unsigned char)*version);

    if (s - version == 3)
        good = good && version[1] == '.' && isdigit((unsigned char)version[2]);
    else
        good = good && s - version == 1;
    if (!good || *s != ' ' || strspn(s + 1, "0123456789") != 3)
        return -1;
    s++;
    return s[3] && s[3] != ' ' ? -1 : (int)text_number(&s);
}

/* What a status means, for a server that leaves it out, as HTTP/2 does. */
static const char *reason_of(int status) {
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{400, "Bad Request"},
                   {401, "Unauthorized"},
                   {402, "Payment Required"},
                   {403, "Forbidden"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {406, "Not Acceptable"},
                   {407, "Proxy Authentication Required"},
                   {408, "Request Timeout"},
                   {409, "Conflict"},
                   {410, "Gone"},
                   {412, "Precondition Failed"},
                   {413, "Content Too Large"},
                   {414, "URI Too Long"},
                   {415, "Unsupported Media Type"},
                   {416, "Range Not Satisfiable"},
                   {421, "Misdirected Request"},
                   {425, "Too Early"},
                   {429, "Too Many Requests"},
                   {451, "Unavailable For Legal Reasons"},
                   {500, "Internal Server Error"},
                   {501, "Not Implemented"},
                   {502, "Bad Gateway"},
                   {503, "Service Unavailable"},
                   {504, "Gateway Timeout"},
                   {505, "HTTP Version Not Supported"}};

    for (size_t i = 0; i < COUNT_OF(reasons); i++) {
        if (reasons[i].status == status)
            return reasons[i].reason;
    }
    return status < 400 ? "is no document" : "is an error";
}

/* A line that begins with "HTTP/" is a field like others, or a trailer, unless
 * a head is due: one at the beginning, one after each 1xx, and one more for
 * each redirect that is followed (or login that is tried). */
static bool head_is_due(const struct attempt *a, long request) {
    const struct head *h = &a->head;

    if (h->status == 0 || request != h->request)
        return true;
    return h->ended && h->status < 200;
}

/* A redirect may set a cookie, and ask for it where it leads: libcurl is to
 * keep cookies from this head on, in memory, as long as the handle lives, which
 * is no longer than the transfer. So nobody pays for it who isn't led on.
 * (Where there are none it knows neither option.) */
static void cookies_keep(struct attempt *a) {
    a->reusable = false;
    (void)curl_easy_setopt(a->easy, CURLOPT_COOKIEFILE, "");
    (void)curl_easy_setopt(a->easy, CURLOPT_COOKIELIST, "RELOAD");
}

static bool is_redirect(int status) {
    return status >= 300 && status <= 399 && status != 304;
}

/* It overwrites that of a redirect, or of a 100. */
static void head_start(struct attempt *a, const char *line, long request) {
    struct host *host = a->transfer->host;
    struct head *h = &a->head;

    if (h->status) /* the handle has seen a redirect */
        a->reusable = false;
    *h = (struct head){
        .request = request, .length = -1, .range = NO_RANGE, .fresh_s = -1};
    h->status = read_status(line);
    if (h->status < 0)
        h->wrong = "the answer's first line is broken";
    if (request == 0) /* else it is another host's */
        host->shares = host->tls && line[5] >= '2';
    if (is_redirect(h->status))
        cookies_keep(a);
    line += strcspn(line, " ");
    line += strspn(line, " 0123456789");
    text_clean(h->reason, sizeof h->reason, *line ? line : reason_of(h->status),
               '?');
}

/* libcurl leaves out what follows the first line of a folded field, and all of
 * a field with a space before its colon. That matters where it is to find the
 * end of the body by it. */
static bool is_framing(const char *name, size_t n) {
    return (n == 14 && strncasecmp(name, "Content-Length", n) == 0) ||
           (n == 17 && strncasecmp(name, "Transfer-Encoding", n) == 0);
}

/* What has been read is kept behind those before, clean, for fetcher_header:
 * white space is a space. */
static void field_keep(struct attempt *a, char *name, char *value) {
    size_t n = strlen(name) + 1; /* the value may stand further behind */

    for (char *s = value; (s = strchr(s, '\t')) != NULL;)
        *s = ' ';
    text_clean(name, n, name, '?');
    text_clean(name + n, strlen(value) + 1, value, '?');
    a->fields_size += n + strlen(name + n) + 1;
}

static void field_end(struct attempt *a) {
    struct head *h = &a->head;
    char *name;
    char *value;
    size_t n;

    if (a->field_size == 0)
        return;
    name = a->fields + a->fields_size;
    n = strcspn(name, " \t:");
    value = name + n + strspn(name + n, " \t");
    if ((h->folded || value > name + n) && is_framing(name, n))
        h->wrong = "the answer's head is broken";
    if (*value == ':') {
        value++;
        value += strspn(value, " \t");
        name[n] = '\0';
        if (strcasecmp(name, "Content-Disposition") == 0)
            read_disposition(a, value);
        head_field(h, name, value);
        field_keep(a, name, value);
    }
    a->field_size = 0;
    h->folded = false;
}

/* The part of a name may take 8 KiB, so fields are on the heap. */
static void field_add(struct attempt *a, const char *line, size_t n) {
    size_t size = a->fields_size + a->field_size;
    size_t need = size + n + 2; /* a NUL, and that before the first line */
    char *longer;

    if (need > a->fields_room) {
        longer = realloc(a->fields, 2 * need);
        if (!longer) {
            fail_memory(a->transfer);
            return;
        }
        a->fields = longer;
        a->fields_room = 2 * need;
    }
    memcpy(a->fields + size, line, n);
    a->fields[size + n] = '\0';
    a->field_size += n;
}

/* libcurl would send our headers, such as a key, to each host of a redirect;
 * and the login, which went as Basic, beside the Digest that a 401 asked for.
 * And it would send no login from http to https (since 7.83). What its next
 * request has is settled here: it looks at the list when it builds one. */
static void headers_choose(struct attempt *a) {
    const struct head *h = &a->head;
    bool trusts = a->transfer->rq.flags & FETCHER_TRUSTING;
    struct curl_slist *list = a->headers;

    if (h->status == 401)
        a->refused = true;
    else if (is_redirect(h->status))
        a->away = h->away || !h->leads;
    if (a->login && a->refused)
        list = list->next;
    trusts = trusts || !a->away;
    if (!trusts)
        list = a->open;
    (void)curl_easy_setopt(a->easy, CURLOPT_HTTPHEADER, list);
    (void)curl_easy_setopt(a->easy, CURLOPT_UNRESTRICTED_AUTH, (long)trusts);
}

/* What a 303 leads to is asked for by a GET, whatever the method was (RFC 9110,
 * 15.4.4): libcurl would keep one that it does not know. */
static void head_end(struct attempt *a) {
    struct head *h = &a->head;

    field_end(a);
    h->ended = true;
    if (h->coded)
        h->length = -1;
    if (a->headers != a->open)
        headers_choose(a);
    if (h->status == 303)
        (void)curl_easy_setopt(a->easy, CURLOPT_CUSTOMREQUEST, NULL);
    if (a->awaits && h->status >= 200) /* else libcurl waits with it */
        schedule(a->f, a->transfer, ACT_ASK);
    hear(a->f, clock_now(&a->f->loop));
}

/* A head begins, and those of a redirect or a 100 are forgotten. Its first line
 * is kept as the value of a field without a name. */
static void first_line(struct attempt *a, long request) {
    const char *line = a->fields + a->fields_size;
    size_t n = a->field_size + 1;

    head_start(a, line, request);
    memmove(a->fields + 1, line, n);
    a->fields[0] = '\0';
    a->fields_size = 0;
    a->field_size = 0;
    field_keep(a, a->fields, a->fields + 1);
}

/* A line that begins with white space continues the field before (RFC 9112,
 * 5.2). */
static void head_line(struct attempt *a, const char *line, size_t n) {
    bool first = n >= 5 && memcmp(line, "HTTP/", 5) == 0;
    long request = 0;

    curl_easy_getinfo(a->easy, CURLINFO_REDIRECT_COUNT, &request);
    first = first && head_is_due(a, request);
    if (a->head.ended && !first)
        return; /* a trailer */
    if (*line == ' ' || *line == '\t') {
        a->head.folded = true;
        field_add(a, " ", 1);
    } else
        field_end(a);
    for (; n > 0 && (*line == ' ' || *line == '\t'); n--)
        line++;
    field_add(a, line, n);
    if (first && a->field_size > 0)
        first_line(a, request);
}

/* A line, without a NUL. */
static size_t on_header(char *data, size_t one, size_t size, void *arg) {
    struct attempt *a = arg;
    size_t n = size;

    if (!a->transfer)
        return 0;
    host_found(a);
    a->heard = true;
    a->moved = listening(a->f);
    touch(a->f, a->transfer);
    a->head_bytes += size;
    if (a->head_bytes > HEAD_MAX) {
        fail(a->transfer, FETCHER_TOO_BIG, "the answer's headers have no end");
        return 0;
    }
    while (n > 0 && isspace((unsigned char)data[n - 1]))
        n--;
    if (size > 0 && (*data == '\r' || *data == '\n') && data[size - 1] == '\n')
        head_end(a); /* a CR alone is one that was cut: 8.23 hands it over */
    else if (n > 0)
        head_line(a, data, n);
    return a->transfer->code == FETCHER_NO_MEMORY ? 0 : size;
}

/* -- what the answer means for the body ------------------------------------ */

/* What proves that bytes of two answers belong together; NULL: nothing does.
 * The sum of the whole does, at the end, whoever sends them. A weak ETag
 * (W/"...") says "much the same", which isn't enough to join two halves. A
 * Last-Modified proves as much as a strong ETag only if the document had been
 * left alone for a while when it was sent (RFC 9110, 8.8.2.2; a minute is the
 * older and safer rule). To read dates is slow, so it waits until here. */
static const char *validator(struct body *b) {
    const struct validators *v = &b->validators;

    if (b->no_range)
        return NULL;
    if (b->by_sum)
        return b->proof;
    if (v->etag[0] == '"' && !b->no_etag)
        return v->etag;
    if (!b->dated) {
        time_t modified = curl_getdate(v->modified, NULL);
        time_t date = curl_getdate(v->date, NULL);
        b->modified_sure = modified >= 0 && date >= 0 && date >= modified + 60;
        b->dated = true;
    }
    return b->modified_sure ? v->modified : NULL;
}

static void validators_take(struct body *b, const struct validators *v) {
    b->validators = *v;
    b->dated = false;
}

static const char *request_method(const struct fetcher_request *rq) {
    const char *usual = has_body(rq) ? "POST" : "GET";

    return rq->method ? rq->method : usual;
}

static int ask_again(struct attempt *a) {
    a->again = true;
    return -1;
}

/* Ranges are answered wrongly: once more, without. What is there stays until
 * the whole comes. */
static int ask_whole(struct attempt *a) {
    a->transfer->body->ask_whole = true;
    return ask_again(a);
}

static bool is_strong(const char *etag) {
    return etag[0] == '"';
}

/* Is an answer about another document than the one we have a part of? */
static bool document_differs(const struct validators *a,
                             const struct validators *b) {
    if (a->etag[0] && b->etag[0]) {
        if (strcmp(a->etag, b->etag) != 0)
            return true;
        if (is_strong(a->etag))
            return false;
    }
    return a->modified[0] && b->modified[0] &&
           strcmp(a->modified, b->modified) != 0;
}

/* Of one whose sum is known it doesn't matter what its server calls it. */
static bool is_other(const struct head *h, const struct body *b) {
    return !b->by_sum && document_differs(&h->validators, &b->validators);
}

/* Do the numbers of a 206 agree with each other? */
static bool range_good(const struct head *h) {
    const struct content_range *r = &h->range;

    if (r->first < 0 || r->last < r->first)
        return false;
    if (r->total >= 0 && r->last >= r->total)
        return false;
    return h->length < 0 || h->length == r->last - r->first + 1;
}

static bool range_is_all(const struct head *h) {
    return range_good(h) && h->range.first == 0 &&
           h->range.last + 1 == h->range.total;
}

/* It has to start where we stopped, in the same document, whose length is
 * known: else we ask for the whole. */
static bool part_fits(const struct head *h, const struct body *b) {
    int64_t total = h->range.total >= 0 ? h->range.total : b->length;

    if (!range_good(h) || h->range.first != b->have || is_other(h, b) ||
        strcmp(h->validators.encoding, b->validators.encoding) != 0)
        return false;
    return h->range.last < total && (b->length < 0 || b->length == total);
}

/* Are the bytes coded alike, or decoded on the way? */
static bool same_coding(const struct transfer *t, const struct head *h) {
    const struct validators *v = &t->body->validators;

    return (t->rq.flags & FETCHER_COMPRESSED) ||
           strcmp(h->validators.encoding, v->encoding) == 0;
}

/* A stream can't be taken back: it goes on if the bytes are proved the same,
 * and those that were handed on are skipped. */
static int stream_again(struct transfer *t, const struct head *h, int64_t first,
                        int64_t length) {
    struct body *b = t->body;
    bool same = is_strong(h->validators.etag) &&
                strcmp(h->validators.etag, b->validators.etag) == 0 &&
                same_coding(t, h) && first >= 0 && first == b->first &&
                (b->length < 0 || length < 0 || b->length == length);

    b->skip = b->have;
    if (same || !b->have)
        return 0;
    t->hopeless = true;
    return fail(t, FETCHER_CUT_SHORT,
                "cut short, and the document may have changed since");
}

/* The body comes from its beginning. Of one that is decoded on the way nobody
 * knows the length. */
static int begin_anew(struct attempt *a, int64_t first, int64_t length) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;

    if (t->rq.flags & FETCHER_COMPRESSED)
        length = -1;
    if (!t->rq.on_data)
        b->have = 0;
    else if (stream_again(t, &a->head, first, length) < 0)
        return -1;
    b->first = first;
    b->length = length;
    b->whole = false;
    b->by_time = false;
    validators_take(b, &a->head.validators);
    return 0;
}

/* Who gave this answer, as far as it matters whether it is of the same document
 * as another: a redirect may lead elsewhere today, and there an ETag means
 * something else. But not the query, which many sign anew each time. Only what
 * is asked for again needs it. */
static uint64_t place_of(const struct attempt *a) {
    const struct fetcher_request *rq = &a->transfer->rq;
    char *url = NULL;

    if (!rq->every_ms && rq->existing != FETCHER_UPDATE)
        return 0;
    curl_easy_getinfo(a->easy, CURLINFO_EFFECTIVE_URL, &url);
    return url ? text_hash(url, strcspn(url, "?#")) : 0;
}

static bool same_time(const struct attempt *a) {
    const struct body *b = a->transfer->body;

    return strcmp(a->head.validators.modified, b->validators.modified) == 0;
}

/* Is a 304 about the document that we have? A file's time alone is no proof: a
 * later one, of its own changes, would bring a 304 too. */
static bool is_believed(const struct attempt *a) {
    const struct body *b = a->transfer->body;

    if (a->transfer->own_condition)
        return true;
    if (b->by_time)
        return b->whole && same_time(a);
    return b->whole && b->place == place_of(a);
}

static bool is_head(const struct transfer *t) {
    return strcmp(request_method(&t->rq), "HEAD") == 0;
}

/* A 206 brings so many bytes: not as an answer to HEAD, and of those that are
 * inflated on the way nobody knows. */
static void range_expect(struct attempt *a, int64_t length) {
    const struct transfer *t = a->transfer;

    if (!is_head(t) && !(t->rq.flags & FETCHER_COMPRESSED))
        a->to = length;
}

/* A 200: the whole, though we may have a part of it; or what is as good. If an
 * earlier round has brought the same, there is nothing to do. Some servers know
 * If-Range with a date only: if the ETag is the same, that is worth one more
 * request. */
static int accept_whole(struct attempt *a) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    const struct head *h = &a->head;
    int64_t length = h->status == 206 ? h->range.total : h->length;
    bool same = is_strong(h->validators.etag) &&
                strcmp(h->validators.etag, b->validators.etag) == 0;

    if ((same && b->whole && b->place == place_of(a)) ||
        (b->by_time && same_time(a) && length == b->by_size)) {
        t->unchanged = true;
        a->complete = true;
        return 0;
    }
    if (a->from && same && length >= 0 && b->length >= 0 && length != b->length)
        return ask_whole(a); /* it contradicts itself: which is right? */
    if (a->from && same && !b->no_etag && !b->by_sum && !t->rq.on_data) {
        b->no_etag = true;
        if (validator(b))
            return ask_again(a);
        b->no_etag = false;
    }
    if (h->status == 206)
        range_expect(a, length);
    return begin_anew(a, 0, length);
}

/* Is it the range that the caller asked for, as far as the document goes? Of
 * several, and where the length isn't known, the server knows better. */
static bool own_range_fits(const struct transfer *t,
                           const struct content_range *r) {
    int64_t first = t->own_first;
    int64_t last = t->own_last;

    if (first < 0 && last < 0)
        return true;
    if (r->total < 0)
        return first < 0 ||
               (r->first == first && (last < 0 || r->last <= last));
    if (first < 0) { /* so many at the end */
        first = last < r->total ? r->total - last : 0;
        last = -1;
    }
    if (last < 0 || last >= r->total)
        last = r->total - 1;
    return r->first == first && r->last == last;
}

static int fail_unasked(struct transfer *t) {
    t->hopeless = true;
    return fail(t, FETCHER_PROTOCOL,
                "the server sent a part that was not asked for");
}

/* The caller's own range. There may be several in it: they come as one body of
 * many parts, without a Content-Range. */
static int accept_own_range(struct attempt *a) {
    const struct head *h = &a->head;
    struct transfer *t = a->transfer;
    int64_t length = h->range.last - h->range.first + 1;

    if (!h->ranged)
        return begin_anew(a, -1, h->length);
    if (!range_good(h))
        return fail(t, FETCHER_PROTOCOL, "the answer's range makes no sense");
    if (!own_range_fits(t, &h->range))
        return fail_unasked(t);
    range_expect(a, length);
    return begin_anew(a, h->range.first, length);
}

/* A 206. One that nobody has asked for may be the whole. */
static int accept_part(struct attempt *a) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    const struct head *h = &a->head;

    if (t->own_range)
        return accept_own_range(a);
    if (range_is_all(h))
        return accept_whole(a);
    if (!a->from)
        return fail_unasked(t);
    if (!part_fits(h, b))
        return ask_whole(a);
    if (h->range.total >= 0)
        b->length = h->range.total;
    if (b->by_sum)
        validators_take(b, &h->validators);
    if (!b->validators.modified[0])
        strcpy(b->validators.modified, h->validators.modified);
    a->to = h->range.last + 1;
    b->skip = 0;
    b->whole = false;
    return 0;
}

/* 416, "range not satisfiable": either we have all there is, or we are wrong
 * about the document. */
static int accept_no_range(struct attempt *a) {
    struct body *b = a->transfer->body;
    const struct head *h = &a->head;

    a->complete =
        h->range.total == b->have && b->length <= b->have && !is_other(h, b);
    b->place = place_of(a);
    return a->complete ? 0 : ask_whole(a);
}

/* Who gave this answer: a redirect may have led elsewhere. */
static struct host *host_answering(const struct attempt *a) {
    const char *wrong = NULL;
    struct host *h = a->transfer->host;
    char *url = NULL;

    if (a->head.request > 0)
        curl_easy_getinfo(a->easy, CURLINFO_EFFECTIVE_URL, &url);
    if (url)
        h = url_host(a->f, url, &wrong);
    return h ? h : a->transfer->host;
}

/* The host is left alone for as long as it asked for; and those that wait for
 * it see their time go by. False: that was known. */
static bool host_cool(struct fetcher *f, struct host *h, usec until) {
    bool news = h->rest <= f->loop.now;

    if (until > h->rest) {
        h->rest = until;
        h->counted_key = INT64_MIN;
        h->counted_seq = 0;
        timer_arm(&f->loop, &h->timer, f->loop.now);
        host_place(f, h);
    }
    return news;
}

/* It is not asked again at once, and then without HTTP/2: most floods are that
 * one's. */
static void flood_over(struct attempt *a) {
    struct transfer *t = a->transfer;

    if (a->wasted < WASTE_MAX_US)
        return;
    t->host->flooded = true;
    t->rest = a->f->loop.now + FLOOD_REST_US;
    host_cool(a->f, host_answering(a), t->rest);
}

/* By these statuses a server may ask for a rest (RFC 9110, 10.2.3; RFC 6585);
 * 403 some use so, for one request. Returns how long, if that is news. */
static usec take_rest(struct attempt *a) {
    struct transfer *t = a->transfer;
    const struct head *h = &a->head;
    usec rest = read_retry_after(h->retry_after, h->validators.date);
    bool news = true;

    if (h->status != 403 && h->status != 413 && h->status != 429 &&
        h->status != 503)
        return 0;
    if (rest < 0)
        return 0;
    t->rest = a->f->loop.now + rest;
    if (h->status != 403)
        news = host_cool(a->f, host_answering(a), t->rest);
    return news ? rest : 0;
}

/* May a request be sent again, though the server may have acted on it? */
static bool is_harmless(const struct transfer *t) {
    return listed(request_method(&t->rq), "GET HEAD PUT DELETE OPTIONS");
}

/* Is this status one that passes? */
static bool status_passes(const struct transfer *t, int status) {
    char text[16];

    if (t->rest && is_harmless(t))
        return true;
    snprintf(text, sizeof text, "%d", status);
    return listed(text,
                  is_harmless(t) ? "408 425 429 500 502 503 504" : "429 503");
}

/* The page of an error may be of use to a person: it is kept in memory, if that
 * is where the body goes and nothing better is there. What only a range brings
 * about (400, 403, 501, even a 204) one request without it cures. */
static int accept_error(struct attempt *a) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    const struct head *h = &a->head;
    usec rest = take_rest(a);

    if (h->status == 416 && a->from)
        return accept_no_range(a);
    if (a->from && !status_passes(t, h->status))
        return ask_whole(a);
    if (rest > 0)
        fail(t, FETCHER_HTTP, "%d %s; the server asks to wait %g s", h->status,
             h->reason, MS(rest) / 1000);
    else
        fail(t, FETCHER_HTTP, "%d %s", h->status, h->reason);
    b->page = !t->rq.path && !t->rq.on_data && b->have == 0;
    return 0;
}

/* Only these bring a document; other statuses of success may bring a word
 * about it, which is no file that was asked for, and no rest of one. */
static bool brings_document(const struct attempt *a) {
    const struct transfer *t = a->transfer;
    int status = a->head.status;

    if (status == 200 || status == 203 || status == 206)
        return true;
    if (a->from || (t->rq.path && strcmp(request_method(&t->rq), "GET") == 0))
        return false;
    return status >= 200 && status <= 299;
}

static int accept_body(struct attempt *a) {
    struct transfer *t = a->transfer;
    int accepted = a->head.status == 206 ? accept_part(a) : accept_whole(a);

    if (accepted < 0 || t->unchanged)
        return accepted;
    t->body->place = place_of(a);
    if (t->rq.max_bytes >= 0 && t->body->length > t->rq.max_bytes &&
        !is_head(t))
        return fail(t, FETCHER_TOO_BIG,
                    "%" PRId64 " bytes are more than allowed", t->body->length);
    return t->sink->begin(t);
}

/* By Cache-Control, less the time that it stood in a cache; and an hour at
 * most. */
static usec fresh_until(const struct attempt *a) {
    const struct head *h = &a->head;
    int64_t seconds = h->fresh_s - h->age_s;

    if (seconds > 3600)
        seconds = 3600;
    return seconds > 0 ? a->f->loop.now + seconds * 1000000 : 0;
}

/* Called once for each final answer: with its first piece of body, or at its
 * end if it has none. To libcurl a head that is cut off is as good as one that
 * is whole. */
static int judge_answer(struct attempt *a) {
    struct transfer *t = a->transfer;
    const struct head *h = &a->head;

    a->head.judged = true;
    if (h->status == 0 && (h->ended || a->head_bytes == 0))
        return fail(t, FETCHER_PROTOCOL, "HTTP/0.9, or no HTTP");
    if (!h->ended)
        return fail(t, FETCHER_CUT_SHORT, "cut short in the answer's head");
    if (h->wrong)
        return fail(t, FETCHER_PROTOCOL, "%s", h->wrong);
    t->status = h->status;
    t->fresh = fresh_until(a);
    t->unchanged = h->status == 304 && is_believed(a);
    if (t->unchanged)
        return 0;
    if (h->status == 304 && t->body->whole) {
        t->body->whole = false;
        return ask_again(a);
    }
    return brings_document(a) ? accept_body(a) : accept_error(a);
}

/* -- the rate limit --------------------------------------------------------
 * A token bucket, and the tap is our own ear: what we don't read the kernel
 * doesn't acknowledge, and the sender waits. A tenth of a second's bytes may be
 * saved up; and once in debt we listen again only when there is enough for 20
 * ms, or each packet would cost a turn. */

static void throttle_begin(struct fetcher *f) {
    f->throttled_at = serving(f);
    f->loop.throttled = true;
}

/* Than so many. */
static bool more_yielded(const struct fetcher *f, unsigned count) {
    struct node *n = tree_first(f->yielded);

    for (; n && count > 0; count--)
        n = tree_next(f->yielded, n);
    return n != NULL;
}

/* Who is served first uses the tokens up. So the network's share begins with
 * another part each time: with those that yielded or with the sockets, as often
 * as there are transfers there; and sometimes with libcurl's timer, by which
 * connections begin. */
static void throttle_end(struct fetcher *f, void *arg) {
    unsigned turn = f->debts;

    f->silence += serving(f) - f->throttled_at;
    f->loop.throttled = false;
    f->debts++;
    f->paid = true;
    f->next_part = SOCKETS;
    if (turn % 8 == 0)
        f->next_part = KICK;
    else if (f->running > 0 && more_yielded(f, turn % (unsigned)f->running))
        f->next_part = YIELDED;
}

static void tokens_spend(struct fetcher *f, int64_t bytes) {
    usec now = f->loop.now;
    double elapsed = (double)(now - f->filled) / 1e6;

    f->tokens += (int64_t)((double)f->rate * elapsed);
    f->filled = now;
    if (f->tokens > f->rate / 10)
        f->tokens = f->rate / 10;
    f->tokens -= bytes;
    if (f->tokens < 0 && !f->loop.throttled)
        throttle_begin(f);
    if (f->loop.throttled)
        timer_arm(&f->loop, &f->throttle_timer,
                  now + 20000 - f->tokens * 1000000 / f->rate);
}

static void count_bytes(struct fetcher *f, struct transfer *t, int64_t n) {
    usec elapsed = f->loop.now - t->speed_since;

    t->received += n;
    f->received += n;
    t->speed_bytes += n;
    if (elapsed >= 1000000) {
        t->speed = t->speed_bytes * 1000000 / elapsed;
        t->speed_bytes = 0;
        t->speed_since = f->loop.now;
    }
    if (f->rate)
        tokens_spend(f, n);
}

/* -- the body -------------------------------------------------------------- */

/* One call to libcurl may go on for as long as data keeps coming (7.88 read 12
 * MB in one, 60 ms). So when the slice or the tokens are spent it is paused,
 * until the finish phase lets it go. The first piece of a step is free. */
static bool must_yield(struct attempt *a) {
    struct loop *l = &a->f->loop;
    bool first = !l->meter.fed;

    l->meter.fed = true;
    if (first || (!l->throttled && clock_now(l) < l->slice_end))
        return false;
    a->yielded.key = (int64_t)++l->serial;
    tree_add(&a->f->yielded, &a->yielded);
    return true;
}

/* What is there is wrong, or may be. */
static void start_over(struct attempt *a) {
    a->transfer->body->have = 0;
    if (a->transfer->sink->begin(a->transfer) == 0)
        ask_whole(a);
}

/* More comes than the range holds: so none of its bytes is to be believed. */
static enum taken part_overflows(struct attempt *a) {
    struct transfer *t = a->transfer;

    if (t->rq.on_data || !a->from) {
        t->hopeless = t->rq.on_data != NULL;
        fail(t, FETCHER_PROTOCOL, "the answer is longer than it says");
    } else
        start_over(a);
    return NOT_TAKEN;
}

/* The next n bytes are there, behind what was. */
static void sum_add(struct body *b, const char *data, size_t n) {
    if (!*b->proof)
        return;
    if (b->have == (int64_t)n)
        sha256_begin(&b->sum);
    sha256_add(&b->sum, data, n);
}

/* All has come: but is it what was to come? If not it may be since a part of it
 * was of something else: so once it is fetched anew. */
static void sum_judge(struct attempt *a) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    char hex[65];

    if (!*b->proof || t->unchanged)
        return;
    if (b->have == 0)
        sha256_begin(&b->sum);
    sha256_text(b->sum, hex);
    if (strcmp(hex, strchr(b->proof, ':') + 1) == 0)
        return;
    if (!t->doubted && !t->rq.on_data && is_harmless(t)) {
        t->doubted = true;
        start_over(a);
        return;
    }
    fail(t, FETCHER_CHECKSUM, "its SHA-256 is %s, not %s", hex,
         strchr(b->proof, ':') + 1);
    b->have = 0; /* nobody is to go on with that */
}

static enum taken body_take(struct attempt *a, const char *data, size_t n) {
    struct transfer *t = a->transfer;
    struct body *b = t->body;
    int64_t skip = b->skip < (int64_t)n ? b->skip : (int64_t)n;
    enum taken taken;

    if (a->complete || (t->code != FETCHER_OK && !b->page)) {
        a->drained += n; /* nobody wants it */
        return a->drained > DRAIN_MAX ? NOT_TAKEN : TAKEN;
    }
    if (t->rq.max_bytes >= 0 &&
        (int64_t)n - b->skip > t->rq.max_bytes - b->have) {
        fail(t, FETCHER_TOO_BIG, "more than %" PRId64 " bytes",
             t->rq.max_bytes);
        return NOT_TAKEN;
    }
    if (a->to && (int64_t)n - b->skip > a->to - b->have)
        return part_overflows(a);
    taken = t->sink->take(t, data, n);
    if (taken == TAKEN)
        sum_add(b, data + skip, n - (size_t)skip);
    return taken;
}

/* Is nobody to get data? Our own flag counts, since libcurl forgets a pause of
 * what has no connection yet; and what is to be paused in this turn gets none
 * any more. */
static bool stays_paused(struct transfer *t) {
    if (t->rq.on_data && (t->actions & ACT_PAUSE))
        t->held = true;
    return t->held;
}

/* n: it was taken. CURL_WRITEFUNC_PAUSE: it is offered again when the transfer
 * goes on. Anything else ends the transfer. */
static size_t body_came(struct attempt *a, const char *data, size_t n) {
    struct fetcher *f = a->f;
    struct transfer *t = a->transfer;
    enum taken taken;

    if (!t || (t->actions & ACT_CANCEL))
        return n + 1;
    if (stays_paused(t) || must_yield(a))
        return CURL_WRITEFUNC_PAUSE;
    touch(f, t);
    a->moved = listening(f);
    if (a->again || (!a->head.judged && judge_answer(a) < 0))
        return n + 1;
    taken = body_take(a, data, n);
    if (taken == NOT_TAKEN)
        return n + 1;
    if (taken == NOT_NOW) {
        t->held = true;
        tell_state(f, t, FETCHER_PAUSED);
        return CURL_WRITEFUNC_PAUSE;
    }
    count_bytes(f, t, (int64_t)n);
    if (t->rq.on_progress && f->loop.now >= t->progressed + PROGRESS_US)
        tell_state(f, t, t->state);
    return n;
}

/* What its reader took of the CPU is no flood, whether it wants more or not. */
static size_t on_body(char *data, size_t one, size_t n, void *arg) {
    struct attempt *a = arg;
    size_t result = body_came(a, data, n);

    hear(a->f, clock_now(&a->f->loop));
    return result;
}

/* -- a body of its own ----------------------------------------------------- */

/* A small one libcurl has at once; what is larger it asks for by pieces, so
 * that we see it move. */
static bool sends_pieces(const struct fetcher_request *rq) {
    return rq->on_send || (rq->body && rq->body_size > SMALL_MAX);
}

/* Bytes of it; -1: not known. */
static int64_t send_size(const struct fetcher_request *rq) {
    if (!rq->on_send)
        return (int64_t)rq->body_size;
    return rq->send_size ? rq->send_size : -1;
}

static ptrdiff_t send_ask(struct attempt *a, char *to, size_t room) {
    const struct fetcher_request *rq = &a->transfer->rq;

    if (rq->on_send)
        return rq->on_send(a->f, to, room, a->given, rq->arg);
    memcpy(to, (const char *)rq->body + a->given, room);
    return (ptrdiff_t)room;
}

static size_t send_refused(struct attempt *a, ptrdiff_t n) {
    struct transfer *t = a->transfer;

    if (n == 0)
        fail(t, FETCHER_REFUSED,
             "its own body ended after %" PRId64 " of %" PRId64 " bytes",
             a->given, t->rq.send_size);
    else if (a->given < t->given)
        fail(t, FETCHER_REFUSED, "its own body can't be sent once more");
    else
        fail(t, FETCHER_REFUSED, "its own body can't be sent");
    return CURL_READFUNC_ABORT;
}

/* Of what was given libcurl holds 64 KiB at most, so that is near to what went
 * out. */
static size_t send_count(struct attempt *a, size_t n) {
    struct transfer *t = a->transfer;
    struct fetcher *f = a->f;

    a->given += (int64_t)n;
    if (t->given < a->given)
        t->given = a->given;
    a->moved = listening(f);
    if (t->rq.on_progress && f->loop.now >= t->progressed + PROGRESS_US)
        tell_state(f, t, t->state);
    return n;
}

/* libcurl wants to send. 0: that was all. */
static size_t body_goes(struct attempt *a, char *to, size_t room) {
    struct transfer *t = a->transfer;
    int64_t size;
    ptrdiff_t n = 0;

    if (!t || (t->actions & ACT_CANCEL))
        return CURL_READFUNC_ABORT;
    if (a->awaits) /* libcurl goes on with both directions at once */
        return CURL_READFUNC_PAUSE;
    size = send_size(&t->rq);
    touch(a->f, t);
    if (size >= 0 && (int64_t)room > size - a->given)
        room = (size_t)(size - a->given);
    if (room > 0)
        n = send_ask(a, to, room);
    if (n == FETCHER_LATER) { /* an answer may come all the same */
        a->awaits = true;
        tell_state(a->f, t, FETCHER_PAUSED);
        return CURL_READFUNC_PAUSE;
    }
    if (n < 0 || n > (ptrdiff_t)room || (n == 0 && a->given < size))
        return send_refused(a, n);
    return send_count(a, (size_t)n);
}

static size_t on_read(char *to, size_t one, size_t room, void *arg) {
    struct attempt *a = arg;
    size_t n = body_goes(a, to, room);

    hear(a->f, clock_now(&a->f->loop)); /* what its sender took is no flood */
    return n;
}

/* Once more, to where a redirect leads or with a login. */
static int on_seek(void *arg, curl_off_t at, int origin) {
    struct attempt *a = arg;

    if (origin != SEEK_SET)
        return CURL_SEEKFUNC_CANTSEEK;
    a->given = at;
    a->awaits = false;
    return CURL_SEEKFUNC_OK;
}

/* -- sinks: memory and streams --------------------------------------------- */

/* What was announced is taken at once, if it is not absurd; else it grows by
 * half, so that all copying together stays a small part of the work. */
static int memory_grow(struct transfer *t, size_t need) {
    struct body *b = t->body;
    size_t room = b->room + b->room / 2;
    char *longer;

    if ((int64_t)room <= b->length && b->length < MEMORY_USUAL && !t->rq.path)
        room = (size_t)b->length + 1;
    if (room < need)
        room = need;
    longer = realloc(b->data, room);
    if (!longer)
        return fail_memory(t);
    b->data = longer;
    b->room = room;
    return 0;
}

/* There is always room for a NUL too. */
static enum taken memory_take(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;
    size_t need = (size_t)b->have + n + 1;

    if ((uint64_t)b->have + n > SIZE_MAX / 2) {
        fail_memory(t);
        return NOT_TAKEN;
    }
    if (need > b->room && memory_grow(t, need) < 0)
        return NOT_TAKEN;
    memcpy(b->data + b->have, data, n);
    b->have += (int64_t)n;
    b->data[b->have] = '\0';
    return TAKEN;
}

static int memory_commit(struct transfer *t) {
    return memory_take(t, "", 0) == TAKEN ? 0 : -1;
}

static enum verdict always_open(struct transfer *t) {
    return GO_ON;
}

static int nothing_to_do(struct transfer *t) {
    return 0;
}

static const struct sink memory_sink = {always_open, nothing_to_do, memory_take,
                                        memory_commit};

/* When its reader says "not now", all of the piece comes again. */
static enum taken stream_take(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;
    size_t skip = b->skip < (int64_t)n ? (size_t)b->skip : n;
    int result = 0;

    if (n > skip)
        result = t->rq.on_data(t->f, data + skip, n - skip, t->rq.arg);
    if (result < 0) {
        fail(t, FETCHER_REFUSED, "its reader refused the data");
        return NOT_TAKEN;
    }
    if (result == FETCHER_PAUSE)
        return NOT_NOW;
    b->skip -= (int64_t)skip;
    b->have += (int64_t)(n - skip);
    return TAKEN;
}

static const struct sink stream_sink = {always_open, nothing_to_do, stream_take,
                                        nothing_to_do};

/* -- an attempt ------------------------------------------------------------ */

static void header_add(struct attempt *a, const char *name, const char *value) {
    char *line = text_join(name, value);
    struct curl_slist *longer = NULL;

    if (line)
        longer = curl_slist_append(a->headers, line);
    if (longer)
        a->headers = longer;
    else
        fail_memory(a->transfer);
    free(line);
}

/* Does it say what is asked for, and nothing of who asks? */
static bool is_open(const char *header) {
    static const char *const names[] = {
        "Accept:", "Accept-", "Content-Type:", "Expect:",
        "If-",     "Range:",  "User-Agent:",   "Transfer-Encoding:"};

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strncasecmp(header, names[i], strlen(names[i])) == 0)
            return true;
    }
    return false;
}

/* Add those of the caller's headers. */
static void own_headers_add(struct attempt *a, bool open) {
    const char *const *own = a->transfer->rq.headers;

    for (int i = 0; own && own[i]; i++) {
        if (is_open(own[i]) == open)
            header_add(a, "", own[i]);
    }
}

/* What stands behind the name and its colon; NULL: there is none. */
static const char *own_value(const struct fetcher_request *rq,
                             const char *name) {
    const char *const *own = rq->headers;
    size_t n = strlen(name);

    for (int i = 0; own && own[i]; i++) {
        if (strncasecmp(own[i], name, n) == 0)
            return own[i] + n;
    }
    return NULL;
}

static bool own_has(const struct fetcher_request *rq, const char *name) {
    return own_value(rq, name) != NULL;
}

/* "NAME:PASSWORD", of the URL, or else of the request; NULL: there is none. */
static char *login_text(const struct fetcher_request *rq) {
    CURLU *u = strchr(rq->url, '@') ? curl_url() : NULL;
    char *name = NULL;
    char *password = NULL;
    char *begin = NULL;
    char *login = NULL;

    if (u && curl_url_set(u, CURLUPART_URL, rq->url, 0) == CURLUE_OK) {
        name = url_part(u, CURLUPART_USER, CURLU_URLDECODE);
        password = url_part(u, CURLUPART_PASSWORD, CURLU_URLDECODE);
    }
    if (name && password)
        begin = text_join(name, ":");
    if (begin)
        login = text_join(begin, password);
    else if (!name && rq->user)
        login = text_join(rq->user, strchr(rq->user, ':') ? "" : ":");
    free(begin);
    curl_free(name);
    curl_free(password);
    curl_url_cleanup(u);
    return login;
}

/* The login goes with the first request, as Basic: some servers never ask for
 * it. To libcurl that is a header of ours; it has no login but Digest, and none
 * before it is asked (CURLAUTH_ONLY): then it sends the request once more.
 * Without a login of ours, libcurl has one, or none. */
static void login_add(struct attempt *a) {
    const struct fetcher_request *rq = &a->transfer->rq;
    char *login = NULL;
    char *coded = NULL;

    if (!own_has(rq, "Authorization:"))
        login = login_text(rq);
    if (login)
        coded = text_base64(login);
    if (coded) {
        header_add(a, "Authorization: Basic ", coded);
        a->login = true;
        (void)curl_easy_setopt(a->easy, CURLOPT_HTTPAUTH,
                               (long)(CURLAUTH_DIGEST | CURLAUTH_ONLY));
    }
    free(login);
    free(coded);
}

/* Has an old libcurl to be told to send in chunks? */
static bool chunks_itself(const struct attempt *a) {
    const struct fetcher_request *rq = &a->transfer->rq;

    return a->f->quirks.posts_unchunked && rq->on_send && !rq->send_size &&
           !own_has(rq, "Transfer-Encoding:");
}

/* The whole document of an earlier round makes a request conditional; a part
 * asks for the rest. */
static void headers_build(struct attempt *a) {
    struct body *b = a->transfer->body;
    char range[48];

    login_add(a);
    own_headers_add(a, false);
    own_headers_add(a, true);
    if (b->whole) {
        if (b->validators.etag[0])
            header_add(a, "If-None-Match: ", b->validators.etag);
        else if (b->validators.modified[0])
            header_add(a, "If-Modified-Since: ", b->validators.modified);
    } else if (b->have > 0 && !b->ask_whole && validator(b)) {
        a->from = b->have;
        snprintf(range, sizeof range, "%" PRId64 "-", b->have);
        header_add(a, "Range: bytes=", range);
        if (!b->by_sum)
            header_add(a, "If-Range: ", validator(b));
    }
    if (a->transfer->rq.on_send && !own_has(&a->transfer->rq, "Content-Type:"))
        header_add(a, "Content-Type:", ""); /* libcurl would say: a form */
    if (chunks_itself(a))
        header_add(a, "Transfer-Encoding: ", "chunked");
    a->open = a->headers;
    while (a->open && !is_open(a->open->data))
        a->open = a->open->next;
}

/* Nothing that could leave a trace in its handle? */
static bool is_plain(const struct fetcher_request *rq) {
    return !rq->method && !has_body(rq) && !rq->setup && !rq->user &&
           !(rq->headers && *rq->headers) &&
           !(rq->flags & (FETCHER_COMPRESSED | FETCHER_TRUSTING)) &&
           !strchr(rq->url, '@');
}

static unsigned set_body(struct attempt *a) {
    const struct fetcher_request *rq = &a->transfer->rq;
    CURL *e = a->easy;
    unsigned bad = 0;

    SET(POST, 1L);
    SET(POSTFIELDSIZE_LARGE, (curl_off_t)send_size(rq));
    if (!sends_pieces(rq)) {
        SET(POSTFIELDS, rq->body ? rq->body : "");
        return bad;
    }
    SET(READFUNCTION, on_read);
    SET(READDATA, a);
    SET(SEEKFUNCTION, on_seek);
    SET(SEEKDATA, a);
    return bad;
}

/* libcurl knows GET, HEAD and POST; another method is a word, and would lose
 * its body to a 301 or 302, which make a GET of a POST alone (RFC 9110, 15.4).
 * And it sends a request again if a connection that it uses again breaks: not
 * one that the server may have acted on. */
static unsigned set_method(struct attempt *a) {
    const struct fetcher_request *rq = &a->transfer->rq;
    const char *method = request_method(rq);
    bool posts = strcmp(method, "POST") == 0;
    CURL *e = a->easy;
    unsigned bad = 0;

    if (!is_harmless(a->transfer))
        SET(FRESH_CONNECT, 1L);
    if (has_body(rq) || posts)
        bad |= set_body(a);
    if (has_body(rq) && !posts)
        SET(POSTREDIR, (long)(CURL_REDIR_POST_301 | CURL_REDIR_POST_302));
    if (strcmp(method, "HEAD") == 0)
        SET(NOBODY, 1L);
    else if (!posts && (has_body(rq) || strcmp(method, "GET") != 0))
        SET(CUSTOMREQUEST, method);
    return bad;
}

static unsigned set_request(struct attempt *a) {
    const struct fetcher_request *rq = &a->transfer->rq;
    CURL *e = a->easy;
    unsigned bad = set_method(a);

    SET(URL, rq->url);
    SET(HTTPHEADER, a->headers);
    if (rq->user)
        SET(USERPWD, rq->user);
    if (rq->flags & FETCHER_TRUSTING)
        SET(UNRESTRICTED_AUTH, 1L);
    SET(PIPEWAIT, (long)a->transfer->host->shares);
    if (a->transfer->host->flooded || chunks_itself(a))
        SET(HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(HEADERFUNCTION, on_header);
    SET(WRITEFUNCTION, on_body);
    if ((rq->flags & FETCHER_COMPRESSED) && a->f->inflates)
        SET(ACCEPT_ENCODING, "gzip, deflate");
    return bad;
}

static int attempt_new(struct fetcher *f, struct transfer *t) {
    const struct fetcher_request *rq = &t->rq;
    unsigned bad = 0;
    bool plain = is_plain(rq) && !t->host->flooded;
    struct attempt *a = attempt_make(t, plain, &bad);

    if (!a)
        return fail_memory(t);
    t->attempt = a;
    a->transfer = t;
    a->began = listening(f);
    a->moved = a->began;
    headers_build(a);
    bad |= set_request(a);
    if (bad)
        fail(t, FETCHER_OTHER, "libcurl does not take a setting");
    if (t->code != FETCHER_OK)
        return -1;
    if (rq->setup && rq->setup(a->easy, rq->arg) < 0)
        return fail(t, FETCHER_OTHER, "its set-up failed");
    return 0;
}

/* -- time limits ----------------------------------------------------------- */

/* Until it is connected connect_ms counts, then the silence since a byte came,
 * or since it was connected; but bytes of its own that go out are no silence,
 * nor is a reader that paused it. */
static usec silence_due(struct fetcher *f, struct transfer *t) {
    const struct fetcher_request *rq = &t->rq;
    struct attempt *a = t->attempt;
    usec heard = listening(f);

    if (t->held || a->awaits)
        return FOREVER;
    if (!connected(a))
        return f->loop.now + limit_us(rq->connect_ms) - (heard - a->began);
    if (has_body(rq)) {
        int64_t sent = time_of(a->easy, CURLINFO_SIZE_UPLOAD_T);
        if (sent > a->sent)
            a->moved = heard;
        a->sent = sent;
    }
    return f->loop.now + limit_us(rq->stall_ms) - (heard - a->moved) +
           (a->heard ? 0 : connect_time(a));
}

/* Arm the transfer's timer for the limit that is reached first; or for a look
 * before: after stall_ms another limit may count, since it may be connected by
 * then, and where others wait for that, sooner. Returns false if a limit is
 * reached now. */
static bool deadline_arm(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;
    usec due = silence_due(f, t);
    usec total = total_due(f, t);
    usec look = SCOUT_US;

    if (due > total)
        due = total;
    if (!a->scout || a->lookup)
        look = limit_us(t->rq.stall_ms);
    look += f->loop.now;
    timer_arm(&f->loop, &t->timer, due < look ? due : look);
    return due > f->loop.now;
}

static void fail_timeout(struct transfer *t, bool over) {
    bool there = t->attempt && connected(t->attempt);

    if (over)
        fail(t, FETCHER_TIMEOUT, "not done after %g s", MS(t->rq.total_ms));
    else if (there)
        fail(t, FETCHER_TIMEOUT, "stalled: no data for %g s",
             MS(t->rq.stall_ms));
    else
        fail(t, FETCHER_TIMEOUT, "no connection after %g s",
             MS(t->rq.connect_ms));
}

static void time_over(struct fetcher *f, struct transfer *t, bool over) {
    fail_timeout(t, over);
    schedule(f, t, ACT_END);
}

/* It waits: for its next attempt or round, which has come; or for its turn, and
 * then only the time for all attempts can be over. */
static void wait_due(struct fetcher *f, struct transfer *t) {
    bool over = t->counting && total_due(f, t) <= f->loop.now;

    if (over)
        time_over(f, t, over);
    else if (t->queued.in) /* we were away for a while */
        timer_arm(&f->loop, &t->timer, total_due(f, t));
    else
        enqueue(f, t, false);
}

/* A transfer's one timer: the end of a wait, or a limit, looked at when due,
 * not at each byte. */
static void transfer_due(struct fetcher *f, void *arg) {
    struct transfer *t = arg;
    struct attempt *a = t->attempt;

    if (!a) {
        wait_due(f, t);
        return;
    }
    if (a->scout && connected(a))
        host_found(a);
    if (!deadline_arm(f, t))
        time_over(f, t, total_due(f, t) <= f->loop.now);
}

/* -- failure and retry ----------------------------------------------------- */

/* libcurl's reasons, by ours. What isn't here is FETCHER_OTHER. */
static const struct {
    enum fetcher_code code;
    unsigned char curl[8];
} reasons[] = {
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
    {FETCHER_NO_CONNECTION, {ERROR_PROXY}},
    {FETCHER_TOO_BIG, {ERROR_TOO_LARGE}},
};

/* Does the text have one of some phrases, each ended by a NUL, all by two? */
static bool has_phrase(const char *text, const char *phrases) {
    for (; *phrases; phrases += strlen(phrases) + 1) {
        if (strstr(text, phrases))
            return true;
    }
    return false;
}

/* A handshake that fails may have nothing to do with trust. Only the words of
 * OpenSSL and GnuTLS tell. */
static bool tls_broken_off(const char *why) {
    return has_phrase(why, "SSL_ERROR_SYSCALL\0"
                           "Connection reset\0"
                           "unexpected eof\0"
                           "non-properly terminated\0"
                           "in the pull function\0");
}

static bool tls_unknown(const char *why) {
    return has_phrase(why, "wrong version number\0"
                           "http request\0"
                           "unexpected TLS packet\0");
}

/* 8.23 takes the time of what did not connect, as if it had. */
static bool no_answer(const struct attempt *a) {
    return has_phrase(a->error, "Failed to connect to \0");
}

static enum fetcher_code code_of(const struct attempt *a, CURLcode c) {
    if (c == CURLE_SSL_CONNECT_ERROR && tls_broken_off(a->error))
        return FETCHER_NO_CONNECTION;
    if (c == CURLE_OUT_OF_MEMORY && a->head.status && !a->head.ended)
        return FETCHER_TOO_BIG; /* a line of 100 KB, before 8.6 */
    if (c == CURLE_UNSUPPORTED_PROTOCOL && a->head.status < 200)
        return FETCHER_PROTOCOL; /* HTTP/0.9, or what looks like it */
    if (c == CURLE_URL_MALFORMAT && a->head.status == 0)
        return FETCHER_BAD_URL; /* ours, not that of a redirect */
    if (c == CURLE_OPERATION_TIMEDOUT && (!connected(a) || no_answer(a)))
        return FETCHER_NO_CONNECTION; /* the system's limit, or rq.setup's */
    if (c == CURLE_OPERATION_TIMEDOUT)
        return FETCHER_TIMEOUT;
    for (size_t i = 0; i < COUNT_OF(reasons); i++) {
        if (memchr(reasons[i].curl, (int)c, sizeof reasons[i].curl))
            return reasons[i].code;
    }
    return FETCHER_OTHER;
}

/* "example.org:443", of where a redirect may have led. */
static const char *effective_host(const struct attempt *a, char *origin,
                                  size_t room) {
    char *url = NULL;

    curl_easy_getinfo(a->easy, CURLINFO_EFFECTIVE_URL, &url);
    if (!url || url_origin(url, origin, room))
        return "the host:";
    return strstr(origin, "://") + 3;
}

/* Is it "example.org:443", or "[::1]:80"? A host that isn't ASCII has another
 * name in libcurl: there nobody knows. */
static bool is_host(const char *host, const char *name, const char *port) {
    size_t n = strlen(name);

    for (const char *s = host; *s; s++) {
        if (*s & 0x80)
            return true;
    }
    host += *host == '[';
    return strncasecmp(host, name, n) == 0 &&
           strcmp(strrchr(host, ':') + 1, port) == 0;
}

/* Is there a proxy, and did nobody answer there? Only libcurl's words tell its
 * name: 8.21 and newer say "over proxy", older ones "via", or nothing but the
 * name where the host's is expected. */
static bool is_proxy_named(const struct attempt *a, const char *host,
                           char name[256], char port[16]) {
    const char *over = strstr(a->error, " over proxy ");

    *port = '\0';
    if (over)
        return sscanf(over, " over proxy %255s", name) == 1;
    if (sscanf(a->error, "Failed to connect to %*s port %*s via %255s", name) ==
        1)
        return true;
    return sscanf(a->error, "Failed to connect to %255s port %15[0-9]", name,
                  port) == 2 &&
           !is_host(host, name, port);
}

/* Nobody answered at the other end. */
static void fail_connect(struct attempt *a, const char *host, const char *why) {
    struct transfer *t = a->transfer;
    enum fetcher_code code = FETCHER_NO_CONNECTION;
    char name[256];
    char port[16];
    long os_errno = 0;

    curl_easy_getinfo(a->easy, CURLINFO_OS_ERRNO, &os_errno);
    if (tls_broken_off(why))
        why = "the TLS handshake was broken off";
    else if (os_errno)
        why = strerror((int)os_errno);
    if (is_proxy_named(a, host, name, port))
        fail(t, code, "could not connect to the proxy %s%s%s: %s", name,
             *port ? ":" : "", port, why);
    else
        fail(t, code, "could not connect to %s: %s", host, why);
}

/* Trust in a server, or in an https proxy before it. */
static void fail_tls(struct attempt *a, const char *host, const char *why) {
    long proxy = 0;

    curl_easy_getinfo(a->easy, CURLINFO_PROXY_SSL_VERIFYRESULT, &proxy);
    if (proxy)
        host = "the proxy";
    if (tls_unknown(why))
        fail(a->transfer, FETCHER_TLS, "%s does not speak TLS: is it http?",
             host);
    else
        fail(a->transfer, FETCHER_TLS, "cannot trust %s: %s", host, why);
}

static void fail_cut_short(struct transfer *t, const char *why) {
    const struct body *b = t->body;

    if (b->length > 0)
        fail(t, FETCHER_CUT_SHORT,
             "cut short after %" PRId64 " of %" PRId64 " bytes", b->have,
             b->length);
    else
        fail(t, FETCHER_CUT_SHORT, "cut short: %s", why);
}

/* Say it in words for a person: what, where, and why. */
static void fail_curl(struct attempt *a, CURLcode c) {
    struct transfer *t = a->transfer;
    const char *why = a->error[0] ? a->error : curl_easy_strerror(c);
    enum fetcher_code code = code_of(a, c);
    char origin[512];
    const char *host = effective_host(a, origin, sizeof origin);
    int name = (int)(strrchr(host, ':') - host);

    if (c == CURLE_COULDNT_RESOLVE_HOST)
        fail(t, code, "could not find host %.*s", name, host);
    else if (strncmp(why, "Unsupported proxy", 17) == 0)
        fail(t, FETCHER_OTHER, "a proxy that can't be used: %s", why);
    else if ((int)c == ERROR_PROXY) {
        t->hopeless = proxy_rejects(a->easy);
        fail(t, code, "the proxy does not connect us: %s", why);
    } else if (code == FETCHER_NO_CONNECTION)
        fail_connect(a, host, why);
    else if (code == FETCHER_TLS)
        fail_tls(a, host, why);
    else if (code == FETCHER_TOO_BIG)
        fail(t, code, "a line of the answer's head has no end");
    else if (code == FETCHER_CUT_SHORT)
        fail_cut_short(t, why);
    else if (code == FETCHER_REDIRECT)
        fail(t, code, "a redirect can't be followed: %s", why);
    else if (code == FETCHER_BAD_URL)
        fail(t, code, "not a URL: %s", why);
    else
        fail(t, code, "%s", why);
}

/* The status of a proxy that did not connect us (for https it has to); 0: there
 * was none. */
static int proxy_refusal(const struct attempt *a) {
    long status = 0;

    curl_easy_getinfo(a->easy, CURLINFO_HTTP_CONNECTCODE, &status);
    return status >= 300 ? (int)status : 0;
}

static void fail_refused(struct attempt *a) {
    struct transfer *t = a->transfer;

    t->status = proxy_refusal(a);
    fail(t, FETCHER_HTTP, "%d %s, says the proxy", t->status,
         reason_of(t->status));
}

/* How far did a request come? */
enum reach { NOT_SENT, SENT, REDIRECTED };

static enum reach attempt_reach(const struct attempt *a) {
    long redirects = 0;
    long size = 0;

    curl_easy_getinfo(a->easy, CURLINFO_REDIRECT_COUNT, &redirects);
    curl_easy_getinfo(a->easy, CURLINFO_REQUEST_SIZE, &size);
    if (redirects > 0)
        return REDIRECTED;
    if (proxy_refusal(a))
        return NOT_SENT;
    return size > 0 || a->head_bytes > 0 ? SENT : NOT_SENT;
}

/* A stream goes on only behind the same bytes. */
static bool can_go_on(const struct transfer *t) {
    struct body *b = t->body;

    return !t->rq.on_data || !b || b->have == 0 || validator(b) ||
           is_strong(b->validators.etag);
}

/* Only what may pass is tried again. What went out and isn't harmless may have
 * been acted on, unless the server itself says that it wasn't: not that to
 * which it led us. */
static bool may_retry(struct fetcher *f, const struct transfer *t,
                      enum reach reach) {
    if (f->closing || t->hopeless || t->failures >= t->rq.retries ||
        total_due(f, t) <= f->loop.now || !can_go_on(t))
        return false;
    if (reach != NOT_SENT && !is_harmless(t))
        return reach == SENT && t->code == FETCHER_HTTP &&
               status_passes(t, t->status);
    switch (t->code) {
    case FETCHER_HTTP:
        return status_passes(t, t->status);
    case FETCHER_NO_HOST:
    case FETCHER_NO_CONNECTION:
    case FETCHER_TIMEOUT:
    case FETCHER_CUT_SHORT:
    case FETCHER_PROTOCOL:
        return true;
    default:
        return false;
    }
}

/* Backoff with full jitter, so that many that failed together don't come back
 * together. */
static void retry_later(struct fetcher *f, struct transfer *t) {
    usec bound = (usec)BACKOFF_FIRST_US << (t->failures < 6 ? t->failures : 6);
    usec total = total_due(f, t);
    usec due;

    if (bound > BACKOFF_MAX_US)
        bound = BACKOFF_MAX_US;
    due = f->loop.now + random_below(f, bound);
    if (due < t->rest)
        due = t->rest;
    if (due < t->host->rest)
        due = t->host->rest;
    t->failures++;
    timer_arm(&f->loop, &t->timer, due < total ? due : total);
    tell_state(f, t, FETCHER_RETRYING);
}

/* ===================================================================== Files
 * A file appears under its name only when it is whole. The life of its bytes,
 * and what is left if the program is killed:
 *
 *     up to 16 KiB          in memory                        nothing
 *     if that is all        a file without a name is made    nothing
 *                           and gets the name NAME           NAME
 *     then                  NAME.part is made and locked     an empty .part
 *                           NAME.part.meta is written        both
 *     with the next piece   memory moves to the .part, and
 *                           what follows is written there    both: continued
 *     each MiB of it        its check is added to the .meta
 *     when it is whole      the .part is renamed to NAME     NAME, and a .meta
 *                           the .meta is removed             NAME
 *
 * So a small file is made, written and renamed in one go, and a step is one
 * write. The .meta says what the bytes belong to, and in which .part they are:
 * by it another process can go on, and no file of somebody else's is taken for
 * one of ours. If a transfer fails, its .part stays as long as it can be
 * continued.
 *
 * After a power cut bytes may be missing that were written: so the .meta also
 * says since when the machine runs, and what was written before that counts as
 * far as its checks agree.
 *
 * Names come from outside and are made safe, no symbolic link is followed, what
 * is another user's is not believed, and what is in the way is avoided or
 * refused, not overwritten. write() to a file can block, and there is no
 * portable remedy: so writes are small, and nothing is flushed, unless that is
 * asked for.
 */

/* -- names that are taken -------------------------------------------------- */

/* Characters that nobody sees, and that a file system may leave out when it
 * compares names (Unicode: Default_Ignorable_Code_Point). */
static bool rune_is_ignored(uint32_t c) {
    static const uint32_t ignored[][2] = {
        {0xad, 0xad},       {0x34f, 0x34f},    {0x115f, 0x1160},
        {0x17b4, 0x17b5},   {0x180b, 0x180f},  {0x200b, 0x200f},
        {0x2060, 0x206f},   {0x3164, 0x3164},  {0xfe00, 0xfe0f},
        {0xffa0, 0xffa0},   {0xfff0, 0xfff8},  {0x1bca0, 0x1bca3},
        {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff}};

    for (size_t i = 0; i < COUNT_OF(ignored); i++) {
        if (c >= ignored[i][0] && c <= ignored[i][1])
            return true;
    }
    return false;
}

/* What a file system that is lax sees of a safe name: no such characters, and
 * no dots and spaces at the end. */
static void name_bare(char *to, const char *safe) {
    char *begin = to;

    while (*safe) {
        uint32_t rune = 0;
        size_t n = utf8_decode(safe, &rune);

        if (n == 0)
            n = 1;
        if (!rune_is_ignored(rune)) {
            memcpy(to, safe, n);
            to += n;
        }
        safe += n;
    }
    while (to > begin && (to[-1] == '.' || to[-1] == ' '))
        to--;
    *to = '\0';
}

/* Does a name end like that of a file of ours? */
static bool name_is_part(const char *name) {
    static const char *const ends[] = {".part", ".part.meta"};
    size_t n = strlen(name);

    for (size_t i = 0; i < COUNT_OF(ends); i++) {
        size_t tail = strlen(ends[i]);

        if (n >= tail && strcasecmp(name + n - tail, ends[i]) == 0)
            return true;
    }
    return false;
}

/* "dir/name.ext" and 2 make "dir/name (2).ext"; 0 makes a plain copy. The name
 * is cut before its extension if it would be too long, with its suffix and, as
 * that of a .part, with a ".meta". */
static char *name_numbered(const char *path, unsigned long number,
                           const char *suffix) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    const char *tail = extension(name);
    size_t most = NAME_MOST - strlen(suffix) - (*suffix ? strlen(".meta") : 0);
    char digits[32] = "";
    size_t size = strlen(path) + strlen(suffix) + sizeof digits;
    char *to;
    size_t keep;

    if (number == 0 && !*suffix)
        return text_join(path, "");
    to = malloc(size);
    if (!to)
        return NULL;
    if (number > 0)
        snprintf(digits, sizeof digits, " (%lu)", number);
    if (strlen(tail) > most / 2)
        tail = name + strlen(name);
    most -= strlen(digits) + strlen(tail);
    keep = cut_size(name, (size_t)(tail - name), most);
    snprintf(to, size, "%.*s%s%s%s", (int)(name - path) + (int)keep, path,
             digits, tail, suffix);
    return to;
}

/* A long path is told by its end, so that the reason is not lost. */
static int fail_file(struct transfer *t, const char *what, const char *path) {
    const char *why = strerror(errno);
    size_t n = strlen(path);
    size_t most = 100;

    if (n > most)
        return fail(t, FETCHER_FILE, "could not %s ...%s: %s", what,
                    path + n - most, why);
    return fail(t, FETCHER_FILE, "could not %s %s: %s", what, path, why);
}

/* Does the request name a directory, and the server or the URL the file? */
static bool in_directory(const struct transfer *t) {
    return t->rq.path[strlen(t->rq.path) - 1] == '/';
}

/* The path that was asked for and, in a directory, a name that was made safe:
 * one like that of a .part or .meta we would believe later. */
static int path_set(struct transfer *t, char **path, const char *name) {
    char bare[NAME_MOST + 1];

    name_bare(bare, name);
    if (name_is_part(bare)) {
        *strrchr(bare, '.') = '_';
        name = bare;
    }
    free(*path);
    *path = text_join(t->rq.path, name);
    return *path ? 0 : fail_memory(t);
}

/* -- blocks ----------------------------------------------------------------
 * A file system frees the blocks of a file when its last name or descriptor
 * goes: a GiB takes a fifth of a second. So what is large is made shorter bit
 * by bit first, in the slice. Only if nobody else has it open, who would miss
 * the bytes; else it lives on, and to close it costs nothing. And not at once:
 * who had just found it by its name may not have opened it yet.
 */
enum {
    REMAINS_STEP = 4 * 1024 * 1024,
    RESERVE_STEP = 4 * 1024 * 1024,
    REMAINS_US = 100000
};

static void remains_end(struct fetcher *f) {
    struct remains *r = f->remains;

    f->remains = r->next;
    close(r->fd);
    free(r);
}

static bool remains_due(const struct fetcher *f) {
    return f->remains && f->remains->due <= f->loop.now;
}

static void remains_step(struct fetcher *f) {
    struct remains *r = f->remains;

    r->size -= REMAINS_STEP;
    if (r->size <= 0 || !is_open_once(r->fd) || ftruncate(r->fd, r->size) < 0)
        remains_end(f);
}

/* Close a file that may have lost its name. */
static void file_close(struct fetcher *f, int fd) {
    struct remains *r = NULL;
    struct stat st;

    if (fstat(fd, &st) == 0 && st.st_nlink == 0 && st.st_size > REMAINS_STEP)
        r = malloc(sizeof *r);
    if (!r) {
        close(fd);
        return;
    }
    *r = (struct remains){f->remains, fd, st.st_size, f->loop.now + REMAINS_US};
    f->remains = r;
}

/* -- the directory ---------------------------------------------------------
 * If it held no .meta when the first files were made there, then there is no
 * part to be continued. One that another process leaves later is no obstacle:
 * it is met when a .part of its name is made.
 */
enum { ENTRIES_MAX = 4096, ENTRIES_STEP = 256 };

static void directory_forget(struct fetcher *f) {
    struct directory *d = &f->directory;

    if (d->entries)
        closedir(d->entries);
    free(d->path);
    *d = (struct directory){NULL, NULL, 0, NOT_LOOKED};
}

static void directory_read(struct directory *d) {
    enum looked state = LOOKING;

    for (int i = 0; i < ENTRIES_STEP && state == LOOKING; i++) {
        struct dirent *e;

        errno = 0;
        e = readdir(d->entries);
        d->count++;
        if (!e)
            state = errno ? LOOK_FOR_EACH : HOLDS_NONE;
        else if (d->count > ENTRIES_MAX || name_is_part(e->d_name))
            state = LOOK_FOR_EACH;
    }
    d->state = state;
    if (state == LOOKING)
        return;
    closedir(d->entries);
    d->entries = NULL;
}

/* Is it known that this directory holds no part of anything? One that is used
 * for the second time in a row is looked through, a step a file. */
static bool directory_is_clear(struct fetcher *f, const char *path) {
    struct directory *d = &f->directory;
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash + 1 - path) : 0;

    if (!d->path || strlen(d->path) != n || memcmp(d->path, path, n) != 0) {
        directory_forget(f);
        d->path = text_join(path, "");
        if (d->path)
            d->path[n] = '\0';
        return false;
    }
    if (d->state == NOT_LOOKED) {
        d->entries = opendir(n ? d->path : ".");
        d->state = d->entries ? LOOKING : LOOK_FOR_EACH;
    }
    if (d->state == LOOKING)
        directory_read(d);
    return d->state == HOLDS_NONE;
}

/* -- the .meta -------------------------------------------------------------
 * Lines that say what the bytes of a .part belong to, and which .part that is;
 * then a check for each MiB of it.
 */
enum {
    META_URL,
    META_VALIDATOR,
    META_LENGTH,   /* of the whole document; -1: not known */
    META_MODIFIED, /* Last-Modified */
    META_ENCODING, /* Content-Encoding */
    META_PART,     /* inode and birth of the .part */
    META_ERA,      /* boot and mount in which it was written */
    META_LINES,

    ERA_SIZE = 60, /* bytes of that line: it is rewritten in its place */
    RECORD_SIZE = 17
};

struct meta {
    char text[4096]; /* what is longer isn't written, and so not resumed */
    const char *line[META_LINES];
    int64_t length;
    size_t records; /* where the checks begin */
};

/* Is there a .meta? TORN: an empty one, or NULs, as after a power cut. */
enum found { ABSENT, FOREIGN, TORN, OURS };

/* In the same boot, and on the same mount, what was written can be read. */
static void era_of(const struct fetcher *f, int fd, char *era) {
    char birth[40];
    char mount[40];

    file_birth(fd, birth, mount, sizeof mount);
    snprintf(era, ERA_SIZE + 1, "%-36.36s %-23.23s", f->boot, mount);
}

static void part_identity(int fd, char *identity, size_t room) {
    struct stat st = {0};
    char birth[40];
    char mount[40];

    file_birth(fd, birth, mount, sizeof mount);
    (void)fstat(fd, &st);
    snprintf(identity, room, "%" PRIu64 " %s", (uint64_t)st.st_ino, birth);
}

static int meta_open(const char *part, int flags) {
    char *path = text_join(part, ".meta");
    int fd = -1;

    if (path)
        fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    free(path);
    if (fd >= 0 && !is_ours(fd)) {
        close(fd);
        return set_errno(EEXIST);
    }
    return fd;
}

static bool meta_parse(struct meta *m, size_t size) {
    char *s = m->text;
    const char *length;

    for (int i = 0; i < META_LINES; i++) {
        char *end = memchr(s, '\n', size - (size_t)(s - m->text));

        if (!end)
            return false;
        *end = '\0';
        m->line[i] = s;
        s = end + 1;
    }
    m->records = (size_t)(s - m->text);
    length = m->line[META_LENGTH];
    m->length = text_number(&length);
    return strncasecmp(m->text, "http", 4) == 0 &&
           strlen(m->line[META_ERA]) == ERA_SIZE;
}

static bool meta_stands(const char *part) {
    char *path = text_join(part, ".meta");
    struct stat st;
    bool stands = path && lstat(path, &st) == 0;

    free(path);
    return stands;
}

static bool is_zero(const char *data, size_t n) {
    while (n > 0 && data[n - 1] == '\0')
        n--;
    return n == 0;
}

static enum found meta_read(const char *part, struct meta *m) {
    int fd = meta_open(part, O_RDONLY);
    ssize_t n = -1;

    if (fd < 0)
        return errno != ENOENT && meta_stands(part) ? FOREIGN : ABSENT;
    n = read(fd, m->text, sizeof m->text - 1);
    close(fd);
    if (n < 0)
        return FOREIGN;
    m->text[n] = '\0';
    if (is_zero(m->text, (size_t)n))
        return TORN;
    return meta_parse(m, (size_t)n) ? OURS : FOREIGN;
}

static void meta_remove(struct body *b) {
    char *path = text_join(b->part, ".meta");

    if (path)
        unlink(path);
    free(path);
    b->meta = false;
    b->records = 0;
}

static void check_begin(struct body *b) {
    b->check = (struct check){{0}, 0, 0};
}

/* The lines of the .meta; 0: they are too long. */
static size_t meta_text(struct transfer *t, char *text, size_t room) {
    struct body *b = t->body;
    const struct validators *v = &b->validators;
    const char *proof = validator(b);
    char identity[80];
    char era[ERA_SIZE + 1];
    int n;

    part_identity(b->fd, identity, sizeof identity);
    era_of(t->f, b->fd, era);
    n = snprintf(text, room, "%s\n%s\n%" PRId64 "\n%s\n%s\n%s\n%s\n",
                 shown_url(t), proof ? proof : "", b->length, v->modified,
                 v->encoding, identity, era);
    return n < (int)room ? (size_t)n : 0;
}

/* Written in one piece, while the .part is empty: so no bytes ever stand under
 * the .meta of another document. Best effort: without one the download works,
 * and can't be continued by another process. */
static void meta_write(struct transfer *t) {
    struct body *b = t->body;
    struct meta m;
    size_t n;
    int fd;

    check_begin(b);
    if (b->meta) /* what it says is over, also if no other can be made */
        meta_remove(b);
    else if (!is_ours(b->fd) || meta_read(b->part, &m) == FOREIGN)
        return; /* nor would a .meta on that disk be ours */
    fd = meta_open(b->part, O_WRONLY | O_CREAT);
    if (fd < 0)
        return;
    b->meta = true;
    n = meta_text(t, m.text, sizeof m.text);
    if (n == 0 || ftruncate(fd, 0) < 0 || write(fd, m.text, n) != (ssize_t)n)
        meta_remove(b);
    else
        b->records = validator(b) ? n : 0;
    close(fd);
}

/* A part that is gone on with has been looked through, and cut to what agrees:
 * from now on all of it is of this boot. */
static void meta_renew(struct transfer *t) {
    struct body *b = t->body;
    char era[ERA_SIZE + 1];
    int fd = meta_open(b->part, O_WRONLY);

    if (fd < 0)
        return;
    era_of(t->f, b->fd, era);
    (void)!pwrite(fd, era, ERA_SIZE, (off_t)b->records - ERA_SIZE - 1);
    close(fd);
}

/* -- checks ----------------------------------------------------------------
 * Against a disk that lost bytes, not against an enemy: so quick, and no more
 * than a word's worth of mixing for each eight bytes.
 */

static uint64_t mix(uint64_t lane, uint64_t word) {
    lane = (lane ^ word) * 0x9e3779b97f4a7c15u;
    return lane ^ lane >> 29;
}

/* The same on all machines: little-endian. Compilers make one load of this, not
 * of a loop. */
static inline uint64_t word_at(const unsigned char *s) {
    return (uint64_t)s[0] | (uint64_t)s[1] << 8 | (uint64_t)s[2] << 16 |
           (uint64_t)s[3] << 24 | (uint64_t)s[4] << 32 | (uint64_t)s[5] << 40 |
           (uint64_t)s[6] << 48 | (uint64_t)s[7] << 56;
}

static void check_byte(struct check *c, unsigned char byte) {
    size_t lane = c->size / 8 % 4;

    c->word |= (uint64_t)byte << 8 * (c->size % 8);
    c->size++;
    if (c->size % 8 != 0)
        return;
    c->lane[lane] = mix(c->lane[lane], c->word);
    c->word = 0;
}

/* Four words at a time. What has an address may be what s points to: so the
 * lanes are copied, into registers. */
static void check_blocks(struct check *c, const unsigned char *s, size_t n) {
    uint64_t a = c->lane[0];
    uint64_t b = c->lane[1];
    uint64_t d = c->lane[2];
    uint64_t e = c->lane[3];

    for (const unsigned char *end = s + n; s < end; s += 32) {
        a = mix(a, word_at(s));
        b = mix(b, word_at(s + 8));
        d = mix(d, word_at(s + 16));
        e = mix(e, word_at(s + 24));
    }
    c->lane[0] = a;
    c->lane[1] = b;
    c->lane[2] = d;
    c->lane[3] = e;
    c->size += n;
}

static void check_add(struct check *c, const char *data, size_t n) {
    const unsigned char *s = (const unsigned char *)data;
    size_t blocks;

    for (; n > 0 && c->size % 32 != 0; n--)
        check_byte(c, *s++);
    blocks = n - n % 32;
    check_blocks(c, s, blocks);
    for (s += blocks; n > blocks; n--)
        check_byte(c, *s++);
}

/* As a line of the .meta. */
static void check_line(const struct check *c, char line[RECORD_SIZE + 1]) {
    uint64_t sum = 0;

    for (int i = 0; i < 4; i++)
        sum = mix(sum, c->lane[i]);
    snprintf(line, RECORD_SIZE + 1, "%016" PRIx64 "\n", sum);
}

/* Where the line stands of the MiB that ends there. */
static off_t record_offset(const struct body *b, int64_t end) {
    return (off_t)b->records + (off_t)(end / CHECKED - 1) * RECORD_SIZE;
}

static void check_store(const struct body *b) {
    int fd = meta_open(b->part, O_WRONLY);
    char line[RECORD_SIZE + 1];

    if (fd < 0)
        return;
    check_line(&b->check, line);
    (void)!pwrite(fd, line, RECORD_SIZE, record_offset(b, b->have));
    close(fd);
}

static bool check_agrees(const struct body *b) {
    int fd = meta_open(b->part, O_RDONLY);
    char line[RECORD_SIZE + 1];
    char found[RECORD_SIZE + 1] = "";
    ssize_t n = -1;

    if (fd < 0)
        return false;
    check_line(&b->check, line);
    n = pread(fd, found, RECORD_SIZE, record_offset(b, b->have));
    close(fd);
    return n == RECORD_SIZE && strcmp(found, line) == 0;
}

/* The next bytes of the .part, up to the end of a MiB at most. */
static void part_count(struct body *b, const char *data, size_t n) {
    if (b->records)
        check_add(&b->check, data, n);
    b->have += (int64_t)n;
}

/* -- the .part ------------------------------------------------------------- */

/* Files need no place below FD_SETSIZE, sockets do: so once a quarter of the
 * low numbers is used a file moves up, if it can. */
static int move_up(int fd) {
    int higher;

    if (fd < FD_SETSIZE / 4 || descriptors_limit() <= FD_SETSIZE + 64)
        return fd;
    higher = fcntl(fd, F_DUPFD_CLOEXEC, FD_SETSIZE);
    if (higher < 0)
        return fd;
    close(fd);
    return higher;
}

/* Open a .part, and take its lock. -1 with EWOULDBLOCK: somebody writes it;
 * EEXIST: it is no plain file of ours, or renamed. What is appended leaves no
 * hole if somebody shortens it: its size tells. */
static int part_lock(const char *part, int flags) {
    const int usual = O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = open(part, usual | flags, 0666);
    bool fresh = flags & O_EXCL;
    bool good = false;
    struct stat st;
    int why = EEXIST;

    if (fd < 0)
        return -1;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 || (fresh && errno != EWOULDBLOCK)) {
        /* some file systems have no locks */
        if (fresh)
            good = fstat(fd, &st) == 0 && st.st_size == 0;
        else
            good = is_ours(fd) && stands_as(fd, part);
    } else if (errno == EWOULDBLOCK)
        why = EWOULDBLOCK;
    if (good)
        return move_up(fd);
    close(fd);
    return set_errno(why);
}

/* The directory in which this stands to the disk, or a name that is new in it
 * may be gone after a power cut. Some file systems can't, and need not. */
static int directory_flush(const char *path) {
    char *name = text_join(*path == '/' ? "" : "./", path);
    int result = -1;
    int fd;

    if (!name)
        return set_errno(ENOMEM);
    strrchr(name, '/')[1] = '\0';
    fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(name);
    if (fd < 0)
        return -1;
    result = fsync(fd);
    if (result < 0 && errno == EINVAL)
        result = 0;
    close(fd);
    return result;
}

/* Make the directories that are missing on the way. If none is, fail. */
static int make_directories(struct transfer *t, char *path) {
    bool flush = t->rq.flags & FETCHER_SYNC;
    int result = ENOENT;

    for (char *s = strchr(path + 1, '/'); s; s = strchr(s + 1, '/')) {
        *s = '\0';
        if (mkdir(path, 0777) == 0)
            result = flush && directory_flush(path) < 0 ? errno : 0;
        else if (errno != EEXIST)
            result = errno;
        *s = '/';
    }
    errno = result;
    return result ? fail_file(t, "make", path) : 0;
}

static bool writes_part(const struct transfer *t, const char *part) {
    const struct body *b = t->body;

    return b && b->fd >= 0 && !b->nameless && strcmp(b->part, part) == 0;
}

/* Is it another transfer of this fetcher that writes it? */
static bool part_is_written_here(struct fetcher *f, const char *part) {
    struct node *n = tree_first(f->transfers);

    while (n && !writes_part(container_of(n, struct transfer, id), part))
        n = tree_next(f->transfers, n);
    return n != NULL;
}

/* Something is in the way of a .part: what now? */
enum way { THIS_NUMBER, NEXT_NUMBER, NO_WAY };

static enum way part_obstacle(struct transfer *t, char *part, bool ours) {
    switch (errno) {
    case ENOENT:
        return make_directories(t, part) < 0 ? NO_WAY : THIS_NUMBER;
    case EWOULDBLOCK:
        if (part_is_written_here(t->f, part) || (in_directory(t) && !ours))
            return NEXT_NUMBER;
        fail(t, FETCHER_FILE, "%s is being written by another process", part);
        return NO_WAY;
    case EEXIST:
    case EISDIR:
    case ELOOP:
    case ENXIO:
    case EMLINK:
        return NEXT_NUMBER;
    default:
        fail_file(t, "make", part);
        return NO_WAY;
    }
}

static int part_name(struct transfer *t, unsigned long number) {
    struct body *b = t->body;

    free(b->part);
    b->part = name_numbered(b->base, number, ".part");
    return b->part ? 0 : fail_memory(t);
}

/* Do two URLs differ in their query alone? */
static bool same_place(const char *a, const char *b) {
    size_t n = strcspn(a, "?#");

    return strcspn(b, "?#") == n && memcmp(a, b, n) == 0;
}

/* Of the same URL, or of the same sum; or of an address that has expired, if
 * its ETag is to prove the rest. */
static bool meta_is_of(const struct meta *m, const struct transfer *t) {
    const char *of = m->line[META_URL];
    const char *proof = m->line[META_VALIDATOR];

    if (strcmp(of, shown_url(t)) == 0)
        return true;
    if (*proof && strcmp(proof, t->body->proof) == 0)
        return true;
    return t->rq.old_url && strcmp(of, t->rq.old_url) == 0 &&
           is_strong(proof) && same_place(of, shown_url(t));
}

/* Is the .part at fd the one that its .meta speaks of? */
static bool meta_is_about(const struct meta *m, int fd) {
    char identity[80];

    part_identity(fd, identity, sizeof identity);
    return strcmp(m->line[META_PART], identity) == 0;
}

/* May the .part that is in the way be emptied and used? An empty one, unless
 * its .meta is somebody's own file. One with bytes must have a .meta of ours;
 * and what another URL left is only given up where its name was asked for. */
static bool part_may_go(const struct transfer *t, int fd) {
    struct stat st;
    struct meta m;
    enum found meta = meta_read(t->body->part, &m);

    if (meta == FOREIGN || fstat(fd, &st) < 0)
        return false;
    if (st.st_size == 0 || meta == TORN)
        return true;
    if (meta == ABSENT || !meta_is_about(&m, fd))
        return false;
    return !in_directory(t) || meta_is_of(&m, t);
}

/* A new one in the place of that at fd. The .meta goes after the bytes that it
 * spoke of. */
static int part_renew(struct transfer *t, int fd) {
    struct body *b = t->body;

    if (unlink(b->part) == 0)
        meta_remove(b);
    file_close(t->f, fd);
    return part_lock(b->part, O_CREAT | O_EXCL);
}

static int part_recycle(struct transfer *t) {
    int fd = part_lock(t->body->part, 0);

    if (fd < 0)
        return -1;
    if (part_may_go(t, fd))
        return part_renew(t, fd);
    close(fd);
    return set_errno(EEXIST);
}

/* A .part of our own, under the first number that is free. */
static int part_open(struct transfer *t) {
    struct body *b = t->body;
    unsigned long number = 0;
    enum way way = THIS_NUMBER;

    while (way != NO_WAY) {
        if (part_name(t, number) < 0)
            return -1;
        b->fd = part_lock(b->part, O_CREAT | O_EXCL);
        if (b->fd < 0 && errno == EEXIST) {
            b->fd = part_recycle(t);
            if (b->fd < 0 && errno == ENOENT)
                continue; /* it has just gone */
        }
        if (b->fd >= 0)
            return 0;
        way = part_obstacle(t, b->part, false);
        if (way == NEXT_NUMBER)
            number++;
    }
    return -1;
}

/* What there is of the document, if it may be continued: of another boot, or
 * for its sum, it has to be looked through from the beginning; else only from
 * its last full MiB, to go on with its check. */
static void body_adopt(struct transfer *t, const struct meta *m) {
    struct body *b = t->body;
    const char *proof = m->line[META_VALIDATOR];
    struct validators v = {"", "", "", ""};
    char era[ERA_SIZE + 1];
    struct stat st;

    if (is_strong(proof))
        text_field(v.etag, sizeof v.etag, proof);
    text_field(v.modified, sizeof v.modified, m->line[META_MODIFIED]);
    text_field(v.encoding, sizeof v.encoding, m->line[META_ENCODING]);
    b->validators = v;
    b->by_sum = *proof && strcmp(proof, b->proof) == 0;
    b->modified_sure = *proof && strcmp(proof, v.modified) == 0;
    b->dated = true;
    b->meta = true;
    b->records = m->records;
    b->length = m->length;
    era_of(t->f, b->fd, era);
    b->trusted = *t->f->boot && strcmp(era, m->line[META_ERA]) == 0;
    if (!validator(b) || fstat(b->fd, &st) < 0 ||
        (m->length >= 0 && st.st_size > m->length))
        return;
    b->unproved = st.st_size;
    if (b->trusted && !*b->proof)
        b->have = st.st_size - st.st_size % CHECKED;
}

/* Is the .part of this name one to go on with? */
static enum way part_adopt(struct transfer *t, bool *there) {
    struct body *b = t->body;
    struct meta m;
    enum found meta = meta_read(b->part, &m);

    *there = meta != ABSENT;
    if (meta != OURS || !meta_is_of(&m, t))
        return NEXT_NUMBER;
    b->fd = part_lock(b->part, 0);
    if (b->fd < 0 &&
        errno == ENOENT) { /* killed after the rename: it is left */
        meta_remove(b);
        return NEXT_NUMBER;
    }
    if (b->fd < 0)
        return part_obstacle(t, b->part, true);

    /* What was read before the lock may be stale by now. */
    if (meta_read(b->part, &m) == OURS && meta_is_of(&m, t) &&
        meta_is_about(&m, b->fd)) {
        body_adopt(t, &m);
        return THIS_NUMBER;
    }
    close(b->fd);
    b->fd = -1;
    return NEXT_NUMBER;
}

/* Take up what an earlier run has left, if there is proof of what it is a part
 * of. Its name has a number if there were others of that name: as long as
 * there are such, or if one has become a file, we look further. */
static int part_find(struct transfer *t) {
    struct body *b = t->body;
    unsigned long last = b->exists ? NUMBERS_TRIED : 1;

    for (unsigned long number = 0; number <= last; number++) {
        enum way way;
        bool there;

        if (part_name(t, number) < 0)
            return -1;
        way = part_adopt(t, &there);
        if (way != NEXT_NUMBER)
            return way == NO_WAY ? -1 : 0;
        if (there && last == number)
            last++;
    }
    return 0;
}

/* One step of looking through what an earlier run has left: false when all is
 * looked at. What stands behind the last MiB that agrees is fetched again. */
static bool part_prove(struct transfer *t) {
    struct body *b = t->body;
    char data[PROVE_STEP];
    size_t n = CHECKED - b->check.size;
    ssize_t got;
    bool good = true;

    if (n > sizeof data)
        n = sizeof data;
    got = pread(b->fd, data, n, b->have);
    if (got > 0) {
        part_count(b, data, (size_t)got);
        sum_add(b, data, (size_t)got);
    }
    if (b->check.size == CHECKED) {
        good = b->trusted || check_agrees(b);
        if (good) {
            b->kept = b->sum;
            check_begin(b);
        }
    }
    if (good && got > 0 && b->have < b->unproved)
        return true;
    if (!b->trusted) {
        b->have -= (int64_t)b->check.size;
        b->sum = b->kept;
        check_begin(b);
        if (ftruncate(b->fd, b->have) == 0)
            meta_renew(t);
    }
    b->unproved = 0;
    return false;
}

/* A full disk is told of before the first MiB, not after the last. */
static int part_room(struct transfer *t) {
    const struct body *b = t->body;
    struct statvfs v;
    uint64_t room;

    if (fstatvfs(b->fd, &v) < 0 || v.f_blocks == 0)
        return 0;
    room = (uint64_t)(geteuid() == 0 ? v.f_bfree : v.f_bavail) * v.f_frsize;
    if (b->length <= b->have || (uint64_t)(b->length - b->have) <= room)
        return 0;
    errno = ENOSPC;
    return fail_file(t, "write", b->part);
}

/* What replaces a file gets its blocks before its next n bytes: else the rename
 * waits until they are found. */
static void part_reserve(struct transfer *t, size_t n) {
    struct body *b = t->body;
    int64_t size = RESERVE_STEP;

    if (!b->exists || b->have + (int64_t)n <= b->reserved)
        return;
    if (b->reserved < b->have)
        b->reserved = b->have;
    if (size > b->length - b->reserved)
        size = b->length - b->reserved;
    if (size > 0)
        blocks_reserve(b->fd, b->reserved, size);
    b->reserved += RESERVE_STEP;
}

/* What is written to, as messages call it. */
static const char *written_name(const struct body *b) {
    return b->nameless ? b->path : b->part;
}

static int part_write(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;

    if (!b->nameless)
        part_reserve(t, n);
    while (n > 0) {
        size_t room = CHECKED - b->check.size;
        ssize_t written = write(b->fd, data, n < room ? n : room);

        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return fail_file(t, "write", written_name(b));
        part_count(b, data, (size_t)written);
        if (b->check.size == CHECKED) {
            check_store(b);
            check_begin(b);
        }
        data += written;
        n -= (size_t)written;
    }
    return 0;
}

/* What is in memory moves to disk. */
static int part_spill(struct transfer *t) {
    struct body *b = t->body;
    size_t n = (size_t)b->have;
    char *data = b->data;
    int result;

    b->data = NULL;
    b->room = 0;
    b->have = 0;
    result = part_write(t, data, n);
    free(data);
    return result;
}

/* -- the sink -------------------------------------------------------------- */

/* A link such as /dev/stdout, through which a program finds what it has open:
 * all programs would miss it. */
static bool leads_to_descriptor(const char *path) {
    enum { LINKS_MOST = 40 };

    char at[4096];
    char to[4096];

    snprintf(at, sizeof at, "%s", path);
    for (int i = 0; i < LINKS_MOST; i++) {
        char *name = strrchr(at, '/');
        ssize_t n = readlink(at, to, sizeof to - 1);
        size_t dir = 0;

        if (n <= 0)
            return false;
        to[n] = '\0';
        if (name && *to != '/')
            dir = (size_t)(name + 1 - at);
        snprintf(at + dir, sizeof at - dir, "%s", to);
        if (strncmp(at, "/proc/", 6) == 0 || strncmp(at, "/dev/fd/", 8) == 0)
            return true;
    }
    return true;
}

/* A device, a FIFO, a socket, also behind a link: it has no other name that
 * could become it. */
static bool is_special(const char *path, mode_t mode) {
    struct stat st;

    if (S_ISLNK(mode) && leads_to_descriptor(path))
        return true;
    if (S_ISLNK(mode) && stat(path, &st) == 0)
        mode = st.st_mode;
    return !S_ISREG(mode) && !S_ISDIR(mode) && !S_ISLNK(mode);
}

static bool replaces(const struct transfer *t) {
    return t->rq.existing == FETCHER_OVERWRITE ||
           t->rq.existing == FETCHER_UPDATE;
}

/* A repeating transfer replaces what it made, and nothing that was there. */
static bool is_in_the_way(const struct transfer *t) {
    return t->rq.every_ms && t->rq.existing == FETCHER_KEEP_BOTH &&
           !t->body->placed;
}

/* What is in the way of its name is left alone, and it gets a number. */
static bool is_beside(const struct transfer *t) {
    return t->rq.existing == FETCHER_KEEP_BOTH && !t->rq.every_ms;
}

static int fail_exists(struct transfer *t, const char *path) {
    t->hopeless = true;
    return fail(t, FETCHER_FILE, "%s exists, and is not replaced", path);
}

/* Is something there that we may not replace, or that makes fetching
 * needless? */
static enum verdict file_look(struct transfer *t) {
    struct body *b = t->body;
    enum fetcher_existing existing = t->rq.existing;
    struct stat st;

    b->exists = lstat(b->path, &st) == 0;
    if (!b->exists)
        return GO_ON;
    if (existing == FETCHER_SKIP && !b->placed)
        return NEEDLESS;
    if (is_special(b->path, st.st_mode) ||
        (replaces(t) && S_ISDIR(st.st_mode))) {
        fail(t, FETCHER_FILE, "%s is not a file", b->path);
        return IMPOSSIBLE;
    }
    if (is_in_the_way(t) && !in_directory(t)) {
        fail_exists(t, b->path);
        return IMPOSSIBLE;
    }
    return GO_ON;
}

/* The last of the URL's path, decoded first, to see "%2e%2e%2f" for what it
 * is. NULL: it has none. */
static char *url_name(const char *url) {
    const char *path = strstr(url, "://") + 3;
    const char *end = path + strcspn(path, "?#");
    const char *s = end;

    while (s > path && s[-1] != '/')
        s--;
    if (s == path || s == end)
        return NULL;
    return curl_easy_unescape(NULL, s, (int)(end - s), NULL);
}

static int file_name(struct transfer *t) {
    struct body *b = t->body;
    char *name;
    int result;

    if (!in_directory(t))
        result = path_set(t, &b->base, "");
    else {
        name = url_name(t->rq.url);
        if (name)
            name_make_safe(name);
        result = path_set(t, &b->base, name && *name ? name : "index.html");
        curl_free(name);
    }
    if (result < 0)
        return -1;
    b->path = text_join(b->base, "");
    return b->path ? 0 : fail_memory(t);
}

static void part_close(struct transfer *t) {
    struct body *b = t->body;

    if (b->fd >= 0)
        file_close(t->f, b->fd);
    b->fd = -1;
    b->nameless = false;
    b->have = 0;
    b->unproved = 0;
    b->reserved = 0;
    b->meta = false;
    b->records = 0;
    b->validators = (struct validators){"", "", "", ""};
}

/* Does it hold as many bytes as were written? */
static bool part_is_right(const struct body *b) {
    struct stat st;

    return fstat(b->fd, &st) == 0 && st.st_size == b->have;
}

/* A .part stays if another process can continue it. */
static void part_leave(struct transfer *t) {
    struct body *b = t->body;
    bool of_use;

    if (b->data)
        (void)part_spill(t);
    of_use = b->have > 0 && b->meta && validator(b) && part_is_right(b);
    if (b->unproved || of_use)
        directory_forget(t->f);
    else if (!b->nameless && stands_as(b->fd, b->part)) {
        unlink(b->part);
        if (b->meta)
            meta_remove(b);
    }
    part_close(t);
}

/* It is not what we have written any more: nobody goes on with it, and the next
 * round begins anew. */
static int fail_part(struct transfer *t, const char *what) {
    fail(t, FETCHER_FILE, "%s was %s", t->body->part, what);
    t->body->have = 0;
    part_leave(t);
    return -1;
}

/* Never made longer: a hole would take the place of what somebody cut off. */
static int part_cut(struct transfer *t) {
    struct body *b = t->body;
    struct stat st;

    if (fstat(b->fd, &st) < 0 || st.st_size < b->have)
        return fail_part(t, "changed by somebody");
    if (b->have == 0 && st.st_size > REMAINS_STEP &&
        stands_as(b->fd, b->part)) {
        b->fd = part_renew(t, b->fd);
        return b->fd < 0 ? fail_file(t, "make", b->part) : 0;
    }
    return ftruncate(b->fd, b->have) < 0 ? fail_file(t, "cut", b->part) : 0;
}

/* -- the note ----------------------------------------------------------------
 * By FETCHER_UPDATE a file is asked for only if it has changed, in a later run
 * too. What that needs the file keeps itself, as an attribute:
 *
 *     hash of the URL, size and time of the file as they were made
 *     hash of the place that has sent it: see place_of
 *     "sha256:HEX" if that was asked for
 *     ETag
 *     Last-Modified
 *
 * Written before the file has its name: there is none without. If its first
 * line isn't true any more, somebody has changed the file. Where there are no
 * attributes its time is all there is, which was set from Last-Modified.
 */
enum {
    NOTE_TRUTH,
    NOTE_PLACE,
    NOTE_PROOF,
    NOTE_ETAG,
    NOTE_MODIFIED,
    NOTE_LINES
};

static void note_truth(const struct transfer *t, const struct stat *st,
                       char line[NOTE_SIZE]) {
    snprintf(line, NOTE_SIZE, "%016" PRIx64 " %" PRId64 " %" PRId64 ".%09ld",
             text_hash(t->rq.url, strlen(t->rq.url)), (int64_t)st->st_size,
             (int64_t)st->st_mtime, changed_ns(st));
}

/* Best effort. A range of the caller's own is not what will be asked for. */
static void note_leave(struct transfer *t) {
    struct body *b = t->body;
    const struct validators *v = &b->validators;
    struct stat st;
    char text[600];
    int n;

    if (t->rq.existing != FETCHER_UPDATE || t->own_range ||
        fstat(b->fd, &st) < 0)
        return;
    note_truth(t, &st, b->note);
    n = snprintf(text, sizeof text, "%s\n%016" PRIx64 "\n%s\n%s\n%s\n", b->note,
                 b->place, b->proof, v->etag, v->modified);
    if (n < (int)sizeof text)
        (void)note_write(b->fd, text);
}

/* What a file says of itself is believed if nobody has touched it since. */
static bool note_parse(struct transfer *t, char *text) {
    struct body *b = t->body;
    const char *line[NOTE_LINES];

    for (int i = 0; i < NOTE_LINES; i++) {
        char *end = strchr(text, '\n');

        if (!end)
            return false;
        *end = '\0';
        line[i] = text;
        for (const char *s = text; s < end; s++) {
            if (rune_is_unfit((unsigned char)*s))
                return false;
        }
        text = end + 1;
    }
    if (strcmp(line[NOTE_TRUTH], b->note) != 0 ||
        (*b->proof && strcmp(line[NOTE_PROOF], b->proof) != 0))
        return false;
    text_field(b->validators.etag, sizeof b->validators.etag, line[NOTE_ETAG]);
    text_field(b->validators.modified, sizeof b->validators.modified,
               line[NOTE_MODIFIED]);
    b->dated = false;
    b->place = strtoull(line[NOTE_PLACE], NULL, 16);
    return b->validators.etag[0] || b->validators.modified[0];
}

/* As HTTP writes it (RFC 9110, 5.6.7), in any locale. */
static void date_text(time_t at, char *text, size_t room) {
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    struct tm tm;

    *text = '\0';
    if (gmtime_r(&at, &tm))
        snprintf(text, room, "%.3s, %02d %.3s %d %02d:%02d:%02d GMT",
                 days + 3 * tm.tm_wday, tm.tm_mday, months + 3 * tm.tm_mon,
                 tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

/* A time that a server has set is a full second; most others are not. Who sent
 * the file then isn't known: so this place. */
static bool time_take(struct transfer *t, const struct stat *st) {
    struct body *b = t->body;

    if (*b->proof || changed_ns(st) != 0)
        return false;
    date_text(st->st_mtime, b->validators.modified,
              sizeof b->validators.modified);
    b->validators.etag[0] = '\0';
    b->by_time = true;
    b->by_size = st->st_size;
    return true;
}

/* At the path, if it is a file of ours; -1: it isn't. */
static int note_open(const struct transfer *t, struct stat *st) {
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = open(t->body->path, flags);

    if (fd < 0 || (is_ours(fd) && fstat(fd, st) == 0))
        return fd;
    close(fd);
    return -1;
}

/* Before the first request: what is known of the file that stands there? */
static void note_take(struct transfer *t) {
    struct body *b = t->body;
    struct stat st;
    char text[600];
    int fd;

    if (t->rq.existing != FETCHER_UPDATE)
        return;
    fd = note_open(t, &st);
    if (fd < 0)
        return;
    note_truth(t, &st, b->note);
    if (note_read(fd, text, sizeof text) == 0)
        b->whole = note_parse(t, text);
    else {
        bool none = errno == ENOTSUP || errno == EOPNOTSUPP;

        /* One that could have a note and has none may be anybody's: it is
         * compared with what comes, and not asked for with its time. */
        b->whole = time_take(t, &st) && none;
    }
    close(fd);
}

/* Before another round: does the file still stand there as it was made? */
static void note_check(struct transfer *t) {
    struct body *b = t->body;
    char now[NOTE_SIZE] = "";
    struct stat st;
    int fd;

    if (t->rq.existing != FETCHER_UPDATE || !b->whole)
        return;
    fd = note_open(t, &st);
    if (fd >= 0) {
        note_truth(t, &st, now);
        close(fd);
    }
    b->whole = strcmp(now, b->note) == 0;
}

static enum verdict file_open(struct transfer *t) {
    struct body *b = t->body;
    enum verdict look;
    bool clear;

    if (b->path) { /* not the first attempt */
        note_check(t);
        return file_look(t);
    }
    if (file_name(t) < 0)
        return IMPOSSIBLE;
    clear = directory_is_clear(t->f, b->base);
    if (clear && is_beside(t) && in_directory(t)) /* its name finds out */
        return GO_ON;
    look = file_look(t);
    if (look == IMPOSSIBLE || b->no_range)
        return look;
    if (!clear && !(t->rq.flags & FETCHER_FRESH) && part_find(t) < 0 &&
        look == GO_ON)
        return IMPOSSIBLE;
    if (look == NEEDLESS) { /* it may be in use as well */
        t->code = FETCHER_OK;
        part_close(t);
    }
    if (!b->unproved)
        note_take(t);
    return look;
}

static int file_begin(struct transfer *t) {
    struct body *b = t->body;
    const char *name = t->attempt->head.name;
    struct stat st;

    if (in_directory(t) && !b->placed && *name &&
        path_set(t, &b->path, name) < 0)
        return -1;
    if (is_in_the_way(t) && lstat(b->path, &st) == 0)
        return fail_exists(t, b->path);
    if (b->fd < 0)
        return 0;
    if (!b->data && part_cut(t) < 0)
        return -1;
    if (b->have == 0)
        meta_write(t);
    return part_room(t);
}

static enum taken taken_if(int result) {
    return result < 0 ? NOT_TAKEN : TAKEN;
}

/* Memory first, then a .part with a .meta, and with the next piece all moves
 * there: so that a step is one write, however slow the disk. One that is taken
 * up from an earlier run is written to at once; one that starts over in an
 * open .part has its first piece in memory again. */
static enum taken file_take(struct transfer *t, const char *data, size_t n) {
    struct body *b = t->body;
    bool open = b->fd >= 0;
    bool first = b->have == 0;

    if (open && !first && !b->data)
        return taken_if(part_write(t, data, n));
    if (memory_take(t, data, n) == NOT_TAKEN)
        return NOT_TAKEN;
    if (open)
        return first ? TAKEN : taken_if(part_spill(t));
    if (b->have <= SMALL_MAX)
        return TAKEN;
    if (part_open(t) < 0 || part_room(t) < 0)
        return NOT_TAKEN;
    meta_write(t);
    return TAKEN;
}

/* -- placing --------------------------------------------------------------- */

static bool name_taken(const char *path, unsigned long number) {
    char *name = name_numbered(path, number, "");
    struct stat st;
    bool taken = name && lstat(name, &st) == 0;

    free(name);
    return taken;
}

/* The first number that is free, guessed by doubling and then halving: a
 * thousand files of one name cost ten looks each. The rename finds out. */
static unsigned long number_guess(const char *path) {
    unsigned long taken = 0;
    unsigned long vacant = 1;

    while (name_taken(path, vacant)) {
        taken = vacant;
        vacant *= 2;
    }
    while (taken + 1 < vacant) {
        unsigned long middle = taken + (vacant - taken) / 2;

        if (name_taken(path, middle))
            taken = middle;
        else
            vacant = middle;
    }
    return vacant;
}

/* Unless there is such a name: EEXIST. */
static int name_give(const struct body *b, const char *path) {
    return b->nameless ? nameless_name(b->fd, path) : rename_new(b->part, path);
}

/* Under the name that was asked for, or with a number. */
static int place_beside(struct transfer *t) {
    struct body *b = t->body;
    unsigned long number = 0;

    for (;;) {
        char *path = name_numbered(b->path, number, "");

        if (!path)
            return fail_memory(t);
        if (name_give(b, path) == 0) {
            free(b->path);
            b->path = path;
            return 0;
        }
        if (errno != EEXIST)
            fail_file(t, "make", path);
        free(path);
        if (t->code != FETCHER_OK || file_look(t) == IMPOSSIBLE)
            return -1;
        number = number ? number + 1 : number_guess(b->path);
    }
}

static void part_set_time(struct transfer *t) {
    time_t modified = curl_getdate(t->body->validators.modified, NULL);
    struct timespec times[2] = {{0, UTIME_OMIT}, {modified, 0}};

    if (modified >= 0)
        (void)futimens(t->body->fd, times); /* best effort */
}

/* Is all of it on the disk, and the .part still ours? Some file systems tell
 * of a full disk only when a file is closed, but to close this one gives up
 * the lock: so a copy of the descriptor is closed, if there is room for one.
 * And while a large one grew, somebody may have put another file in its place,
 * or written to it. */
static int part_verify(struct transfer *t) {
    const struct body *b = t->body;
    int copy;

    if (b->nameless) /* those file systems have none */
        return 0;
    copy = dup(b->fd);
    if (copy >= 0 && close(copy) < 0 && errno != EINTR)
        return fail_file(t, "write", b->part);
    if (!b->meta) /* it has just been made */
        return 0;
    if (!stands_as(b->fd, b->part))
        return fail_part(t, "taken away");
    if (!part_is_right(b) || !is_ours(b->fd))
        return fail_part(t, "changed by somebody");
    return 0;
}

/* What replaces a file is as open to others as that was, no more: and has its
 * owner, if we may give it away. */
static void part_dress(struct transfer *t) {
    const struct body *b = t->body;
    struct stat st;
    mode_t mode;

    if (lstat(b->path, &st) < 0 || !S_ISREG(st.st_mode))
        return;
    mode = st.st_mode & 0777;
    if (fchown(b->fd, st.st_uid, st.st_gid) < 0 &&
        fchown(b->fd, (uid_t)-1, st.st_gid) < 0)
        mode &= 0707;
    (void)fchmod(b->fd, mode);
}

/* A large file, to be freed when it is replaced; -1: it is none, or one that is
 * no file of its own. */
static int replaced_open(const char *path) {
    const int flags = O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) ||
        st.st_size <= REMAINS_STEP)
        return -1;
    return open(path, flags);
}

static int part_replace(struct transfer *t) {
    const struct body *b = t->body;
    int replaced;
    int result = 0;

    if (file_look(t) == IMPOSSIBLE)
        return -1;
    part_dress(t);
    replaced = replaced_open(b->path);
    if (rename(b->part, b->path) < 0)
        result = fail_file(t, "make", b->path);
    if (replaced >= 0)
        file_close(t->f, replaced);
    return result;
}

/* Give the whole .part the name that was asked for. */
static int part_place(struct transfer *t) {
    const struct body *b = t->body;

    if (b->placed || replaces(t))
        return part_replace(t);
    if (is_beside(t))
        return place_beside(t);
    if (name_give(b, b->path) == 0)
        return 0;
    if (errno != EEXIST)
        return fail_file(t, "make", b->path);
    if (is_in_the_way(t))
        return fail_exists(t, b->path);
    t->unchanged = true; /* to be skipped, but its name came late */
    if (!b->nameless)
        unlink(b->part);
    return 0;
}

/* All of the .part to the disk before it gets its name; and then the name.
 * This can block, for as long as the disk takes: it was asked for. */
static int part_flush(struct transfer *t) {
    const struct body *b = t->body;

    if ((t->rq.flags & FETCHER_SYNC) && flush_file(b->fd) < 0)
        return fail_file(t, "flush", written_name(b));
    return 0;
}

static int name_flush(struct transfer *t) {
    const char *path = t->body->path;

    if (!(t->rq.flags & FETCHER_SYNC))
        return 0;
    return directory_flush(path) < 0 ? fail_file(t, "flush", path) : 0;
}

/* A file that is called like a .part: what a .meta says of one is not of it. */
static void stale_meta_remove(const char *path) {
    char *meta = text_join(path, ".meta");
    struct meta m;

    if (meta && name_is_part(path) && meta_read(path, &m) == OURS)
        unlink(meta);
    free(meta);
}

/* In the directory of this path, which is put together again. */
static int nameless_beside(char *path) {
    char *slash = strrchr(path, '/');
    char first;
    int fd;

    if (!slash)
        return nameless_make(".");
    first = slash[1];
    slash[1] = '\0';
    fd = nameless_make(path);
    slash[1] = first;
    return fd;
}

/* What is whole in memory, and replaces nothing, is made without a name. If it
 * can't be, for whatever reason, the usual way is taken, which tells. Whether
 * it may get one is told by an attempt to call it like a directory. */
static int nameless_open(struct transfer *t) {
    struct fetcher *f = t->f;
    struct body *b = t->body;
    int fd;

    if (f->nameless == FAILS || b->placed || replaces(t))
        return -1;
    fd = nameless_beside(b->path);
    if (fd < 0) {
        if (errno != ENOENT)
            f->nameless = FAILS;
        return -1;
    }
    if (f->nameless == UNTRIED)
        f->nameless =
            nameless_name(fd, ".") < 0 && errno == EEXIST ? WORKS : FAILS;
    if (f->nameless == FAILS) {
        close(fd);
        return -1;
    }
    b->fd = fd;
    b->nameless = true;
    return 0;
}

static int file_finish(struct transfer *t) {
    struct body *b = t->body;
    int closed;

    if (b->fd < 0 && nameless_open(t) < 0 && part_open(t) < 0)
        return -1;
    if (b->data && part_spill(t) < 0)
        return -1;
    if (t->rq.flags & FETCHER_FILE_TIME)
        part_set_time(t);
    note_leave(t);
    if (part_verify(t) < 0 || part_flush(t) < 0 || part_place(t) < 0)
        return -1;
    if (b->meta)
        meta_remove(b);
    stale_meta_remove(b->path);
    closed = close(b->fd);
    b->fd = -1;
    if (closed < 0 && errno != EINTR)
        return fail_file(t, "write", b->path);
    if (!t->unchanged)
        b->placed = true;
    return name_flush(t);
}

/* What has got no name goes: the next round can't go on with it. */
static int file_commit(struct transfer *t) {
    struct body *b = t->body;
    int result = file_finish(t);

    if (b->nameless && b->fd >= 0)
        part_close(t);
    b->nameless = false;
    return result;
}

static const struct sink file_sink = {file_open, file_begin, file_take,
                                      file_commit};

static void body_free(struct transfer *t) {
    struct body *b = t->body;

    if (!b)
        return;
    if (b->fd >= 0)
        part_leave(t);
    free(b->data);
    free(b->part);
    free(b->base);
    free(b->path);
    free(b);
}

/* =================================================================== Repeats
 * A repeating transfer sleeps between its rounds. They lie on a grid of its
 * interval, so nothing drifts; those that the machine slept through are left
 * out, so nothing bursts; a little jitter on each lets many that began
 * together spread. Rounds that fail double the interval, up to an hour.
 */

/* A whole document makes the next request conditional, and gives its bytes
 * back; a part is kept. */
static void body_rest(struct transfer *t) {
    struct body *b = t->body;

    if (t->code == FETCHER_OK)
        b->whole = true;
    b->ask_whole = false;
    if (!b->whole && !b->page && !t->rq.on_data)
        return;
    free(b->data);
    b->data = NULL;
    b->room = 0;
    b->have = 0;
    b->skip = 0;
    b->page = false;
}

static void sleep_until_round(struct fetcher *f, struct transfer *t) {
    usec every = limit_us(t->rq.every_ms);
    usec step = every;
    usec late = f->loop.now - t->round;
    usec due;

    if (t->body)
        body_rest(t);
    for (int i = 0; i < t->failed_rounds && step < HOUR_US; i++)
        step *= 2;
    /* After failures a round may lie an hour ahead; one that was hurried then
     * and went well comes back to the grid. */
    if (late >= 0 || late < -every || t->failed_rounds)
        t->round += step * (late / step + 1);
    t->attempts = 0;
    t->counting = false;
    t->failures = 0;
    t->status = 0;
    due = t->round > t->fresh ? t->round : t->fresh;
    timer_arm(&f->loop, &t->timer, due + random_below(f, every / 20));
    tell_state(f, t, FETCHER_SLEEPING);
}

/* ====================================================================== Life
 * How a transfer starts and how it ends; what was marked is carried out; and
 * the network's share of a turn.
 */

/* -- the end --------------------------------------------------------------- */

/* Off the queue, the clock and the wire. Its handle is kept, to be asked how
 * long things took; in a lookup it is parked instead, and the transfer has no
 * attempt any more. */
static void transfer_stop(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;

    dequeue(f, t);
    timer_disarm(&f->loop, &t->timer);
    flight_end(f, t);
    t->held = false;
    if (a) {
        tree_remove(&f->yielded, &a->yielded);
        if (!a->lookup)
            scout_over(a);
    }
    if (a && a->lookup) {
        a->transfer = NULL;
        t->attempt = NULL;
    } else if (a)
        curl_multi_remove_handle(f->multi, a->easy);
    host_place(f, t->host);
}

/* What only libcurl knows of an attempt. */
static void result_measure(struct fetcher_result *r, CURL *e) {
    r->lookup_us = time_of(e, CURLINFO_NAMELOOKUP_TIME_T);
    r->connect_us = time_of(e, CURLINFO_CONNECT_TIME_T);
    r->tls_us = time_of(e, CURLINFO_APPCONNECT_TIME_T);
    r->first_byte_us = time_of(e, CURLINFO_STARTTRANSFER_TIME_T);
    r->total_us = time_of(e, CURLINFO_TOTAL_TIME_T);
}

static void result_of_body(struct fetcher_result *r, struct transfer *t) {
    struct body *b = t->body;

    if (t->code == FETCHER_OK && (!t->unchanged || b->placed || b->exists))
        r->path = b->path;
    r->bytes = b->have;
    if (b->data && !t->rq.path) {
        b->data[b->have] = '\0'; /* an earlier attempt may have left more */
        r->data = b->data;
        r->size = (size_t)b->have;
    }
}

static const char *result_message(const struct transfer *t) {
    if (t->code != FETCHER_OK)
        return t->message;
    return t->unchanged ? "unchanged" : "done";
}

/* Where it was led, if elsewhere, fit for the eye; and the type. */
static char *result_asked(struct transfer *t, char *type, size_t room) {
    CURL *e = t->attempt->easy;
    char *text = NULL;
    char *url = NULL;

    curl_easy_getinfo(e, CURLINFO_CONTENT_TYPE, &text);
    text_clean(type, room, text ? text : "", '?');
    curl_easy_getinfo(e, CURLINFO_EFFECTIVE_URL, &url);
    return url && strcmp(url, t->rq.url) != 0 ? url_shown(url) : NULL;
}

static void report_done(struct fetcher *f, struct transfer *t, bool last) {
    char type[200] = "";
    char *led = NULL;
    struct fetcher_result r = {
        .id = (fetcher_id)t->id.key,
        .code = t->code,
        .status = t->status,
        .message = result_message(t),
        .url = shown_url(t),
        .final_url = shown_url(t),
        .content_type = type,
        .received = t->received,
        .attempts = t->attempts,
        .changed = !t->unchanged,
        .last = last,
    };

    if (t->body)
        result_of_body(&r, t);
    if (t->attempt) {
        result_measure(&r, t->attempt->easy);
        led = result_asked(t, type, sizeof type);
    }
    if (led)
        r.final_url = led;
    f->told = t;
    if (t->rq.on_done)
        t->rq.on_done(f, &r, t->rq.arg);
    f->told = NULL;
    free(led);
}

static void count_outcome(struct fetcher *f, struct transfer *t) {
    switch (t->code) {
    case FETCHER_OK:
        f->done++;
        t->failed_rounds = 0;
        return;
    case FETCHER_CANCELLED:
        f->cancelled++;
        break;
    default:
        f->failed++;
    }
    t->failed_rounds++;
}

static void transfer_free(struct fetcher *f, struct transfer *t) {
    body_free(t);
    timer_disarm(&f->loop, &t->timer);
    tree_remove(&f->scheduled, &t->scheduled);
    t->host->users--;
    host_forget(f, t->host);
    free(t->shown);
    free(t);
}

/* Tell, when all is in order, for the callback may do anything. Then sleep, or
 * go (false). */
static bool round_end(struct fetcher *f, struct transfer *t) {
    bool last = !t->rq.every_ms || t->code == FETCHER_CANCELLED ||
                t->code == FETCHER_BAD_URL ||
                (t->code == FETCHER_FILE && t->hopeless);

    count_outcome(f, t);
    t->state = last ? FETCHER_ENDED : FETCHER_SLEEPING;
    if (last) {
        tree_remove(&f->transfers, &t->id);
        f->loop.pending--;
    }
    report_done(f, t, last);
    attempt_release(t->attempt);
    while (!f->transfers && f->pool)
        handle_free(pool_take(f));
    if (last)
        transfer_free(f, t);
    else
        sleep_until_round(f, t);
    return !last;
}

static void cancel_now(struct fetcher *f, struct transfer *t) {
    transfer_stop(f, t);
    t->code = FETCHER_OK;
    fail(t, FETCHER_CANCELLED, "cancelled");
    round_end(f, t);
}

/* libcurl knows the length of the answer only; of the document there may be
 * more, which is asked for if this answer brought anything. */
static void length_judge(struct attempt *a) {
    const struct body *b = a->transfer->body;

    if (a->from && b->have < b->length && b->have > a->from)
        a->again = true;
    else if (b->have < a->to || b->skip || (a->from && b->have < b->length))
        fail_curl(a, CURLE_PARTIAL_FILE);
}

/* What libcurl's end of an attempt means. */
static void attempt_judge(struct attempt *a) {
    struct transfer *t = a->transfer;
    bool failed = a->result != CURLE_OK && !a->complete;

    if (a->again)
        return;
    if (failed && proxy_refusal(a))
        fail_refused(a);
    else if (failed)
        fail_curl(a, a->result);
    else if (!a->head.judged) /* an answer without a body */
        judge_answer(a);
    if (t->code == FETCHER_OK && !a->again && !a->complete)
        length_judge(a);
    if (t->code == FETCHER_OK && !a->again)
        sum_judge(a);
}

/* An attempt is over, and maybe its transfer (false). One that its reader
 * paused goes on only when that says so. */
static bool attempt_end(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;
    enum reach reach = a ? attempt_reach(a) : NOT_SENT;
    bool held = t->held;
    bool again;

    if (a && a->done)
        attempt_judge(a);
    if (a)
        flood_over(a);
    again = a && a->again;
    t->actions &= ~(unsigned)ACT_END;
    transfer_stop(f, t);
    if (!again && t->code == FETCHER_OK && !t->unchanged)
        t->sink->commit(t);
    if (!again && (t->code == FETCHER_OK || !may_retry(f, t, reach)))
        return round_end(f, t);
    attempt_release(t->attempt);
    if (held)
        tell_state(f, t, FETCHER_PAUSED);
    else if (again)
        enqueue(f, t, true);
    else
        retry_later(f, t);
    return true;
}

/* -- the beginning --------------------------------------------------------- */

/* A stream's bytes can't be taken back: each has to be proved before. */
static void body_set_proof(const struct transfer *t, struct body *b) {
    if (!t->rq.sha256 || is_head(t))
        return;
    snprintf(b->proof, sizeof b->proof, "sha256:%s", t->rq.sha256);
    for (char *s = b->proof; *s; s++)
        *s = (char)tolower((unsigned char)*s);
    b->by_sum = !t->rq.on_data;
}

static struct body *body_new(const struct transfer *t) {
    struct body *b = calloc(1, sizeof *b);

    if (!b)
        return NULL;
    body_set_proof(t, b);
    b->length = -1;
    b->fd = -1;
    b->no_range = t->own_range || (t->rq.flags & FETCHER_COMPRESSED) ||
                  strcmp(request_method(&t->rq), "GET") != 0;
    return b;
}

/* Take up what is left of earlier attempts. -1: no request is to be made, since
 * nothing is to be fetched (t->code is FETCHER_OK), or since it failed. */
static int body_ready(struct transfer *t) {
    struct body *b = t->body;

    switch (t->sink->open(t)) {
    case GO_ON:
        break;
    case NEEDLESS:
        t->unchanged = true;
        return -1;
    case IMPOSSIBLE:
        t->unchanged = false;
        return -1;
    }
    t->unchanged = false;
    if (b->page || (!t->rq.on_data && !validator(b)))
        b->have = 0; /* it can't be continued */
    b->page = false;
    return 0;
}

static int transfer_launch(struct fetcher *f, struct transfer *t) {
    struct attempt *a;

    if (f->starved && multi_renew(f) < 0)
        return fail_memory(t);
    if (attempt_new(f, t) < 0)
        return -1;
    a = t->attempt;
    if (!host_known(f, t->host))
        scout_begin(a);
    t->attempts++;
    flight_begin(f, t);
    tell_state(f, t, FETCHER_RUNNING);
    if (curl_multi_add_handle(f->multi, a->easy) != CURLM_OK)
        return fail_memory(t);
    a->all.key = (int64_t)++f->loop.serial;
    tree_add(&f->attempts, &a->all);

    /* Let libcurl begin with this one now: else a hundred new handles would
     * begin in one call, outside any slice. */
    socket_action(f, CURL_SOCKET_TIMEOUT, 0);
    if (!a->lookup && connected(a))
        host_found(a); /* by a connection that was there */
    deadline_arm(f, t);
    return 0;
}

/* What an earlier run has left is looked through first: in steps, and with a
 * place among those in flight. */
static void transfer_start(struct fetcher *f, struct transfer *t) {
    int result = -1;

    touch(f, t);
    t->code = FETCHER_OK;
    t->message[0] = '\0';
    t->status = 0;
    t->hopeless = false;
    t->rest = 0;
    if (t->attempts == 0) {
        t->received = 0;
        t->doubted = false;
    }
    time_count(f, t);
    t->speed = 0;
    t->speed_bytes = 0;
    t->speed_since = f->loop.now;
    if (!t->body)
        t->body = body_new(t);
    if (!t->body)
        fail_memory(t);
    else
        result = body_ready(t);
    if (result == 0 && t->body->unproved) {
        flight_begin(f, t);
        schedule(f, t, ACT_PROVE);
    } else if (result < 0 || transfer_launch(f, t) < 0)
        schedule(f, t, ACT_END);
}

static void start_phase(struct fetcher *f) {
    struct host *h;
    int steps = 0;

    if (f->starved && f->attempts)
        return;
    while (f->running < flights_most(f) && (h = host_next(f)) != NULL) {
        struct node *first = tree_first(h->queue);
        struct transfer *t = container_of(first, struct transfer, queued);

        if (!slice_left(&f->loop, steps))
            return;
        tree_remove(h->ready_in, &h->ready);
        h->ready.seq = ++f->loop.serial; /* now the other hosts come first */
        dequeue(f, t);
        transfer_start(f, t);
        host_place(f, h);
        step_done(&f->loop, IN_START, -1);
        steps++;
    }
}

/* -- what was marked, and what has ended ----------------------------------- */

/* What was parked is let go of, and its host may start another. */
static void parked_end(struct fetcher *f, struct attempt *a) {
    struct host *h = a->scout;

    attempt_release(a);
    if (!h)
        return;
    h->looking--;
    host_place(f, h);
    host_forget(f, h);
}

/* What has ended according to libcurl is marked like everything else. */
static void curl_messages(struct fetcher *f) {
    struct attempt *a = NULL;
    CURLMsg *m;
    int left;

    while ((m = curl_multi_info_read(f->multi, &left)) != NULL) {
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &a);
        a->done = true;
        a->result = m->data.result;
        lookup_end(a);
        if (a->transfer)
            schedule(f, a->transfer, ACT_END);
        else
            parked_end(f, a);
    }
}

/* curl_easy_pause() calls on_body() with what was held, now; what libcurl does
 * next, it does in a kick. A "bad argument" is no end: there is no connection
 * yet, and so nothing was held. */
static void attempt_unpause(struct fetcher *f, struct attempt *a) {
    CURLcode c;

    tree_remove(&f->yielded, &a->yielded);
    a->reusable = false;
    c = curl_easy_pause(a->easy, CURLPAUSE_CONT);
    if (c != CURLE_OK && c != CURLE_BAD_FUNCTION_ARGUMENT) {
        a->done = true; /* it says so here, and nowhere else */
        a->result = c;
        schedule(f, a->transfer, ACT_END);
    }
    for (int fd = 0; fd <= f->loop.top && f->quirks.pause_forgets; fd++) {
        if (f->loop.watch[fd].owner == NETWORK)
            socket_action(f, fd, CURL_CSELECT_IN);
    }
    f->kick_due = true;
    f->loop.more = true;
}

/* To be paused, a GET gives its connection back, and will ask for the rest. A
 * stream, or a request that can't be sent twice, is held by libcurl, which
 * stops reading; but not in its lookup, for nothing went out yet, and 8.23 does
 * not look whether that is over as long as it holds it. */
static void pause_now(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;

    if (a && !a->lookup && t->in_flight &&
        (t->rq.on_data || t->body->no_range)) {
        t->held = true;
        scout_over(a);
        tree_remove(&f->yielded, &a->yielded);
        a->reusable = false;
        curl_easy_pause(a->easy, CURLPAUSE_ALL);
    } else {
        transfer_stop(f, t);
        attempt_release(t->attempt); /* none, if it was parked */
    }
    tell_state(f, t, FETCHER_PAUSED);
}

static void resume_now(struct fetcher *f, struct transfer *t) {
    struct attempt *a = t->attempt;

    if (t->held || (a && a->awaits)) {
        t->held = false;
        a->awaits = false;
        a->moved = listening(f);
        tell_state(f, t, FETCHER_RUNNING);
        deadline_arm(f, t);
        attempt_unpause(f, a);
    } else if (t->state == FETCHER_RETRYING || t->state == FETCHER_SLEEPING ||
               t->state == FETCHER_PAUSED)
        enqueue(f, t, false);
}

/* When all is looked at, it waits again for its turn: the next one. */
static void prove_step(struct fetcher *f, struct transfer *t) {
    if (part_prove(t))
        schedule(f, t, ACT_PROVE);
    else {
        transfer_stop(f, t);
        enqueue(f, t, true);
    }
}

static void run_actions(struct fetcher *f, struct transfer *t) {
    const unsigned hold = ACT_PAUSE | ACT_RESUME;
    unsigned actions = t->actions;
    bool awaits = t->attempt && t->attempt->awaits;

    t->actions = 0;
    tree_remove(&f->scheduled, &t->scheduled);
    touch(f, t);
    host_place(f, t->host); /* its scout may be back */
    if (actions & ACT_CANCEL)
        cancel_now(f, t);
    else if (actions & ACT_END) {
        /* To be held or let go counts for what goes on after the attempt. */
        if (attempt_end(f, t) && (actions & hold) && !(t->actions & hold))
            schedule(f, t, actions & hold);
    } else if (actions & ACT_PAUSE) {
        if (t->state != FETCHER_PAUSED || (awaits && !t->held))
            pause_now(f, t);
    } else {
        if ((actions & ACT_RESUME) || ((actions & ACT_ASK) && awaits))
            resume_now(f, t);
        if (actions & ACT_PROVE)
            prove_step(f, t);
    }
}

static void finish_phase(struct fetcher *f) {
    struct loop *l = &f->loop;

    curl_messages(f);
    for (int steps = 0; f->scheduled && slice_left(l, steps); steps++) {
        struct node *first = tree_first(f->scheduled);

        run_actions(f, container_of(first, struct transfer, scheduled));
        step_done(l, IN_FINISH, -1);
    }
    for (int steps = 0; remains_due(f) && slice_left(l, steps); steps++) {
        remains_step(f);
        step_done(l, IN_FINISH, -1);
    }
}

static void resume_yielded(struct fetcher *f) {
    struct loop *l = &f->loop;

    for (int steps = 0; f->yielded && !l->throttled && slice_left(l, steps);
         steps++) {
        struct node *first = tree_first(f->yielded);

        attempt_unpause(f, container_of(first, struct attempt, yielded));
        step_done(l, IN_FINISH, -1);
    }
}

/* -- the network's share of a turn ----------------------------------------- */

/* When does libcurl want the next kick? And an answer may be there already. */
static void curl_timer_update(struct fetcher *f) {
    long most = f->limit_total < 16 ? 16 : f->limit_total;
    long ms = -1;

    curl_messages(f);
    /* Fewer connections in the cache would lose keep-alive; more would use up
     * descriptors, of which there may be few. */
    if (most > f->capacity)
        most = f->capacity;
    (void)curl_multi_setopt(f->multi, CURLMOPT_MAXCONNECTS, most);
    if (f->scheduled || remains_due(f) || (f->yielded && !f->loop.throttled))
        f->loop.more = true;
    if (curl_multi_timeout(f->multi, &ms) != CURLM_OK || ms < 0 ||
        ms > SLEEP_MAX_MS)
        ms = SLEEP_MAX_MS;
    timer_disarm(&f->loop, &f->kick);
    if ((f->attempts || f->remains) && !f->kick_due)
        timer_arm(&f->loop, &f->kick, f->loop.now + ms * 1000);
}

/* What the drawing of a turn calls sockets, finish and start are five parts:
 *
 *     kick -> sockets -> finish -> let yielded ones go on -> start
 *
 * Each may take one step, and more while the slice lasts. When that is spent
 * the turn ends: so a slow step (a write to a slow disk) is not followed by the
 * free step of another part. The parts that had no turn come first in the next
 * one, so none starves. */
static void network(struct fetcher *f) {
    static void (*const parts[])(struct fetcher *) = {
        curl_timer_fired, serve_sockets, finish_phase, resume_yielded,
        start_phase};
    const int count = NETWORK_PARTS;
    const int first = f->next_part;
    int done = 0;

    if (f->paid) { /* select() was not asked about the sockets */
        f->paid = false;
        f->loop.more = true;
        return;
    }
    do {
        parts[(first + done) % count](f);
        done++;
    } while (done < count && f->loop.now < f->loop.slice_end);
    f->next_part = done < count ? (first + done) % count : 0;
    if (done < count || first != 0)
        f->loop.more =
            true; /* the last part may have made work for the first */
    curl_timer_update(f);
}

/* ========================================================= The caller's side
 * The functions of fetcher.h: they look at their arguments, and mark.
 */

/* -- a request is copied --------------------------------------------------- */

/* Copy a piece behind the `size` bytes at `at`, and count it; with at NULL
 * only that. */
static void *pack(char *at, size_t *size, const void *from, size_t n) {
    void *to = NULL;

    if (!from)
        return NULL;
    if (at)
        to = memcpy(at + *size, from, n);
    *size += n;
    return to;
}

static char *pack_text(char *at, size_t *size, const char *text) {
    return pack(at, size, text, text ? strlen(text) + 1 : 0);
}

/* Copy all that a request points to behind the transfer: called twice, first
 * (at is NULL) to find out how much that is. The pointers come first, for
 * their alignment. */
static size_t request_copy(struct fetcher_request *to,
                           const struct fetcher_request *r, char *at) {
    const char **headers;
    size_t size = 0;
    size_t count = 0;

    while (r->headers && r->headers[count])
        count++;
    headers = pack(at, &size, r->headers, (count + 1) * sizeof *headers);
    *to = *r;
    to->headers = headers;
    for (size_t i = 0; i < count; i++) {
        char *copy = pack_text(at, &size, r->headers[i]);
        if (headers)
            headers[i] = copy;
    }
    if (r->body && !r->body_size)
        to->body_size = strlen(r->body);
    to->body = pack(at, &size, r->body, to->body_size);
    to->method = pack_text(at, &size, r->method);
    to->user = pack_text(at, &size, r->user);
    to->sha256 = pack_text(at, &size, r->sha256);
    to->old_url = pack_text(at, &size, r->old_url);
    to->path = pack_text(at, &size, r->path);
    to->url = pack_text(at, &size, r->url);
    return size;
}

static void request_defaults(struct fetcher_request *rq, bool memory) {
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
    if (rq->existing == FETCHER_UPDATE && !own_has(rq, "Range:"))
        rq->flags |= FETCHER_FILE_TIME;
}

/* Several ranges are left to the server. */
static void own_range_read(struct transfer *t) {
    const char *value = own_value(&t->rq, "Range:");
    int64_t first;

    t->own_range = value != NULL;
    t->own_first = -1;
    t->own_last = -1;
    if (!value)
        return;
    value += strspn(value, " \t");
    if (strncasecmp(value, "bytes=", 6) != 0)
        return;
    value += 6;
    first = text_number(&value);
    if (*value == '-') {
        value++;
        t->own_last = text_number(&value);
        t->own_first = first;
    }
    if (*value) {
        t->own_first = -1;
        t->own_last = -1;
    }
}

/* What is wrong with a URL, at first sight? And has it to be made fit for the
 * eye? */
static const char *url_wrong(const char *url, bool *fit) {
    const char *wrong = NULL;

    *fit = true;
    if (strlen(url) > URL_MAX)
        wrong = "the URL is too long";
    for (const char *s = url; *s; s++) {
        if (*s <= ' ' || *s >= 0x7f || *s == '@')
            *fit = false;
        if ((unsigned char)*s <= ' ' || *s == 0x7f)
            wrong = "not a URL: a space or control character is in it";
    }
    return wrong;
}

/* A URL that isn't good ends in a turn. It is shown as it was asked for. */
static int transfer_prepare(struct fetcher *f, struct transfer *t,
                            const char *asked) {
    struct fetcher_request *rq = &t->rq;
    bool fit;
    const char *wrong = url_wrong(rq->url, &fit);

    t->f = f;
    t->timer.call = (struct call){transfer_due, t};
    request_defaults(rq, !rq->path && !rq->on_data);
    own_range_read(t);
    t->own_condition =
        own_has(rq, "If-None-Match:") || own_has(rq, "If-Modified-Since:");
    t->sink = rq->on_data ? &stream_sink : &memory_sink;
    if (rq->path)
        t->sink = &file_sink;
    if (!fit || strcmp(rq->url, asked) != 0) {
        t->shown = url_shown(strchr(asked, '@') ? rq->url : asked);
        if (!t->shown)
            return -1;
    }
    t->host = url_host(f, rq->url, &wrong);
    if (!t->host)
        return -1;
    if (wrong)
        fail(t, FETCHER_BAD_URL, "%s", wrong);
    t->host->users++;
    return 0;
}

static bool request_good(const struct fetcher_request *rq) {
    if (!rq->url || (rq->on_data && rq->path) || (rq->path && !*rq->path) ||
        (rq->on_send && rq->body))
        return false;
    if (rq->method && strpbrk(rq->method, " \r\n\t"))
        return false;
    if (rq->sha256 && !is_sha256(rq->sha256))
        return false;
    for (const char *const *h = rq->headers; h && *h; h++) {
        if (strpbrk(*h, "\r\n"))
            return false;
    }
    return (unsigned)rq->existing <= FETCHER_UPDATE && rq->connect_ms >= -1 &&
           rq->stall_ms >= -1 && rq->total_ms >= -1 && rq->max_bytes >= -1 &&
           rq->retries >= -1 && rq->send_size >= 0 &&
           (rq->every_ms == 0 || rq->every_ms >= 1000);
}

/* NULL: out of memory. */
static struct transfer *transfer_new(struct fetcher *f,
                                     struct fetcher_request rq) {
    char *asked = url_complete(rq.url, &rq.url);
    struct fetcher_request copy;
    struct transfer *t = NULL;

    if (asked)
        t = calloc(1, sizeof *t + request_copy(&copy, &rq, NULL));
    if (t) {
        request_copy(&t->rq, &rq, (char *)(t + 1));
        if (transfer_prepare(f, t, asked) < 0) {
            free(t->shown);
            free(t);
            t = NULL;
        }
    }
    free(asked);
    return t;
}

fetcher_id fetcher_start(struct fetcher *f, const struct fetcher_request *rq) {
    struct transfer *t;

    if (f->closing || !request_good(rq)) {
        errno = f->closing ? EBUSY : EINVAL;
        return 0;
    }
    t = transfer_new(f, *rq);
    if (!t) {
        errno = ENOMEM;
        return 0;
    }
    clock_refresh(&f->loop);
    t->round = f->loop.now;
    t->id.key = (int64_t)++f->last_id;
    tree_add(&f->transfers, &t->id);
    f->loop.pending++;
    if (t->code == FETCHER_OK)
        enqueue(f, t, false);
    else {
        t->state = FETCHER_ENDED;
        schedule(f, t, ACT_END);
    }
    return (fetcher_id)t->id.key;
}

fetcher_id fetcher_get(struct fetcher *f, const char *url,
                       void (*on_done)(struct fetcher *,
                                       const struct fetcher_result *, void *),
                       void *arg) {
    struct fetcher_request rq = {.url = url, .on_done = on_done, .arg = arg};

    return fetcher_start(f, &rq);
}

/* -- control --------------------------------------------------------------- */

static struct transfer *transfer_find(struct fetcher *f, fetcher_id id) {
    struct node *n = tree_find(f->transfers, id);

    if (!n) {
        errno = ENOENT;
        return NULL;
    }
    return container_of(n, struct transfer, id);
}

/* Note what is wanted, in place of its opposite. */
static int request_action(struct fetcher *f, fetcher_id id, unsigned action,
                          unsigned opposite) {
    struct transfer *t = transfer_find(f, id);

    if (!t)
        return -1;
    t->actions &= ~opposite;
    if (t->state != FETCHER_ENDED)
        schedule(f, t, action);
    return 0;
}

int fetcher_cancel(struct fetcher *f, fetcher_id id) {
    return request_action(f, id, ACT_CANCEL, 0);
}

int fetcher_pause(struct fetcher *f, fetcher_id id) {
    return request_action(f, id, ACT_PAUSE, ACT_RESUME);
}

int fetcher_resume(struct fetcher *f, fetcher_id id) {
    return request_action(f, id, ACT_RESUME, ACT_PAUSE);
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

/* A new rate begins without debts. */
static void rate_set(struct fetcher *f, int64_t bytes_per_second) {
    bool any = bytes_per_second < 0 || bytes_per_second > INT64_MAX / 2000000;

    f->rate = any ? 0 : bytes_per_second;
    f->tokens = 0;
    f->filled = f->loop.now;
    timer_disarm(&f->loop, &f->throttle_timer);
    if (f->loop.throttled)
        throttle_end(f, NULL);
}

/* There may be 100,000 hosts. Those that were full are as many as are in
 * flight, at most; those that are full now are found when their turn comes. */
static void limit_host(struct fetcher *f, int per_host) {
    struct node *n = tree_first(f->full);

    f->limit_host = per_host;
    while (n) {
        struct host *h = container_of(n, struct host, ready);

        n = tree_next(f->full, n);
        host_place(f, h);
    }
}

int fetcher_limit(struct fetcher *f, int total, int per_host,
                  int64_t bytes_per_second) {
    if (total < -1 || per_host < -1 || bytes_per_second < -1)
        return set_errno(EINVAL);
    clock_refresh(&f->loop);
    if (total)
        f->limit_total = total > 0 && total < f->capacity ? total : f->capacity;
    if (per_host)
        limit_host(f, per_host);
    if (bytes_per_second)
        rate_set(f, bytes_per_second);
    if (!f->loop.busy && f->transfers)
        f->loop.more = true;
    return 0;
}

/* -- questions ------------------------------------------------------------- */

/* Bytes a second: of the last full second, or of the first that isn't full. Who
 * is silent for long has a speed that decays. */
static int64_t speed_of(const struct fetcher *f, const struct transfer *t) {
    usec elapsed = f->loop.now - t->speed_since;

    if (!t->in_flight)
        return 0;
    if (elapsed < 200000 || (t->speed && elapsed < 2000000))
        return t->speed;
    return t->speed_bytes * 1000000 / elapsed;
}

/* To the next attempt or round; -1: none. */
static int64_t wait_ms_of(const struct fetcher *f, const struct transfer *t) {
    usec until = 0;

    if (t->state == FETCHER_WAITING)
        until = t->host->rest;
    if ((t->state == FETCHER_RETRYING || t->state == FETCHER_SLEEPING) &&
        t->timer.due.in)
        until = t->timer.due.key;
    return until > f->loop.now ? (until - f->loop.now) / 1000 : -1;
}

static const char *info_message(const struct fetcher *f,
                                const struct transfer *t) {
    if (t->state == FETCHER_WAITING && t->host->rest > f->loop.now &&
        !*t->message)
        return "the server asks to wait";
    return t->message;
}

int fetcher_info(struct fetcher *f, fetcher_id id, struct fetcher_info *info) {
    struct transfer *t = transfer_find(f, id);

    if (!t)
        return -1;
    *info = (struct fetcher_info){
        .id = id,
        .state = t->state,
        .arg = t->rq.arg,
        .url = shown_url(t),
        .path = t->rq.path,
        .message = info_message(f, t),
        .status = t->status,
        .attempts = t->attempts,
        .priority = t->rq.priority,
        .total = -1,
        .speed = speed_of(f, t),
        .wait_ms = wait_ms_of(f, t),
    };
    if (has_body(&t->rq))
        info->to_send = send_size(&t->rq);
    if (info->to_send && t->attempt)
        info->sent = time_of(t->attempt->easy, CURLINFO_SIZE_UPLOAD_T);
    if (t->body) {
        info->bytes = t->body->have;
        info->total = t->body->length;
        if (t->body->path)
            info->path = t->body->path;
    }
    return 0;
}

/* When its on_done is called there is no id any more of one that ends. */
static const struct attempt *attempt_answered(struct fetcher *f,
                                              fetcher_id id) {
    struct transfer *t = f->told;

    if (!t || (fetcher_id)t->id.key != id)
        t = transfer_find(f, id);
    if (!t || !t->attempt || !t->attempt->head.judged)
        return NULL;
    return t->attempt;
}

const char *fetcher_header(struct fetcher *f, fetcher_id id, const char *name,
                           int n) {
    const struct attempt *a = attempt_answered(f, id);
    const char *field = a ? a->fields : NULL;
    const char *end = a && field ? field + a->fields_size : NULL;

    while (field < end) {
        const char *value = field + strlen(field) + 1;
        bool is_it = name ? strcasecmp(field, name) == 0 : *field != '\0';

        if (is_it && n <= 0)
            return name ? value : field;
        if (is_it)
            n--;
        field = value + strlen(value) + 1;
    }
    return NULL;
}

size_t fetcher_count(struct fetcher *f) {
    return f->loop.pending;
}

int fetcher_stats(struct fetcher *f, struct fetcher_stats *s) {
    *s = (struct fetcher_stats){
        .done = f->done,
        .failed = f->failed,
        .cancelled = f->cancelled,
        .received = f->received,
        .running = f->running,
        .limit = f->limit_total,
        .waiting = f->waiting,
        .lookups = f->lookups + f->strays,
    };
    meter_stats(&f->loop.meter, s);
    return 0;
}

const char *fetcher_strerror(enum fetcher_code code) {
    static const char *const words[] = {
        "ok",        "cancelled", "bad_url",  "no_host",  "no_connection",
        "tls",       "timeout",   "http",     "redirect", "cut_short",
        "too_big",   "file",      "protocol", "refused",  "checksum",
        "no_memory", "other"};

    return (unsigned)code < COUNT_OF(words) ? words[code] : "other";
}

/* -- a fetcher ------------------------------------------------------------- */

/* Transfers that there are descriptors for: a socket each, and a file each
 * where files can't be moved up; 96 are left to the application, to lookups
 * and the rest. */
static int capacity_now(void) {
    rlim_t limit = descriptors_limit();
    int most = FD_SETSIZE - 96;

    if (limit < 2 * FD_SETSIZE)
        most = ((int)limit - 96) / 2;
    if (most > FD_SETSIZE - 96)
        most = FD_SETSIZE - 96;
    return most > 1 ? most : 1;
}

/* A third of them may be those of lookups, two each. */
static int lookups_now(void) {
    rlim_t limit = descriptors_limit();
    int most = LOOKUPS_MAX;

    if (limit < 6 * LOOKUPS_MAX)
        most = (int)limit / 6 - 2;
    return most > 1 ? most : 1;
}

struct fetcher *fetcher_new(void) {
    struct fetcher *f = NULL;

    if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
        f = calloc(1, sizeof *f);
    if (!f) {
        errno = ENOMEM;
        return NULL;
    }
    f->capacity = capacity_now();
    f->lookups_most = lookups_now();
    boot_id(f->boot, sizeof f->boot);
    f->throttle_timer.call.cb = throttle_end;
    f->loop.network = network;
    if (loop_open(&f->loop, f) == 0 && curl_open(f) == 0 &&
        fetcher_limit(f, 16, 6, 0) == 0) {
        f->random = (uint64_t)f->loop.now ^ (uint64_t)getpid() << 32 ^ 1;
        return f;
    }
    fetcher_free(f);
    return NULL;
}

void fetcher_free(struct fetcher *f) {
    int saved = errno;

    if (!f || f->loop.busy)
        return;
    f->loop.busy = true;
    f->closing = true;
    while (f->transfers)
        cancel_now(f, container_of(f->transfers, struct transfer, id));
    while (f->hosts)
        host_forget(f, container_of(f->hosts, struct host, name));
    curl_close(f);
    while (f->remains)
        remains_end(f);
    directory_forget(f);
    free(f->capath);
    loop_close(&f->loop);
    free(f);
    curl_global_cleanup();
    errno = saved;
}

#ifdef FETCHER_MAIN
/* =================================================================== Program
 * All that people see and do goes one way round: a line, a key or an option
 * becomes a command; a command starts or changes a transfer; its events change
 * the rows of the model; and a front end draws them. No front end touches a
 * transfer but by a command. What stands below uses the library through
 * fetcher.h alone, and beside that the tools and the text functions.
 *
 * Begin at the end: main(), and program_run() above it; then do_work(), which
 * does all but drawing. From a key to the screen:
 *
 *     bytes --> key codes --> a line --> do_work(): a command --> fetcher_...
 *     view.bytes  view.codes  input[PROMPT]                          |
 *                                                           marks a transfer
 *     screen <-- frame: lines that differ <-- rows <-- on_progress <-- the turn
 */
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <wchar.h>

enum {
    SLICE_INPUT_US = 1000, /* for lines, keys and the session, a turn */
    TICK_MS = 200          /* between two looks at what goes on by itself */
};

struct program;

/* ===================================================================== Model
 * The rows: what was asked for and has not ended, and what has failed. They
 * stand in one tree in the order of the eye (what runs, what is held, what
 * waits, what has failed), so any front end shows a hundred thousand at the
 * cost of those that it draws. Beside them is kept, to be looked at again, what
 * came of those that have ended; and what was cancelled, until that can't be
 * undone any more.
 */
enum {
    FAILED_KEPT = 1000,    /* rows */
    ENDED_KEPT = 1000,     /* results */
    TEXT_KEPT = 500,       /* bytes, of what a server says for one */
    CANCELLED_KEPT = 1000, /* downloads */
    SPEEDS = 120           /* seconds of the graph */
};

struct job { /* a row: a transfer, or one that has failed */
    struct program *p;
    struct node id;      /* key: its number */
    struct node row;     /* as it is shown: running, waiting, failed; or, once
                            it was cancelled, in the order of that */
    fetcher_id transfer; /* 0: it has failed, or is yet to be restored */
    int64_t every_ms;    /* 0: once */
    int priority;
    bool paused;   /* is to be */
    bool again;    /* it was cancelled, and that undone, while it still ran */
    bool dropped;  /* nothing is left of it but its transfer */
    char *made;    /* the file that it repeats is its own; NULL: none yet */
    char *failed;  /* its URL, fit for the eye; and why, behind the NUL */
    char *old;     /* the address that it was begun with; NULL: this one */
    char *address; /* to go on with when it has been cancelled; NULL: none */
    int64_t told;  /* when its progress was last told, in ms */
    char *name;    /* stands behind the URL; NULL: none was given */
    char *sum;     /* and its SHA-256 behind that; likewise */
    char url[];
};

struct ended {               /* a transfer that is done or has failed */
    struct node row;         /* the newest first */
    int64_t number;          /* of its download */
    struct fetcher_result r; /* its texts stand below; it has no data */
    const char *retry_after; /* what the server said; "": nothing */
    char text[];
};

struct model {
    struct fetcher *f;
    struct node *jobs;      /* by number */
    struct node *rows;      /* as they are shown */
    struct node *ended;     /* the newest first */
    struct node *cancelled; /* by the command, and by number; not in rows */
    size_t ended_count;
    size_t ended_failed; /* of these */
    size_t cancelled_count;
    int64_t ended_total;   /* that were ever added */
    struct ended *chosen;  /* the selected one of the ended; NULL: none */
    bool shown;            /* somebody may look at the rows */
    bool keeps;            /* what has failed stays among them */
    size_t count;          /* of jobs */
    size_t failed;         /* of these, have failed */
    size_t paused;         /* of those that have not ended */
    size_t repeating;      /* likewise */
    uint64_t last_number;  /* of a job */
    struct job *selected;  /* NULL: there is none */
    int64_t sampled;       /* when a speed was last taken, in ms */
    int64_t received;      /* bytes until then */
    int64_t speed[SPEEDS]; /* bytes in a second, the newest first */
    int64_t limit;         /* bytes a second; 0: any */
    int64_t limited;       /* when that was said, in ms */
};

/* Has it been read in a session, and not yet been started? */
static bool job_pending(const struct job *j) {
    return !j->transfer && !j->failed;
}

static struct job *row_job(struct node *n) {
    return n ? container_of(n, struct job, row) : NULL;
}

static struct job *row_first(struct model *m) {
    return row_job(tree_first(m->rows));
}

static struct job *row_after(struct model *m, const struct job *j) {
    return row_job(tree_next(m->rows, &j->row));
}

/* The first of all by number, where there is but one. */
static struct job *row_only(struct model *m) {
    struct node *n = tree_first(m->jobs);

    return n ? container_of(n, struct job, id) : NULL;
}

static struct job *row_before(struct model *m, const struct job *j) {
    return row_job(tree_bound(m->rows, j->row.key, j->row.seq, true));
}

static int64_t row_key(enum fetcher_state state, int priority) {
    static const int rank[] = {
        [FETCHER_RUNNING] = 0, [FETCHER_RETRYING] = 1, [FETCHER_SLEEPING] = 1,
        [FETCHER_PAUSED] = 1,  [FETCHER_WAITING] = 2,  [FETCHER_ENDED] = 3,
    };

    return ((int64_t)rank[state] << 32) - priority;
}

static void row_put(struct model *m, struct job *j, enum fetcher_state state) {
    tree_remove(&m->rows, &j->row);
    j->row.key = row_key(state, j->priority);
    j->row.seq = (uint64_t)j->id.key;
    tree_add(&m->rows, &j->row);
}

static void job_drop(struct job *j) {
    free(j->made);
    free(j->failed);
    free(j->old);
    free(j->address);
    free(j);
}

/* It is no row any more, but is still there. */
static void job_take_out(struct model *m, struct job *j) {
    if (m->selected == j) {
        m->selected = row_after(m, j);
        if (!m->selected)
            m->selected = row_before(m, j);
    }
    tree_remove(&m->jobs, &j->id);
    tree_remove(&m->rows, &j->row);
    m->count--;
    if (j->failed)
        m->failed--;
}

static void job_remove(struct model *m, struct job *j) {
    job_take_out(m, j);
    job_drop(j);
}

/* -- what was cancelled ---------------------------------------------------- */

static void cancelled_take_out(struct model *m, struct job *j) {
    tree_remove(&m->cancelled, &j->row);
    m->cancelled_count--;
}

/* Its transfer may be on its way to its end, and needs it until then. */
static void cancelled_drop(struct model *m, struct job *j) {
    cancelled_take_out(m, j);
    j->dropped = true;
    if (!j->transfer)
        job_drop(j);
}

/* Of very many that one command cancels the last are kept. */
static void cancelled_put(struct model *m, struct job *j, int64_t command) {
    j->row.key = command;
    j->row.seq = (uint64_t)j->id.key;
    tree_add(&m->cancelled, &j->row);
    m->cancelled_count++;
    if (m->cancelled_count > CANCELLED_KEPT)
        cancelled_drop(m, row_job(tree_first(m->cancelled)));
}

/* -- what has ended -------------------------------------------------------- */

static struct ended *ended_of(struct node *n) {
    return n ? container_of(n, struct ended, row) : NULL;
}

static struct ended *ended_first(struct model *m) {
    return ended_of(tree_first(m->ended));
}

static void ended_remove(struct model *m, struct ended *e) {
    if (m->chosen == e) {
        struct node *n = tree_next(m->ended, &e->row);

        if (!n)
            n = tree_bound(m->ended, e->row.key, 0, true);
        m->chosen = ended_of(n);
    }
    tree_remove(&m->ended, &e->row);
    m->ended_count--;
    if (e->r.code)
        m->ended_failed--;
    free(e);
}

/* How much of a text is kept: what a server says may be long. */
static size_t text_kept(const char *text) {
    size_t n = text ? strlen(text) : 0;

    return n < TEXT_KEPT ? n : TEXT_KEPT;
}

/* Copy so much of a text, and say where it stands. */
static const char *text_put(char **to, const char *text, size_t n) {
    const char *at = *to;

    memcpy(*to, text, n);
    (*to)[n] = '\0';
    *to += n + 1;
    return at;
}

/* Who has no memory for it does without. */
static void ended_add(struct model *m, int64_t number,
                      const struct fetcher_result *r, const char *after) {
    bool led = strcmp(r->url, r->final_url) != 0;
    size_t path = r->path ? strlen(r->path) : 0;
    size_t url = strlen(r->url);
    size_t rest =
        text_kept(r->final_url) + text_kept(r->message) + text_kept(after);
    struct ended *e = calloc(1, sizeof *e + path + url + rest + 5);
    char *to;

    if (!e)
        return;
    to = e->text;
    e->r = *r;
    e->r.data = NULL;
    e->r.content_type = "";
    e->r.url = text_put(&to, r->url, url);
    e->r.final_url = e->r.url;
    if (led)
        e->r.final_url = text_put(&to, r->final_url, text_kept(r->final_url));
    if (r->path)
        e->r.path = text_put(&to, r->path, path);
    e->r.message = text_put(&to, r->message, text_kept(r->message));
    e->retry_after = "";
    if (after)
        e->retry_after = text_put(&to, after, text_kept(after));
    e->number = number;
    e->row.key = -++m->ended_total;
    tree_add(&m->ended, &e->row);
    m->ended_count++;
    if (r->code)
        m->ended_failed++;
    if (m->ended_count > ENDED_KEPT)
        ended_remove(m, ended_of(tree_bound(m->ended, 0, 0, true)));
}

/* What came of a download last; NULL: that isn't known. */
static struct ended *ended_find(struct model *m, int64_t number) {
    struct ended *e = ended_first(m);

    while (e && e->number != number)
        e = ended_of(tree_next(m->ended, &e->row));
    return e;
}

/* What is tried again has not failed. */
static void ended_forget(struct model *m, int64_t number) {
    struct ended *e = ended_find(m, number);

    if (e && e->r.code)
        ended_remove(m, e);
}

/* What it repeats is in this file, which it may replace: no other, whatever a
 * server calls it the next time. */
static void job_owns(struct job *j, const char *path) {
    free(j->made);
    j->made = text_join(path, "");
}

static struct fetcher_info job_info(struct model *m, const struct job *j) {
    struct fetcher_info info = {.state = FETCHER_ENDED,
                                .url = "",
                                .message = "",
                                .total = -1,
                                .wait_ms = -1};

    if (j->transfer && fetcher_info(m->f, j->transfer, &info) == 0) {
        if (m->limit && info.speed > m->limit)
            info.speed = m->limit; /* it was measured before */
        return info;
    }
    if (j->failed) {
        info.url = j->failed;
        info.message = info.url + strlen(info.url) + 1;
    }
    return info;
}

/* 1536 becomes "1.5 KiB". */
static const char *size_text(char *to, size_t room, double bytes) {
    int i = 0;

    for (; bytes >= 1023.95 && i < 5; i++)
        bytes /= 1024;
    if (i > 0)
        snprintf(to, room, "%.1f %ciB", bytes, "bKMGTP"[i]);
    else
        snprintf(to, room, "%.0f bytes", bytes);
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

static const char *const state_words[] = {"waiting",  "running", "retrying",
                                          "sleeping", "paused",  "failed"};

/* How a row reads: the last part of its file's name or URL, ... */
static const char *row_name(const struct fetcher_info *i, char *to,
                            size_t room) {
    bool file = i->path && i->path[strlen(i->path) - 1] != '/';
    const char *text = file ? i->path : i->url;
    const char *slash = strrchr(text, '/');
    const char *last = slash && slash[1] ? slash + 1 : text;
    size_t n = strcspn(last, file ? "" : "?#");

    if (n > 0)
        snprintf(to, room, "%.*s", (int)n, last);
    else
        snprintf(to, room, "%s", text);
    return to;
}

static double seconds_left(const struct fetcher_info *i) {
    if (i->state != FETCHER_RUNNING)
        return (double)i->wait_ms / 1000 + .999;
    if (i->total <= 0 || i->speed <= 0)
        return -1;
    return (double)(i->total - i->bytes) / (double)i->speed;
}

/* ... and behind it all the rest: speed and time left, or the state. */
static const char *row_state(const struct fetcher_info *i, char *to,
                             size_t room) {
    bool runs = i->state == FETCHER_RUNNING;
    bool rests = i->state == FETCHER_WAITING && i->wait_ms > 0;
    char speed[32];
    char left[32];

    time_text(left, sizeof left, seconds_left(i));
    size_text(speed, sizeof speed, (double)i->speed);
    if (runs && i->bytes)
        snprintf(to, room, "%10s/s %7s", speed, left);
    else if (runs)
        snprintf(to, room, "asking");
    else if (rests || i->state == FETCHER_SLEEPING ||
             i->state == FETCHER_RETRYING)
        snprintf(to, room, "again in %s%s%s", left, *i->message ? ": " : "",
                 i->message);
    else
        snprintf(to, room, "%s%s%s", state_words[i->state],
                 *i->message ? ": " : "", i->message);
    return to;
}

/* The same of what has ended. */
static const char *ended_state(const struct ended *e, char *to, size_t room) {
    const struct fetcher_result *r = &e->r;
    char size[32];

    if (r->code)
        snprintf(to, room, "failed: %s", r->message);
    else if (!r->changed)
        snprintf(to, room, "%s", r->attempts ? "unchanged" : "exists, skipped");
    else
        snprintf(to, room, "done: %s in %.2f s",
                 size_text(size, sizeof size, (double)r->bytes),
                 (double)r->total_us / 1000000);
    return to;
}

static const char *ended_name(const struct ended *e, char *to, size_t room) {
    struct fetcher_info i = {.url = e->r.url, .path = e->r.path};

    return row_name(&i, to, room);
}

/* The speed of each second, for a graph; those in which nobody looked count as
 * the mean. */
static void speed_sample(struct model *m, int64_t received) {
    int64_t seconds = (fetcher_now(m->f) - m->sampled) / 1000;
    int64_t n = seconds < SPEEDS ? seconds : SPEEDS;

    if (seconds <= 0)
        return;
    memmove(m->speed + n, m->speed, (size_t)(SPEEDS - n) * sizeof *m->speed);
    for (int64_t i = 0; i < n; i++)
        m->speed[i] = (received - m->received) / seconds;
    m->sampled += seconds * 1000;
    m->received = received;
}

/* That of the last full second; what was measured before there was a limit
 * counts no more. */
static double speed_now(const struct model *m) {
    bool before = m->limit && m->sampled - m->limited < 1000;
    bool above = before && m->speed[0] > m->limit;

    return (double)(above ? m->limit : m->speed[0]);
}

/* The mean of those of the last three seconds that brought anything; a limit
 * that is new counts at once. */
static double speed_recent(const struct model *m) {
    double sum = 0;
    int seconds = 0;

    for (int i = 0; i < 3; i++) {
        sum += (double)m->speed[i];
        if (m->speed[i])
            seconds++;
    }
    if (seconds)
        sum /= seconds;
    return m->limit && sum > (double)m->limit ? (double)m->limit : sum;
}

/* Seconds left, at the recent speed: for what is known of those that run, and
 * for each that waits as much again; but never less than for one. -1: who
 * knows. */
static double time_left(struct model *m, size_t waiting) {
    double speed = speed_recent(m);
    double rest = 0;
    double sizes = 0;
    double most = 0;
    int known = 0;
    struct job *j = row_first(m);

    for (; j && j->row.key <= INT_MAX; j = row_after(m, j)) {
        struct fetcher_info i = job_info(m, j);

        if (i.total <= 0 || i.state != FETCHER_RUNNING)
            continue;
        rest += (double)(i.total - i.bytes);
        sizes += (double)i.total;
        known++;
        if (seconds_left(&i) > most)
            most = seconds_left(&i);
    }
    if (known == 0 || speed <= 0)
        return -1;
    rest = (rest + sizes / known * (double)waiting) / (speed + 1);
    return rest > most ? rest : most;
}

/* ==================================================================== Output
 * Output goes through the same loop as everything else: what the reader of a
 * pipe or a stopped terminal does not take waits in a buffer, and whoever
 * fills it is told to wait as well.
 */
enum {
    OUT_FULL = 65536,

    /* Descriptors beside 0 to 2: two each of the loop and of libcurl, a list,
     * and four of a transfer or its lookup, ... */
    DESCRIPTORS_LEAST = 9,
    DESCRIPTORS_MOST = 16 /* ... and those of a view, a session, a trace */
};

struct out {      /* output that nobody waits for */
    int fd;       /* -1: only a buffer */
    int error;    /* errno of a write; 0: none */
    bool tty;     /* it is a terminal */
    bool watched; /* for being ready */
    bool was_full;
    bool chunked; /* PIPE_BUF a time, if select() says so */
    bool spare;   /* without it the program goes on */
    char *data;
    size_t used;
    size_t room;
    struct call drained; /* it was full, and is empty */
};

struct console { /* where lines go */
    struct fetcher *f;
    struct out out;
    struct out err;
    struct out *above; /* a view shows lines above itself; NULL: none is on */
    bool windowed;     /* it is the window's */
    bool json;         /* an object a line */
    bool quiet;        /* failures only */
    bool color;        /* on a terminal */
    void (*changed)(struct program *); /* for a view; NULL: there is none */
    struct program *p;
};

/* In the lines for the window it stands before what a row shows as well. */
enum { REPORT = 31 };

static void changed(struct console *c) {
    if (c->changed)
        c->changed(c->p);
}

/* A terminal may vanish: no matter. */
static bool out_broken(const struct out *o) {
    return o->error && !o->tty;
}

static bool out_full(struct out *o) {
    if (o->used >= OUT_FULL)
        o->was_full = true;
    return o->was_full;
}

/* O_NONBLOCK on an inherited descriptor would reach the shell, which shares
 * it. So a terminal or a pipe is opened once more by its name. -1: that can't
 * be. */
static int open_again(int fd, int flags) {
    const char *tty = isatty(fd) ? ttyname(fd) : NULL;
    char name[32];

    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    return open(tty ? tty : name, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static bool is_pipe(const struct stat *st) {
    return S_ISFIFO(st->st_mode) || S_ISSOCK(st->st_mode);
}

/* How many descriptors can still be had? To `enough` it is counted. */
static int descriptors_left(int enough) {
    long most = sysconf(_SC_OPEN_MAX);
    int left = 0;

    for (int fd = 3; left < enough && (fd < most || most < 0); fd++) {
        if (fcntl(fd, F_GETFD) < 0)
            left++;
    }
    return left;
}

/* What can't be opened again is written to in small pieces; so is all where
 * descriptors are few. */
static void out_open(struct out *o, int fd) {
    struct stat st;
    bool pipe = fstat(fd, &st) == 0 && is_pipe(&st);

    o->tty = isatty(fd);
    o->fd = fd;
    if (!o->tty && !pipe)
        return;
    if (descriptors_left(DESCRIPTORS_MOST) == DESCRIPTORS_MOST)
        o->fd = open_again(fd, O_WRONLY);
    else
        o->fd = -1;
    o->chunked = o->fd < 0;
    if (o->chunked)
        o->fd = fd;
}

/* False: it takes no more now. */
static bool out_write(struct out *o) {
    size_t n = o->chunked && o->used > PIPE_BUF ? PIPE_BUF : o->used;
    ssize_t written = write(o->fd, o->data, n);

    if (written < 0 && errno == EAGAIN)
        return false;
    if (written < 0 && errno != EINTR)
        o->error = errno;
    if (written > 0) {
        o->used -= (size_t)written;
        memmove(o->data, o->data + written, o->used);
    }
    return !o->chunked;
}

static void out_flush(struct fetcher *f, struct out *o);

static void out_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct out *o = arg;

    if (o->chunked && o->used > 0 && !o->error)
        (void)out_write(o);
    out_flush(f, o);
}

/* Write what the descriptor takes; the rest is watched for. */
static void out_flush(struct fetcher *f, struct out *o) {
    bool left = !o->chunked;

    if (o->fd < 0)
        return;
    while (left && o->used > 0 && !o->error)
        left = out_write(o);
    if (o->error)
        o->used = 0;
    if (o->watched != (o->used > 0)) {
        o->watched = o->used > 0;
        (void)fetcher_watch(f, o->fd, o->watched ? FETCHER_WRITE : 0, out_ready,
                            o);
    }
    if (!o->drained.cb)
        return;
    if (out_broken(o) && !o->spare)
        fetcher_stop(f);
    else if (o->was_full && o->used == 0) {
        o->was_full = false;
        o->drained.cb(f, o->drained.arg);
    }
}

static void out_add(struct out *o, const char *data, size_t n) {
    size_t need = o->used + n;

    if (n == 0)
        return;
    if (need > o->room) {
        size_t room = need + o->room + 1024;
        char *larger = realloc(o->data, room);
        if (!larger) {
            o->error = ENOMEM;
            return;
        }
        o->data = larger;
        o->room = room;
    }
    memcpy(o->data + o->used, data, n);
    o->used = need;
}

/* The first bytes have been dealt with. */
static void out_drop(struct out *o, size_t n) {
    o->used -= n;
    if (n > 0 && o->used > 0)
        memmove(o->data, o->data + n, o->used);
}

static void out_puts(struct out *o, const char *text) {
    out_add(o, text, strlen(text));
}

static void out_printf(struct out *o, const char *format, ...) {
    char text[2048];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    out_puts(o, text);
}

/* A message of any length is formatted, cleared of passwords, and then cut;
 * NULL: there is no memory for it. */
static char *message_format(const char *format, va_list args) {
    enum { LONGEST = 1000 };

    char *hidden = NULL;
    char *text;
    va_list again;
    int n;

    va_copy(again, args);
    n = vsnprintf(NULL, 0, format, again);
    va_end(again);
    text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (text) {
        vsnprintf(text, (size_t)n + 1, format, args);
        hidden = passwords_hide(text);
    }
    if (hidden && strlen(hidden) > LONGEST)
        hidden[LONGEST] = '\0';
    free(text);
    return hidden;
}

/* -- texts and lines ------------------------------------------------------- */

/* Text from outside, of any length, for the eye, ... */
static void out_text(struct out *o, const char *text) {
    while (*text) {
        size_t good = utf8_length(text);
        size_t n = good ? good : 1;

        out_add(o, good ? text : "?", n);
        text += n;
    }
}

/* ... or between the quotes of JSON. */
static void out_json_text(struct out *o, const char *text) {
    while (*text) {
        size_t good = utf8_length(text);

        if (*text == '"' || *text == '\\')
            out_printf(o, "\\%c", *text);
        else if (good)
            out_add(o, text, good);
        else if ((unsigned char)*text < 0x80)
            out_printf(o, "\\u%04x", (unsigned)*text);
        else
            out_puts(o, "\xef\xbf\xbd");
        text += good ? good : 1;
    }
}

/* What is said for people to read, of any length. */
static void out_said(struct out *o, const char *text) {
    char *hidden = passwords_hide(text);

    out_text(o, hidden ? hidden : "out of memory");
    free(hidden);
}

/* Only a file's name has to be exact, whatever it looks like. */
static void out_json_said(struct out *o, const char *key, const char *text) {
    char *hidden = NULL;

    if (strcmp(key, "file") != 0) {
        hidden = passwords_hide(text);
        text = hidden ? hidden : "out of memory";
    }
    out_json_text(o, text);
    free(hidden);
}

/* An object begins: an event, a number (0: none), keys and their texts (NULL:
 * none), a NULL. */
static void out_json(struct out *o, const char *event, int64_t id, ...) {
    const char *key;
    va_list args;

    out_printf(o, "{\"event\":\"%s\"", event);
    if (id)
        out_printf(o, ",\"id\":%" PRId64, id);
    va_start(args, id);
    while ((key = va_arg(args, const char *)) != NULL) {
        const char *text = va_arg(args, const char *);

        if (!text)
            continue;
        out_printf(o, ",\"%s\":\"", key);
        out_json_said(o, key, text);
        out_puts(o, "\"");
    }
    va_end(args);
}

/* Where a line goes: on a terminal with a view that's above it. JSON is not
 * for the window. */
static struct out *line_out(struct console *c, bool error) {
    struct out *o = error ? &c->err : &c->out;

    if (c->above && (o->tty || (c->windowed && (error || !c->json))))
        return c->above;
    return o;
}

static void line_end(struct console *c, struct out *o) {
    out_puts(o, "\n");
    out_flush(c->f, o);
    changed(c);
}

static void report_mark(struct console *c) {
    char mark = REPORT;

    if (c->windowed && c->above)
        out_add(c->above, &mark, 1);
}

/* On a terminal with a view it is plain who speaks. */
static void complain(struct console *c, const char *what, const char *why) {
    struct out *o = line_out(c, true);
    bool viewed = o == c->above && !c->windowed;
    bool red = viewed && c->color;

    if (red)
        out_puts(o, "\033[31m");
    if (!viewed)
        out_puts(o, "fetcher: ");
    out_said(o, what);
    if (*what)
        out_puts(o, ": ");
    out_said(o, why);
    if (red)
        out_puts(o, "\033[m");
    line_end(c, o);
}

/* The exit status; after a signal KILLED and its number. */
enum status { ALL_DONE, SOME_FAILED, BAD_USAGE, KILLED = 128 };

/* One clear line, before the loop is there to print it; arguments come from
 * outside as well. */
static enum status refuse(enum status status, const char *format, ...) {
    char clean[600];
    char *text;
    va_list args;

    va_start(args, format);
    text = message_format(format, args);
    va_end(args);
    text_clean(clean, sizeof clean, text ? text : "out of memory", '?');
    free(text);
    fprintf(stderr, "fetcher: %s\n", clean);
    if (status == BAD_USAGE)
        fputs("Try fetcher --help.\n", stderr);
    return status;
}

/* -- doors: files of the program itself, which an option names --------------
 * Another user may have put something else under the name: a link that leads
 * to a file of ours, a file that he reads, a pipe that nobody reads. So a link
 * is followed only if it is ours or root's, nothing is cut before it has been
 * looked at, and no open waits. Where a name stands for a descriptor of ours,
 * as /dev/stdout and /dev/fd/63 do, that is used as it is: what is behind it
 * may be a file, which has been written to already.
 */
enum { LINKS_MOST = 40, PATH_ROOM = 4096 };

struct door {
    int fd;               /* the descriptor of ours that it is; -1: none */
    bool process;         /* it stands in /proc: no place for a file */
    char path[PATH_ROOM]; /* behind all links */
    const char *why;      /* it is shut */
};

static int door_shut(struct door *d, const char *why) {
    d->why = why;
    return -1;
}

static bool is_trusted(uid_t uid) {
    return uid == geteuid() || uid == 0;
}

/* Is it what takes all and has nothing? */
static bool is_null(const struct stat *st) {
    struct stat null;

    return S_ISCHR(st->st_mode) && stat("/dev/null", &null) == 0 &&
           S_ISCHR(null.st_mode) && st->st_rdev == null.st_rdev;
}

/* Does this directory, a name without links, hold our descriptors? */
static bool holds_descriptors(const char *dir) {
    static const char *const names[] = {"/proc/self/fd", "/dev/fd"};
    bool holds = false;

    for (size_t i = 0; i < COUNT_OF(names) && !holds; i++) {
        char *real = realpath(names[i], NULL);

        holds = real && strcmp(real, dir) == 0;
        free(real);
    }
    return holds;
}

/* What does the directory of the path say of it? */
static void door_look(struct door *d) {
    char *name = strrchr(d->path, '/') + 1;
    char first = *name;
    const char *end = name;
    int64_t number = text_number(&end);
    char *dir;

    *name = '\0';
    dir = realpath(d->path, NULL);
    *name = first;
    d->process = dir && strncmp(dir, "/proc/", 6) == 0;
    if (dir && number >= 0 && number <= INT_MAX && !*end &&
        holds_descriptors(dir))
        d->fd = (int)number;
    free(dir);
}

/* To where a link leads. */
static int door_enter(struct door *d) {
    char to[PATH_ROOM];
    size_t dir = 0;
    ssize_t n = readlink(d->path, to, sizeof to - 1);

    if (n < 0)
        return door_shut(d, strerror(errno));
    if (*to != '/')
        dir = (size_t)(strrchr(d->path, '/') + 1 - d->path);
    if (dir + (size_t)n >= sizeof d->path)
        return door_shut(d, strerror(ENAMETOOLONG));
    memcpy(d->path + dir, to, (size_t)n);
    d->path[dir + (size_t)n] = '\0';
    return 0;
}

/* Does a directory's name go by a link that another user has put where all may
 * put one, as in /tmp? (Some systems don't follow such a link anyway.) */
static bool is_planted(const char *name, size_t n) {
    char *path = text_join(name, "/");
    char *s = path;
    struct stat dir = {0};
    struct stat st;
    bool planted = false;

    if (!path)
        return false; /* what needs memory fails soon enough */
    (void)stat(*name == '/' ? "/" : ".", &dir);
    while (!planted && (size_t)(s - path) < n) {
        s += strspn(s, "/");
        s += strcspn(s, "/");
        if (!*s)
            break;
        *s = '\0';
        planted = lstat(path, &st) == 0 && S_ISLNK(st.st_mode) &&
                  !is_trusted(st.st_uid) && (dir.st_mode & S_ISVTX);
        (void)stat(path, &dir);
        *s = '/';
    }
    free(path);
    return planted;
}

static bool is_planted_above(const char *name) {
    const char *slash = strrchr(name, '/');

    return slash && is_planted(name, (size_t)(slash - name));
}

/* Where does a name lead? A link in /proc itself can't be followed but by the
 * system. */
static int door_find(struct door *d, const char *name) {
    struct stat st;

    d->fd = -1;
    d->process = false;
    if (snprintf(d->path, sizeof d->path, "%s%s", *name == '/' ? "" : "./",
                 name) >= (int)sizeof d->path)
        return door_shut(d, strerror(ENAMETOOLONG));
    if (is_planted_above(d->path))
        return door_shut(d, "another user's link leads there");
    for (int i = 0; i < LINKS_MOST; i++) {
        door_look(d);
        if (d->fd >= 0 || d->process || lstat(d->path, &st) < 0 ||
            !S_ISLNK(st.st_mode))
            return 0;
        if (!is_trusted(st.st_uid))
            return door_shut(d, "it is another user's link");
        if (door_enter(d) < 0)
            return -1;
    }
    return door_shut(d, strerror(ELOOP));
}

/* May this be written to from its beginning? */
static int door_check(struct door *d, const struct stat *st) {
    if (d->fd >= 0 || S_ISCHR(st->st_mode))
        return 0;
    if (!S_ISREG(st->st_mode) && !S_ISFIFO(st->st_mode))
        return door_shut(d, "it is no file");
    if (!is_trusted(st->st_uid))
        return door_shut(d, "it is another user's");
    if (S_ISREG(st->st_mode) && st->st_nlink > 1)
        return door_shut(d, "it has another name as well");
    return 0;
}

/* A descriptor for it, to be written to, of which the caller has its own; -1:
 * it is shut. */
static int door_open(struct door *d, int flags, mode_t mode, struct stat *st) {
    int fd = -1;

    flags |= O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    if (d->fd < 0)
        fd = open(d->path, d->process ? flags : flags | O_NOFOLLOW, mode);
    else if ((fcntl(d->fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
        errno = EBADF;
    else
        fd = fcntl(d->fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0 || fstat(fd, st) < 0)
        d->why = errno == ENXIO ? "nobody reads it" : strerror(errno);
    else if (door_check(d, st) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* What an option names, opened to be written, and made if it isn't there. */
static int door_write(struct door *d, const char *name, mode_t mode,
                      struct stat *st) {
    if (door_find(d, name) < 0)
        return -1;
    return door_open(d, O_WRONLY | O_CREAT, mode, st);
}

enum leads {
    LEADS_TO_FILE,
    LEADS_TO_NOTHING,
    LEADS_TO_STREAM,
    LEADS_NOWHERE,
    LEADS_ASTRAY
};

/* To what does it lead, if data is to go there? */
static enum leads door_leads(const struct door *d) {
    struct stat st;

    if (d->fd >= 0)
        return LEADS_TO_STREAM;
    if (stat(d->path, &st) < 0 || S_ISDIR(st.st_mode))
        return LEADS_TO_FILE; /* that can't be made is told when it is tried */
    if (S_ISREG(st.st_mode))
        return d->process ? LEADS_NOWHERE : LEADS_TO_FILE;
    if (is_null(&st))
        return LEADS_TO_NOTHING;
    return S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode) ? LEADS_TO_STREAM
                                                       : LEADS_NOWHERE;
}

/* Output goes through a door. */
static void out_enter(struct out *o, const struct door *d, int fd) {
    o->fd = fd;
    o->tty = isatty(fd);
    if (d->fd >= 0)
        out_open(o, fd);
}

/* =================================================================== Options
 * One table says all of an option: its letter, its name, where its value goes.
 */
struct settings {
    struct fetcher_request rq; /* what each transfer asks for */
    char *output;              /* FILE; -: stdout; NULL: from the name */
    char *dir;                 /* where files go; NULL: here */
    char *list;                /* a file of URLs and commands; -: stdin */
    char *agent;
    char *user; /* NAME:PASSWORD */
    char *proxy;
    char *cacert;
    char *trace;
    char *cookies;
    char *session;
    char *color; /* auto, always, never */
    char *method;
    char *data;   /* the body to be sent, or ... */
    char *upload; /* ... the FILE that holds it; -: stdin */
    char *sha256;
    char *cert;
    char *key;
    char *unix_socket;
    char *completion;           /* for that shell */
    char *range;                /* as a header */
    struct curl_slist *resolve; /* HOST:PORT:ADDRESS, each */
    const char **headers;       /* ends with NULL */
    int header_count;
    int64_t jobs;     /* 0: the usual */
    int64_t per_host; /* likewise */
    int64_t retries;  /* -1: the usual */
    int64_t rate;     /* bytes a second; 0: any */
    bool quiet;
    bool verbose;
    bool json;
    bool plain;
    bool stats;
    bool insecure;
    bool netrc;
    bool compressed;
    bool remote_time;
    bool trusting; /* --location-trusted */
    bool usual;    /* what is so without an option */
    bool sync;
    bool head;
    bool ipv4;
    bool ipv6;
    bool http11;
    bool progress;
    bool no_clobber;
    bool if_changed;
    bool overwrite;
    bool resume; /* --continue */
    bool no_continue;
    bool window;
    bool dark;
    bool help;
    bool version;
};

/* What may follow an option, where that is few. */
#define COLORS "auto always never"
#define SHELLS "bash zsh fish"

enum kind {
    FLAG,
    TEXT,
    SECRET,
    HEADER,
    DATA,
    RANGE,
    RESOLVE,
    DASH,
    HINT,
    COUNT,
    TIME,
    SIZE
};

static const struct option {
    char letter; /* 0: none */
    const char *name;
    const char *arg; /* what its value is called; NULL: it takes none */
    enum kind kind;
    size_t field; /* in struct settings */
    const char *help;
} options[] = {

#define AT(field) offsetof(struct settings, field)
    {'A', "user-agent", "NAME", TEXT, AT(agent), "call yourself NAME"},
    {'b', "dark", NULL, FLAG, AT(dark), "a dark window"},
    {0, "cacert", "FILE", TEXT, AT(cacert),
     "trust the certificates in FILE, and no others"},
    {0, "cert", "FILE", TEXT, AT(cert),
     "show the certificate in FILE to servers that ask"},
    {0, "color", "WHEN", TEXT, AT(color),
     "use colors: auto (usual), always or never"},
    {0, "completion", "SHELL", TEXT, AT(completion),
     "print the completion for bash, zsh or fish"},
    {0, "compressed", NULL, FLAG, AT(compressed),
     "accept gzip and the like (for -o -)"},
    {0, "connect-timeout", "SECONDS", TIME, AT(rq.connect_ms),
     "give up connecting after (30)"},
    {'c', "continue", NULL, FLAG, AT(resume),
     "go on with what an earlier run has left (usual)"},
    {0, "cookies", "FILE", TEXT, AT(cookies),
     "read cookies from FILE and keep them there"},
    {'d', "dir", "DIR", TEXT, AT(dir), "save into DIR"},
    {0, "data", "DATA", DATA, AT(data),
     "POST DATA; @FILE: a file (@-: stdin), without line ends"},
    {0, "every", "TIME", TIME, AT(rq.every_ms),
     "fetch again every TIME: 30s, 5m, 1h"},
    {'H', "header", "LINE", HEADER, AT(headers), "send the header LINE too"},
    {'I', "head", NULL, FLAG, AT(head), "show the head of the answer alone"},
    {'h', "help", NULL, FLAG, AT(help), "show this help and exit"},
    {0, "http1.1", NULL, FLAG, AT(http11), "ask by HTTP/1.1"},
    {'N', "if-changed", NULL, FLAG, AT(if_changed),
     "replace what exists if it has changed"},
    {'i', "input-file", "FILE", TEXT, AT(list),
     "read URL [NAME] or a command a line (-: stdin)"},
    {'4', "ipv4", NULL, FLAG, AT(ipv4), "use IPv4 addresses only"},
    {'6', "ipv6", NULL, FLAG, AT(ipv6), "use IPv6 addresses only"},
    {'k', "insecure", NULL, FLAG, AT(insecure), "trust any server"},
    {'j', "jobs", "N", COUNT, AT(jobs), "fetch N at the same time (16)"},
    {0, "json", NULL, FLAG, AT(json), "tell in JSON, an object a line"},
    {0, "key", "FILE", TEXT, AT(key), "the key of --cert, if not in its FILE"},
    {0, "limit-rate", "RATE", SIZE, AT(rate),
     "take RATE bytes a second, all together: 20k, 1.5M"},
    {0, "max-filesize", "SIZE", SIZE, AT(rq.max_bytes),
     "refuse what is larger"},
    {0, "location-trusted", NULL, FLAG, AT(trusting),
     "send -H and -u to each host of a redirect, too"},
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
    {0, "progress", NULL, FLAG, AT(progress),
     "with --json, tell twice a second how far each is"},
    {'x', "proxy", "URL", TEXT, AT(proxy), "fetch through a proxy"},
    {'q', "quiet", NULL, FLAG, AT(quiet), "tell of failures only"},
    {'r', "range", "FIRST-LAST", RANGE, AT(range),
     "fetch these bytes only: 0-99, 100-, -100"},
    {'R', "remote-time", NULL, FLAG, AT(remote_time),
     "give files the time the server says"},
    {0, "sync", NULL, FLAG, AT(sync),
     "flush each file to the disk before it counts as done: slow"},
    {'X', "request", "METHOD", TEXT, AT(method), "send METHOD in place of GET"},
    {0, "resolve", "HOST:PORT:ADDRESS", RESOLVE, AT(resolve),
     "take ADDRESS for HOST"},
    {0, "retry", "N", COUNT, AT(retries),
     "try again N times what may pass (5)"},
    {0, "session", "FILE", TEXT, AT(session),
     "keep the queue in FILE, and go on with it"},
    {0, "sha256", "HEX", TEXT, AT(sha256),
     "fail unless that is its SHA-256; go on from any mirror"},
    {0, "stall-timeout", "SECONDS", TIME, AT(rq.stall_ms),
     "give up after SECONDS of silence (30)"},
    {0, "stats", NULL, FLAG, AT(stats), "at the end tell what the loop did"},
    {0, "trace", "FILE", TEXT, AT(trace),
     "write a line about each turn of the loop"},
    {0, "unix-socket", "PATH", TEXT, AT(unix_socket),
     "connect to this socket in place of the host"},
    {'T', "upload-file", "FILE", TEXT, AT(upload),
     "send FILE by PUT (-: stdin), and show the answer"},
    {'u', "user", "NAME:PASSWORD", SECRET, AT(user), "log in"},
    {'V', "version", NULL, FLAG, AT(version), "show versions and exit"},
    {'v', "verbose", NULL, FLAG, AT(verbose), "tell more"},
    {'w', "window", NULL, FLAG, AT(window), "show a window (X11)"},
};

/* Of other programs, out of habit: what is usual here, or what it is called
 * here. */
static const struct option habits[] = {
    {'O', "remote-name", NULL, FLAG, AT(usual), NULL},
    {'L', "location", NULL, FLAG, AT(usual), NULL},
    {'f', "fail", NULL, FLAG, AT(usual), NULL},
    {'J', "remote-header-name", NULL, FLAG, AT(usual), NULL},
    {'S', "show-error", NULL, FLAG, AT(usual), NULL},
    {'Z', "parallel", NULL, FLAG, AT(usual), NULL},
    {'C', "continue-at", "-", DASH, 0, NULL},
    {0, "create-dirs", NULL, FLAG, AT(usual), NULL},
    {0, "content-disposition", NULL, FLAG, AT(usual), NULL},
    {'s', "silent", NULL, FLAG, AT(quiet), NULL},

    {'P', "directory-prefix", NULL, HINT, 0, "-d DIR"},
    {0, "output-dir", NULL, HINT, 0, "-d DIR"},
    {0, "output-document", NULL, HINT, 0, "-o FILE"},
    {0, "nc", NULL, HINT, 0, "--no-clobber"},
    {0, "nv", NULL, HINT, 0, "-q"},
    {0, "timestamping", NULL, FLAG, AT(if_changed), NULL},
    {0, "no-buffer", NULL, FLAG, AT(usual), NULL},
    {'t', "tries", NULL, HINT, 0, "--retry N"},
    {0, "retries", NULL, HINT, 0, "--retry N"},
    {0, "timeout", NULL, HINT, 0, "--stall-timeout SECONDS"},
    {'e', "referer", NULL, HINT, 0, "-H 'Referer: URL'"},
    {0, "post-data", NULL, HINT, 0, "--data DATA"},
    {0, "data-raw", NULL, HINT, 0, "--data DATA"},
    {0, "cookie", NULL, HINT, 0, "--cookies FILE"},
    {0, "cookie-jar", NULL, HINT, 0, "--cookies FILE"},
    {0, "load-cookies", NULL, HINT, 0, "--cookies FILE"},
    {0, "parallel-max", NULL, HINT, 0, "-j N"},
    {0, "no-check-certificate", NULL, HINT, 0, "-k"},
    {0, "ca-certificate", NULL, HINT, 0, "--cacert FILE"},
    {0, "password", NULL, HINT, 0, "-u NAME:PASSWORD"},
};

static bool is_dash(const char *name) {
    return name && strcmp(name, "-") == 0;
}

static const struct { /* each unit is the factor of the letter above it */
    const char *letters;
    double factor[8];
    double most; /* exclusive */
} units[] = {
    [COUNT] = {"", {1}, 1e6 + 1},
    [TIME] = {"ssmhd", {1e3, 1e3, 6e4, 3.6e6, 8.64e7}, 9e15},
    [SIZE] = {"bkKmMgG", {1, 1024, 1024, 0x1p20, 0x1p20, 0x1p30, 0x1p30}, 9e15},
};

/* A decimal number and a unit of its kind; the first unit needs no letter. Of
 * times there may be several: 2m30s. -1: it is none. */
static int64_t read_amount(const char *text, enum kind kind) {
    const char *letters = units[kind].letters;
    double sum = 0;

    do {
        const char *unit = letters;
        char *end;
        double value = strtod(text, &end);

        if (!isdigit((unsigned char)*text) || !isdigit((unsigned char)end[-1]))
            return -1;
        if (*end) {
            unit = strchr(letters, *end);
            end++;
        }
        if (!unit)
            return -1;
        sum += value * units[kind].factor[unit - letters];
        text = end;
    } while (*text && kind == TIME);
    return !*text && sum < units[kind].most ? (int64_t)sum : -1;
}

/* As curl does it: without line ends; nor a NUL. */
static void copy_lines(FILE *from, FILE *to) {
    int c;

    while ((c = getc(from)) != EOF) {
        if (!strchr("\r\n", c))
            putc(c, to);
    }
}

/* To read what an option names, without waiting for anybody: a pipe has to be
 * one that we were given, as /dev/stdin. NULL: it is shut. */
static FILE *door_read(struct door *d, const char *name) {
    FILE *file;
    struct stat st;
    int fd = -1;

    if (door_find(d, name) < 0)
        return NULL;
    if (d->fd >= 0)
        fd = fcntl(d->fd, F_DUPFD_CLOEXEC, 3);
    else
        fd = open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    file = fd < 0 ? NULL : fdopen(fd, "rb");
    d->why = strerror(errno);
    if (file && (d->fd >= 0 || (fstat(fd, &st) == 0 &&
                                (S_ISREG(st.st_mode) || is_null(&st)))))
        return file;
    if (file) {
        d->why = "it is no file";
        fclose(file);
    }
    return NULL;
}

/* One --data after the other, joined by '&'; @FILE stands for what is in it. */
static enum status read_data(char **data, const char *text) {
    struct door d;
    FILE *file = NULL;
    FILE *to;
    char *all;
    size_t size;

    if (*text == '@') {
        file = door_read(&d, is_dash(text + 1) ? "/dev/stdin" : text + 1);
        if (!file)
            return refuse(SOME_FAILED, "cannot read %s: %s", text + 1, d.why);
    }
    to = open_memstream(&all, &size);
    if (to && *data && **data)
        fprintf(to, "%s&", *data);
    if (to && file)
        copy_lines(file, to);
    else if (to)
        fputs(text, to);
    if (file)
        fclose(file);
    free(*data);
    *data = to && fclose(to) == 0 ? all : NULL;
    return *data ? ALL_DONE : refuse(SOME_FAILED, "out of memory");
}

/* What others see of it (by ps) is overwritten. */
static enum status read_secret(char **secret, char *value) {
    free(*secret);
    *secret = text_join(value, "");
    memset(value, '*', strlen(value));
    return *secret ? ALL_DONE : refuse(SOME_FAILED, "out of memory");
}

static enum status read_number(int64_t *n, const struct option *o,
                               const char *value) {
    bool may_be_0 = o->kind != COUNT || strcmp(o->name, "retry") == 0;

    *n = read_amount(value, o->kind);
    if (*n > 0 || (*n == 0 && may_be_0))
        return ALL_DONE;
    if (*n == 0)
        return refuse(BAD_USAGE, "--%s: at least 1", o->name);
    if (o->kind == TIME)
        return refuse(BAD_USAGE, "--%s: not a time: %s (but 30s or 2m30s)",
                      o->name, value);
    return refuse(BAD_USAGE, "--%s: not a number: %s", o->name, value);
}

/* "0-99", "100-" or "-100"; of several, each behind a comma. */
static bool is_range(const char *text) {
    bool good = *text != '\0';

    while (good && *text) {
        int64_t first = text_number(&text);
        int64_t last;

        good = *text == '-';
        if (good)
            text++;
        last = text_number(&text);
        if (first < 0 ? last < 0 : last >= 0 && last < first)
            good = false;
        if (*text == ',' && text[1])
            text++;
        else if (*text)
            good = false;
    }
    return good;
}

static enum status range_read(struct settings *s, const char *text) {
    free(s->range);
    s->range = text_join("Range: bytes=", text);
    if (!is_range(text))
        return refuse(BAD_USAGE, "--range: not FIRST-LAST, such as 0-99: %s",
                      text);
    return s->range ? ALL_DONE : refuse(SOME_FAILED, "out of memory");
}

/* What libcurl makes of it shows when it is used. */
static enum status read_resolve(struct settings *s, const char *text) {
    struct curl_slist *longer;
    const char *port = strchr(text, ':');

    if (*text != '-' && (!port || !strchr(port + 1, ':')))
        return refuse(BAD_USAGE, "--resolve: not HOST:PORT:ADDRESS: %s", text);
    longer = curl_slist_append(s->resolve, text);
    if (!longer)
        return refuse(SOME_FAILED, "out of memory");
    s->resolve = longer;
    return ALL_DONE;
}

static enum status option_set(struct settings *s, const struct option *o,
                              char *value) {
    void *field = (char *)s + o->field;

    switch (o->kind) {
    case FLAG:
        *(bool *)field = true;
        return ALL_DONE;
    case DATA:
        return read_data(field, value);
    case SECRET:
        return read_secret(field, value);
    case RANGE:
        return range_read(s, value);
    case RESOLVE:
        return read_resolve(s, value);
    case TEXT:
        *(char **)field = value;
        return *value ? ALL_DONE
                      : refuse(BAD_USAGE, "--%s needs a value that isn't empty",
                               o->name);
    case HEADER:
        s->headers[s->header_count++] = value;
        return !strpbrk(value, "\r\n") && strpbrk(value, ":;")
                   ? ALL_DONE
                   : refuse(BAD_USAGE, "--%s is not NAME: VALUE", o->name);
    case DASH:
        return is_dash(value) ? ALL_DONE
                              : refuse(BAD_USAGE,
                                       "--%s takes - alone: what is there is "
                                       "continued",
                                       o->name);
    default:
        return read_number(field, o, value);
    }
}

static const struct option *option_in(const struct option *o, size_t count,
                                      char letter, const char *name, size_t n) {
    for (const struct option *end = o + count; o < end; o++) {
        if (name && strlen(o->name) == n && memcmp(o->name, name, n) == 0)
            return o;
        if (letter && o->letter == letter)
            return o;
    }
    return NULL;
}

static const struct option *option_find(char letter, const char *name,
                                        size_t n) {
    const struct option *o =
        option_in(options, COUNT_OF(options), letter, name, n);

    return o ? o : option_in(habits, COUNT_OF(habits), letter, name, n);
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* How many letters were left out, put in, mistaken, or exchanged with the next
 * one (Damerau and Levenshtein)? by[i][j] is that of the first i and j. */
static int misspelt_by(const char *a, int n, const char *b) {
    enum { LONGEST = 24 };

    int by[LONGEST + 1][LONGEST + 1];
    int m = (int)strlen(b);

    if (n > LONGEST || m > LONGEST)
        return LONGEST;
    for (int i = 0; i <= n; i++)
        by[i][0] = i;
    for (int j = 1; j <= m; j++) {
        by[0][j] = j;
        for (int i = 1; i <= n; i++) {
            int wrong = a[i - 1] == b[j - 1] ? 0 : 1;
            int least = smaller(by[i - 1][j], by[i][j - 1]) + 1;

            least = smaller(least, by[i - 1][j - 1] + wrong);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                least = smaller(least, by[i - 2][j - 2] + 1);
            by[i][j] = least;
        }
    }
    return by[n][m];
}

/* The option whose name is meant; NULL: who knows. */
static const struct option *option_like(const char *name, int n) {
    const struct option *like = NULL;
    int least = 2 + n / 4;

    for (const struct option *o = options; o < options + COUNT_OF(options);
         o++) {
        int by = misspelt_by(name, n, o->name);

        if (by < least && by < n) {
            least = by;
            like = o;
        }
    }
    return like;
}

/* That is the answer: no help is needed. */
static enum status hint(const char *dashes, int n, const char *name,
                        const char *here) {
    (void)refuse(SOME_FAILED, "%s%.*s: the option here is %s", dashes, n, name,
                 here);
    return BAD_USAGE;
}

static enum status option_unknown(const char *name, int n) {
    const struct option *like = option_like(name, n);
    char here[40];

    if (!like)
        return refuse(BAD_USAGE, "unknown option --%.*s", n, name);
    snprintf(here, sizeof here, "--%s", like->name);
    return hint("--", n, name, here);
}

/* To curl, --json is data to be sent. */
static bool is_json(const char *text) {
    return text && *text && strchr("{[@", *text);
}

/* --output=FILE, or --output and its value in the next word. */
static enum status option_long(struct settings *s, char *name, char ***argv) {
    size_t n = strcspn(name, "=");
    const struct option *o = option_find('\0', name, n);
    char *value = name[n] ? name + n + 1 : NULL;

    if (!o)
        return option_unknown(name, (int)n);
    if (o->kind == HINT)
        return hint("--", (int)n, name, o->help);
    if (o->field == AT(json) && is_json(value ? value : (*argv)[1]))
        return hint("--", (int)n, name,
                    "--data DATA -H 'Content-Type: application/json'");
    if (!o->arg && value)
        return refuse(BAD_USAGE, "--%s takes no value", o->name);
    if (o->arg && !value) {
        value = *++*argv;
        if (!value)
            return refuse(BAD_USAGE, "--%s needs %s", name, o->arg);
    }
    return option_set(s, o, value ? value : "");
}

/* -qv are two flags; -oFILE, or -o and FILE in the next word, end the
 * letters. */
static enum status option_letters(struct settings *s, char *letter,
                                  char ***argv) {
    enum status status = ALL_DONE;
    const struct option *word = option_find('\0', letter, strlen(letter));

    if (word && word->kind == HINT) /* wget has -nc */
        return hint("-", (int)strlen(letter), letter, word->help);
    for (; *letter && status == ALL_DONE; letter++) {
        const struct option *o = option_find(*letter, NULL, 0);

        if (!o)
            return refuse(BAD_USAGE, "unknown option -%.*s",
                          (int)utf8_length(letter), letter);
        if (o->kind == HINT)
            return hint("-", 1, letter, o->help);
        if (o->arg) {
            char *value = letter[1] ? letter + 1 : *++*argv;
            if (!value)
                return refuse(BAD_USAGE, "-%s needs %s", letter, o->arg);
            return option_set(s, o, value);
        }
        status = option_set(s, o, "");
    }
    return status;
}

/* Options and URLs in any order, as GNU does it; "--" ends the options. The
 * URLs are gathered. */
static enum status options_read(struct settings *s, char **argv, char **url) {
    bool over = false; /* with options */
    enum status status = ALL_DONE;

    while (status == ALL_DONE && *++argv) {
        char *arg = *argv;

        if (over || arg[0] != '-' || !arg[1])
            *url++ = arg;
        else if (strcmp(arg, "--") == 0)
            over = true;
        else if (arg[1] == '-')
            status = option_long(s, arg + 2, &argv);
        else
            status = option_letters(s, arg + 1, &argv);
    }
    return status;
}

static bool is_directory(const char *path) {
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* libcurl opens certificates and keys by their name, for each connection: what
 * is no file would hold up everything. NULL: nothing was named. */
static enum status trust_check(const char *name) {
    struct stat st;

    if (!name)
        return ALL_DONE;
    if (stat(name, &st) < 0)
        return refuse(SOME_FAILED, "cannot read %s: %s", name, strerror(errno));
    if (!S_ISREG(st.st_mode) && !is_null(&st))
        return refuse(SOME_FAILED, "cannot read %s: it is no file", name);
    return ALL_DONE;
}

static enum status trusts_check(const struct settings *s) {
    enum status status = trust_check(s->cacert);

    if (!status)
        status = trust_check(s->cert);
    return status ? status : trust_check(s->key);
}

/* Do the options go together? */
static bool is_proxy(const char *text) {
    CURLU *u = curl_url();
    unsigned flags = CURLU_NON_SUPPORT_SCHEME | CURLU_DEFAULT_SCHEME;
    char *scheme = NULL;
    bool good = u && curl_url_set(u, CURLUPART_URL, text, flags) == CURLUE_OK &&
                curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
                listed(scheme, "http https socks4 socks4a socks5 socks5h");

    curl_free(scheme);
    curl_url_cleanup(u);
    return good;
}

/* Is there such a way to a server? */
static enum status way_check(const struct settings *s) {
    const char *path = s->unix_socket;

    if (s->ipv4 && s->ipv6)
        return refuse(BAD_USAGE, "-4 and -6 contradict each other");
    if (path && strlen(path) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        return refuse(BAD_USAGE, "--unix-socket: the path is too long: %s",
                      path);
    if (s->key && !s->cert)
        return refuse(BAD_USAGE, "--key is the key of --cert FILE");
    return ALL_DONE;
}

/* What a request asks for, and how: does that go together? */
static enum status request_check(const struct settings *s, char **url) {
    bool one = !s->list && !s->session && url[0] && !url[1];

    if (s->sha256 && !is_sha256(s->sha256))
        return refuse(BAD_USAGE, "--sha256: not 64 digits of hex: %s",
                      s->sha256);
    if (s->sha256 && !one)
        return refuse(BAD_USAGE, "--sha256 is of one URL; in a list it is "
                                 "URL NAME sha256:HEX");
    if (s->upload && !one)
        return refuse(BAD_USAGE, "-T sends one file to one URL");
    if (s->upload && s->rq.every_ms)
        return refuse(BAD_USAGE, "-T and --every contradict each other");
    if (s->upload && s->data)
        return refuse(BAD_USAGE, "-T and --data contradict each other");
    if (s->head && (s->upload || s->data || s->output || s->sha256))
        return refuse(BAD_USAGE, "-I shows the head on stdout, and goes with "
                                 "no -T, --data, --sha256 or -o");
    if (s->range && s->if_changed)
        return refuse(BAD_USAGE,
                      "--range and --if-changed contradict each other: a part "
                      "is not remembered");
    if (s->progress && !s->json)
        return refuse(BAD_USAGE, "--progress goes with --json");
    return way_check(s);
}

static enum status options_check(const struct settings *s, char **url) {
    if (s->output && is_directory(s->output))
        return refuse(BAD_USAGE,
                      "-o %s: this is a directory; -d saves into one",
                      s->output);
    if (s->dir && access(s->dir, W_OK | X_OK) < 0 && errno != ENOENT)
        return refuse(SOME_FAILED, "cannot write to %s: %s", s->dir,
                      strerror(errno));
    if (s->dir && is_planted(s->dir, strlen(s->dir)))
        return refuse(SOME_FAILED,
                      "cannot write to %s: another user's link leads "
                      "there",
                      s->dir);
    if (s->output && (s->list || s->session || !url[0] || url[1]))
        return refuse(
            BAD_USAGE,
            "-o names one file, and so takes one URL; -d DIR saves many");
    if (s->resume && s->no_continue)
        return refuse(BAD_USAGE,
                      "--continue and --no-continue contradict each other");
    if ((s->no_clobber && s->overwrite) ||
        (s->if_changed && (s->no_clobber || s->overwrite)))
        return refuse(BAD_USAGE, "--no-clobber, --overwrite and --if-changed "
                                 "contradict each other");
    if (s->rq.every_ms && s->rq.every_ms < 1000)
        return refuse(BAD_USAGE, "--every: at least 1s");
    if (s->proxy && !is_proxy(s->proxy))
        return refuse(BAD_USAGE,
                      "--proxy: not the URL of a proxy, such as "
                      "http://HOST:PORT or socks5h://HOST:PORT: %s",
                      s->proxy);
    if (s->color && !listed(s->color, COLORS))
        return refuse(BAD_USAGE, "--color: auto, always or never, not %s",
                      s->color);
    return request_check(s, url);
}

/* What the transfers ask for is put together of the options. */
static void options_apply(struct settings *s) {
    struct fetcher_request *rq = &s->rq;

    if (s->range)
        s->headers[s->header_count++] = s->range;
    rq->headers = s->headers;
    rq->method = s->method;
    if (!rq->method && s->head)
        rq->method = "HEAD";
    if (!rq->method && s->upload)
        rq->method = "PUT";
    rq->body = s->data;
    rq->user = s->user;
    rq->sha256 = s->sha256;
    if (s->retries >= 0) /* not to try again is -1 there */
        rq->retries = s->retries ? (int)s->retries : -1;
    if (s->no_clobber)
        rq->existing = FETCHER_SKIP;
    if (s->overwrite)
        rq->existing = FETCHER_OVERWRITE;
    if (s->if_changed)
        rq->existing = FETCHER_UPDATE;
    if (s->no_continue)
        rq->flags |= FETCHER_FRESH;
    if (s->sync)
        rq->flags |= FETCHER_SYNC;
    if (s->remote_time)
        rq->flags |= FETCHER_FILE_TIME;
    if (s->compressed)
        rq->flags |= FETCHER_COMPRESSED;
    if (s->trusting)
        rq->flags |= FETCHER_TRUSTING;
}

static void settings_free(struct settings *s) {
    free(s->data);
    free(s->user);
    free(s->range);
    curl_slist_free_all(s->resolve);
}

static enum status printed(void) {
    return fflush(stdout) || ferror(stdout) ? SOME_FAILED : ALL_DONE;
}

static enum status help(void) {
    puts("Usage: fetcher [OPTION]... URL...\n"
         "Fetch URLs (http, https), many at the same time, and save them as "
         "files.\n\nOptions:");
    for (const struct option *o = options; o < options + COUNT_OF(options);
         o++) {
        int n = o->letter ? printf("  -%c, ", o->letter) : printf("      ");

        n += printf("--%s", o->name);
        if (o->arg)
            n += printf("=%s", o->arg);
        printf("%*s %s\n", 33 - n, "", o->help);
    }
    puts(
        "\nWhat -O, -L, -f, -J, -S, -Z and -C - ask for elsewhere is usual "
        "here; -s is -q.\n"
        "A file appears under its name only when it is whole; until then it "
        "is NAME.part,\n"
        "and the next run goes on with it. Sizes take k, M or G; times s, m, h "
        "or d.\n\n"
        "On a terminal, ? shows the keys; without a URL fetcher waits for "
        "commands there.\n"
        "With -i - the commands come from stdin; the command help shows "
        "them.\n\n"
        "Exit status: 0 all was fetched, 1 not all was, 2 wrong usage; 130 "
        "and 143 after\n"
        "an interrupt and SIGTERM.");
    return printed();
}

/* -- completion -------------------------------------------------------------
 * Of the options and their values, for three shells, made of the table.
 */

static bool takes_file(const struct option *o) {
    return o->arg && (listed(o->arg, "FILE PATH DATA") || o->kind == DATA);
}

static bool takes_dir(const struct option *o) {
    return o->arg && strcmp(o->arg, "DIR") == 0;
}

static bool takes_text(const struct option *o) {
    return o->arg && !takes_file(o) && !takes_dir(o);
}

/* NULL: there are more than can be told. */
static const char *choices(const struct option *o) {
    if (o->field == AT(color))
        return COLORS;
    return o->field == AT(completion) ? SHELLS : NULL;
}

/* "-d|--dir|-i|--input-file" of those that are so. */
static void complete_names(bool (*is_so)(const struct option *)) {
    const char *bar = "";

    for (size_t i = 0; i < COUNT_OF(options); i++) {
        const struct option *o = &options[i];

        if (!is_so(o))
            continue;
        if (o->letter)
            printf("%s-%c|--%s", bar, o->letter, o->name);
        else
            printf("%s--%s", bar, o->name);
        bar = "|";
    }
}

/* Names of files are left to readline, which quotes them. To bash the '=' of
 * --color=auto is a word. */
static void complete_bash(void) {
    puts("_fetcher() {\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]}"
         " prev=${COMP_WORDS[COMP_CWORD-1]}\n"
         "    if [ \"$cur\" = = ]; then cur=\n"
         "    elif [ \"$prev\" = = ]; then"
         " prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
         "    case $prev in");
    for (size_t i = 0; i < COUNT_OF(options); i++) {
        if (choices(&options[i]))
            printf("    --%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\"));"
                   " return ;;\n",
                   options[i].name, choices(&options[i]));
    }
    printf("    ");
    complete_names(takes_file);
    printf(") return ;;\n    ");
    complete_names(takes_dir);
    printf(") compopt -o dirnames 2>/dev/null; return ;;\n    ");
    complete_names(takes_text);
    puts(") compopt +o default 2>/dev/null; return ;;\n    esac");
    printf("    [ \"$cur\" = \"${cur#-}\" ] || COMPREPLY=($(compgen -W '");
    for (size_t i = 0; i < COUNT_OF(options); i++)
        printf("%s--%s", i ? " " : "", options[i].name);
    puts("' -- \"$cur\"))\n}\n"
         "complete -o default -F _fetcher fetcher");
}

/* Within the quotes and the brackets of zsh, or the quotes of fish. */
static void complete_text(const char *text) {
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static const char *zsh_values(const struct option *o) {
    if (takes_dir(o))
        return "_files -/";
    return takes_file(o) ? "_files" : "";
}

static bool may_repeat(const struct option *o) {
    return o->kind == HEADER || o->kind == DATA || o->kind == RESOLVE;
}

/* What the option is called, with what else it may not stand together. */
static void zsh_names(const struct option *o) {
    const char *equals = o->arg ? "=" : "";

    if (may_repeat(o) && o->letter)
        printf("'*'{-%c+,--%s=}'", o->letter, o->name);
    else if (may_repeat(o))
        printf("'*--%s=", o->name);
    else if (o->letter)
        printf("'(-%c --%s)'{-%c%s,--%s%s}'", o->letter, o->name, o->letter,
               o->arg ? "+" : "", o->name, equals);
    else
        printf("'--%s%s", o->name, equals);
}

static void complete_zsh(void) {
    puts("#compdef fetcher\n_arguments -s \\");
    for (size_t i = 0; i < COUNT_OF(options); i++) {
        const struct option *o = &options[i];

        printf("  ");
        zsh_names(o);
        printf("[");
        complete_text(o->help);
        printf("]");
        if (o->arg) {
            printf(":");
            complete_text(o->arg);
            printf(":");
            if (choices(o))
                printf("(%s)", choices(o));
            else
                printf("%s", zsh_values(o));
        }
        puts("' \\");
    }
    puts("  '*:URL:_urls'");
}

static const char *fish_values(const struct option *o) {
    if (takes_file(o) || takes_dir(o))
        return "-r -F";
    return o->arg ? "-x" : "-f";
}

static void complete_fish(void) {
    for (size_t i = 0; i < COUNT_OF(options); i++) {
        const struct option *o = &options[i];

        printf("complete -c fetcher -l %s", o->name);
        if (o->letter)
            printf(" -s %c", o->letter);
        printf(" %s", fish_values(o));
        if (choices(o))
            printf(" -a '%s'", choices(o));
        printf(" -d '");
        for (const char *c = o->help; *c; c++) {
            if (*c == '\'' || *c == '\\')
                putchar('\\');
            putchar(*c);
        }
        puts("'");
    }
}

static enum status completion(const char *shell) {
    if (strcmp(shell, "bash") == 0)
        complete_bash();
    else if (strcmp(shell, "zsh") == 0)
        complete_zsh();
    else if (strcmp(shell, "fish") == 0)
        complete_fish();
    else
        return refuse(BAD_USAGE, "--completion: bash, zsh or fish, not %s",
                      shell);
    return printed();
}

static bool lookups_block(void) {
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);

    return !(v->features & CURL_VERSION_ASYNCHDNS);
}

static enum status version(void) {
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
    const char *resolver = "a thread of libcurl's for each lookup";

    if (curl_quirks(v->version_num).lookup_pool)
        resolver = "a pool of libcurl's threads";
    if (v->ares_num)
        resolver = "c-ares";
    if (lookups_block())
        resolver = "blocking: a slow name lookup holds up everything";
    printf("fetcher %s\nlibcurl %s, TLS: %s, name lookups: %s\n\n"
           "License 0BSD: do with it what you like. There is no warranty.\n",
           FETCHER_VERSION, v->version,
           v->ssl_version ? v->ssl_version : "none", resolver);
    return printed();
}

/* ================================================================== Commands
 * One small language, parsed in one place, for the lines of stdin and of
 * lists, the prompt and the session. All work of the program that is not
 * drawing is done by do_work(), in a slice a turn: whoever has something for it
 * calls wake().
 */
enum {
    LINE_LONGEST = 65536,                /* that somebody may type */
    INPUT_ROOM = 2 * LINE_LONGEST + 4096 /* each byte with a backslash */
};

struct input { /* lines of commands */
    const char *name;
    int fd;
    bool eof;           /* nothing more will come */
    bool polled;        /* it is watched; else a read never blocks */
    bool ready;         /* a read does not block */
    bool skipping;      /* the rest of a line that is too long */
    bool held;          /* its next line waits for room in the queue */
    unsigned long line; /* its number */
    size_t begin;       /* what has been read and not yet taken ... */
    size_t end;         /* ... is between these */
    char text[INPUT_ROOM];
};

enum source { SESSION, LIST, PROMPT, INPUTS };

struct session {
    int fd;            /* stands under the name, and is locked */
    int64_t size;      /* of that file, in bytes */
    int64_t grown;     /* of these, behind the last snapshot */
    int64_t enough;    /* to grow by, until another is worth it */
    struct out lines;  /* are yet to be appended */
    struct out since;  /* those since the fork: to go behind the new one */
    struct out buffer; /* of who writes a snapshot */
    char *fresh;       /* the name of a snapshot until it is whole */
    int fresh_fd;      /* -1: it has its name */
    pid_t writer;      /* writes it; 0: there is none */
    int writer_fd;     /* a socket to it */
    fetcher_id timer;  /* 0: there is nothing to try later */
    bool reading;      /* what it says is being read: none is appended */
    bool restoring;    /* that, or what was read is being started */
    bool told;         /* that it can't be written */
    int64_t again;     /* the number of what is read next; 0: a new one */
};

struct sweep {                      /* a command for all downloads */
    const struct command *command;  /* NULL: none */
    bool (*step)(struct program *); /* for the next one; false: there is none */
    int64_t next;                   /* the key of the one that comes next */
    int count;                      /* those to whom it was of use */
    bool failed;                    /* those that have, of what has ended */
};

struct program {
    struct settings s;
    struct fetcher *f;
    struct console console;
    struct model model;
    struct input input[INPUTS];
    struct input *source; /* of the present command */
    struct sweep sweep;
    struct session session;
    struct view *view;     /* the terminal's or the window's; NULL: none */
    fetcher_id work_timer; /* 0: nothing is to be done */
    uint64_t refused;      /* lines */
    int64_t commands;      /* so far */
    char **url;            /* the next of the command line, NULL at last */
    int firsts;            /* how often one was put first */
    enum status status;    /* at the exit */
    bool closing;          /* give all up, and end */
    bool given_up;         /* the reader of stdout has stopped: end now */
    bool suspending;       /* ^Z */
    bool stay;             /* do not end when all is done */
    bool interactive;      /* somebody can give commands by keys */
    bool prompting;        /* a line is being edited */
    bool bare;             /* the command is just a URL: no answer */
    bool utf8;             /* the terminal's charset, says the locale */
    usec began;            /* of the program */
    CURLSH *cookies;
    struct out *stream;    /* where -o leads, if not to a file: stdout, ... */
    struct out stream_own; /* ... or a pipe or a device */
    bool discards;         /* it leads to /dev/null */
    struct out trace;
    int upload_fd;    /* what -T sends; 0: stdin, or nothing */
    int64_t uploaded; /* bytes of it, if it can't go back */
    char *address;    /* of a retry, if it is to be another; NULL: the same */
};

struct command {
    const char *name;
    const char *args;
    const char *help;
    int least; /* words that follow */
    int most;
    void (*run)(struct program *, char **word);    /* once; NULL: ... */
    bool (*apply)(struct program *, struct job *); /* ... to each download. Was
                                                      it of use? NULL: help */
    const char *done; /* what has then happened to it */
};

static void do_work(struct fetcher *f, void *arg);
static void session_tick(struct fetcher *f, void *arg);
static void job_done(struct fetcher *f, const struct fetcher_result *r,
                     void *arg);

/* There is something to do: in the next turn. */
static void wake(struct program *p) {
    if (!p->work_timer)
        p->work_timer = fetcher_timer(p->f, 0, do_work, p);
}

static bool input_left(const struct input *in) {
    return !in->eof || in->begin < in->end;
}

static void input_drop(struct input *in) {
    in->end -= in->begin;
    memmove(in->text, in->text + in->begin, in->end);
    in->begin = 0;
}

/* Where others read too, what select() saw may be gone. So nothing waits: a
 * pipe or a terminal was opened again, and a socket can be told. */
static ssize_t read_now(int fd, char *to, size_t room) {
    ssize_t got = recv(fd, to, room, MSG_DONTWAIT);

    return got < 0 && errno == ENOTSOCK ? read(fd, to, room) : got;
}

/* A command, typed or of a key: it goes the way of all lines. False: there is
 * no room. */
static bool submit(struct program *p, const char *verb, const char *rest) {
    struct input *in = &p->input[PROMPT];
    size_t n = strlen(verb) + strlen(rest);

    input_drop(in);
    if (in->end + n + 2 > sizeof in->text)
        return false;
    snprintf(in->text + in->end, n + 2, "%s%s\n", verb, rest);
    in->end += n + 1;
    wake(p);
    return true;
}

static bool submitted(const struct program *p) {
    return p->input[PROMPT].begin < p->input[PROMPT].end;
}

static void fail_status(struct program *p) {
    if (!p->status)
        p->status = SOME_FAILED;
}

/* What came of a command, without passwords; text from outside may be in it. */
static void put_answer(struct program *p, bool good, int64_t number,
                       const char *text) {
    struct console *c = &p->console;
    struct input *in = p->source;
    struct out *o = line_out(c, false);
    const char *event = good ? "answer" : "failed";
    char where[64] = "";

    if (*in->name)
        snprintf(where, sizeof where, "%.40s:%lu", in->name, in->line);
    if (c->json) {
        out_json(o, event, number, "line", where, "code",
                 good ? NULL : "bad_line", "message", text, NULL);
        out_puts(o, "}\n");
    } else if (good) {
        out_text(o, text);
        line_end(c, o);
    }
    if (!good)
        complain(c, where, text);
}

static void reply(struct program *p, int64_t number, const char *format, ...) {
    bool silent = p->s.quiet || p->bare || p->source == &p->input[SESSION];
    char *text;
    va_list args;

    if ((silent && !p->s.json) || p->session.reading)
        return;
    va_start(args, format);
    text = message_format(format, args);
    va_end(args);
    put_answer(p, true, number, text ? text : "out of memory");
    free(text);
}

static void reject(struct program *p, const char *format, ...) {
    char *text;
    va_list args;

    va_start(args, format);
    text = message_format(format, args);
    va_end(args);
    put_answer(p, false, 0, text ? text : "out of memory");
    free(text);
    if (p->source == &p->input[SESSION])
        p->s.session = NULL; /* it stays as it is: nothing is lost */
    if (p->source == &p->input[PROMPT])
        return;
    p->refused++;
    fail_status(p);
}

/* -- the session: what is left to do, as commands --------------------------
 * The file is a snapshot, a command for each download in the order of their
 * numbers, and behind it a line for each thing that has happened since: so it
 * is exact at any moment, and whoever is killed fetches nothing twice. To be
 * read it is carried out: "cancel 7" stands for each way in which number 7
 * came to its end.
 *
 * When what has been appended outweighs the snapshot, a forked child writes a
 * new one from the memory that it was forked with. So nothing is copied, the
 * loop never waits for the disk, and a child that hangs hangs alone. Meanwhile
 * lines go into the old file and are kept for the new one, which takes the
 * name and the lock of the old one in one step, when the child says that it is
 * on the disk.
 *
 * A line is written when a file has its name. Who is killed between these two,
 * some microseconds, fetches that one once more. Lines are not forced to the
 * disk: a power cut may cost those of the last half minute, no more.
 */
enum {
    SESSION_GROWS = 65536, /* bytes, at least, until a snapshot */
    WRITER_CLOSES = 65536  /* descriptors; the limit may be a billion */
};

static const char session_head[] = "# fetcher: a session, lines: ";
static const char session_next[] = "# next ";
static const char session_made[] = "# made ";
static const char session_again[] = "# again ";

static void session_later(struct program *p, int64_t ms) {
    if (!p->session.timer)
        p->session.timer = fetcher_timer(p->f, ms, session_tick, p);
}

static void session_failed(struct program *p, int error) {
    const char *why = strerror(error);

    if (error == EEXIST)
        why = "another user's file stands in the way of its .new";
    if (!p->session.told)
        complain(&p->console, p->s.session, why);
    p->session.told = true;
    fail_status(p);
}

/* To fork costs 50 us for a thousand downloads, to write more, and the lines
 * keep the session exact: so it is done only when half of the file is
 * lines. */
static int64_t growth_for(int64_t snapshot) {
    return snapshot > SESSION_GROWS ? snapshot : SESSION_GROWS;
}

static bool session_due(const struct session *s) {
    return s->grown > s->enough && !s->writer && !s->restoring;
}

/* All of it or nothing, for half a line would spoil the next one. */
static int write_at(int fd, const struct out *o, int64_t at) {
    ssize_t n;

    if (o->error)
        return set_errno(o->error);
    n = pwrite(fd, o->data, o->used, at);
    if (n == (ssize_t)o->used)
        return 0;
    if (n >= 0)
        errno = ENOSPC;
    if (n > 0 && ftruncate(fd, at) < 0)
        errno = EIO;
    return -1;
}

/* Lines that can't be written wait for a better time, in their order. */
static void session_append(struct program *p) {
    struct session *s = &p->session;

    if (write_at(s->fd, &s->lines, s->size) < 0) {
        session_failed(p, errno);
        session_later(p, 1000);
        return;
    }
    s->size += (int64_t)s->lines.used;
    s->grown += (int64_t)s->lines.used;
    s->lines.used = 0;
    s->told = false;
    if (session_due(s)) /* a turn later: here a change is half made */
        session_later(p, 0);
}

/* What the lines hold behind `from` is new. */
static void session_put(struct program *p, size_t from) {
    struct session *s = &p->session;

    if (s->writer)
        out_add(&s->since, s->lines.data + from, s->lines.used - from);
    session_append(p);
}

/* At a line's end a CR would be none of the name. */
static void write_word(struct out *o, const char *word) {
    for (out_puts(o, " "); *word; word++) {
        if (strchr(" \t\"'\\", *word))
            out_puts(o, "\\");
        out_add(o, word, 1);
    }
    if (word[-1] == '\r')
        out_puts(o, " ");
}

/* What no line can hold is left out: it has failed, or the next start would. */
static bool storable(const struct job *j) {
    size_t n = strlen(j->url) + (j->name ? strlen(j->name) : 0);

    if (j->old && strpbrk(j->old, "\r\n"))
        return false;
    return *j->url && !strpbrk(j->url, "\r\n") && 2 * n + 200 <= INPUT_ROOM;
}

/* That it has another address than it was begun with. */
static void write_address(struct out *o, const struct job *j) {
    out_printf(o, "retry %" PRId64, j->id.key);
    write_word(o, j->url);
    out_puts(o, "\n");
}

static void write_job(struct out *o, const struct job *j) {
    if (j->every_ms)
        out_printf(o, "every %.3f", (double)j->every_ms / 1000);
    else
        out_puts(o, "add");
    write_word(o, j->old ? j->old : j->url);
    if (j->name)
        write_word(o, j->name);
    if (j->sum) {
        out_puts(o, " sha256:");
        out_puts(o, j->sum);
    }
    out_puts(o, "\n");
    if (j->old)
        write_address(o, j);
}

static void write_number(struct out *o, const char *verb, int64_t number) {
    out_printf(o, "%s%" PRId64 "\n", verb, number);
}

static bool session_writes(const struct program *p) {
    return p->s.session && !p->session.reading;
}

/* Something has happened to a download: said by the command that would make it
 * happen. */
static void session_note(struct program *p, const char *verb,
                         const struct job *j) {
    struct out *o = &p->session.lines;
    size_t from = o->used;

    if (!session_writes(p) || !storable(j))
        return;
    out_printf(o, "%s %" PRId64 "\n", verb, j->id.key);
    session_put(p, from);
}

/* What no line can hold is left out: then it is nobody's in the next run. */
static void write_made(struct out *o, const struct job *j) {
    if (!j->made || strpbrk(j->made, "\r\n"))
        return;
    out_printf(o, "%s%" PRId64 " ", session_made, j->id.key);
    out_puts(o, j->made);
    out_puts(o, "\n");
}

/* What was cancelled is there again, under its number. */
static void write_again(struct out *o, const struct job *j) {
    write_number(o, session_again, j->id.key);
    write_job(o, j);
    write_made(o, j);
    if (j->paused)
        write_number(o, "pause ", j->id.key);
    if (j->priority)
        write_number(o, "first ", j->id.key);
}

/* What no command of its own says. */
static void session_write(struct program *p, const struct job *j,
                          void (*put)(struct out *, const struct job *)) {
    size_t from = p->session.lines.used;

    if (!session_writes(p) || !storable(j))
        return;
    put(&p->session.lines, j);
    session_put(p, from);
}

/* There is a new one, of the highest number so far. */
static void session_add(struct program *p, const struct job *j) {
    struct out *o = &p->session.lines;
    size_t from = o->used;

    if (!session_writes(p))
        return;
    if (storable(j))
        write_job(o, j);
    else
        write_number(o, session_next, j->id.key + 1);
    session_put(p, from);
}

/* The number behind a word, and what stands behind that; -1: it is another
 * word. */
static int64_t number_behind(const char *line, const char *word,
                             const char **rest) {
    size_t n = strlen(word);

    *rest = line + n;
    return strncmp(line, word, n) == 0 ? text_number(rest) : -1;
}

/* "# next 7": the numbers between are those of downloads that have ended.
 * "# again 7": what comes next is number 7, which had been cancelled.
 * "# made 7 FILE": what this one repeats is in FILE, and may replace it. */
static void session_remark(struct program *p, const char *line) {
    const char *rest;
    int64_t next = number_behind(line, session_next, &rest);
    int64_t again;
    int64_t made;
    struct node *n = NULL;

    if (next > (int64_t)p->model.last_number && next < INT64_MAX / 20 && !*rest)
        p->model.last_number = (uint64_t)next - 1;
    again = number_behind(line, session_again, &rest);
    if (again > 0 && again <= (int64_t)p->model.last_number && !*rest &&
        !tree_find(p->model.jobs, (uint64_t)again))
        p->session.again = again;
    made = number_behind(line, session_made, &rest);
    if (made > 0 && rest[0] == ' ' && rest[1])
        n = tree_find(p->model.jobs, (uint64_t)made);
    if (n)
        job_owns(container_of(n, struct job, id), rest + 1);
}

struct snapshot {
    int fd;
    int64_t size;  /* bytes that are in it */
    int64_t lines; /* in these */
    int64_t next;  /* the number of what is added next */
    struct out *to;
};

static void snapshot_flush(struct snapshot *s) {
    struct out *o = s->to;

    if (write_at(s->fd, o, s->size) < 0)
        o->error = errno;
    for (size_t i = 0; i < o->used; i++) {
        if (o->data[i] == '\n')
            s->lines++;
    }
    s->size += (int64_t)o->used;
    o->used = 0;
}

static void snapshot_next(struct snapshot *s, int64_t number) {
    if (s->next != number)
        write_number(s->to, session_next, number);
    s->next = number;
}

static void snapshot_job(struct snapshot *s, const struct job *j) {
    if (!storable(j))
        return;
    snapshot_next(s, j->id.key);
    s->next++;
    write_job(s->to, j);
    write_made(s->to, j);
    if (j->paused)
        write_number(s->to, "pause ", j->id.key);
    if (s->to->used >= OUT_FULL)
        snapshot_flush(s);
}

/* Of those that were put first the one after that of this priority. */
static struct job *put_first_after(struct model *m, int priority) {
    static const enum fetcher_state state[] = {FETCHER_RUNNING, FETCHER_PAUSED,
                                               FETCHER_WAITING, FETCHER_ENDED};
    struct job *best = NULL;

    for (size_t i = 0; i < COUNT_OF(state); i++) {
        struct job *j =
            row_job(tree_bound(m->rows, row_key(state[i], priority), 0, true));

        if (j && j->priority > priority &&
            (!best || j->priority < best->priority))
            best = j;
    }
    return best;
}

/* The first line tells how many follow: then a part of it is known as such. Its
 * room is kept until they have been counted. */
static void snapshot_head(struct snapshot *s) {
    out_printf(s->to, "%s%-10" PRId64 "\n", session_head, s->lines - 1);
}

static int snapshot_write(struct program *p, int fd) {
    struct out *o = &p->session.buffer;
    struct snapshot s = {.fd = fd, .next = 1, .to = o};
    struct node *n = tree_first(p->model.jobs);
    struct job *j = put_first_after(&p->model, 0);

    o->used = 0;
    o->error = 0;
    snapshot_head(&s);
    for (; n; n = tree_next(p->model.jobs, n))
        snapshot_job(&s, container_of(n, struct job, id));
    for (; j; j = put_first_after(&p->model, j->priority)) {
        if (storable(j))
            write_number(o, "first ", j->id.key);
        if (o->used >= OUT_FULL)
            snapshot_flush(&s);
    }
    snapshot_next(&s, (int64_t)p->model.last_number + 1);
    snapshot_flush(&s);
    s.size = 0;
    snapshot_head(&s);
    snapshot_flush(&s);
    return o->error ? set_errno(o->error) : fsync(fd);
}

/* A new file, that nobody else has. One that an earlier run has left is
 * removed, but not somebody else's, nor is that written to. */
static int fresh_open(struct session *s) {
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    size_t room =
        OUT_FULL + INPUT_ROOM + 8192; /* a child should allocate none */
    struct stat st;
    int fd;

    if (!s->buffer.data) {
        s->buffer.data = malloc(room);
        s->buffer.room = s->buffer.data ? room : 0;
    }
    fd = open(s->fresh, flags, 0600);
    if (fd < 0 && errno == EEXIST && lstat(s->fresh, &st) == 0) {
        if (st.st_uid != geteuid())
            return set_errno(EEXIST);
        if (unlink(s->fresh) < 0)
            return -1;
        fd = open(s->fresh, flags, 0600);
    }
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        close(fd);
        unlink(s->fresh);
        return -1;
    }
    return fd;
}

static void fresh_drop(struct session *s) {
    close(s->fresh_fd);
    unlink(s->fresh);
    s->fresh_fd = -1;
}

/* A snapshot is on the disk. With what has happened since it is the session. */
static int fresh_adopt(struct program *p) {
    struct session *s = &p->session;
    int64_t size = lseek(s->fresh_fd, 0, SEEK_END);

    if (!p->s.session || size < 0 ||
        write_at(s->fresh_fd, &s->since, size) < 0 ||
        rename(s->fresh, p->s.session) < 0)
        return -1;
    close(s->fd);
    s->fd = s->fresh_fd;
    s->fresh_fd = -1;
    s->grown = (int64_t)s->since.used;
    s->size = size + s->grown;
    s->enough = growth_for(size);
    s->lines.used = 0; /* they are in it, one way or the other */
    s->told = false;
    return 0;
}

/* The child has a copy of all our memory and descriptors. It closes these at
 * once, for they hold locks and connections that may outlive us, and holds the
 * old file by its name: then to set its blocks free, which takes long, is left
 * to the child; before its end, for that is waited for. It stays until it is
 * adopted, or we are no more. */
static void writer_run(struct program *p, int heard) {
    struct session *s = &p->session;
    char c = 0;
    int old;

    for (int fd = 0; fd < WRITER_CLOSES; fd++) {
        if (fd != s->fresh_fd && fd != heard)
            close(fd);
    }
    old = open(p->s.session, O_RDONLY | O_NOFOLLOW);
    if (snapshot_write(p, s->fresh_fd) < 0)
        _exit(errno);
    if (write(heard, &c, 1) == 1 && read(heard, &c, 1) == 0 &&
        stands_as(s->fresh_fd, s->fresh))
        unlink(s->fresh);
    close(old);
    _exit(0);
}

/* An errno, or 0 if its snapshot has been adopted. It has said its last word,
 * so this is not waited for. */
static int writer_end(struct program *p) {
    struct session *s = &p->session;
    int status = 0;
    bool good = s->fresh_fd < 0;

    (void)fetcher_watch(p->f, s->writer_fd, 0, NULL, NULL);
    close(s->writer_fd);
    while (waitpid(s->writer, &status, 0) < 0 && errno == EINTR)
        continue;
    s->writer = 0;
    if (good)
        return 0;
    fresh_drop(s);
    s->enough = 2 * s->grown; /* not again at once */
    return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EIO;
}

/* A byte says that all is on the disk; the end of file that it is no more. */
static void writer_says(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;
    char c;
    int error;

    if (read(fd, &c, 1) == 1) {
        if (fresh_adopt(p) < 0)
            session_failed(p, errno);
        shutdown(fd, SHUT_WR);
        return;
    }
    error = writer_end(p);
    if (error)
        session_failed(p, error);
}

/* Its signals stay blocked: those of a terminal are meant for us. */
static int writer_fork(struct program *p, int heard) {
    sigset_t all;
    sigset_t old;

    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &old);
    p->session.writer = fork();
    if (p->session.writer == 0)
        writer_run(p, heard);
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (p->session.writer > 0)
        return 0;
    p->session.writer = 0;
    return -1;
}

static int writer_start(struct program *p) {
    struct session *s = &p->session;
    int pair[2];

    s->fresh_fd = fresh_open(s);
    if (s->fresh_fd < 0)
        return -1;
    s->since.used = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        return -1;
    s->writer_fd = pair[0];
    if (set_flags(pair[0], 0) == 0 && set_flags(pair[1], 0) == 0 &&
        fetcher_watch(p->f, pair[0], FETCHER_READ, writer_says, p) == 0 &&
        writer_fork(p, pair[1]) == 0)
        return close(pair[1]);
    (void)fetcher_watch(p->f, pair[0], 0, NULL, NULL);
    close(pair[0]);
    close(pair[1]);
    return -1;
}

static void session_tick(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct session *s = &p->session;

    s->timer = 0;
    if (!p->s.session)
        return;
    if (s->lines.used > 0)
        session_append(p);
    if (!session_due(s) || writer_start(p) == 0)
        return;
    session_failed(p, errno);
    s->enough = 2 * s->grown;
    if (s->fresh_fd >= 0)
        fresh_drop(s);
}

static void session_restored(struct program *p) {
    p->session.restoring = false;
    if (session_due(&p->session))
        session_later(p, 0);
}

/* A rename lasts when its directory is on the disk too. */
static void sync_directory(const char *path) {
    char *dir = text_join(path, "");
    char *slash = dir ? strrchr(dir, '/') : NULL;
    int fd;

    if (slash)
        slash[1] = '\0';
    fd = open(slash ? dir : ".", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(dir);
}

/* At the end the process itself writes the last one, however long it takes. */
static int session_replace(struct program *p) {
    struct session *s = &p->session;
    int error;

    s->fresh_fd = fresh_open(s);
    if (s->fresh_fd < 0)
        return -1;
    s->since.used = 0;
    if (snapshot_write(p, s->fresh_fd) == 0 && fresh_adopt(p) == 0) {
        sync_directory(p->s.session);
        return 0;
    }
    error = errno;
    fresh_drop(s);
    return set_errno(error);
}

/* Should a child still be at work, what it has may be old. A session of which
 * not all has been started stays as it is, with the lines of what has ended. */
static void session_close(struct program *p) {
    struct session *s = &p->session;

    if (s->writer) {
        kill(s->writer, SIGKILL);
        (void)writer_end(p);
    }
    if (!p->model.jobs) /* the next run counts from 1 */
        p->model.last_number = 0;
    if (p->s.session && !s->restoring &&
        s->grown + (int64_t)s->lines.used > 0 && session_replace(p) < 0)
        session_failed(p, errno);
    p->s.session = NULL;
}

static void session_free(struct session *s) {
    free(s->fresh);
    free(s->lines.data);
    free(s->since.data);
    free(s->buffer.data);
    if (s->fd > 0)
        close(s->fd);
}

/* -- downloads: a transfer's events become rows and lines ------------------ */

static void row_place(struct program *p, struct job *j,
                      enum fetcher_state state) {
    if (!p->model.shown)
        return;
    row_put(&p->model, j, state);
    changed(&p->console);
}

static void job_free(struct program *p, struct job *j) {
    job_remove(&p->model, j);
    changed(&p->console);
}

static const char *file_of(const struct fetcher_result *r) {
    if (!r->path)
        return "";
    return strncmp(r->path, "./", 2) == 0 ? r->path + 2 : r->path;
}

/* What an earlier run had left. */
static int64_t bytes_resumed(const struct fetcher_result *r) {
    return r->changed && r->bytes > r->received ? r->bytes - r->received : 0;
}

static void tell_json(struct out *o, const struct job *j,
                      const struct fetcher_result *r) {
    const char *flag = r->changed ? ",\"changed\":true" : ",\"changed\":false";
    const char *event = r->code == FETCHER_CANCELLED ? "cancelled" : "failed";

    if (r->code) {
        flag = "";
        out_json(o, event, j->id.key, "url", r->url, "code",
                 fetcher_strerror(r->code), "message", r->message, NULL);
    } else
        out_json(o, "done", j->id.key, "url", r->url, "file", file_of(r), NULL);
    out_printf(o,
               ",\"status\":%d,\"bytes\":%" PRId64 ",\"received\":%" PRId64
               ",\"resumed\":%" PRId64 ",\"ms\":%.1f,\"attempts\":%d%s",
               r->status, r->bytes, r->received, bytes_resumed(r),
               MS(r->total_us), r->attempts, flag);
}

/* The head of an answer, as an array of its lines. */
static void tell_json_head(struct out *o, struct fetcher *f, fetcher_id id) {
    const char *text = fetcher_header(f, id, "", 0);

    if (!text)
        return;
    out_puts(o, ",\"head\":[\"");
    out_json_text(o, text);
    for (int i = 0; (text = fetcher_header(f, id, NULL, i)) != NULL; i++) {
        out_puts(o, "\",\"");
        out_json_text(o, text);
        out_puts(o, ": ");
        out_json_text(o, text + strlen(text) + 1);
    }
    out_puts(o, "\"]");
}

/* The same for people: it is what -I is asked for. */
static void tell_head(struct program *p, fetcher_id id) {
    struct out *o = line_out(&p->console, false);
    const char *text = fetcher_header(p->f, id, "", 0);

    if (!text)
        return;
    out_puts(o, text);
    out_puts(o, "\n");
    for (int i = 0; (text = fetcher_header(p->f, id, NULL, i)) != NULL; i++) {
        out_puts(o, text);
        out_puts(o, ": ");
        out_puts(o, text + strlen(text) + 1);
        out_puts(o, "\n");
    }
    line_end(&p->console, o);
}

static void tell_line(struct program *p, struct out *o,
                      const struct fetcher_result *r) {
    int64_t resumed = bytes_resumed(r);
    char size[32];

    out_text(o, r->path ? file_of(r) : r->url);
    if (r->changed)
        out_printf(o, ": %s in %.2f s",
                   size_text(size, sizeof size, (double)r->bytes),
                   MS(r->total_us) / 1000);
    else
        out_puts(o, r->attempts ? ": unchanged" : ": exists, skipped");
    if (p->s.range && r->changed && r->status == 200)
        out_puts(o, " (all of it: the server sent no range)");
    if (resumed > 0)
        out_printf(o, " (continued from %s)",
                   size_text(size, sizeof size, (double)resumed));
    if (p->s.verbose) {
        out_puts(o, " from ");
        out_text(o, r->final_url);
        out_printf(o,
                   " (status %d, attempts %d; ms: lookup %.1f, connect %.1f, "
                   "TLS %.1f, first byte %.1f)",
                   r->status, r->attempts, MS(r->lookup_us), MS(r->connect_us),
                   MS(r->tls_us), MS(r->first_byte_us));
    }
    line_end(&p->console, o);
}

static void job_tell(struct program *p, const struct job *j,
                     const struct fetcher_result *r) {
    bool to_stdout = p->stream == &p->console.out;
    struct out *o = line_out(&p->console, to_stdout);

    if (p->s.json) {
        tell_json(o, j, r);
        if (p->s.head)
            tell_json_head(o, p->f, r->id);
        out_puts(o, "}\n");
        return;
    }
    if (p->s.head)
        tell_head(p, r->id);
    if (r->code && r->code != FETCHER_CANCELLED) {
        report_mark(&p->console);
        complain(&p->console, r->url, r->message);
    } else if (!r->code && !p->s.quiet && !p->s.head &&
               (!to_stdout || p->s.verbose)) {
        report_mark(&p->console);
        tell_line(p, o, r);
    }
}

/* A row that has failed stays, where somebody may retry it; but not for ever:
 * of very many the first ones in the order of the rows go. */
static void job_keep(struct program *p, struct job *j,
                     const struct fetcher_result *r) {
    struct model *m = &p->model;
    size_t n = strlen(r->url) + 1;

    j->failed = malloc(n + strlen(r->message) + 1);
    if (!j->failed) {
        job_free(p, j);
        return;
    }
    memcpy(j->failed, r->url, n);
    strcpy(j->failed + n, r->message);
    j->transfer = 0;
    m->failed++;
    row_place(p, j, FETCHER_ENDED);
    if (m->failed > FAILED_KEPT && !p->s.session)
        job_free(p, row_job(lower_bound(m->rows,
                                        row_key(FETCHER_ENDED, INT_MAX), 0)));
}

/* A repeating one has a file that was not there before. */
static void job_made(struct program *p, struct job *j, const char *path) {
    if (!path || (j->made && strcmp(j->made, path) == 0))
        return;
    job_owns(j, path);
    session_write(p, j, write_made);
}

/* Twice a second; what its reader does not take in time is left out. */
static void tell_progress(struct program *p, struct job *j,
                          const struct fetcher_info *info) {
    struct out *o = &p->console.out;
    int64_t now = fetcher_now(p->f);

    if (o->used >= OUT_FULL || (j->told && now - j->told < 500))
        return;
    j->told = now;
    out_json(o, "progress", j->id.key, "url", info->url, NULL);
    out_printf(o,
               ",\"bytes\":%" PRId64 ",\"total\":%" PRId64 ",\"sent\":%" PRId64
               ",\"to_send\":%" PRId64 ",\"speed\":%" PRId64 "}\n",
               info->bytes, info->total, info->sent, info->to_send,
               info->speed);
    out_flush(p->f, o);
}

/* What is tried again is worth a line: somebody may wait for it. */
static void job_progress(struct fetcher *f, const struct fetcher_info *info,
                         void *arg) {
    struct job *j = arg;
    struct program *p = j->p;
    struct out *o = &p->console.out;
    int64_t wait_ms = info->wait_ms < 0 ? 0 : info->wait_ms;
    char why[300];

    row_place(p, j, info->state);
    if (p->s.progress && info->state == FETCHER_RUNNING)
        tell_progress(p, j, info);
    if (info->state != FETCHER_RETRYING)
        return;
    if (p->s.json) {
        out_json(o, "retry", j->id.key, "url", info->url, "message",
                 info->message, NULL);
        out_printf(o, ",\"attempts\":%d,\"wait_ms\":%" PRId64 "}\n",
                   info->attempts, wait_ms);
        out_flush(f, o);
    } else if (!p->s.quiet) {
        snprintf(why, sizeof why, "%s; attempt %d in %.1f s", info->message,
                 info->attempts + 1, (double)wait_ms / 1000);
        complain(&p->console, info->url, why);
    }
}

/* Back-pressure: while the reader of a stream is slow, the transfer waits. */
static int job_data(struct fetcher *f, const void *data, size_t size,
                    void *arg) {
    struct program *p = ((struct job *)arg)->p;
    struct out *o = p->stream;

    if (p->discards || p->s.head)
        return 0;
    if (out_full(o))
        return FETCHER_PAUSE;
    out_add(o, data, size);
    out_flush(f, o);
    return 0;
}

/* -- what is sent from a file or from stdin -- */

static void upload_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;
    struct job *j = row_only(&p->model);

    (void)fetcher_watch(f, fd, 0, NULL, NULL);
    if (j)
        (void)fetcher_resume(f, j->transfer);
}

/* A pipe can't go back. */
static ptrdiff_t upload_from_pipe(struct program *p, void *to, size_t room,
                                  int64_t at) {
    ssize_t n;

    if (at < p->uploaded)
        return -1;
    n = read_now(p->upload_fd, to, room);
    if (n < 0 && (errno == EAGAIN || errno == EINTR) &&
        fetcher_watch(p->f, p->upload_fd, FETCHER_READ, upload_ready, p) == 0)
        return FETCHER_LATER;
    if (n > 0)
        p->uploaded += n;
    return n < 0 ? -1 : n;
}

static ptrdiff_t job_send(struct fetcher *f, void *to, size_t room, int64_t at,
                          void *arg) {
    struct program *p = ((struct job *)arg)->p;

    if (!p->s.rq.send_size)
        return upload_from_pipe(p, to, room, at);
    return pread(p->upload_fd, to, room, at);
}

/* What goes for servers goes for an https proxy, if libcurl knows such. */
static void proxy_trust(CURL *e, const struct settings *s) {
    if (s->cacert) {
        (void)curl_easy_setopt(e, CURLOPT_PROXY_CAINFO, s->cacert);
        (void)curl_easy_setopt(e, CURLOPT_PROXY_CAPATH, NULL);
    }
    if (s->insecure) {
        (void)curl_easy_setopt(e, CURLOPT_PROXY_SSL_VERIFYPEER, 0L);
        (void)curl_easy_setopt(e, CURLOPT_PROXY_SSL_VERIFYHOST, 0L);
    }
}

/* Options that are libcurl's own business: a text or a list is handed on as it
 * is, a flag stands for a number. */
static const struct pass {
    size_t field; /* in struct settings */
    CURLoption option;
    long number; /* TEXT_OF: it is no flag */
} passes[] = {

#define TEXT_OF (-1L)
    {AT(agent), CURLOPT_USERAGENT, TEXT_OF},
    {AT(proxy), CURLOPT_PROXY, TEXT_OF},
    {AT(cacert), CURLOPT_CAINFO, TEXT_OF},
    {AT(cert), CURLOPT_SSLCERT, TEXT_OF},
    {AT(key), CURLOPT_SSLKEY, TEXT_OF},
    {AT(unix_socket), CURLOPT_UNIX_SOCKET_PATH, TEXT_OF},
    {AT(resolve), CURLOPT_RESOLVE, TEXT_OF},
    {AT(insecure), CURLOPT_SSL_VERIFYPEER, 0},
    {AT(insecure), CURLOPT_SSL_VERIFYHOST, 0},
    {AT(netrc), CURLOPT_NETRC, CURL_NETRC_OPTIONAL},
    {AT(ipv4), CURLOPT_IPRESOLVE, CURL_IPRESOLVE_V4},
    {AT(ipv6), CURLOPT_IPRESOLVE, CURL_IPRESOLVE_V6},
    {AT(http11), CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1},
};

static unsigned passes_set(CURL *e, const struct settings *s) {
    unsigned bad = 0;

    for (size_t i = 0; i < COUNT_OF(passes); i++) {
        const void *field = (const char *)s + passes[i].field;

        if (passes[i].number == TEXT_OF && *(void *const *)field)
            bad |= (unsigned)(curl_easy_setopt)(e, passes[i].option,
                                                *(void *const *)field);
        else if (passes[i].number != TEXT_OF && *(const bool *)field)
            bad |= (unsigned)(curl_easy_setopt)(e, passes[i].option,
                                                passes[i].number);
    }
    return bad;
}

/* OpenSSL and its like ask the terminal for the pass phrase of a key, and wait
 * for it, unless they are given one. GnuTLS asks nobody, and takes an empty one
 * to mean that the key is locked. */
static bool tls_prompts(void) {
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);

    return v->ssl_version && !strstr(v->ssl_version, "GnuTLS");
}

/* Trust is in the file alone: in no directory. With no handle it fails if there
 * is anything to set. */
static int job_setup(void *e, void *arg) {
    struct program *p = ((struct job *)arg)->p;
    const struct settings *s = &p->s;
    unsigned bad = passes_set(e, s);

    if (s->cacert)
        SET(CAPATH, NULL);
    if (s->cert && tls_prompts())
        SET(KEYPASSWD, "");
    proxy_trust(e, s);
    if (p->cookies) {
        SET(SHARE, p->cookies);
        SET(COOKIEFILE, "");
    }
    return bad ? -1 : 0;
}

/* Where a file goes; in a directory without a name the library finds one. */
static char *job_path(const struct settings *s, const char *name) {
    const char *dir = s->dir ? s->dir : ".";
    char *base;
    char *path = NULL;

    if (*name == '/' || (*name && !s->dir))
        return text_join(name, "");
    base = text_join(dir, dir[strlen(dir) - 1] == '/' ? "" : "/");
    if (base)
        path = text_join(base, name);
    free(base);
    return path;
}

/* Where it goes: if no name was given, to the file that it made. But not to
 * another directory than files go to now. */
static char *job_target(const struct program *p, const struct job *j) {
    char *path = job_path(&p->s, j->name ? j->name : "");

    if (!path || !j->made || j->name ||
        strncmp(j->made, path, strlen(path)) != 0)
        return path;
    free(path);
    return text_join(j->made, "");
}

static fetcher_id job_request(struct program *p, struct job *j) {
    struct fetcher_request rq = p->s.rq;
    fetcher_id id = 0;
    char *path = NULL;

    rq.url = j->url;
    rq.every_ms = j->every_ms;
    rq.priority = j->priority;
    rq.on_progress = job_progress;
    rq.on_done = job_done;
    rq.arg = j;
    rq.old_url = j->old;
    if (j->sum)
        rq.sha256 = j->sum;
    if (job_setup(NULL, j) < 0) /* else handles may be used again */
        rq.setup = job_setup;
    if (p->stream || p->discards || p->s.head)
        rq.on_data = job_data;
    else
        path = job_target(p, j);
    rq.path = path;
    if (path && j->made && strcmp(path, j->made) == 0 &&
        rq.existing == FETCHER_KEEP_BOTH)
        rq.existing = FETCHER_OVERWRITE;
    if (path || rq.on_data)
        id = fetcher_start(p->f, &rq);
    free(path);
    return id;
}

static bool job_launch(struct program *p, struct job *j) {
    j->transfer = job_request(p, j);
    if (!j->transfer)
        return false;
    if (j->failed) {
        p->model.failed--;
        ended_forget(&p->model, j->id.key);
    }
    if (j->every_ms)
        p->model.repeating++;
    free(j->failed);
    j->failed = NULL;
    j->paused = false;
    row_place(p, j, FETCHER_WAITING);
    return true;
}

static struct job *job_new(struct program *p, const char *url, const char *name,
                           const char *sum) {
    size_t n = strlen(url) + 1;
    size_t m = name ? strlen(name) + 1 : 0;
    size_t k = sum ? strlen(sum) + 1 : 0;
    struct job *j = calloc(1, sizeof *j + n + m + k);

    if (!j)
        return NULL;
    memcpy(j->url, url, n);
    if (name)
        j->name = memcpy(j->url + n, name, m);
    if (sum)
        j->sum = memcpy(j->url + n + m, sum, k);
    j->p = p;
    j->id.key = (int64_t)p->model.last_number + 1;
    return j;
}

static void job_enter(struct model *m, struct job *j) {
    tree_add(&m->jobs, &j->id);
    m->count++;
    if ((uint64_t)j->id.key > m->last_number)
        m->last_number = (uint64_t)j->id.key;
}

static void start_failed(struct program *p) {
    complain(&p->console, "cannot start a transfer", strerror(errno));
    p->status = SOME_FAILED;
}

/* The same with another address. A job and its URL are one block, so it is
 * another job, of the same number. NULL: out of memory. */
static struct job *job_moved(struct program *p, struct job *j,
                             const char *address) {
    struct model *m = &p->model;
    const char *old = j->old ? j->old : job_info(m, j).url;
    struct job *to = job_new(p, address, j->name, j->sum);
    bool selected = m->selected == j;

    if (!to)
        return NULL;
    to->old = text_join(*old ? old : j->url, "");
    to->made = j->made;
    j->made = NULL;
    to->id.key = j->id.key;
    to->every_ms = j->every_ms;
    to->priority = j->priority;
    job_remove(m, j);
    job_enter(m, to);
    if (selected)
        m->selected = to;
    session_write(p, to, write_address);
    return to;
}

static void job_uncount(struct program *p, const struct job *j) {
    if (j->paused)
        p->model.paused--;
    if (j->every_ms)
        p->model.repeating--;
}

/* One that was paused stays so. */
static bool job_restart(struct program *p, struct job *j) {
    bool paused = j->paused;

    if (!job_launch(p, j))
        return false;
    if (paused) {
        j->paused = true;
        p->model.paused++;
        (void)fetcher_pause(p->f, j->transfer);
    }
    return true;
}

/* It was cancelled to go on elsewhere, or that was undone. */
static void job_go_on(struct program *p, struct job *j) {
    struct job *to = j;

    job_uncount(p, j);
    j->transfer = 0;
    j->again = false;
    if (j->address)
        to = job_moved(p, j, j->address);
    if (to && job_restart(p, to))
        return;
    start_failed(p);
    job_free(p, to ? to : j);
}

/* What may be looked at again: not each round that brought nothing. */
static void job_record(struct program *p, const struct job *j,
                       const struct fetcher_result *r) {
    bool idle = !r->last && !r->code && !r->changed;

    if (p->model.keeps && r->code != FETCHER_CANCELLED && !idle)
        ended_add(&p->model, j->id.key, r,
                  fetcher_header(p->f, r->id, "Retry-After", 0));
}

static void job_end(struct program *p, struct job *j,
                    const struct fetcher_result *r, bool failed) {
    job_uncount(p, j);
    if (j->paused && r->code != FETCHER_CANCELLED) {
        j->paused = false; /* what we leave stays paused */
        session_note(p, "resume", j);
    }
    if (failed && p->model.keeps)
        job_keep(p, j, r);
    else
        job_free(p, j);
}

static bool job_is_cancelled(const struct program *p, const struct job *j) {
    return j->dropped || (j->row.in && !j->id.in);
}

/* The transfer of what somebody has cancelled is over; it may have come to its
 * own end before. */
static void job_cancelled(struct program *p, struct job *j,
                          const struct fetcher_result *r) {
    job_tell(p, j, r);
    job_record(p, j, r);
    if (r->last) {
        job_uncount(p, j);
        j->transfer = 0;
        if (j->dropped)
            job_drop(j);
        else if (r->code != FETCHER_CANCELLED)
            cancelled_drop(&p->model, j);
    }
    wake(p);
}

static void job_done(struct fetcher *f, const struct fetcher_result *r,
                     void *arg) {
    struct job *j = arg;
    struct program *p = j->p;
    bool cancelled = r->code == FETCHER_CANCELLED;
    bool failed = r->code && (!cancelled || p->closing);

    if (job_is_cancelled(p, j)) {
        job_cancelled(p, j, r);
        return;
    }
    if ((j->address || j->again) && cancelled && !p->closing) {
        job_go_on(p, j);
        wake(p);
        return;
    }
    j->again = false;
    if (failed)
        fail_status(p);
    if (r->last && !failed) /* before somebody is told */
        session_note(p, "cancel", j);
    else if (j->every_ms && !failed && r->changed)
        job_made(p, j, r->path);
    job_tell(p, j, r);
    job_record(p, j, r);
    if (r->last)
        job_end(p, j, r, failed);
    wake(p);
}

static struct job *job_start(struct program *p, const char *url,
                             const char *name, const char *sum,
                             int64_t every_ms) {
    struct job *j = job_new(p, url, name, sum);

    if (j)
        j->every_ms = every_ms;
    if (!j || !job_launch(p, j)) {
        start_failed(p);
        free(j);
        return NULL;
    }
    job_enter(&p->model, j);
    session_add(p, j);
    return j;
}

/* What a session says is started when all of it has been read, for it may say
 * later that this has ended. */
static void job_read(struct program *p, const char *url, const char *name,
                     const char *sum, int64_t every_ms) {
    struct job *j = job_new(p, url, name, sum);

    if (!j) {
        start_failed(p);
        p->s.session = NULL; /* it stays as it is */
        return;
    }
    j->every_ms = every_ms;
    if (p->session.again)
        j->id.key = p->session.again;
    p->session.again = 0;
    job_enter(&p->model, j);
}

/* -- what the commands do -------------------------------------------------- */

/* Does a name lead out of the directory? That in a list comes from outside. */
static bool escapes(const char *name) {
    const char *s = name;

    if (*name == '/' || name[strlen(name) - 1] == '/')
        return true;
    while ((s = strstr(s, "..")) != NULL) {
        if ((s == name || s[-1] == '/') && (s[2] == '/' || !s[2]))
            return true;
        s += 2;
    }
    return false;
}

/* Or is what stands under it no file? Nothing may take the place of a link to
 * a device, or into /proc. */
static bool is_no_file(struct program *p, const char *name) {
    char *path = job_path(&p->s, name);
    struct door d;
    struct stat st;
    bool bad = path && lstat(path, &st) == 0 && !S_ISREG(st.st_mode) &&
               door_find(&d, path) == 0 && door_leads(&d) != LEADS_TO_FILE;

    free(path);
    return bad;
}

static bool is_led_astray(struct program *p, const char *name) {
    char *path = job_path(&p->s, name);
    bool astray = path && strchr(name, '/') && is_planted_above(path);

    free(path);
    return astray;
}

static void job_added(struct program *p, const struct job *j) {
    reply(p, j->id.key, "added %" PRId64 ": %s", j->id.key,
          job_info(&p->model, j).url);
}

static const char too_many[] =
    "; quote a name with spaces, and give a comment its own line";

/* A word that says the sum may follow the name, or the URL. False: something
 * else does. */
static bool sum_read(struct program *p, char **word) {
    static const char begin[] = "sha256:";
    const size_t n = sizeof begin - 1;

    if (!word[1] && word[0] && strncmp(word[0], begin, n) == 0) {
        word[1] = word[0];
        word[0] = NULL;
    }
    if (!word[1])
        return true;
    if (strncmp(word[1], begin, n) != 0)
        reject(p, "too many words: behind the URL stands [FILE] [sha256:HEX]%s",
               too_many);
    else if (!is_sha256(word[1] + n))
        reject(p, "not 64 digits of hex: %s", word[1]);
    else {
        word[1] += n;
        return true;
    }
    return false;
}

static void add(struct program *p, char **word, int64_t every_ms) {
    const char *url = word[0];
    const char *name;
    struct job *j;

    if (!sum_read(p, word + 1))
        return;
    name = word[1] && *word[1] ? word[1] : NULL;
    if (p->session.reading) {
        job_read(p, url, name, word[2], every_ms);
        return;
    }
    if (name && *name == '#') {
        reject(p, "a comment needs its own line; if %s is a name, say ./%s",
               name, name);
        return;
    }
    if (name && (escapes(name) || is_led_astray(p, name))) {
        reject(p, "the name leads out of the directory");
        return;
    }
    if (name && is_no_file(p, name)) {
        reject(p, "%s is no file", name);
        return;
    }
    j = job_start(p, url, name, word[2], every_ms);
    if (j)
        job_added(p, j);
}

static void do_add(struct program *p, char **word) {
    add(p, word + 1, p->s.rq.every_ms);
}

static void do_every(struct program *p, char **word) {
    int64_t every_ms = read_amount(word[1], TIME);

    if (every_ms >= 1000)
        add(p, word + 2, every_ms);
    else
        reject(p, "not a time of at least 1s: %s", word[1]);
}

/* What comes of it may be less than was asked for. */
static int set_limits(struct program *p, int jobs, int per_host, int64_t rate) {
    struct fetcher_stats st;

    if (fetcher_limit(p->f, jobs, per_host, rate) < 0)
        return -1;
    fetcher_stats(p->f, &st);
    p->s.jobs = st.limit;
    return 0;
}

static void do_jobs(struct program *p, char **word) {
    int64_t n = read_amount(word[1], COUNT);

    if (n < 1)
        reject(p, "not a number of at least 1: %s", word[1]);
    else if (set_limits(p, (int)n, 0, 0) == 0)
        reply(p, 0, "%d at the same time", (int)n);
}

static void do_limit(struct program *p, char **word) {
    int64_t rate = read_amount(word[1], SIZE);
    char size[32];

    if (rate < 0) {
        reject(p, "not a rate: %s", word[1]);
        return;
    }
    (void)fetcher_limit(p->f, 0, 0, rate ? rate : -1);
    p->model.limit = rate;
    p->model.limited = fetcher_now(p->f);
    if (rate)
        reply(p, 0, "%s a second", size_text(size, sizeof size, (double)rate));
    else
        reply(p, 0, "no limit");
}

static void put_stats(struct program *p, struct out *o) {
    struct fetcher_stats st;
    double seconds = MS(clock_us() - p->began) / 1000;
    char size[32];

    fetcher_stats(p->f, &st);
    st.failed += p->refused;
    if (p->s.json)
        out_printf(&p->console.out,
                   "{\"event\":\"stats\",\"done\":%" PRIu64
                   ",\"failed\":%" PRIu64 ",\"bytes\":%" PRId64
                   ",\"seconds\":%.3f,\"turns\":%" PRIu64
                   ",\"stall_max_ms\":%.3f,\"stall_p99_ms\":%.3f"
                   ",\"culprit\":\"%s\"}\n",
                   st.done, st.failed, st.received, seconds, st.turns,
                   MS(st.stall_max_us), MS(st.stall_p99_us), st.culprit);
    else
        out_printf(o,
                   "%" PRIu64 " done, %" PRIu64 " failed, %s in %.2f s; "
                   "%" PRIu64 " turns, deaf at most %.2f ms (%s), 99%% below "
                   "%.2f ms\n",
                   st.done, st.failed,
                   size_text(size, sizeof size, (double)st.received), seconds,
                   st.turns, MS(st.stall_max_us), st.culprit,
                   MS(st.stall_p99_us));
}

static void do_stats(struct program *p, char **word) {
    put_stats(p, line_out(&p->console, false));
}

static bool list_job(struct program *p, struct job *j) {
    struct fetcher_info i = job_info(&p->model, j);
    struct out *o = line_out(&p->console, false);
    char state[300];
    char size[32];
    char name[300];

    row_name(&i, name, sizeof name);
    row_state(&i, state, sizeof state);
    if (p->s.json) {
        out_json(o, "row", j->id.key, "url", i.url, "file", name, "state",
                 state_words[i.state], "message", i.message, NULL);
        out_printf(o,
                   ",\"bytes\":%" PRId64 ",\"total\":%" PRId64
                   ",\"speed\":%" PRId64 "}\n",
                   i.bytes, i.total, i.speed);
    } else {
        out_printf(o, "%5" PRId64 "  ", j->id.key);
        out_text(o, name);
        out_printf(o, "  %s  ", size_text(size, sizeof size, (double)i.bytes));
        out_said(o, state + strspn(state, " "));
        out_puts(o, "\n");
    }
    return true;
}

static void list_ended(struct program *p, const struct ended *e) {
    const struct fetcher_result *r = &e->r;
    struct out *o = line_out(&p->console, false);
    char state[300];
    char name[300];

    ended_name(e, name, sizeof name);
    if (p->s.json) {
        out_json(o, "row", e->number, "url", r->url, "file", name, "state",
                 r->code ? "failed" : "done", "message", r->message, NULL);
        out_printf(o,
                   ",\"status\":%d,\"bytes\":%" PRId64
                   ",\"ms\":%.1f,\"attempts\":%d}\n",
                   r->status, r->bytes, MS(r->total_us), r->attempts);
    } else {
        out_printf(o, "%5" PRId64 "  ", e->number);
        out_text(o, name);
        out_puts(o, "  ");
        out_said(o, ended_state(e, state, sizeof state));
        out_puts(o, "\n");
    }
}

/* The newest comes last: it is nearest to who reads. */
static bool sweep_ended(struct program *p) {
    struct sweep *s = &p->sweep;
    struct ended *e = ended_of(tree_bound(p->model.ended, s->next, 0, true));

    if (!e)
        return false;
    s->next = e->row.key;
    if ((e->r.code != FETCHER_OK) == s->failed) {
        list_ended(p, e);
        s->count++;
    }
    return true;
}

static bool sweep_jobs(struct program *p) {
    struct sweep *s = &p->sweep;
    struct node *n = lower_bound(p->model.jobs, s->next, 0);

    if (!n)
        return false;
    s->next = n->key + 1;
    if (s->command->apply(p, container_of(n, struct job, id)))
        s->count++;
    return true;
}

static const struct command all_listed = {
    .name = "list",
    .apply = list_job,
    .done = "listed",
};

static void do_list(struct program *p, char **word) {
    bool failed = word[1] && strcmp(word[1], "failed") == 0;
    bool done = word[1] && strcmp(word[1], "done") == 0;

    if (failed || done)
        p->sweep = (struct sweep){.command = &all_listed,
                                  .step = sweep_ended,
                                  .next = INT64_MAX,
                                  .failed = failed};
    else if (word[1])
        reject(p, "list what? done or failed, not %s", word[1]);
    else
        p->sweep = (struct sweep){.command = &all_listed, .step = sweep_jobs};
}

/* All of a row, in lines of their own. */
static void show_job(struct program *p, struct job *j) {
    struct fetcher_info i = job_info(&p->model, j);
    struct out *o = line_out(&p->console, false);
    char state[300];
    char bytes[32];
    char total[32] = "?";

    if (i.total >= 0)
        size_text(total, sizeof total, (double)i.total);
    out_printf(o, "%5" PRId64 "  ", j->id.key);
    out_said(o, i.url);
    if (i.path || j->name) {
        out_puts(o, "\n       file ");
        out_text(o, i.path ? i.path : j->name);
    }
    out_puts(o, "\n       ");
    out_said(o, row_state(&i, state, sizeof state) + strspn(state, " "));
    out_printf(o, "\n       %s of %s; attempts %d, status %d\n",
               size_text(bytes, sizeof bytes, (double)i.bytes), total,
               i.attempts, i.status);
}

static void show_ended(struct program *p, const struct ended *e) {
    const struct fetcher_result *r = &e->r;
    struct out *o = line_out(&p->console, false);
    char state[300];
    char size[32];

    out_printf(o, "%5" PRId64 "  ", e->number);
    out_said(o, r->url);
    if (strcmp(r->final_url, r->url) != 0) {
        out_puts(o, "\n       led to ");
        out_said(o, r->final_url);
    }
    if (r->path) {
        out_puts(o, "\n       file ");
        out_text(o, file_of(r));
    }
    out_puts(o, "\n       ");
    out_said(o, ended_state(e, state, sizeof state));
    out_printf(o, "\n       status %d, attempts %d, %s there\n", r->status,
               r->attempts, size_text(size, sizeof size, (double)r->bytes));
    out_printf(o,
               "       ms: lookup %.1f, connect %.1f, TLS %.1f, "
               "first byte %.1f, all %.1f\n",
               MS(r->lookup_us), MS(r->connect_us), MS(r->tls_us),
               MS(r->first_byte_us), MS(r->total_us));
    if (*e->retry_after) {
        out_puts(o, "       the server says Retry-After: ");
        out_said(o, e->retry_after);
        out_puts(o, "\n");
    }
}

/* What is there of it, and what came of it last. */
static void do_show(struct program *p, char **word) {
    const char *end = word[1];
    int64_t number = text_number(&end);
    struct ended *e = *end ? NULL : ended_find(&p->model, number);
    struct node *n = *end ? NULL : tree_find(p->model.jobs, (uint64_t)number);
    struct job *j = n ? container_of(n, struct job, id) : NULL;

    if (!j && !e)
        reject(p, "there is no download %s", word[1]);
    else if (p->s.json && j)
        (void)list_job(p, j);
    else if (p->s.json)
        list_ended(p, e);
    else {
        if (j && !(j->failed && e))
            show_job(p, j);
        if (e)
            show_ended(p, e);
    }
}

static bool job_pause(struct program *p, struct job *j) {
    if (!j->paused)
        p->model.paused++;
    j->paused = true;
    session_note(p, "pause", j);
    return job_pending(j) || fetcher_pause(p->f, j->transfer) == 0;
}

static bool job_resume(struct program *p, struct job *j) {
    if (j->paused) {
        p->model.paused--;
        session_note(p, "resume", j);
    }
    j->paused = false;
    return job_pending(j) || fetcher_resume(p->f, j->transfer) == 0;
}

static bool do_pause(struct program *p, struct job *j) {
    return !j->failed && !j->paused && job_pause(p, j);
}

/* What runs is cancelled first, and goes on when that is done. */
static bool retry_elsewhere(struct program *p, struct job *j) {
    struct job *to;

    if (j->transfer) {
        free(j->address);
        j->address = text_join(p->address, "");
        return j->address && fetcher_cancel(p->f, j->transfer) == 0;
    }
    to = job_moved(p, j, p->address);
    if (!to || p->session.reading || job_launch(p, to))
        return to != NULL;
    start_failed(p);
    job_free(p, to);
    return true;
}

static bool do_retry(struct program *p, struct job *j) {
    if (p->address)
        return retry_elsewhere(p, j);
    if (j->failed)
        return job_launch(p, j);
    return job_info(&p->model, j).state == FETCHER_RETRYING && job_resume(p, j);
}

static bool do_resume(struct program *p, struct job *j) {
    if (j->failed)
        return false;
    if (j->paused || job_info(&p->model, j).state == FETCHER_SLEEPING)
        return job_resume(p, j);
    return do_retry(p, j);
}

/* What has failed stays in the session when we leave. */
static bool job_give_up(struct program *p, struct job *j) {
    return j->transfer && fetcher_cancel(p->f, j->transfer) == 0;
}

/* It is gone from the rows at once, and from the session; its transfer may
 * need a turn more. */
static bool job_put_away(struct program *p, struct job *j) {
    bool ending = j->again || j->address; /* for another reason */

    if (j->transfer && fetcher_cancel(p->f, j->transfer) < 0 && !ending)
        return false;
    if (!j->transfer && j->paused)
        p->model.paused--;
    j->again = false;
    free(j->address);
    j->address = NULL;
    session_note(p, "cancel", j);
    job_take_out(&p->model, j);
    cancelled_put(&p->model, j, p->commands);
    changed(&p->console);
    return true;
}

/* What a session says of what is over, is over. */
static bool do_cancel(struct program *p, struct job *j) {
    if (!p->session.reading)
        return job_put_away(p, j);
    if (j->paused)
        p->model.paused--;
    job_free(p, j);
    return true;
}

/* It gets its number back, and its place among the rows; in the queue of its
 * host it comes last. */
static bool job_bring_back(struct program *p, struct job *j) {
    struct model *m = &p->model;

    cancelled_take_out(m, j);
    job_enter(m, j);
    session_write(p, j, write_again);
    if (j->failed) {
        m->failed++;
        row_place(p, j, FETCHER_ENDED);
    } else if (j->transfer) {
        j->again = true; /* when that is over */
        row_place(p, j, FETCHER_WAITING);
    } else if (!job_restart(p, j)) {
        start_failed(p);
        job_free(p, j);
        return false;
    }
    return true;
}

/* All that the last of the commands has cancelled. */
static bool sweep_cancelled(struct program *p) {
    struct node *n = lower_bound(p->model.cancelled, p->sweep.next, 0);

    if (!n || n->key != p->sweep.next)
        return false;
    if (job_bring_back(p, row_job(n)))
        p->sweep.count++;
    return true;
}

static const struct command all_brought_back = {
    .name = "undo",
    .done = "brought back",
};

static void do_undo(struct program *p, char **word) {
    struct node *last = tree_bound(p->model.cancelled, INT64_MAX, 0, true);

    if (!last)
        reject(p, "nothing was cancelled");
    else
        p->sweep = (struct sweep){.command = &all_brought_back,
                                  .step = sweep_cancelled,
                                  .next = last->key};
}

static bool do_first(struct program *p, struct job *j) {
    j->priority = ++p->firsts;
    if (j->transfer)
        (void)fetcher_priority(p->f, j->transfer, j->priority);
    if (!job_pending(j))
        row_place(p, j, job_info(&p->model, j).state);
    session_note(p, "first", j);
    return true;
}

static bool job_clear(struct program *p, struct job *j) {
    if (!j->failed)
        return false;
    session_note(p, "cancel", j);
    job_free(p, j);
    return true;
}

static const struct command all_cleared = {
    .name = "clear",
    .apply = job_clear,
    .done = "forgotten",
};

/* What came of one download, which a repeating one has more of. */
static void clear_one(struct program *p, const char *word) {
    struct model *m = &p->model;
    int64_t number = text_number(&word);
    struct node *n = tree_find(m->jobs, (uint64_t)number);
    bool known = n && job_clear(p, container_of(n, struct job, id));
    struct node *next;

    for (n = tree_first(m->ended); n && !*word; n = next) {
        next = tree_next(m->ended, n);
        if (ended_of(n)->number != number)
            continue;
        ended_remove(m, ended_of(n));
        known = true;
    }
    changed(&p->console);
    if (known)
        reply(p, number, "%" PRId64 " forgotten", number);
    else
        reject(p, "nothing of that number has ended");
}

/* What has failed is counted as it is a row. */
static void do_clear(struct program *p, char **word) {
    struct model *m = &p->model;
    int done = 0;

    if (word[1]) {
        clear_one(p, word[1]);
        return;
    }

    while (m->ended) {
        struct ended *e = ended_first(m);

        if (!e->r.code)
            done++;
        ended_remove(m, e);
    }
    changed(&p->console);
    p->sweep = (struct sweep){
        .command = &all_cleared, .step = sweep_jobs, .count = done};
}

static bool do_restore(struct program *p, struct job *j) {
    bool paused = j->paused; /* and counted as such */

    if (!job_pending(j))
        return false;
    if (!job_launch(p, j)) {
        start_failed(p);
        return false;
    }
    j->paused = paused;
    if (paused)
        (void)fetcher_pause(p->f, j->transfer);
    job_added(p, j);
    return true;
}

static const struct command all_restored = {
    .name = "restore",
    .apply = do_restore,
    .done = "restored",
};

static const struct command all_given_up = {
    .name = "cancel",
    .apply = job_give_up,
    .done = "cancelled",
};

/* Give all up, and end: what is there of a file is kept. */
static void leave(struct program *p) {
    for (int i = 0; i < INPUTS; i++) {
        p->input[i].eof = true;
        p->input[i].begin = p->input[i].end;
    }
    p->closing = true;
    p->prompting = false;
    p->bare = true;
    p->source = &p->input[PROMPT];
    p->sweep = (struct sweep){.command = &all_given_up, .step = sweep_jobs};
    wake(p);
}

static void do_quit(struct program *p, char **word) {
    reply(p, 0, "bye");
    leave(p);
}

static const struct command commands[] = {
    {"add", "URL [FILE] [sha256:HEX]",
     "fetch it (the word add may be left out)", 1, 3, do_add, NULL, NULL},
    {"every", "TIME URL [FILE] [sha256:HEX]", "fetch it again and again", 2, 4,
     do_every, NULL, NULL},
    {"pause", "N|all", "hold it; what is there of it stays", 1, 1, NULL,
     do_pause, "paused"},
    {"resume", "N|all", "let it go on, at once", 1, 1, NULL, do_resume,
     "resumed"},
    {"retry", "N|all [URL]", "try again what failed, maybe at a new address", 1,
     2, NULL, do_retry, "tried again"},
    {"cancel", "N|all", "give it up", 1, 1, NULL, do_cancel, "cancelled"},
    {"undo", "", "bring back what was cancelled last", 0, 0, do_undo, NULL,
     NULL},
    {"first", "N", "fetch it before the others", 1, 1, NULL, do_first,
     "put first"},
    {"jobs", "N", "fetch N at the same time", 1, 1, do_jobs, NULL, NULL},
    {"limit", "RATE", "take RATE bytes a second (0: any)", 1, 1, do_limit, NULL,
     NULL},
    {"show", "N", "show all of it", 1, 1, do_show, NULL, NULL},
    {"list", "[done|failed]", "show what there is; or what has ended", 0, 1,
     do_list, NULL, NULL},
    {"clear", "[N]", "forget what has ended", 0, 1, do_clear, NULL, NULL},
    {"stats", "", "tell what the loop did", 0, 0, do_stats, NULL, NULL},
    {"help", "", "show the commands", 0, 0, NULL, NULL, NULL},
    {"quit", "", "end; what is there of files stays", 0, 0, do_quit, NULL,
     NULL},
};

static void put_help(struct program *p) {
    for (size_t i = 0; i < COUNT_OF(commands); i++)
        reply(p, 0, "  %-6s %-28s %s", commands[i].name, commands[i].args,
              commands[i].help);
}

/* -- the language ---------------------------------------------------------- */

static const struct command *command_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

/* Take the quotes and backslashes out of the word at s, in place. A quote at
 * its beginning goes to the next; a backslash takes the meaning of blanks,
 * quotes and itself away. Returns what stands behind the word; NULL: a quote
 * is open. */
static char *word_unquote(char *s) {
    char *to = s;
    const char *end = " \t";
    char quote[2] = "";
    bool open;

    if (*s == '"' || *s == '\'') {
        quote[0] = *s++;
        end = quote;
    }
    while (*s && !strchr(end, *s)) {
        if (*s == '\\' && s[1] && strchr(" \t\"'\\", s[1]))
            s++;
        *to++ = *s++;
    }
    open = *quote && !*s;
    if (*s)
        s++; /* before it is overwritten */
    *to = '\0';
    return open ? NULL : s;
}

/* Split a line into words, in place; at most `most` are kept, and counted are
 * all. -1: a quote is open. */
static int words_split(char *s, char **word, int most) {
    int n = 0;

    for (s += strspn(s, " \t"); s && *s; n++) {
        if (n < most)
            word[n] = s;
        s = word_unquote(s);
        if (!s)
            return -1;
        s += strspn(s, " \t");
    }
    return n;
}

static bool is_url(const char *word) {
    return strpbrk(word, ":/.?") || strcmp(word, "localhost") == 0;
}

/* To the download of one number. */
static void command_apply(struct program *p, const struct command *c,
                          const char *which) {
    const char *end = which;
    int64_t number = text_number(&end);
    struct node *n = NULL;

    if (!*end)
        n = tree_find(p->model.jobs, (uint64_t)number);
    if (!n)
        reject(p, "there is no download %s", which);
    else if (!c->apply(p, container_of(n, struct job, id)))
        reject(p, "%s has nothing to %s", which, c->name);
    else
        reply(p, number, "%s %s", which, c->done);
}

/* word[0] is the name of the command, `count` words follow. */
static void command_run(struct program *p, char **word, int count) {
    const struct command *c = command_find(word[0]);
    bool all = count > 0 && strcmp(word[1], "all") == 0;

    p->address = count == 2 ? word[2] : NULL;
    p->commands++;
    if (!c)
        reject(p, "%s: not a URL and not a command; try help", word[0]);
    else if (count < c->least)
        reject(p, "too few words: it is %s %s", c->name, c->args);
    else if (count > c->most)
        reject(p, "too many words: it is %s %s%s", c->name, c->args,
               strchr(c->args, '[') ? too_many : "");
    else if (c->run)
        c->run(p, word);
    else if (!c->apply)
        put_help(p);
    else if (all && p->address)
        reject(p, "a new address is that of one download");
    else if (p->address && !is_url(p->address))
        reject(p, "%s: not a URL", p->address);
    else if (all && strchr(c->args, '|'))
        p->sweep = (struct sweep){.command = c, .step = sweep_jobs};
    else
        command_apply(p, c, word[1]);
}

/* The one door for every command, wherever it comes from. A URL alone is
 * added. */
static void command_line(struct program *p, char *line) {
    char *words[7] = {"add"};
    char **typed = words + 1;
    int n = words_split(line, typed, 5);

    p->bare = n > 0 && is_url(typed[0]);
    if (n < 0)
        reject(p, "a quote is not closed");
    else if (p->bare)
        command_run(p, words, n);
    else
        command_run(p, typed, n - 1);
}

/* -- where lines come from ------------------------------------------------- */

static bool line_adds(const char *line) {
    const char *first = line + strspn(line, " \t");
    const char *end = first + strcspn(first, " \t\n:/.?");

    return strncmp(first, "add", 3) == 0 || strncmp(first, "every", 5) == 0 ||
           (*end && strchr(":/.?", *end)); /* a URL alone */
}

static bool queue_full(struct program *p) {
    size_t most = p->s.jobs > 500 ? 2 * (size_t)p->s.jobs : 1000;

    return fetcher_count(p->f) >= most + p->model.paused + p->model.repeating;
}

/* What editors leave is no reason to complain: an empty line, and the mark at
 * the beginning by which some know UTF-8. */
static void line_run(struct program *p, char *line, size_t n) {
    const char *first;

    while (n > 0 && line[n - 1] == '\r')
        line[--n] = '\0';
    if (strlen(line) != n) {
        reject(p, "a NUL is in the line: it is no text, or not UTF-8");
        return;
    }
    if (p->source->line == 1 && strncmp(line, "\xef\xbb\xbf", 3) == 0)
        line += 3;
    first = line + strspn(line, " \t");
    if (*first && *first != '#')
        command_line(p, line);
    else if (*first && p->session.reading)
        session_remark(p, line);
}

/* Take a line out of what has been read. False: there is none, or it would add
 * to a full queue: a list is read only as fast as that drains, so a pipe of a
 * million URLs is never held in memory. */
static bool input_take(struct program *p, struct input *in) {
    char *line = in->text + in->begin;
    size_t n = in->end - in->begin;
    char *newline = memchr(line, '\n', n);
    bool too_long = !newline && n + 1 == sizeof in->text;
    bool rest = in->skipping; /* of a line that was too long */

    if (!newline && !too_long && (!in->eof || n == 0))
        return false;
    if (newline)
        n = (size_t)(newline - line);
    line[n] = '\0'; /* there is room for it: see input_read() */
    in->held =
        in == &p->input[LIST] && !rest && line_adds(line) && queue_full(p);
    if (in->held) {
        if (newline)
            *newline = '\n';
        return false;
    }
    in->begin += newline ? n + 1 : n;
    in->skipping = too_long;
    if (rest)
        return true;
    p->source = in;
    in->line++;
    if (too_long)
        reject(p, "the line is too long");
    else
        line_run(p, line, n);
    return true;
}

static void input_read(struct program *p, struct input *in) {
    ssize_t got;

    input_drop(in);
    got = read_now(in->fd, in->text + in->end, sizeof in->text - 1 - in->end);
    in->ready = !in->polled;
    if (got > 0)
        in->end += (size_t)got;
    else if (got == 0)
        in->eof = true;
    else if (errno != EAGAIN && errno != EINTR) {
        in->eof = true;
        complain(&p->console, in->name, strerror(errno));
        if (in == &p->input[SESSION]) /* what it said may have ended */
            leave(p);
        p->status = SOME_FAILED;
    }
}

static void input_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;

    p->input[LIST].ready = true;
    wake(p);
}

/* -- the work: a slice a turn ---------------------------------------------- */

/* The next download of a command for all. */
static void sweep_one(struct program *p) {
    const struct command *c = p->sweep.command;

    if (p->sweep.step(p))
        return;
    p->sweep.command = NULL;
    if (c != &all_given_up) /* nobody has asked */
        reply(p, 0, "%d %s", p->sweep.count, c->done);
}

/* Would an answer have to wait for a reader? */
static bool output_waits(struct program *p) {
    const struct out *above = p->console.above;

    return out_broken(&p->console.out) || out_full(&p->console.out) ||
           out_full(&p->console.err) || (above && above->used >= OUT_FULL);
}

/* Has all of the session been read? Then what it holds is started, ... */
static bool session_read(struct program *p) {
    struct session *s = &p->session;
    bool whole = s->reading && !input_left(&p->input[SESSION]) && !p->closing;

    if (!whole && !s->reading && s->restoring && !p->closing)
        session_restored(p); /* no sweep is left of it */
    if (!whole)
        return false;
    s->reading = false;
    p->source = &p->input[SESSION];
    p->sweep = (struct sweep){.command = &all_restored, .step = sweep_jobs};
    return true;
}

/* What is sent to a directory is called there as it is here. NULL: it is sent
 * elsewhere, or nothing is. */
static char *upload_url(const struct program *p, const char *url) {
    const char *file = p->s.upload;
    const char *slash = file ? strrchr(file, '/') : NULL;
    size_t n = strlen(url);
    char *name = NULL;
    char *to = NULL;

    if (file && !is_dash(file) && n > 0 && url[n - 1] == '/')
        name = curl_easy_escape(NULL, slash ? slash + 1 : file, 0);
    if (name)
        to = text_join(url, name);
    curl_free(name);
    return to;
}

/* ... and then what the command line holds. */
static bool url_start(struct program *p) {
    const char *url;
    char *to;

    if (p->closing || !p->url || !*p->url)
        return false;
    url = *p->url++;
    to = upload_url(p, url);
    (void)job_start(p, to ? to : url, p->s.output, NULL, p->s.rq.every_ms);
    free(to);
    return true;
}

/* The next piece of work. False: there is none to be had now. */
static bool work_one(struct program *p) {
    if (!p->closing && output_waits(p))
        return false;
    if (p->sweep.command) {
        sweep_one(p);
        return true;
    }
    if (session_read(p) || (!p->session.reading && url_start(p)))
        return true;
    for (int i = 0; i < INPUTS; i++) {
        struct input *in = &p->input[i];

        if (input_take(p, in))
            return true;
        if (in->held || in->eof || !in->ready)
            continue;
        input_read(p, in);
        return true;
    }
    return false;
}

/* Has all been done that there was? Downloads that are paused are only waited
 * for where somebody can let them go on. */
static void end_if_done(struct program *p) {
    size_t left = fetcher_count(p->f);

    for (int i = 0; i < INPUTS; i++) {
        if (input_left(&p->input[i]))
            return;
    }
    if ((p->prompting && !p->closing) || p->sweep.command)
        return;
    if (!p->closing && (p->session.restoring || (p->url && *p->url)))
        return;
    if (left == 0)
        fetcher_stop(p->f);
    else if (left <= p->model.paused && !p->interactive && !p->closing) {
        complain(&p->console, "the end", "what is paused stays so");
        p->status = SOME_FAILED;
        leave(p);
    }
}

/* A file is always ready: as long as there is room it is read, for a
 * millisecond a turn. */
static void do_work(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct input *list = &p->input[LIST];
    struct out *o = &p->console.out;
    usec end = clock_us() + SLICE_INPUT_US;
    bool more = true;
    bool listen;

    p->work_timer = 0;
    while (more && clock_us() < end)
        more = work_one(p);
    if (o->was_full) /* it may have been made room for now */
        more = true;
    out_flush(f, o);
    if (more && !o->was_full)
        wake(p);
    listen = !list->ready && !list->eof && !list->held;
    (void)fetcher_watch(f, list->fd, listen ? FETCHER_READ : 0, input_ready, p);
    if (p->console.above && p->console.above->used > 0)
        changed(&p->console);
    if (!p->work_timer)
        end_if_done(p);
}

/* With -o there is one download, which its reader may have paused. */
static void stream_drained(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct job *j = row_only(&p->model);

    if (j && p->stream && !p->stream->was_full &&
        job_info(&p->model, j).state == FETCHER_PAUSED)
        (void)fetcher_resume(f, j->transfer);
    wake(p);
}

/* ================================================================== Terminal
 * What has ended scrolls away above as one line each; below stand the rows of
 * what has not, and a last line of totals. The cursor rests at the beginning
 * of the first row: whatever a terminal makes of a resize, all that is ours is
 * behind it. Only escape sequences that xterm, the Linux console, tmux and
 * screen share, and no alternate screen: what was said stays to be read.
 *
 * A frame is drawn when something has changed, 20 times a second at most, and
 * not while the terminal takes nothing (^S). In the background nothing is
 * read, and nothing drawn.
 *
 * The picture is made of lines of text, for the terminal and the window alike.
 * Cleaned text holds no control bytes, so such a byte can be an attribute: the
 * terminal maps it to an escape sequence, the window to a pen.
 */
enum attribute {
    PLAIN = 1, /* ends all others */
    CHOSEN,    /* the selected row: at the beginning of its line */
    DIM,
    RED,
    AMBER,
    CYAN,
    GREEN,            /* a bar */
    CARET = '\n' + 1, /* of the next character ('\n' ends a line) */
    MARKED            /* the selected text of the edited line */
};

/* Keys are bytes, or one of these; the first eight in X's order. */
enum {
    NO_KEY = -1,
    KEY_HOME = 256,
    KEY_LEFT,
    KEY_UP,
    KEY_RIGHT,
    KEY_DOWN,
    KEY_PAGE_UP,
    KEY_PAGE_DOWN,
    KEY_END,
    KEY_DELETE,
    KEY_PASTE,   /* a paste begins, ... */
    KEY_PASTED,  /* ... and ends */
    KEY_NO,      /* an escape sequence that means none of these */
    SHIFT = 512, /* may be added, ... */
    WORD = 1024, /* ... and this: by words */
    ESC = 27,
    BACKSPACE = 127
};

#undef CTRL /* that of some systems takes capitals only */
#define CTRL(letter) ((letter) - 'a' + 1)

enum {
    LINES_MOST = 500, /* of a picture */
    HISTORY = 50,
    SEQUENCE_MAX = 16, /* bytes of an escape sequence */
    ESCAPE_MS = 50,    /* then an ESC is the key */
    KEYS_MOST = 4096,  /* that wait to be understood */
    FRAME_MS = 50
};

struct prompt {    /* a line that is being edited */
    bool stays;    /* open when a line has been entered */
    bool too_long; /* more was typed than there is room for */
    size_t caret;  /* selected is what is between it and ... */
    size_t mark;   /* ... this */
    size_t length;
    size_t from; /* it is shown from here */
    char text[LINE_LONGEST];
    char *history[HISTORY];
    int entries; /* of the history, so far */
    int entry;   /* the one that is shown */
};

static struct view {                /* the terminal's or the window's */
    void (*show)(struct program *); /* NULL: there is no view */
    void (*off)(struct program *);
    struct out *out; /* where lines end */
    struct prompt prompt;
    bool on;
    bool keys; /* there are any */
    bool rows; /* are shown */
    bool utf8;
    bool color;
    bool rich; /* it has 256 */
    bool window;
    bool paste;                 /* what comes is pasted */
    bool asking;                /* whether to quit */
    bool redraw;                /* all of it */
    bool chosen;                /* a person has selected a row */
    bool ended;                 /* the rows are those of what has ended */
    int offset;                 /* rows shown above the selected one */
    struct out log;             /* lines that have not been shown yet */
    struct out picture;         /* the lines of this frame */
    struct out bytes;           /* of keys, not yet understood */
    struct out codes;           /* of keys, each an int, not yet acted upon */
    uint64_t shown[LINES_MOST]; /* the hash of each line on the screen */
    int count;        /* of them; of a terminal, those that are shown */
    int64_t drawn;    /* the last frame, in ms, ... */
    int64_t due;      /* ... the next, ... */
    int64_t pace;     /* ... and least between two */
    fetcher_id timer; /* for the next frame; 0: none */
    fetcher_id key_timer;
} the_view;

/* What a handler may need; nothing else in this file is changed behind the
 * loop's back. */
static struct {
    struct program *program;
    struct termios cooked;      /* the terminal as it was */
    int fd;                     /* of the terminal, or of the X server */
    volatile sig_atomic_t raw;  /* the terminal is ours */
    volatile sig_atomic_t seen; /* the signal that ends us; 0: none */
} tty;

/* Are we in the foreground? In the background the terminal is another's. */
static bool tty_ours(void) {
    return tcgetpgrp(tty.fd) == getpgrp();
}

static const char tty_farewell[] = "\r\033[J\033[?2004l\033[?25h";

/* Give the terminal back as it was: safe in a handler. IXON off for a moment
 * ends a ^S. */
static void tty_restore(bool farewell) {
    struct termios t = tty.cooked;

    if (!tty.raw)
        return;
    t.c_iflag &= ~(tcflag_t)IXON;
    tcsetattr(tty.fd, TCSANOW, &t);
    if (farewell && write(tty.fd, tty_farewell, sizeof tty_farewell - 1) < 0)
        errno = 0; /* best effort */
    tcsetattr(tty.fd, TCSANOW, &tty.cooked);
    tty.raw = false;
}

static void frame(struct fetcher *f, void *arg);

/* Draw then, if not sooner. */
static void frame_at(struct program *p, int64_t due) {
    struct view *v = p->view;
    int64_t now = fetcher_now(p->f);

    if (!v || !v->show || (v->timer && v->due <= due))
        return;
    (void)fetcher_timer_stop(p->f, v->timer);
    v->due = due;
    v->timer = fetcher_timer(p->f, due > now ? due - now : 0, frame, p);
}

static void frame_later(struct program *p) {
    frame_at(p, p->view->drawn + TICK_MS);
}

/* Lines are shown above the view from now on; or no more. */
static void view_catch_lines(struct program *p, bool on) {
    p->view->on = on;
    p->console.above = on ? &p->view->log : NULL;
}

/* -- drawing: lines of text with attributes -------------------------------- */

static void put_attr(struct out *o, enum attribute attr) {
    char byte = (char)attr;

    out_add(o, &byte, 1);
}

struct glyph { /* a character as it is shown: what can't be is a '?' */
    const char *text;
    size_t size;  /* bytes of it */
    size_t bytes; /* bytes of the source */
    int columns;
};

static struct glyph glyph_at(const struct view *v, const char *text) {
    uint32_t c = 0;
    size_t n = utf8_decode(text, &c);
    int width = -1;

    if (n > 0 && (v->utf8 || c < 0x80))
        width = wcwidth((wchar_t)c);
    if (width >= 0)
        return (struct glyph){text, n, n, width};
    return (struct glyph){"?", 1, n ? n : 1, 1};
}

static int text_columns(const struct view *v, const char *text) {
    int columns = 0;

    while (*text) {
        struct glyph g = glyph_at(v, text);
        columns += g.columns;
        text += g.bytes;
    }
    return columns;
}

/* Exactly so many columns of a text: cut with an ellipsis, or filled with
 * spaces. */
static void put_padded(const struct view *v, struct out *o, const char *text,
                       int columns) {
    int room = text_columns(v, text) > columns ? columns - 1 : columns;
    int width = 0;

    while (*text) {
        struct glyph g = glyph_at(v, text);

        if (width + g.columns > room)
            break;
        out_add(o, g.text, g.size);
        width += g.columns;
        text += g.bytes;
    }
    if (*text && columns > 0) {
        out_puts(o, v->utf8 ? "\u2026" : "~");
        width++;
    }
    out_printf(o, "%*s", columns > width ? columns - width : 0, "");
}

/* The window paints blocks, of eighths. */
static const char *block_cell(int eighths) {
    static const char blocks[][4] = {"\u258f", "\u258e", "\u258d", "\u258c",
                                     "\u258b", "\u258a", "\u2589", "\u2588"};

    if (eighths > 0)
        return blocks[eighths < 8 ? eighths - 1 : 7];
    return "\u2591";
}

/* A terminal has a thin line, and its track. */
static const char *line_cell(const struct view *v, int eighths) {
    if (!v->utf8)
        return eighths >= 4 ? "=" : "-";
    if (eighths >= 8)
        return "\u2501";
    return eighths >= 4 ? "\u2578" : "\u2500";
}

/* Of what has no known size there is none. */
static void draw_bar(const struct view *v, struct out *o,
                     const struct fetcher_info *i, int columns) {
    double part = i->total > 0 ? (double)i->bytes / (double)i->total : 0;
    int eighths = (int)((part > 1 ? 1 : part) * 8 * columns);
    bool track = false;

    if (i->total <= 0) {
        out_printf(o, "%*s", columns, "");
        return;
    }
    put_attr(o, GREEN);
    for (int c = 0; c < columns; c++) {
        int left = eighths - 8 * c;

        if (left < 4 && !track && !v->window) {
            put_attr(o, PLAIN);
            put_attr(o, DIM);
            track = true;
        }
        out_puts(o, v->window ? block_cell(left) : line_cell(v, left));
    }
    put_attr(o, PLAIN);
}

struct columns { /* how much of a row there is room for */
    int all;     /* what stands behind the number */
    int name;
    int bar; /* 0: none */
    bool size;
    bool speed;
    bool left; /* the time */
    bool share;
};

enum { /* columns; with the space before them */
       NAME_SHORT = 12,
       NAME_LEAST = 20, /* beside bar and size */
       NAME_LONG = 60,  /* what is left is the bar's */
       BAR_GAP = 1,
       FOR_SHARE = 6,
       FOR_SIZE = 11,
       FOR_SPEED = 13,
       FOR_LEFT = 8
};

/* The narrower it is the less stands behind the name: first the bar goes, then
 * the size, the speed, the time left, and at last the share. A long number
 * takes from the name. */
static struct columns row_columns(int columns, int number) {
    struct columns w = {.all = columns > number ? columns - number : 0,
                        .size = columns > 56,
                        .speed = columns > 46,
                        .left = columns > 30,
                        .share = columns > 24};

    w.name = w.all;
    if (w.share)
        w.name -= FOR_SHARE;
    if (w.size)
        w.name -= FOR_SIZE;
    if (w.speed)
        w.name -= FOR_SPEED;
    if (w.left)
        w.name -= FOR_LEFT;
    if (columns > 66) {
        w.bar = columns / 7;
        if (w.name - w.bar - BAR_GAP > NAME_LONG)
            w.bar = w.name - NAME_LONG - BAR_GAP;
        w.name -= w.bar + BAR_GAP;
        w.size = w.name >= NAME_LEAST;
        if (!w.size)
            w.name += FOR_SIZE;
    }
    if (w.name < 0)
        w.name = 0;
    return w;
}

static const enum attribute state_colors[] = {DIM,  PLAIN, AMBER,
                                              CYAN, AMBER, RED};

/* Has a row something to tell in place of numbers? */
static bool row_tells(const struct fetcher_info *i) {
    if (i->state == FETCHER_RUNNING)
        return i->bytes == 0;
    return *i->message || i->bytes == 0 || i->state == FETCHER_SLEEPING;
}

/* That; in few words where there is little room: the color says whether it has
 * failed or is tried again. */
static const char *row_told(const struct fetcher_info *i,
                            const struct columns *w, char *to, size_t room) {
    char left[32];

    if (w->size || !*i->message)
        return row_state(i, to, room);
    if (i->state == FETCHER_ENDED || i->wait_ms <= 0)
        return i->message;
    time_text(left, sizeof left, seconds_left(i));
    snprintf(to, room, "%s: %s", left, i->message);
    return to;
}

/* The columns of a name beside what is told: that begins where the bars do, or
 * sooner, if it is long; where there are no bars it ends at the right edge, as
 * numbers do. */
static int name_columns(const struct view *v, const char *name,
                        const char *told, const struct columns *w) {
    int columns = w->all - text_columns(v, told) - 1;
    int least = w->size ? w->name : NAME_SHORT;
    int needed = text_columns(v, name) + 1;

    if (!w->share)
        return w->all; /* and nothing else */
    if (w->size && columns > w->name)
        columns = w->name;
    if (least > needed)
        least = needed;
    return columns > least ? columns : least;
}

static void draw_told(const struct view *v, struct out *o, const char *told,
                      enum attribute attr, int columns) {
    if (columns < 2)
        return;
    out_puts(o, " ");
    put_attr(o, attr);
    put_padded(v, o, told, columns - 1);
}

/* Behind the name: bar, share, size, speed and time left, or the state. */
static void draw_numbers(const struct view *v, struct out *o,
                         const struct fetcher_info *i, const struct columns *w,
                         bool chosen) {
    bool runs = i->state == FETCHER_RUNNING;
    int64_t bytes = i->total > 0 ? i->total : i->bytes;
    char share[8] = "";
    char text[32];

    if (w->bar) {
        out_puts(o, " ");
        draw_bar(v, o, i, w->bar);
        if (chosen)
            put_attr(o, CHOSEN);
    }
    if (i->total > 0)
        snprintf(share, sizeof share, "%d%%", (int)(100 * i->bytes / i->total));
    if (w->share)
        out_printf(o, "%*s", FOR_SHARE, share);
    if (w->size)
        out_printf(o, "%*s", FOR_SIZE,
                   size_text(text, sizeof text, (double)bytes));
    if (!runs)
        put_attr(o, state_colors[i->state]);
    if (w->speed && runs)
        out_printf(o, "%*s/s", FOR_SPEED - 2,
                   size_text(text, sizeof text, (double)i->speed));
    else if (w->speed)
        out_printf(o, "%*s", FOR_SPEED, "");
    if (w->left)
        out_printf(o, "%*s", FOR_LEFT,
                   runs ? time_text(text, sizeof text, seconds_left(i))
                        : state_words[i->state]);
}

static void draw_row(struct program *p, struct out *o, struct job *j,
                     int columns) {
    const struct view *v = p->view;
    struct fetcher_info i = job_info(&p->model, j);
    bool chosen = j == p->model.selected && v->keys;
    char number[40];
    char name[300];
    char state[300];
    int n = snprintf(number, sizeof number, "%c%4" PRId64 "  ",
                     chosen ? '>' : ' ', j->id.key);
    struct columns w = row_columns(columns, n);

    if (chosen)
        put_attr(o, CHOSEN);
    out_puts(o, number);
    row_name(&i, name, sizeof name);
    if (row_tells(&i)) {
        const char *told = row_told(&i, &w, state, sizeof state);

        n = name_columns(v, name, told, &w);
        put_padded(v, o, name, n);
        draw_told(v, o, told, state_colors[i.state], w.all - n);
    } else {
        put_padded(v, o, name, w.name);
        draw_numbers(v, o, &i, &w, chosen);
    }
    put_attr(o, PLAIN);
}

static void draw_ended(struct program *p, struct out *o, const struct ended *e,
                       int columns) {
    const struct view *v = p->view;
    bool chosen = e == p->model.chosen && v->keys;
    char number[40];
    char name[300];
    char state[300];
    int n = snprintf(number, sizeof number, "%c%4" PRId64 "  ",
                     chosen ? '>' : ' ', e->number);
    struct columns w = row_columns(columns, n);
    const char *told = ended_state(e, state, sizeof state);
    const char *colon = strchr(told, ':');

    if (colon && !w.size) /* its color says whether it is done */
        told = colon + 2;
    if (chosen)
        put_attr(o, CHOSEN);
    out_puts(o, number);
    ended_name(e, name, sizeof name);
    n = name_columns(v, name, told, &w);
    put_padded(v, o, name, n);
    draw_told(v, o, told, e->r.code ? RED : DIM, w.all - n);
    put_attr(o, PLAIN);
}

/* The last seconds as bars of eight heights. */
static void draw_speeds(struct program *p, struct out *o, int bars) {
    static const char blocks[][4] = {"\u2581", "\u2582", "\u2583", "\u2584",
                                     "\u2585", "\u2586", "\u2587", "\u2588"};
    const int64_t *speed = p->model.speed;
    int64_t most = 1;

    for (int i = 0; i < bars; i++)
        most = speed[i] > most ? speed[i] : most;
    for (int i = bars - 1; i >= 0; i--) {
        int level = (int)(speed[i] * 7 / most);

        if (p->view->utf8)
            out_puts(o, blocks[level]);
        else
            out_add(o, &"_.:-=+*#"[level], 1);
    }
}

/* Parts of the last line. */
enum { COUNTS, SPEED, LEFT, DEAF, KEYS, TOTALS };

static void totals_text(struct program *p, char part[][64]) {
    bool whole = p->input[LIST].eof; /* or more will come */
    struct fetcher_stats st;
    char size[32];
    char left[32];

    fetcher_stats(p->f, &st);
    speed_sample(&p->model, st.received);
    size_text(size, sizeof size, speed_now(&p->model));
    time_text(left, sizeof left, whole ? time_left(&p->model, st.waiting) : -1);
    snprintf(part[COUNTS], 64,
             "%" PRIu64 " done, %" PRIu64 " failed, %zu waiting%s", st.done,
             st.failed, st.waiting, whole ? "" : "+");
    snprintf(part[SPEED], 64, "  %s/s", size);
    snprintf(part[LEFT], 64, "  %s left", left);
    snprintf(part[DEAF], 64, "  deaf at most %.1f ms", MS(st.stall_max_us));
    *part[KEYS] = '\0';
    if (p->view->keys && !p->view->window)
        strcpy(part[KEYS], p->view->ended ? "  d back" : "  ? keys");
}

/* How many bars there is room for; with few there are none. */
static int speed_bars(const struct program *p, char part[][64], int columns) {
    for (int i = 0; i < KEYS; i++)
        columns -= (int)strlen(part[i]);
    if (p->view->window || columns <= 3)
        return 0;
    return columns > 9 ? 8 : columns - 1;
}

/* The last ones only where there is room; between them the last seconds. What
 * says how one learns of the keys stands at the right edge. */
static void draw_totals(struct program *p, struct out *o, int columns) {
    char part[TOTALS][64];
    int keys;
    int bars;

    totals_text(p, part);
    keys = (int)strlen(part[KEYS]);
    if ((int)strlen(part[COUNTS]) + keys > columns)
        keys = 0;
    columns -= keys;
    bars = speed_bars(p, part, columns);
    if ((int)strlen(part[COUNTS]) > columns)
        put_padded(p->view, o, part[COUNTS], columns);
    for (int i = 0; i < KEYS && (int)strlen(part[i]) <= columns; i++) {
        out_puts(o, part[i]);
        columns -= (int)strlen(part[i]);
        if (i == SPEED && bars > 0) {
            out_puts(o, " ");
            draw_speeds(p, o, bars);
            columns -= bars + 1;
        }
    }
    if (keys == 0)
        return;
    out_printf(o, "%*s", columns, "");
    put_attr(o, DIM);
    out_puts(o, part[KEYS]);
    put_attr(o, PLAIN);
}

/* Where the character before, or behind, this place of the line is. */
static size_t step_back(const struct prompt *e, size_t at) {
    if (at == 0)
        return 0;
    do {
        at--;
    } while (at > 0 && (e->text[at] & 0xc0) == 0x80);
    return at;
}

static size_t step_ahead(const struct prompt *e, size_t at) {
    if (!e->text[at])
        return at;
    do {
        at++;
    } while ((e->text[at] & 0xc0) == 0x80);
    return at;
}

struct range { /* of bytes of the edited line */
    size_t at;
    size_t n;
};

static struct range selected(const struct prompt *e) {
    size_t at = e->caret < e->mark ? e->caret : e->mark;

    return (struct range){at, e->caret + e->mark - 2 * at};
}

/* The part of the edited line around its caret. */
static void draw_prompt(struct program *p, struct out *o, int columns) {
    const struct view *v = p->view;
    struct prompt *e = &p->view->prompt;
    struct range range = selected(e);
    int width = 0;
    struct glyph g;

    for (e->from = e->caret; e->from > 0 && width < columns - 6;
         width += g.columns) {
        e->from = step_back(e, e->from);
        g = glyph_at(v, e->text + e->from);
    }
    for (const char *s = e->text + e->from;; s += g.bytes) {
        size_t at = (size_t)(s - e->text);
        bool caret = at == e->caret && p->prompting;
        bool marked = at >= range.at && at < range.at + range.n;

        g = *s ? glyph_at(v, s) : (struct glyph){" ", 1, 1, 1};
        columns -= g.columns;
        if (columns < 0)
            return;
        if (marked)
            put_attr(o, MARKED);
        if (caret)
            put_attr(o, CARET);
        out_add(o, g.text, g.size);
        if (caret || marked)
            put_attr(o, PLAIN);
        if (!*s)
            return;
    }
}

/* -- rows: of what is there, or of what has ended -------------------------- */

static struct node *rows_tree(const struct program *p) {
    return p->view->ended ? p->model.ended : p->model.rows;
}

/* The window has room for both: what is done stands below what is not. */
static bool rows_both(const struct program *p) {
    return p->view->window && !p->view->ended;
}

/* The numbers of downloads begin with 1. */
static bool is_ended(const struct node *n) {
    return n->seq == 0;
}

/* This one of the ended, or the next that is done: what has failed is among
 * the downloads. */
static struct node *rows_done(const struct program *p, struct node *n,
                              bool back) {
    struct node *tree = p->model.ended;

    while (n && ended_of(n)->r.code)
        n = back ? tree_bound(tree, n->key, 0, true) : tree_next(tree, n);
    return n;
}

static size_t rows_count(const struct program *p) {
    const struct model *m = &p->model;

    if (rows_both(p))
        return m->count + m->ended_count - m->ended_failed;
    return p->view->ended ? m->ended_count : m->count;
}

static struct node *rows_end(const struct program *p, bool last) {
    struct node *tree = rows_tree(p);
    struct node *done = NULL;
    struct node *n =
        last ? tree_bound(tree, INT64_MAX, 0, true) : tree_first(tree);

    if (rows_both(p) && last)
        done = rows_done(p, tree_bound(p->model.ended, 0, 0, true), true);
    else if (rows_both(p) && !n)
        done = rows_done(p, tree_first(p->model.ended), false);
    return done ? done : n;
}

static struct node *rows_before(const struct program *p, const struct node *n) {
    struct node *done;

    if (!rows_both(p) || !is_ended(n))
        return tree_bound(rows_tree(p), n->key, n->seq, true);
    done = rows_done(p, tree_bound(p->model.ended, n->key, 0, true), true);
    return done ? done : tree_bound(p->model.rows, INT64_MAX, 0, true);
}

static struct node *rows_after(const struct program *p, const struct node *n) {
    struct node *next;

    if (!rows_both(p))
        return tree_next(rows_tree(p), n);
    if (is_ended(n))
        return rows_done(p, tree_next(p->model.ended, n), false);
    next = tree_next(p->model.rows, n);
    return next ? next : rows_done(p, tree_first(p->model.ended), false);
}

static struct node *rows_selected(struct program *p) {
    struct model *m = &p->model;

    if (p->view->ended || (rows_both(p) && m->chosen))
        return m->chosen ? &m->chosen->row : NULL;
    return m->selected ? &m->selected->row : NULL;
}

static void rows_select(struct program *p, struct node *n) {
    struct model *m = &p->model;
    bool ended = n ? is_ended(n) : p->view->ended;

    if (ended || rows_both(p))
        m->chosen = ended ? ended_of(n) : NULL;
    if (!ended || rows_both(p))
        m->selected = ended ? NULL : row_job(n);
}

/* The row at the top, so that the selected one stays where it was, and no line
 * is wasted. */
static struct node *top_row(struct program *p, int rows) {
    struct view *v = p->view;
    struct node *top = rows_selected(p);
    struct node *n = top;
    int below = 0; /* rows that there are, as far as they count */
    int above = 0;

    while (n && below < rows - 1) {
        n = rows_after(p, n);
        if (n)
            below++;
    }
    if (v->offset < rows - 1 - below)
        v->offset = rows - 1 - below;
    if (v->offset > rows - 1)
        v->offset = rows - 1;
    for (; top && above < v->offset; above++) {
        n = rows_before(p, top);
        if (!n)
            break;
        top = n;
    }
    v->offset = above;
    return top;
}

/* The rows that there is room for, and a line that counts the others. Returns
 * how many lines. */
static int draw_rows(struct program *p, struct out *o, int columns, int rows) {
    size_t count = rows_count(p);
    bool more = rows > 0 && count > (size_t)rows;
    const char *where = "below";
    bool above;
    int drawn = 0;
    struct node *n;

    if (!rows_selected(p) || !p->view->chosen)
        rows_select(p, rows_end(p, false));
    if (more)
        rows--;
    n = top_row(p, rows);
    above = n && rows_before(p, n);
    for (; n && drawn < rows; n = rows_after(p, n)) {
        if (p->view->ended)
            draw_ended(p, o, ended_of(n), columns);
        else
            draw_row(p, o, row_job(n), columns);
        out_puts(o, "\n");
        drawn++;
    }
    if (!more)
        return drawn;
    if (above)
        where = n ? "above and below" : "above";
    out_printf(o, "       + %zu more %s\n", count - (size_t)drawn, where);
    return drawn + 1;
}

/* -- painting: the picture goes to the terminal ---------------------------- */

/* An attribute as the terminal's own; colors and the like only if wanted. Of
 * 256 colors those are taken that can be read on white and on black; of eight
 * there is no such yellow. */
static const char *sgr_of(const struct view *v, enum attribute attr) {
    static const char *const sgr[] = {
        [CHOSEN] = "\033[1m", [DIM] = "\033[2m",   [RED] = "\033[31m",
        [AMBER] = "\033[35m", [CYAN] = "\033[36m", [GREEN] = "\033[32m",
        [CARET] = "\033[7m",  [MARKED] = "\033[7m"};
    static const char *const rich[] = {[RED] = "\033[38;5;167m",
                                       [AMBER] = "\033[38;5;130m",
                                       [CYAN] = "\033[38;5;31m",
                                       [GREEN] = "\033[38;5;29m"};

    if (attr == PLAIN)
        return "\033[m";
    if (!v->color && attr < CARET)
        return "";
    if (v->rich && attr >= RED && attr <= GREEN)
        return rich[attr];
    return sgr[attr];
}

static void put_line(const struct view *v, struct out *o, const char *line,
                     size_t n) {
    bool plain = true;

    while (n > 0) {
        size_t text = 0;

        while (text < n && (unsigned char)line[text] >= ' ')
            text++;
        out_add(o, line, text);
        if (text < n) {
            enum attribute attr = (enum attribute)line[text];
            const char *sgr = sgr_of(v, attr);

            if (attr != PLAIN || !plain)
                out_puts(o, sgr);
            if (*sgr)
                plain = attr == PLAIN;
            text++;
        }
        line += text;
        n -= text;
    }
}

/* Returns how many lines the picture has. */
static int view_compose(struct program *p, int columns, int most) {
    struct view *v = p->view;
    struct out *o = &v->picture;
    int extra = p->prompting || v->asking ? 2 : 1;
    int rows = (most < LINES_MOST ? most : LINES_MOST) - extra;
    int n = extra;

    o->used = 0;
    n += draw_rows(p, o, columns, v->rows ? rows : 0);
    if (v->ended && v->rows && !p->model.ended) {
        out_printf(o, "%.*s\n", columns, " nothing has ended yet");
        n++;
    } else if (p->stay && !p->model.count && !p->prompting) {
        out_printf(o, "%.*s\n", columns, " a: enter a URL   ?: help   q: quit");
        n++;
    }
    draw_totals(p, o, columns);
    out_puts(o, "\n");
    if (v->asking)
        out_printf(o, "%.*s\n", columns, "downloads are not done: quit? (y/n)");
    if (p->prompting) {
        out_puts(o, ": ");
        draw_prompt(p, o, columns - 3);
        out_puts(o, "\n");
    }
    return n;
}

/* What has changed since the last frame; all, if lines have come above, or
 * their number has changed. */
static void view_paint(struct view *v, int n) {
    struct out *o = v->out;
    const char *s = v->picture.data;

    if (n != v->count || v->log.used > 0)
        v->redraw = true;
    if (v->redraw) {
        out_puts(o, "\r\033[J");
        out_add(o, v->log.data, v->log.used);
        for (int i = 1; i < n; i++)
            out_puts(o, "\n"); /* make room, and go back */
        if (n > 1)
            out_printf(o, "\033[%dA", n - 1);
        out_puts(o, "\r");
    }
    for (int at = 0; at < n; at++) {
        size_t size = strcspn(s, "\n");
        uint64_t hash = text_hash(s, size);

        if (hash != v->shown[at] || v->redraw) {
            if (at > 0)
                out_printf(o, "\033[%dB", at);
            put_line(v, o, s, size);
            out_puts(o, "\033[K");
            if (at > 0)
                out_printf(o, "\033[%dA", at);
            out_puts(o, "\r");
        }
        v->shown[at] = hash;
        s += size + 1;
    }
    v->log.used = 0;
    v->redraw = false;
    v->count = n;
}

/* Draw, and once more where times or speeds go on, or when we may come to the
 * front. */
static void frame(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct view *v = p->view;
    struct fetcher_stats st;

    v->timer = 0;
    if (v->show)
        v->show(p); /* it may be gone */
    if (v->on && fetcher_count(f) == 0 && v->log.used == 0 &&
        p->model.speed[0] == 0)
        return;
    fetcher_stats(f, &st);
    frame_at(p, fetcher_now(f) + (v->on && st.running ? TICK_MS : 1000));
}

/* -- the edited line ------------------------------------------------------- */

/* Replace the n bytes at `at` of the line; the caret stands behind them. */
static void prompt_edit(struct prompt *e, struct range range, const char *with,
                        size_t m) {
    size_t behind = range.at + range.n;

    if (e->length - range.n + m >= sizeof e->text) {
        e->too_long = true;
        return;
    }
    memmove(e->text + range.at + m, e->text + behind, e->length - behind + 1);
    memcpy(e->text + range.at, with, m);
    e->caret = range.at + m;
    e->mark = e->caret;
    e->length += m - range.n;
}

static void prompt_replace(struct prompt *e, const char *line) {
    prompt_edit(e, (struct range){0, e->length}, line, strlen(line));
}

static void prompt_history(struct prompt *e, int by) {
    int entry = e->entry + by;

    if (entry < 0 || entry < e->entries - HISTORY || entry > e->entries)
        return;
    e->entry = entry;
    prompt_replace(e, entry < e->entries ? e->history[entry % HISTORY] : "");
}

static void prompt_remember(struct prompt *e) {
    char **oldest = &e->history[e->entries % HISTORY];
    char *copy = text_join(e->text, "");

    if (!copy)
        return;
    free(*oldest);
    *oldest = copy;
    e->entries++;
}

static void prompt_enter(struct program *p, struct prompt *e) {
    if (e->too_long)
        complain(&p->console, "", "the line is too long");
    else if (e->length > 0) {
        prompt_remember(e);
        (void)submit(p, e->text, "");
    }
    e->entry = e->entries;
    e->too_long = false;
    p->prompting = e->stays || p->view->paste;
    prompt_replace(e, "");
}

static size_t word_begin(const struct prompt *e, size_t at) {
    at = step_back(e, at);
    while (at > 0 && e->text[at - 1] != ' ')
        at--;
    return at;
}

static void prompt_left(struct program *p, struct prompt *e) {
    e->caret = step_back(e, e->caret);
}

static void prompt_right(struct program *p, struct prompt *e) {
    e->caret = step_ahead(e, e->caret);
}

/* Words are of letters and digits here: so a URL has many. */
static bool in_word(const struct prompt *e, size_t at) {
    int c = (unsigned char)e->text[at];

    return c >= 0x80 || isalnum(c);
}

static void prompt_word_left(struct program *p, struct prompt *e) {
    while (e->caret > 0 && !in_word(e, e->caret - 1))
        e->caret--;
    while (e->caret > 0 && in_word(e, e->caret - 1))
        e->caret--;
}

static void prompt_word_right(struct program *p, struct prompt *e) {
    while (e->caret < e->length && !in_word(e, e->caret))
        e->caret++;
    while (e->caret < e->length && in_word(e, e->caret))
        e->caret++;
}

static void prompt_home(struct program *p, struct prompt *e) {
    e->caret = 0;
}

static void prompt_end(struct program *p, struct prompt *e) {
    e->caret = e->length;
}

static void prompt_earlier(struct program *p, struct prompt *e) {
    prompt_history(e, -1);
}

static void prompt_later(struct program *p, struct prompt *e) {
    prompt_history(e, 1);
}

/* What is selected, or else what is between two places. */
static void prompt_remove(struct prompt *e, size_t from, size_t to) {
    struct range range = selected(e);

    if (range.n == 0)
        range = (struct range){from, to - from};
    prompt_edit(e, range, "", 0);
}

static void prompt_backspace(struct program *p, struct prompt *e) {
    prompt_remove(e, step_back(e, e->caret), e->caret);
}

static void prompt_delete(struct program *p, struct prompt *e) {
    prompt_remove(e, e->caret, step_ahead(e, e->caret));
}

static void prompt_cut_rest(struct program *p, struct prompt *e) {
    e->mark = e->length;
    prompt_delete(p, e);
}

static void prompt_cut_line(struct program *p, struct prompt *e) {
    e->mark = 0;
    prompt_backspace(p, e);
}

static void prompt_cut_word(struct program *p, struct prompt *e) {
    e->mark = word_begin(e, e->caret);
    prompt_backspace(p, e);
}

static void prompt_leave(struct program *p, struct prompt *e) {
    prompt_replace(e, "");
    p->prompting = false;
}

static void prompt_pasted(struct program *p, struct prompt *e) {
    p->prompting = e->stays || e->length > 0;
}

static const struct {
    int key;
    int other; /* another one that does the same, or NO_KEY */
    void (*act)(struct program *, struct prompt *);
} prompt_keys[] = {
    {KEY_LEFT, CTRL('b'), prompt_left},
    {KEY_RIGHT, CTRL('f'), prompt_right},
    {WORD + KEY_LEFT, NO_KEY, prompt_word_left},
    {WORD + KEY_RIGHT, NO_KEY, prompt_word_right},
    {KEY_HOME, CTRL('a'), prompt_home},
    {KEY_END, CTRL('e'), prompt_end},
    {KEY_UP, CTRL('p'), prompt_earlier},
    {KEY_DOWN, CTRL('n'), prompt_later},
    {BACKSPACE, CTRL('h'), prompt_backspace},
    {KEY_DELETE, CTRL('d'), prompt_delete},
    {CTRL('k'), NO_KEY, prompt_cut_rest},
    {CTRL('u'), NO_KEY, prompt_cut_line},
    {CTRL('w'), NO_KEY, prompt_cut_word},
    {'\r', '\n', prompt_enter},
    {ESC, NO_KEY, prompt_leave},
    {KEY_PASTED, NO_KEY, prompt_pasted},
};

/* With shift the other end of what is selected stays where it is. */
static void prompt_key(struct program *p, int key) {
    struct prompt *e = &p->view->prompt;
    int plain = key & ~SHIFT;
    char c = (char)key;

    for (size_t i = 0; i < COUNT_OF(prompt_keys); i++) {
        if (plain == prompt_keys[i].key || plain == prompt_keys[i].other)
            prompt_keys[i].act(p, e);
    }
    if (key >= ' ' && key < 256 && key != BACKSPACE)
        prompt_edit(e, selected(e), &c, 1);
    if (plain == key)
        e->mark = e->caret;
}

/* -- keys for the rows ----------------------------------------------------- */

static void choose(struct program *p, int by) {
    struct view *v = p->view;
    struct node *at = rows_selected(p);
    int step = by < 0 ? -1 : 1;

    v->chosen = true;
    for (; by != 0 && at; by -= step) {
        at = step < 0 ? rows_before(p, at) : rows_after(p, at);
        if (!at)
            return;
        rows_select(p, at);
        if (v->offset + step >= 0)
            v->offset += step;
    }
}

enum { FIRST, LAST };

static void choose_end(struct program *p, int which) {
    p->view->chosen = which == LAST;
    rows_select(p, rows_end(p, which == LAST));
}

static void choose_page(struct program *p, int by) {
    choose(p, by * p->view->count);
}

/* A command with the number of the selected row, or of downloads at a time. */
static void submit_number(struct program *p, const char *verb, int64_t number) {
    char text[32];

    snprintf(text, sizeof text, " %" PRId64, number);
    if (number > 0)
        (void)submit(p, verb, text);
}

static void view_verb(struct program *p, const char *verb) {
    struct node *n = rows_selected(p);

    if (n && is_ended(n))
        submit_number(p, strcmp(verb, "cancel") ? verb : "clear",
                      ended_of(n)->number);
    else if (n)
        submit_number(p, verb, row_job(n)->id.key);
}

static void view_pause(struct program *p, int unused) {
    struct node *n = rows_selected(p);
    struct job *j = n && !is_ended(n) ? row_job(n) : NULL;
    bool paused = j && job_info(&p->model, j).state == FETCHER_PAUSED;

    view_verb(p, paused ? "resume" : "pause");
}

static void view_undo(struct program *p, int unused) {
    (void)submit(p, "undo", "");
}

/* What has ended in place of what has not; or back. */
static void view_ended(struct program *p, int unused) {
    struct view *v = p->view;
    struct model *m = &p->model;

    v->ended = !v->ended;
    v->chosen = !v->ended && m->selected != row_first(m);
    v->offset = 0;
}

static void view_jobs(struct program *p, int by) {
    struct fetcher_stats st;

    fetcher_stats(p->f, &st);
    submit_number(p, "jobs", st.limit + by);
}

static void view_prompt(struct program *p, int unused) {
    p->prompting = true;
}

static void view_redraw(struct program *p, int unused) {
    p->view->redraw = true;
}

static const char window_keys[] =
    "  Up Down Page Home End   choose a row; also j k g G\n"
    "  p                       pause it, or let it go on\n"
    "  Return, double click    open what is done\n"
    "  i                       all about it\n"
    "  r                       try again\n"
    "  c                       cancel; take off the list\n"
    "  u                       undo the last cancel\n"
    "  f                       put first\n"
    "  + -                     more, or fewer, at the same time\n"
    "  d                       only what has ended, or all\n"
    "  Ctrl+C                  copy the URL\n"
    "  a : Tab                 to the line above: a URL or a command\n"
    "  F1 ?                    this page\n"
    "  F2                      all that was said\n"
    "  q                       quit\n"
    "  right click             what may be done, as a menu\n"
    "  middle click, a drop    URLs from elsewhere\n\n";

static void view_help(struct program *p, int unused) {
    if (p->view->window)
        out_puts(&p->view->log, window_keys);
    else
        out_puts(
            &p->view->log,
            "  up down page home end (or j k g G)   choose a row\n"
            "  p pause or resume   r retry   c cancel   u undo that   f first\n"
            "  enter all of a row   d what has ended, or back\n"
            "  + - more or less at a time\n"
            "  a or : a URL or a command, such as: https://example.org/x   "
            "limit 200k   help\n"
            "  ? this help   q quit   ^Z suspend\n");
}

static const struct {
    int key;
    int other; /* another one that does the same, or NO_KEY */
    void (*act)(struct program *, int);
    int arg;
    const char *verb; /* a command for the selected row, in place of act */
} view_keys[] = {
    {KEY_UP, 'k', choose, -1, NULL},
    {KEY_DOWN, 'j', choose, 1, NULL},
    {KEY_PAGE_UP, NO_KEY, choose_page, -1, NULL},
    {KEY_PAGE_DOWN, NO_KEY, choose_page, 1, NULL},
    {KEY_HOME, 'g', choose_end, FIRST, NULL},
    {KEY_END, 'G', choose_end, LAST, NULL},
    {'p', NO_KEY, view_pause, 0, NULL},
    {'r', NO_KEY, NULL, 0, "retry"},
    {'c', NO_KEY, NULL, 0, "cancel"},
    {'f', NO_KEY, NULL, 0, "first"},
    {'\r', '\n', NULL, 0, "show"},
    {'u', NO_KEY, view_undo, 0, NULL},
    {'d', NO_KEY, view_ended, 0, NULL},
    {'+', NO_KEY, view_jobs, 1, NULL},
    {'-', NO_KEY, view_jobs, -1, NULL},
    {'a', ':', view_prompt, 0, NULL},
    {KEY_PASTE, NO_KEY, view_prompt, 0, NULL},
    {'?', NO_KEY, view_help, 0, NULL},
    {CTRL('l'), NO_KEY, view_redraw, 0, NULL},
};

/* Of a character of more bytes the first one speaks; ESC leaves nothing here,
 * and harms nothing. */
static void view_unknown(struct program *p, int key) {
    struct out *o = &p->view->log;

    if (key > ' ' && key < BACKSPACE)
        out_printf(o, "  %c is no key; ? shows them\n", key);
    else if (key != ESC && key != KEY_PASTED && (key < 0x80 || key >= 0xc0))
        out_puts(o, "  that is no key; ? shows them\n");
}

static void view_act(struct program *p, int key) {
    size_t i = 0;

    while (i < COUNT_OF(view_keys) && key != view_keys[i].key &&
           key != view_keys[i].other)
        i++;
    if (i == COUNT_OF(view_keys))
        view_unknown(p, key);
    else if (view_keys[i].act)
        view_keys[i].act(p, view_keys[i].arg);
    else
        view_verb(p, view_keys[i].verb);
}

/* Quit at once, or ask whether to. */
static void view_key(struct program *p, int key) {
    struct view *v = p->view;
    bool asked = v->asking;
    bool busy = fetcher_count(p->f) > 0;

    v->asking = false;
    if (asked && (key == 'y' || key == 'Y'))
        (void)submit(p, "quit", "");
    else if (asked && key != KEY_PASTE)
        return;
    else if (key == 'q' && busy)
        v->asking = true;
    else if (key == 'q')
        (void)submit(p, "quit", "");
    else
        view_act(p, key);
}

/* -- keys come in ---------------------------------------------------------- */

static const struct {
    const char *text; /* behind an ESC; "[" may be an "O" */
    int key;
} sequences[] = {{"[A", KEY_UP},
                 {"[B", KEY_DOWN},
                 {"[C", KEY_RIGHT},
                 {"[D", KEY_LEFT},
                 {"[H", KEY_HOME},
                 {"[F", KEY_END},
                 {"[1~", KEY_HOME},
                 {"[4~", KEY_END},
                 {"[7~", KEY_HOME},
                 {"[8~", KEY_END},
                 {"[3~", KEY_DELETE},
                 {"[5~", KEY_PAGE_UP},
                 {"[6~", KEY_PAGE_DOWN},
                 {"[200~", KEY_PASTE},
                 {"[201~", KEY_PASTED},
                 {"[1;5D", WORD + KEY_LEFT},
                 {"[1;5C", WORD + KEY_RIGHT},
                 {"[1;6D", WORD + SHIFT + KEY_LEFT},
                 {"[1;6C", WORD + SHIFT + KEY_RIGHT},
                 {"[1;2D", SHIFT + KEY_LEFT},
                 {"[1;2C", SHIFT + KEY_RIGHT},
                 {"[1;2H", SHIFT + KEY_HOME},
                 {"[1;2F", SHIFT + KEY_END}};

static int sequence_key(const char *s, size_t n) {
    for (size_t i = 0; i < COUNT_OF(sequences); i++) {
        const char *text = sequences[i].text;

        if (strlen(text) == n && memcmp(s + 1, text + 1, n - 1) == 0)
            return sequences[i].key;
    }
    return KEY_NO;
}

/* What key do these bytes begin with? Returns how many they are; 0: more must
 * come. */
static size_t key_read(const char *s, size_t n, int *key) {
    size_t used = 2;

    *key = (unsigned char)*s;
    if (*key != ESC || (n > 1 && s[1] != '[' && s[1] != 'O'))
        return 1;
    while (used < n && (s[used] < '@' || s[used] > '~'))
        used++;
    if (used >= n)
        return 0;
    *key = sequence_key(s + 1, used);
    return used + 1;
}

static void key_put(struct view *v, int key) {
    out_add(&v->codes, (const char *)&key, sizeof key);
}

static void key_act(struct program *p, int key) {
    struct view *v = p->view;

    if (key == KEY_PASTE || key == KEY_PASTED)
        v->paste = key == KEY_PASTE;
    if (v->paste && (key < ' ' || key == BACKSPACE) && key != '\r' &&
        key != '\n')
        key = ' ';
    if (v->paste && key != KEY_PASTE)
        p->prompting = true; /* its bytes are never keys */
    if (p->prompting)
        prompt_key(p, key);
    else
        view_key(p, key);
}

static void keys_again(struct fetcher *f, void *arg);

/* Act upon keys, for a slice. What a key commands is carried out before the
 * next one counts; the lines of a paste are gathered as long as there is room
 * for another. */
static void keys_act(struct program *p) {
    struct view *v = p->view;
    const struct input *in = &p->input[PROMPT];
    usec end = clock_us() + SLICE_INPUT_US;
    size_t at = 0;
    int key;

    for (; at < v->codes.used && clock_us() < end; at += sizeof key) {
        if (submitted(p) &&
            (!v->paste || in->end - in->begin > INPUT_ROOM - LINE_LONGEST - 2))
            break;
        memcpy(&key, v->codes.data + at, sizeof key);
        key_act(p, key);
    }
    out_drop(&v->codes, at);
    if (v->codes.used > 0 && !v->key_timer)
        v->key_timer =
            fetcher_timer(p->f, output_waits(p) ? ESCAPE_MS : 0, keys_again, p);
    if (at > 0 && !p->prompting)
        wake(p); /* an open prompt may have been all that kept us */
    frame_at(p, v->drawn + v->pace);
}

/* Understand what bytes have come; the rest may be the beginning of an escape
 * sequence. With `all`, it is an ESC and what it is. */
static void bytes_understand(struct view *v, bool all) {
    size_t at = 0;
    size_t used;
    int key;

    for (; at < v->bytes.used && v->codes.used < KEYS_MOST * sizeof key;
         at += used) {
        size_t left = v->bytes.used - at;

        used = key_read(v->bytes.data + at, left, &key);
        if (used == 0 && !all && left <= SEQUENCE_MAX)
            break;
        if (used == 0)
            used = 1;
        key_put(v, key);
    }
    out_drop(&v->bytes, at);
}

static void keys_ready(struct fetcher *f, int fd, int events, void *arg);

/* While many keys wait no more are read; a lone beginning of a sequence waits
 * for the rest. */
static void keys_pump(struct program *p, bool all) {
    struct view *v = p->view;
    bool many;

    bytes_understand(v, all);
    keys_act(p);
    many = v->codes.used > 0 || v->bytes.used > SEQUENCE_MAX;
    if (v->bytes.used > 0 && !v->key_timer)
        v->key_timer = fetcher_timer(p->f, many ? 0 : ESCAPE_MS, keys_again, p);
    if (v->on && v->keys && !v->window)
        (void)fetcher_watch(p->f, tty.fd, many ? 0 : FETCHER_READ, keys_ready,
                            p);
}

static void keys_again(struct fetcher *f, void *arg) {
    struct program *p = arg;

    p->view->key_timer = 0;
    keys_pump(p,
              p->view->codes.used == 0 && p->view->bytes.used <= SEQUENCE_MAX);
}

/* -- modes ----------------------------------------------------------------- */

/* In the background the terminal is another's, and nothing of it may be
 * touched. */
static void view_off(struct program *p) {
    struct view *v = p->view;
    bool ours = tty_ours();

    if (!v->on)
        return;
    if (v->keys)
        (void)fetcher_watch(p->f, tty.fd, 0, NULL, NULL);
    if (ours)
        out_puts(v->out, "\r\033[J");
    out_add(v->out, v->log.data, v->log.used);
    v->log.used = 0;
    if (ours) {
        out_puts(v->out, tty_farewell);
        tty_restore(false);
    }
    out_flush(p->f, v->out);
    tty.raw = false;
    view_catch_lines(p, false);
}

static void view_on(struct program *p) {
    struct view *v = p->view;
    struct termios t = tty.cooked;

    t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    tty.raw = true;
    v->redraw = true;
    view_catch_lines(p, true);
    out_puts(v->out, "\033[?25l");
    if (v->keys) {
        tcsetattr(tty.fd, TCSANOW, &t);
        (void)fetcher_watch(p->f, tty.fd, FETCHER_READ, keys_ready, p);
        out_puts(v->out, "\033[?2004h");
    }
    out_flush(p->f, v->out);
}

static void view_show(struct program *p) {
    struct view *v = p->view;
    struct winsize size;
    bool ours = tty_ours();

    if (v->on && !ours)
        view_off(p);
    if (!v->on && ours && tcgetattr(tty.fd, &tty.cooked) == 0)
        view_on(p);
    if (!v->on || v->out->used > 0)
        return;
    if (ioctl(v->out->fd, TIOCGWINSZ, &size) < 0 || size.ws_col < 2 ||
        size.ws_row < 2)
        size = (struct winsize){24, 80, 0, 0};
    v->drawn = fetcher_now(p->f);
    view_paint(v, view_compose(p, size.ws_col - 1, size.ws_row * 2 / 3));
    out_flush(p->f, v->out);
    wake(p); /* the log has room again */
}

static void view_resized(struct fetcher *f, void *arg) {
    struct program *p = arg;

    p->view->redraw = true;
    frame_at(p, fetcher_now(f));
}

/* The terminal, or the window, is gone. What is on the way goes on without
 * it. */
static void view_lost(struct fetcher *f, void *arg) {
    struct program *p = arg;
    struct view *v = p->view;

    v->off(p);
    v->show = NULL;
    v->keys = false;
    v->bytes.used = 0;
    v->codes.used = 0;
    p->interactive = false;
    p->prompting = false;
    p->input[PROMPT].eof = true;
    wake(p);
}

static void keys_ready(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;
    char bytes[4096];
    ssize_t n = read(fd, bytes, sizeof bytes);
    bool behind = tcgetpgrp(fd) > 0 && !tty_ours();

    if (n > 0)
        out_add(&p->view->bytes, bytes, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        if (behind) {
            view_off(p);
            frame_at(p, fetcher_now(f));
        } else
            view_lost(f, p);
        return;
    }
    (void)fetcher_timer_stop(f, p->view->key_timer);
    p->view->key_timer = 0;
    keys_pump(p, false);
}

/* -- signals --------------------------------------------------------------- */

static void give_up(struct fetcher *f, void *arg) {
    struct program *p = arg;

    p->given_up = true;
    fetcher_stop(f);
}

static bool outputs_wait(const struct program *p) {
    const struct console *c = &p->console;

    return c->out.watched || c->err.watched || p->stream_own.watched;
}

static void interrupted(struct fetcher *f, void *arg) {
    struct program *p = arg;

    p->status = (enum status)(KILLED + (int)tty.seen);
    leave(p);
    if (outputs_wait(p)) /* a reader has stopped? */
        (void)fetcher_timer(f, 500, give_up, p);
    if (!p->s.quiet)
        complain(&p->console, "interrupted",
                 "partial files are kept; run it again to go on");
}

static void suspend(struct fetcher *f, void *arg);

/* Handlers only post. The first signal that is to end us does so cleanly, the
 * second at once. */
static const struct {
    int number;
    call_fn *call; /* NULL: it kills; the terminal is restored before */
} handled[] = {
    {SIGINT, interrupted}, {SIGTERM, interrupted},   {SIGTSTP, suspend},
    {SIGHUP, view_lost},   {SIGWINCH, view_resized}, {SIGCONT, view_resized},
    {SIGSEGV, NULL},       {SIGBUS, NULL},           {SIGFPE, NULL},
    {SIGILL, NULL},        {SIGABRT, NULL},          {SIGQUIT, NULL}};

/* Where in handled[] those begin that end us, suspend us, or need a view. */
enum { ENDING = 0, SUSPENDING = 2, VIEWING = 3 };

static void on_signal(int number) {
    bool ends = number == SIGINT || number == SIGTERM;
    bool second = ends && tty.seen;
    int saved = errno;
    size_t i = 0;

    while (handled[i].number != number)
        i++;
    if (ends)
        tty.seen = number; /* before the loop hears of it */
    if (second || !handled[i].call)
        tty_restore(true);
    if (second)
        _exit(KILLED + number);
    if (handled[i].call)
        (void)fetcher_post(tty.program->f, handled[i].call, tty.program);
    else
        raise(number); /* SA_RESETHAND: now it has its usual effect */
    errno = saved;
}

/* What was ignored from the beginning (by nohup, or a shell's &) stays so. */
static void signals_set(void (*handler)(int), size_t from, size_t to) {
    for (size_t i = from; i < to; i++) {
        struct sigaction action = {.sa_handler = handler};
        struct sigaction old;

        action.sa_flags = handled[i].call ? SA_RESTART : (int)SA_RESETHAND;
        if (sigaction(handled[i].number, NULL, &old) == 0 &&
            old.sa_handler != SIG_IGN)
            sigaction(handled[i].number, &action, NULL);
    }
}

/* ^Z: the shell gets its terminal back, and we ours when we go on. It is done
 * between two turns (see main_loop), for no turn may take that long. */
static void suspend(struct fetcher *f, void *arg) {
    struct program *p = arg;

    p->suspending = true;
    fetcher_stop(f);
}

static void suspend_now(struct program *p) {
    p->suspending = false;
    view_off(p);
    signals_set(SIG_DFL, SUSPENDING, VIEWING);
    raise(SIGTSTP);
    signals_set(on_signal, SUSPENDING, VIEWING);
    view_resized(p->f, p);
    wake(p); /* it may have been the end that stopped the loop */
}

/* -- the beginning --------------------------------------------------------- */

static bool view_wanted(struct program *p) {
    const struct settings *s = &p->s;
    const struct console *c = &p->console;
    const char *term = getenv("TERM");

    if (s->plain || s->quiet || s->json || (!c->out.tty && !c->err.tty))
        return false;
    if (!term || !*term || strcmp(term, "dumb") == 0)
        return false;
    if (c->out.tty && is_dash(s->list) && isatty(0))
        return false;
    if (p->stream && p->stream->tty)
        return false;
    return true;
}

static bool color_wanted(const struct settings *s) {
    const char *no_color = getenv("NO_COLOR");

    if (s->color && strcmp(s->color, "auto") != 0)
        return strcmp(s->color, "always") == 0;
    return !no_color || !*no_color;
}

static bool has_256_colors(void) {
    const char *term = getenv("TERM");

    return term && strstr(term, "256color");
}

/* Is somebody in front of the terminal? It is opened once more, so that reading
 * never blocks. */
static bool keys_open(const struct console *c) {
    const char *name = ttyname(0);

    tty.fd = -1;
    if (isatty(0) && c->out.tty && name && tcgetpgrp(0) == getpgrp())
        tty.fd = open(name, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return tty.fd >= 0;
}

static void view_open(struct program *p) {
    struct view *v = &the_view;
    struct console *c = &p->console;

    if (!view_wanted(p))
        return;
    p->view = v;
    v->out = c->out.tty ? &c->out : &c->err;
    v->rows = c->out.tty;
    v->keys = keys_open(c);
    if (!v->keys)
        tty.fd = v->out->fd;
    v->utf8 = p->utf8;
    v->color = color_wanted(&p->s);
    v->rich = has_256_colors();
    v->show = view_show;
    v->off = view_off;
    v->pace = FRAME_MS;
    c->color = v->color;
    signal(SIGTTOU, SIG_IGN); /* the background is no reason to stop, */
    if (v->keys)
        signal(SIGTTIN, SIG_IGN); /* but for a list that somebody types */
    signals_set(on_signal, SUSPENDING, COUNT_OF(handled));
    frame_at(p, fetcher_now(p->f));
}

/* ==================================================================== Window
 * One more terminal, with a better pen: X's keys become the codes of keys,
 * what is pasted comes as a paste, and the lines of the picture are painted on
 * a grid.
 *
 * Xlib may have read events into a queue of its own, where select() does not
 * see them: so whatever calls it ends with window_events(), which empties
 * that. Once the window is there nothing waits for the server, but for what a
 * paste or a drop brings: it is drawn a line at a time, and only while
 * select() says that the connection takes it. So a stopped server costs
 * frames, no time.
 */
#ifdef FETCHER_X11
#include <X11/Xatom.h>
#include <X11/Xft/Xft.h>
#include <X11/Xutil.h>

enum {
    FONTS = 16,
    PASTE_MAX = 262144,
    SAID_MAX = 65536, /* bytes of lines; then half of them go */
    SIDE = 48,        /* of the icon, in pixels */
    SAID_LINES = 3,   /* of these beside the rows, at most */
    WALK_MOST = 2000, /* rows that are counted, for the scroll bar */
    WINDOW_FRAME_MS = 34
};

enum ink {
    INK_PAPER,
    INK_TEXT,
    INK_DIM,
    INK_BAR,
    INK_TRACK,
    INK_CHOSEN,
    INK_RED,
    INK_AMBER,
    INK_CYAN,
    INK_FIELD,
    INK_EDGE,
    INK_MARKED,
    INKS
};

/* Text reads well on each of its grounds: 4.5 to 1 at least (WCAG 2). */
static const unsigned palette[2][INKS] = {
    /* light */
    {0xfafafa, 0x2b2f36, 0x626973, 0x3d8f63, 0xe3e6ea, 0xe2ebf5, 0xb83226,
     0x8a5c0c, 0x226a88, 0xffffff, 0xcdd3da, 0xbcd5f0},
    /* dark */
    {0x1e2227, 0xd7dae0, 0x9aa2ad, 0x5aa17a, 0x3a424c, 0x2b3747, 0xec8189,
     0xd9a35b, 0x61afcf, 0x262b31, 0x414954, 0x3b5675}};

enum atom {
    PROTOCOLS,
    DELETE_WINDOW,
    NET_NAME,
    NET_PID,
    NET_ICON,
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

enum { COPIED_PRIMARY, COPIED_CLIPBOARD, COPIES };

struct scroll { /* of the rows, or of the page, in lines */
    int64_t all;
    int64_t first; /* that is shown */
    int64_t shown;
};

enum drag { DRAG_NONE, DRAG_TEXT, DRAG_SCROLL };

enum {
    MENU_MOST = 8, /* items */
    MENU_COLUMNS = 30,
    DOUBLE_CLICK_MS = 400,
    OPENERS = 16
};

struct menu {            /* of the right button */
    Window id;           /* a window within ours */
    XRectangle at;       /* its place there; no width: it is closed */
    int64_t row;         /* the number of the row that it is for; 0: none */
    int item[MENU_MOST]; /* places in menu_items[] */
    int items;
    int chosen; /* of these, or -1 */
};

static struct window {
    Display *d;
    Window id;
    Window source; /* of what is dropped */
    GC gc;
    Pixmap back;   /* what is shown, for when it is uncovered */
    Drawable onto; /* what is drawn on: that, or the menu */
    XftDraw *draw;
    XIC ic; /* NULL: there is no input method */
    XftColor ink[INKS];
    Atom atom[ATOMS];
    FcPattern *pattern;
    FcFontSet *set;       /* all fonts, the best first, ... */
    XftFont *font[FONTS]; /* ... and those that are open */
    int fonts;
    int width; /* these in pixels */
    int height;
    int cell;
    int line;
    int pad;
    int graph;   /* its height, or 0 */
    int columns; /* of the grid */
    int lines;
    bool dead;         /* the server is gone */
    bool leaving;      /* the window is closed, and we go on */
    enum drag drag;    /* what the pointer does */
    int grip;          /* where it holds the scroll bar */
    Atom wanted;       /* the selection that we have asked for */
    int64_t graphed;   /* the newest second of the graph; -1: draw it */
    struct out visual; /* a line as the eye goes over it */
    struct out said;   /* the last lines; those of the last command ... */
    size_t since;      /* ... begin here */
    bool paged;        /* a page of them stands in place of the rows: */
    size_t page_from;  /* it begins here, ... */
    size_t page_top;   /* ... and is shown from here */
    int rows;          /* lines for rows, or for the page */
    struct node top; /* the first row that is not before it stands at the top */
    bool reveal;     /* the selected row is to be seen */
    bool ended;      /* the rows are those of what has ended */
    struct scroll scroll;   /* as it is, ... */
    struct scroll scrolled; /* ... and as it is drawn */
    struct menu menu;
    Time clicked;          /* when a row was, ... */
    int64_t clicked_row;   /* ... and its number */
    pid_t opener[OPENERS]; /* programs that open files; 0: none */
    fetcher_id looks;      /* the timer that looks after these; 0: none */
    char *copied[COPIES];  /* the selections that we own */
    char title[100];
} window;

/* -- the pen --------------------------------------------------------------- */

static void fill(struct window *w, enum ink ink, XRectangle r) {
    XSetForeground(w->d, w->gc, w->ink[ink].pixel);
    XFillRectangle(w->d, w->onto, w->gc, r.x, r.y, r.width, r.height);
}

/* Draw there from now on: behind the window, or on the menu. */
static void draw_onto(struct window *w, Drawable onto) {
    w->onto = onto;
    XftDrawChange(w->draw, onto);
}

static XRectangle rectangle(int x, int y, int width, int height) {
    if (width < 0 || height < 0)
        width = 0;
    return (XRectangle){(short)x, (short)y, (unsigned short)width,
                        (unsigned short)height};
}

static bool font_open(struct window *w, int i) {
    FcPattern *pattern =
        FcFontRenderPrepare(NULL, w->pattern, w->set->fonts[i]);
    XftFont *font = NULL;

    if (!pattern)
        return false;
    font = XftFontOpenPattern(w->d, pattern);
    if (!font) {
        FcPatternDestroy(pattern);
        return false;
    }
    w->font[w->fonts++] = font;
    return true;
}

static bool font_colored(FcPattern *font) {
    FcBool color;

    return FcPatternGetBool(font, FC_COLOR, 0, &color) == FcResultMatch &&
           color;
}

/* An Xft before 2.3.5 can't draw colored ones. */
static bool font_has(FcPattern *font, uint32_t c) {
    FcCharSet *has;

    if (FcPatternGetCharSet(font, FC_CHARSET, 0, &has) != FcResultMatch ||
        !FcCharSetHasChar(has, c))
        return false;
    return XftGetVersion() >= 20305 || !font_colored(font);
}

/* The first font that has a character, of all or of the colored ones. NULL:
 * there is none. */
static XftFont *font_find(struct window *w, uint32_t c, bool colored) {
    for (int i = 0; i < w->fonts; i++) {
        if (XftCharExists(w->d, w->font[i], c) &&
            (!colored || font_colored(w->font[i]->pattern)))
            return w->font[i];
    }
    for (int i = 0; i < w->set->nfont && w->fonts < FONTS; i++) {
        if (colored && !font_colored(w->set->fonts[i]))
            continue;
        if (font_has(w->set->fonts[i], c) && font_open(w, i))
            return w->font[w->fonts - 1];
    }
    return NULL;
}

/* Where no font has it, a box of the first one's. */
static XftFont *font_for(struct window *w, uint32_t c) {
    bool emoji = c >= 0x1f000 && c < 0x1fb00;
    XftFont *font = emoji ? font_find(w, c, true) : NULL;

    if (!font)
        font = font_find(w, c, false);
    return font ? font : w->font[0];
}

static XftGlyphFontSpec glyph_spec(struct window *w, uint32_t c, int x, int y) {
    XftFont *font = font_for(w, c);
    const XftFont *first = w->font[0];
    int above = (w->line - first->ascent - first->descent) / 2;

    y += above + first->ascent;
    return (XftGlyphFontSpec){font, XftCharIndex(w->d, font, c), (short)x,
                              (short)y};
}

static bool server_listens(struct window *w) {
    struct timeval now = {0, 0};
    fd_set wr;

    if (w->dead)
        return false;
    XFlush(w->d); /* what it said yes to before */
    FD_ZERO(&wr);
    FD_SET(tty.fd, &wr);
    return !w->dead && select(tty.fd + 1, NULL, &wr, NULL, &now) > 0;
}

struct pen { /* where a line is being drawn, and how */
    struct window *w;
    int x;
    int y;
    enum ink ink;
    bool marked; /* the background of selected text */
    bool caret;  /* stands before the next character */
    XftGlyphFontSpec spec[32];
    int n; /* of them */
};

static void pen_flush(struct pen *pen) {
    struct window *w = pen->w;

    if (pen->n > 0)
        XftDrawGlyphFontSpec(w->draw, &w->ink[pen->ink], pen->spec, pen->n);
    pen->n = 0;
}

static void pen_change(struct pen *pen, enum attribute attr) {
    static const enum ink inks[] = {
        [PLAIN] = INK_TEXT, [CHOSEN] = INK_TEXT, [DIM] = INK_DIM,
        [RED] = INK_RED,    [AMBER] = INK_AMBER, [CYAN] = INK_CYAN,
        [GREEN] = INK_BAR};

    pen_flush(pen);
    if (attr == MARKED)
        pen->marked = true;
    else if (attr == CARET)
        pen->caret = true;
    else
        pen->ink = inks[attr];
    if (attr != PLAIN)
        return;
    pen->marked = false;
    pen->caret = false;
}

static bool is_bar(uint32_t c) {
    return c == 0x2591 || (c > 0x2587 && c < 0x2590); /* none, or eighths */
}

static void pen_bar(struct pen *pen, uint32_t c) {
    struct window *w = pen->w;
    int height = w->line * 2 / 5;
    int y = pen->y + (w->line - height) / 2;
    int eighths = c == 0x2591 ? 0 : 0x2590 - (int)c;

    fill(w, INK_TRACK, rectangle(pen->x, y, w->cell, height));
    fill(w, INK_BAR, rectangle(pen->x, y, w->cell * eighths / 8, height));
}

/* What it joins, or selects, we draw one by one. */
static bool is_joiner(uint32_t c) {
    return c == 0x200d || (c >= 0xfe00 && c <= 0xfe0f);
}

static void pen_glyph(struct pen *pen, uint32_t c) {
    struct window *w = pen->w;
    int width = wcwidth((wchar_t)c);

    width = (width < 0 ? 1 : width) * w->cell;
    if (pen->marked)
        fill(w, INK_MARKED, rectangle(pen->x, pen->y, width, w->line));
    if (pen->caret)
        fill(w, INK_TEXT, rectangle(pen->x, pen->y, w->cell / 6 + 1, w->line));
    if (pen->ink == INK_BAR && is_bar(c))
        pen_bar(pen, c);
    else if (c != ' ' && !is_joiner(c))
        pen->spec[pen->n++] = glyph_spec(w, c, pen->x, pen->y);
    pen->x += width;
}

/* A line of the picture: characters on a grid, an attribute before them. New
 * glyphs are large, so the server is asked now and then whether it still
 * listens: false if not. */
static bool draw_line(struct window *w, const char *s, const char *end, int x,
                      int y) {
    struct pen pen = {.w = w, .x = x, .y = y, .ink = INK_TEXT};

    while (s < end) {
        uint32_t c = ' ';
        size_t size;

        if ((unsigned char)*s < ' ') {
            pen_change(&pen, (enum attribute)s[0]);
            s++;
            continue;
        }
        size = utf8_decode(s, &c);
        if (pen.n == (int)COUNT_OF(pen.spec)) {
            pen_flush(&pen);
            if (!server_listens(w))
                return false;
        }
        pen_glyph(&pen, c);
        s += size ? size : 1;
    }
    pen_flush(&pen);
    return true;
}

/* -- from right to left ----------------------------------------------------
 * A line reads from left to right, and in it Hebrew, Arabic and the like from
 * right to left: each run of their letters, and what stands between these, is
 * turned around. Numbers end a run. Arabic letters get the forms that join
 * them, which Unicode has as characters; there are no ligatures.
 */

static bool is_rtl(uint32_t c) {
    bool digit = (c >= 0x660 && c <= 0x669) || (c >= 0x6f0 && c <= 0x6f9);

    return !digit &&
           ((c >= 0x590 && c < 0x900) || (c >= 0xfb1d && c < 0xfe00) ||
            (c >= 0xfe70 && c < 0xff00));
}

/* How many forms has this letter? They stand one behind the other: alone, at
 * the end, at the beginning, within. Two: nothing is joined behind it. */
static int arabic_forms(uint32_t c, uint32_t *first) {
    static const char forms[] = "12222424244444222244444444" /* 0x621 ... */
                                "......4444444224";          /* ... 0x64a */

    *first = 0xfe80;
    if (c < 0x621 || c > 0x64a)
        return 0;
    for (uint32_t at = 0x621; at < c; at++)
        *first +=
            (uint32_t)(forms[at - 0x621] == '.' ? 0 : forms[at - 0x621] - '0');
    return forms[c - 0x621] == '.' ? 0 : forms[c - 0x621] - '0';
}

static const char *char_back(const char *s, const char *begin) {
    do {
        s--;
    } while (s > begin && (*s & 0xc0) == 0x80);
    return s;
}

static bool is_mark(const char *s) {
    uint32_t c = 0;

    return utf8_decode(s, &c) > 0 && wcwidth((wchar_t)c) == 0;
}

/* How many forms has the letter before, or behind, without marks? */
static int neighbor_forms(const char *begin, const char *at, const char *end,
                          bool back) {
    uint32_t c = 0;
    uint32_t first;

    do {
        if (back ? at <= begin : at + utf8_decode(at, &c) >= end)
            return 0;
        at = back ? char_back(at, begin) : at + utf8_decode(at, &c);
    } while (is_mark(at));
    (void)utf8_decode(at, &c);
    return c == 0x640 ? 4 : arabic_forms(c, &first);
}

/* The letter as it is joined to its neighbors, if there is a font for that. */
static uint32_t arabic_shape(struct window *w, const char *begin,
                             const char *at, const char *end) {
    uint32_t c = 0;
    uint32_t form;
    int forms;

    (void)utf8_decode(at, &c);
    forms = arabic_forms(c, &form);
    if (forms < 2)
        return c;
    if (neighbor_forms(begin, at, end, true) == 4)
        form++;
    if (forms == 4 && neighbor_forms(begin, at, end, false) > 1)
        form += 2;
    return XftCharExists(w->d, font_for(w, form), form) ? form : c;
}

static void put_turned(struct window *w, struct out *o, const char *begin,
                       const char *end) {
    const char *at = end;

    while (at > begin) {
        const char *from = char_back(at, begin);
        size_t replaced = 0;
        uint32_t c;

        while (from > begin && is_mark(from))
            from = char_back(from, begin);
        c = arabic_shape(w, begin, from, end);
        if (c >= 0xfe80 && c < 0xff00) {
            char form[] = {(char)0xef, (char)(0x80 | (c >> 6 & 63)),
                           (char)(0x80 | (c & 63))};

            out_add(o, form, sizeof form);
            replaced = utf8_decode(from, &c);
        }
        out_add(o, from + replaced, (size_t)(at - from) - replaced);
        at = from;
    }
}

/* Where a run ends that begins here: behind its last letter. */
static const char *run_end(const char *s, const char *end) {
    const char *last = s;
    uint32_t c = 0;

    for (; s < end; s += utf8_decode(s, &c)) {
        if (utf8_decode(s, &c) == 0 || (c < 0x80 && isalnum((int)c)) || c < ' ')
            break;
        if (c == ' ' && s[1] == ' ')
            break;
        if (is_rtl(c) || (is_mark(s) && last == s))
            last = s + utf8_decode(s, &c);
        else if (c >= 0x80)
            break;
    }
    return last;
}

/* The line as the eye goes over it. */
static void put_visual(struct window *w, struct out *o, const char *s,
                       size_t n) {
    const char *end = s + n;

    o->used = 0;
    while (s < end) {
        uint32_t c = 0;
        size_t size = utf8_decode(s, &c);
        const char *run = size > 0 && is_rtl(c) ? run_end(s, end) : s;

        if (run > s)
            put_turned(w, o, s, run);
        else {
            run = s + (size ? size : 1);
            out_add(o, s, (size_t)(run - s));
        }
        s = run;
    }
}

static void copy_out(struct window *w, XRectangle r) {
    XCopyArea(w->d, w->back, w->id, w->gc, r.x, r.y, r.width, r.height, r.x,
              r.y);
}

/* The entry, the rows and what was said, the graph, the totals: from top to
 * bottom. */
static int line_y(const struct window *w, int line) {
    if (line == 0)
        return w->pad + w->pad / 2;
    if (line == w->lines - 1)
        return w->height - w->pad - w->line;
    return 3 * w->pad + line * w->line;
}

static bool show_line(struct window *w, int i, const char *s, size_t n) {
    int y = line_y(w, i);
    int x = i == 0 ? 2 * w->pad : w->pad;
    int edge = i == 0 ? w->pad : w->pad / 2; /* the scroll bar's */
    bool whole;

    fill(w, i == 0 ? INK_FIELD : INK_PAPER,
         rectangle(edge, y, w->width - 2 * edge, w->line));
    if (n > 1 && *s == CHOSEN) { /* a bar at its edge in place of the mark */
        fill(w, INK_CHOSEN,
             rectangle(w->pad / 2, y, w->width - w->pad, w->line));
        fill(w, INK_BAR, rectangle(w->pad / 2, y, w->pad / 4, w->line));
        s += 2;
        n -= 2;
        x += w->cell;
    }
    if (i > 0) { /* what is edited stays as it is typed */
        put_visual(w, &w->visual, s, n);
        s = w->visual.data;
        n = w->visual.used;
    }
    whole = draw_line(w, s, s + n, x, y);
    copy_out(w, rectangle(edge, y, w->width - 2 * edge, w->line));
    return whole;
}

/* The speed of the last two minutes. */
static void show_graph(struct model *m, struct window *w) {
    int bottom = line_y(w, w->lines - 1) - w->pad;
    int y = bottom - w->graph;
    int wide = w->width - 2 * w->pad;
    int64_t most = 1;
    char peak[64];
    char size[32];

    for (int i = 0; i < SPEEDS; i++)
        most = m->speed[i] > most ? m->speed[i] : most;
    fill(w, INK_PAPER, rectangle(0, y, w->width, w->graph));
    fill(w, INK_TRACK, rectangle(w->pad, bottom - 1, wide, 1));
    for (int i = 0; i < SPEEDS; i++) {
        int64_t speed = m->speed[SPEEDS - 1 - i];
        int height = (int)(speed * (w->graph - w->line) / most);
        int x = wide * i / SPEEDS;
        int width = wide * (i + 1) / SPEEDS - x;

        if (width > 4)
            width--; /* a gap */
        fill(w, INK_BAR,
             rectangle(w->pad + x, bottom - 1 - height, width, height));
    }
    size_text(size, sizeof size, (double)most);
    snprintf(peak, sizeof peak, "%cpeak %s/s in two minutes", DIM, size);
    if (most > 1)
        (void)draw_line(w, peak, peak + strlen(peak), w->pad, y);
    copy_out(w, rectangle(0, y, w->width, w->graph));
    w->graphed = m->sampled;
}

/* -- the picture ----------------------------------------------------------- */

/* Where the last word before this place ends, if it is not far away. */
static size_t word_end(const char *s, size_t begin, size_t end) {
    size_t at = end;

    while (at > begin && s[at] != ' ')
        at--;
    return at > begin + (end - begin) / 2 ? at : end;
}

/* Where the line of what was said ends that is shown from there: in the page
 * a long one goes on in the next. */
static size_t said_end(const struct window *w, size_t at) {
    const char *s = w->said.data;
    size_t begin = at;
    int width = 0;

    while (at < w->said.used && s[at] != '\n') {
        struct glyph g = {.bytes = 1};

        if (w->paged && s[at] != REPORT)
            g = glyph_at(&the_view, s + at);
        width += g.columns;
        if (width > w->columns && at > begin)
            return word_end(s, begin, at);
        at += g.bytes;
    }
    return at;
}

static size_t said_ahead(const struct window *w, size_t at) {
    at = said_end(w, at);
    return at < w->said.used && w->said.data[at] == '\n' ? at + 1 : at;
}

/* The line before this place, but none before `from`. */
static size_t said_back(const struct window *w, size_t at, size_t from) {
    size_t begin = at > from ? at - 1 : from;
    size_t next;

    while (begin > from && w->said.data[begin - 1] != '\n')
        begin--;
    while ((next = said_ahead(w, begin)) < at)
        begin = next;
    return begin;
}

static int said_count(const struct window *w, size_t at, size_t end) {
    int n = 0;

    for (; at < end; at = said_ahead(w, at))
        n++;
    return n;
}

/* Where the last lines begin. */
static size_t said_last(const struct window *w, int lines, size_t from) {
    size_t at = w->said.used;

    for (; lines > 0 && at > from; lines--)
        at = said_back(w, at, from);
    return at;
}

static void draw_said_line(struct program *p, struct out *o,
                           enum attribute attr, char *s) {
    bool bad;

    if (*s == REPORT) {
        attr = DIM;
        s++;
    }
    bad = strncmp(s, "fetcher: ", 9) == 0;
    put_attr(o, bad ? RED : attr);
    put_padded(p->view, o, bad ? s + 9 : s, window.columns);
    out_puts(o, "\n");
}

static void draw_said(struct program *p, struct out *o, enum attribute attr,
                      size_t from, int lines) {
    struct window *w = &window;

    for (; lines > 0 && from < w->said.used; lines--) {
        size_t end = said_end(w, from);
        char behind = w->said.data[end];

        w->said.data[end] = '\0';
        draw_said_line(p, o, attr, w->said.data + from);
        w->said.data[end] = behind;
        from = said_ahead(w, from);
    }
}

/* The last answers to the last command, without what the rows show: for the
 * lines beside these. Returns how many lines. */
static int draw_answers(struct program *p, struct out *o, int most) {
    struct window *w = &window;
    size_t at[SAID_LINES];
    size_t from = w->said.used;
    int n = 0;

    while (n < most && from > w->since) {
        from = said_back(w, from, w->since);
        if (w->said.data[from] != REPORT)
            at[n++] = from;
    }
    for (int i = n - 1; o && i >= 0; i--)
        draw_said(p, o, DIM, at[i], 1);
    return n;
}

/* All that was said, or what help or the like has brought. */
static int draw_page(struct program *p, struct window *w, struct out *o) {
    size_t last = said_last(w, w->rows, w->page_from);

    if (w->page_top > last)
        w->page_top = last;
    if (w->page_top < w->page_from)
        w->page_top = w->page_from;
    w->scroll.all = said_count(w, w->page_from, w->said.used);
    w->scroll.first = said_count(w, w->page_from, w->page_top);
    draw_said(p, o, PLAIN, w->page_top, w->rows);
    if (w->scroll.all < w->rows)
        return (int)w->scroll.all;
    return w->rows;
}

/* The row that stands so many rows further on, or the last one there. */
static struct node *row_step(struct program *p, struct node *n, int64_t by) {
    struct node *next = n;

    for (; by != 0 && next; by -= by < 0 ? -1 : 1) {
        n = next;
        next = by < 0 ? rows_before(p, n) : rows_after(p, n);
    }
    return next ? next : n;
}

/* Does a row stand above another? */
static bool row_above(const struct node *a, const struct node *b) {
    if (is_ended(a) != is_ended(b))
        return is_ended(b);
    return node_before(a, b);
}

static struct node *list_top(struct window *w, struct program *p) {
    struct node *n = NULL;

    if (w->ended != p->view->ended) /* these are other rows */
        w->top.key = INT64_MIN;
    w->ended = p->view->ended;
    if (w->top.key == INT64_MIN)
        return rows_end(p, false);
    if (!is_ended(&w->top))
        n = lower_bound(p->model.rows, w->top.key, w->top.seq);
    else if (rows_both(p))
        n = rows_done(p, lower_bound(p->model.ended, w->top.key, 0), false);
    else
        n = lower_bound(p->model.ended, w->top.key, 0);
    return n ? n : rows_end(p, true);
}

static void list_set_top(struct window *w, struct program *p,
                         const struct node *n) {
    bool first = !n || n == rows_end(p, false);

    w->top.key = first ? INT64_MIN : n->key;
    w->top.seq = first ? 0 : n->seq;
}

/* The row at the top: what is below fills the window, and what a key has
 * selected is to be seen. */
static struct node *list_place(struct window *w, struct program *p) {
    struct node *lowest = row_step(p, rows_end(p, true), 1 - w->rows);
    struct node *selected = rows_selected(p);
    struct node *top = list_top(w, p);
    struct node *highest;

    if (w->reveal && selected && top) {
        highest = row_step(p, selected, 1 - w->rows);
        if (row_above(selected, top))
            top = selected;
        else if (row_above(top, highest))
            top = highest;
    }
    w->reveal = false;
    if (!top || (lowest && row_above(lowest, top)))
        top = lowest;
    list_set_top(w, p, top);
    return top;
}

/* The number of the first download that there is, and how many numbers there
 * are. */
static double number_span(struct model *m, int64_t *first) {
    *first = row_only(m) ? row_only(m)->id.key : 0;
    return (double)((int64_t)m->last_number - *first + 1);
}

/* How many rows stand before it? Of very many it is a guess, by their numbers,
 * when neither end is near. */
static int64_t count_before(struct program *p, struct node *row) {
    int64_t all = (int64_t)rows_count(p);
    struct node *up = row;
    struct node *down = row;
    int64_t first;
    double span = number_span(&p->model, &first);
    double part;

    for (int64_t n = 0; n < WALK_MOST; n++) {
        up = rows_before(p, up);
        if (!up)
            return n;
        down = rows_after(p, down);
        if (!down)
            return all - n - 1;
    }
    if (is_ended(row))
        return all - WALK_MOST;
    part = (double)(row_job(row)->id.key - first) / span;
    return WALK_MOST + (int64_t)(part * (double)(all - 2 * (int64_t)WALK_MOST));
}

/* The other way: the row that so many stand before. */
static struct node *row_at(struct program *p, int64_t n) {
    int64_t all = (int64_t)rows_count(p);
    struct node *found;
    int64_t first;
    double span = number_span(&p->model, &first);
    double part;

    if (n <= WALK_MOST)
        return row_step(p, rows_end(p, false), n);
    if (n >= all - WALK_MOST)
        return row_step(p, rows_end(p, true), n + 1 - all);
    part = (double)(n - WALK_MOST) / (double)(all - 2 * (int64_t)WALK_MOST);
    found = lower_bound(p->model.jobs, first + (int64_t)(part * span), 0);
    if (!found)
        return rows_end(p, true);
    return &container_of(found, struct job, id)->row;
}

static int draw_list(struct program *p, struct window *w, struct out *o) {
    struct node *selected = rows_selected(p);
    struct node *row;
    int n = 0;

    if (selected && is_ended(selected) && rows_both(p))
        selected = rows_done(p, selected, false);
    if (!selected || !p->view->chosen)
        selected = rows_end(p, false);
    rows_select(p, selected);
    row = list_place(w, p);
    w->scroll.all = (int64_t)rows_count(p);
    if (row && w->scroll.all > w->rows)
        w->scroll.first = count_before(p, row);
    for (; row && n < w->rows; row = rows_after(p, row)) {
        if (is_ended(row))
            draw_ended(p, o, ended_of(row), w->columns);
        else
            draw_row(p, o, row_job(row), w->columns);
        out_puts(o, "\n");
        n++;
    }
    p->view->count = n;
    return n;
}

static void draw_hint(struct out *o, enum attribute attr, const char *text,
                      int columns) {
    put_attr(o, attr);
    out_printf(o, "%.*s\n", columns, text);
}

/* A question has two answers, which may be clicked. */
static const char question[] = "Not all is done. Quit?";

enum { YES_AT = sizeof question + 1, NO_AT = YES_AT + 6, NO_END = NO_AT + 4 };

static void draw_question(struct out *o) {
    put_attr(o, AMBER);
    out_printf(o, "%s  ", question);
    put_attr(o, PLAIN);
    put_attr(o, MARKED);
    out_puts(o, " yes ");
    put_attr(o, PLAIN);
    out_puts(o, " ");
    put_attr(o, MARKED);
    out_puts(o, " no ");
    put_attr(o, PLAIN);
    out_puts(o, "\n");
}

/* The line at the top: what is edited, or what is asked. */
static void draw_top(struct program *p, struct window *w, struct out *o) {
    struct view *v = p->view;
    int columns = w->columns - 2 * w->pad / w->cell;

    if (v->asking)
        draw_question(o);
    else if (w->paged)
        draw_hint(o, DIM, "Escape: back to the downloads", columns);
    else if (p->prompting || v->prompt.length > 0) {
        draw_prompt(p, o, columns);
        out_puts(o, "\n");
    } else
        draw_hint(o, DIM,
                  v->ended ? "What has ended; d: back to all"
                           : "Enter a URL or a command",
                  columns);
}

/* Rows come first: what was said has a fifth of the lines at most, and a page
 * of its own. */
static void window_compose(struct program *p, struct window *w, struct out *o) {
    int room = w->lines - 2;
    int most = room / 5 < SAID_LINES ? room / 5 : SAID_LINES;
    int said = draw_answers(p, NULL, w->paged ? 0 : most);
    int n;

    o->used = 0;
    w->rows = room - said;
    if (said > 0 && room > 8)
        w->rows--; /* a gap */
    w->scroll = (struct scroll){.shown = w->rows};
    draw_top(p, w, o);
    n = w->paged ? draw_page(p, w, o) : draw_list(p, w, o);
    if (n == 0 && !w->paged && p->view->ended) {
        draw_hint(o, DIM, "Nothing has ended.", w->columns);
        n = 1;
    } else if (n == 0 && !w->paged && w->rows > 1) {
        draw_hint(o, DIM, "Type, paste or drop URLs.", w->columns);
        draw_hint(o, DIM, "F1 shows the keys.", w->columns);
        n = 2;
    }
    for (; n < room - said; n++)
        out_puts(o, "\n");
    (void)draw_answers(p, o, said);
    draw_totals(p, o, w->columns);
    out_puts(o, "\n");
}

/* -- the scroll bar: at the right edge ------------------------------------- */

static XRectangle scroll_area(const struct window *w) {
    return rectangle(w->width - w->pad / 2, line_y(w, 1), w->pad / 2,
                     w->rows * w->line);
}

static XRectangle scroll_thumb(const struct window *w) {
    const struct scroll *s = &w->scroll;
    XRectangle r = scroll_area(w);
    int64_t high = r.height * s->shown / (s->all > 0 ? s->all : 1);
    int64_t hidden = s->all - s->shown;

    if (high < w->line)
        high = w->line;
    if (hidden <= 0 || high >= r.height)
        return rectangle(r.x, r.y, 0, r.height);
    return rectangle(r.x + 1,
                     r.y + (int)((r.height - high) * s->first / hidden),
                     r.width - 2, (int)high);
}

static void show_scroll(struct window *w) {
    XRectangle r = scroll_area(w);
    XRectangle thumb = scroll_thumb(w);

    fill(w, INK_PAPER, r);
    if (thumb.width > 0) {
        fill(w, INK_TRACK, rectangle(thumb.x, r.y, thumb.width, r.height));
        fill(w, INK_DIM, thumb);
    }
    copy_out(w, r);
    w->scrolled = w->scroll;
}

/* Show what begins with this line. */
static void scroll_to(struct program *p, int64_t first) {
    struct window *w = &window;
    int64_t most = w->scroll.all - w->scroll.shown;

    first = first < most ? first : most;
    if (first < 0)
        first = 0;
    if (w->paged) {
        w->page_top = w->page_from;
        for (; first > 0; first--)
            w->page_top = said_ahead(w, w->page_top);
    } else if (rows_count(p) > 0)
        list_set_top(w, p, row_at(p, first));
}

/* Some lines on, or back: exactly so many, of however many. */
static void scroll_by(struct program *p, int by) {
    struct window *w = &window;

    if (w->paged)
        scroll_to(p, w->scroll.first + by);
    else if (rows_count(p) > 0)
        list_set_top(w, p, row_step(p, list_top(w, p), by));
}

static void scroll_drag(struct program *p, int y) {
    struct window *w = &window;
    XRectangle r = scroll_area(w);
    XRectangle thumb = scroll_thumb(w);
    int way = r.height - thumb.height;

    if (way > 0)
        scroll_to(p, (y - w->grip - r.y) * (w->scroll.all - w->scroll.shown) /
                         way);
}

/* The pointer takes hold of it: where it is, or, beside it, at its middle. */
static void scroll_grip(struct program *p, int y) {
    struct window *w = &window;
    XRectangle thumb = scroll_thumb(w);

    w->drag = DRAG_SCROLL;
    w->grip = y - thumb.y;
    if (w->grip < 0 || w->grip >= thumb.height)
        w->grip = thumb.height / 2;
    scroll_drag(p, y);
}

/* -- all of it ------------------------------------------------------------- */

/* Title and icon tell how far it is. */
static void show_title(struct program *p, struct window *w) {
    size_t left = p->model.count - p->model.failed;
    struct fetcher_stats st;
    char title[100] = "fetcher";
    char size[32];

    fetcher_stats(p->f, &st);
    size_text(size, sizeof size, speed_now(&p->model));
    if (left)
        snprintf(title, sizeof title,
                 "%" PRIu64 "/%" PRIu64 " - %s/s - fetcher", st.done,
                 st.done + left, size);
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

/* The grid and the frame for the present size. */
static void window_layout(struct window *w) {
    bool small = w->height < 12 * w->line;
    int rest;

    w->pad = small ? w->line / 3 + 1 : w->line * 3 / 4 + 1;
    rest = w->height - 5 * w->pad - 2 * w->line;
    w->graph = w->height > 26 * w->line ? 3 * w->line : 0;
    if (w->graph)
        rest -= w->pad + w->graph;
    w->columns = 1;
    if (w->width >= 2 * w->pad + w->cell)
        w->columns = (w->width - 2 * w->pad) / w->cell;
    w->lines = 2 + rest / w->line;
    if (w->lines < 2)
        w->lines = 2;
    if (w->lines > LINES_MOST)
        w->lines = LINES_MOST;
}

/* The window has another size: so has what is behind it, and all is drawn
 * anew. */
static void window_resize(struct view *v, struct window *w) {
    int wide;
    int high;

    window_layout(w);
    wide = w->width - 2 * w->pad;
    high = w->line + w->pad;
    if (w->back)
        XFreePixmap(w->d, w->back);
    w->back =
        XCreatePixmap(w->d, w->id, (unsigned)w->width, (unsigned)w->height,
                      (unsigned)DefaultDepth(w->d, DefaultScreen(w->d)));
    draw_onto(w, w->back);
    fill(w, INK_PAPER, rectangle(0, 0, w->width, w->height));
    fill(w, INK_EDGE, rectangle(w->pad - 1, w->pad - 1, wide + 2, high + 2));
    fill(w, INK_FIELD, rectangle(w->pad, w->pad, wide, high));
    copy_out(w, rectangle(0, 0, w->width, w->height));
    memset(v->shown, 0, sizeof v->shown);
    w->graphed = -1;
    w->scrolled.shown = -1;
    v->redraw = false;
}

/* The last lines end with a NUL behind them. */
static void said_add(struct window *w, const struct out *log) {
    struct out *said = &w->said;

    out_add(said, log->data, log->used);
    if (said->used > SAID_MAX) {
        size_t cut = said->used - SAID_MAX / 2;

        out_drop(said, cut);
        w->since = w->since > cut ? w->since - cut : 0;
        w->page_from = w->page_from > cut ? w->page_from - cut : 0;
        w->page_top = w->page_top > cut ? w->page_top - cut : 0;
    }
    out_add(said, "", 1);
    said->used--;
}

/* A line that the server does not take is tried again later: it is still
 * marked as old. New fonts take their time, so it is for a slice. */
static bool show_lines(struct view *v, struct window *w) {
    const char *s = v->picture.data;
    usec end = clock_us() + SLICE_INPUT_US;

    for (int i = 0; i < w->lines; i++) {
        size_t n = strcspn(s, "\n");
        uint64_t hash = text_hash(s, n);

        if (v->shown[i] != hash) {
            bool whole = server_listens(w) && show_line(w, i, s, n);
            v->shown[i] = whole ? hash : 0;
            if (!whole || (clock_us() >= end && i < w->lines - 1))
                return false;
        }
        s += n + 1;
    }
    return true;
}

static bool window_paint(struct program *p, struct window *w) {
    struct view *v = p->view;

    if (!server_listens(w))
        return false;
    if (v->redraw)
        window_resize(v, w);
    window_compose(p, w, &v->picture);
    v->drawn = fetcher_now(p->f);
    if (!show_lines(v, w))
        return false;
    if (memcmp(&w->scroll, &w->scrolled, sizeof w->scroll) != 0)
        show_scroll(w);
    if (w->graph && w->graphed != p->model.sampled)
        show_graph(&p->model, w);
    show_title(p, w);
    return true;
}

static void window_events(struct fetcher *f, int fd, int events, void *arg);

/* What was said goes to the standard output as well. */
static void window_log(struct program *p) {
    struct view *v = p->view;
    const char *s = v->log.data;
    size_t at = 0;

    said_add(&window, &v->log);
    while (at < v->log.used) {
        size_t n = 0;

        while (at + n < v->log.used && s[at + n] != REPORT)
            n++;
        out_add(v->out, s + at, n);
        at += n + 1;
    }
    v->log.used = 0;
    out_flush(p->f, v->out);
}

static void window_show(struct program *p) {
    window_log(p);
    if (!window_paint(p, &window))
        frame_at(p,
                 fetcher_now(p->f) + (server_listens(&window) ? 0 : TICK_MS));
    window_events(p->f, 0, 0, p);
    wake(p); /* the log has room again */
}

/* -- events ---------------------------------------------------------------- */

/* Copy what is selected of the entry; where the rows have the keys, the row's
 * URL. */
static void copy(struct program *p, int which, Time time) {
    struct window *w = &window;
    struct prompt *e = &p->view->prompt;
    struct range range = selected(e);
    struct node *n = rows_selected(p);
    const char *url = "";
    char *text;

    if (which == COPIED_CLIPBOARD && n && is_ended(n))
        url = ended_of(n)->r.url;
    else if (which == COPIED_CLIPBOARD && n)
        url = job_info(&p->model, row_job(n)).url;
    text = p->prompting ? strndup(e->text + range.at, range.n) : strdup(url);
    if (!text || !*text) {
        free(text);
        return;
    }
    free(w->copied[which]);
    w->copied[which] = text;
    XSetSelectionOwner(
        w->d, which == COPIED_CLIPBOARD ? w->atom[CLIPBOARD] : XA_PRIMARY,
        w->id, time);
}

static void selection_want(struct window *w, Atom selection, Atom target,
                           Time time) {
    w->wanted = selection;
    XConvertSelection(w->d, selection, target, selection, w->id, time);
}

/* The code of a key that is no text; 0: it is text. */
static int key_of(KeySym sym, unsigned state) {
    int key = 0;

    if (sym >= XK_Home && sym <= XK_End)
        key = KEY_HOME + (int)(sym - XK_Home);
    if (sym >= XK_KP_Home && sym <= XK_KP_End)
        key = KEY_HOME + (int)(sym - XK_KP_Home);
    if (sym == XK_Delete || sym == XK_KP_Delete)
        key = KEY_DELETE;
    if (key != KEY_LEFT && key != KEY_RIGHT && key != KEY_HOME &&
        key != KEY_END)
        return key;
    if ((state & ControlMask) && (key == KEY_LEFT || key == KEY_RIGHT))
        key += WORD;
    if (state & ShiftMask)
        key += SHIFT;
    return key;
}

/* All that was said from there on, in place of the rows. */
static void page_open(struct window *w, size_t from) {
    w->paged = true;
    w->page_from = from;
    w->page_top = from;
}

/* What it has shown is old news. */
static void page_close(struct window *w) {
    w->paged = false;
    w->since = w->said.used;
}

static void page_help(struct program *p) {
    page_open(&window, window.said.used);
    view_help(p, 0);
    (void)submit(p, "help", "");
}

static void page_said(struct program *p) {
    page_open(&window, 0);
    window.page_top = window.said.used; /* its end */
}

/* A line is entered. Some commands say so much that it takes a page. */
static void line_entered(struct program *p, const char *line) {
    static const char *const talkers[] = {"help", "list", "show", "stats"};
    struct window *w = &window;
    const char *word = line + strspn(line, " ");
    size_t n = strcspn(word, " ");

    w->since = w->said.used;
    for (size_t i = 0; i < COUNT_OF(talkers); i++) {
        if (n == strlen(talkers[i]) && strncmp(word, talkers[i], n) == 0 &&
            !p->s.json && !p->s.quiet)
            page_open(w, w->since);
    }
}

/* Keys scroll the page; each other one closes it. False: and means what it
 * always does. */
static bool page_key(struct program *p, int key) {
    struct window *w = &window;

    switch (key) {
    case KEY_UP:
        scroll_by(p, -1);
        return true;
    case KEY_DOWN:
        scroll_by(p, 1);
        return true;
    case KEY_PAGE_UP:
        scroll_by(p, 1 - w->rows);
        return true;
    case KEY_PAGE_DOWN:
    case ' ':
        scroll_by(p, w->rows - 1);
        return true;
    case KEY_HOME:
        scroll_to(p, 0);
        return true;
    case KEY_END:
        scroll_to(p, w->scroll.all);
        return true;
    default:
        page_close(w);
        return key == ESC || key == 'q' || key == '?' || key == '\r' ||
               key == '\t';
    }
}

/* Keys that the window has beside the terminal's: those of the clipboard, and
 * from the entry to the rows and back. False: it is none of them. */
static bool window_shortcut(struct program *p, int c, Time time) {
    struct window *w = &window;
    struct prompt *e = &p->view->prompt;

    switch (c) {
    case CTRL('v'):
        selection_want(w, w->atom[CLIPBOARD], w->atom[UTF8], time);
        return true;
    case CTRL('c'):
        copy(p, COPIED_CLIPBOARD, time);
        return true;
    case CTRL('x'):
        copy(p, COPIED_CLIPBOARD, time);
        if (p->prompting && e->caret != e->mark)
            key_put(p->view, KEY_DELETE);
        return true;
    case CTRL('a'):
        if (p->prompting) {
            e->mark = 0;
            e->caret = e->length;
        }
        return true;
    case '\t':
        if (!p->view->asking)
            p->prompting = !p->prompting;
        return true;
    default:
        return false;
    }
}

/* Text of a key; without an input method it is Latin-1. */
static void window_text(struct view *v, const char *text, int n, bool latin1) {
    int c = (unsigned char)*text;

    if (latin1 && n == 1 && c > 0x7f) {
        key_put(v, 0xc0 | c >> 6);
        key_put(v, 0x80 | (c & 0x3f));
        return;
    }
    for (int i = 0; i < n; i++)
        key_put(v, (unsigned char)text[i]);
}

/* -- opening what is done -------------------------------------------------- */

/* In the child: nothing of ours is left to it but the environment. */
static void opener_run(const char *path) {
    struct sigaction usual = {.sa_handler = SIG_DFL};
    sigset_t none;
    int null;

    setsid();
    sigaction(SIGPIPE, &usual, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int fd = 0; fd < FD_SETSIZE; fd++)
        close(fd);
    null = open("/dev/null", O_RDWR); /* that is 0 */
    if (null == 0 && dup(null) == 1 && dup(null) == 2)
        execlp("xdg-open", "xdg-open", path, (char *)NULL);
    _exit(127);
}

/* Look after those that open something: one that ends badly is told of. */
static void opener_look(struct fetcher *f, void *arg) {
    struct program *p = arg;
    bool left = false;
    int status;

    window.looks = 0;
    for (int i = 0; i < OPENERS; i++) {
        pid_t *pid = &window.opener[i];

        if (*pid == 0)
            continue;
        if (waitpid(*pid, &status, WNOHANG) != *pid) {
            left = true;
            continue;
        }
        *pid = 0;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            complain(&p->console, "xdg-open", "it can't open that");
    }
    if (left)
        window.looks = fetcher_timer(f, 1000, opener_look, p);
}

/* What speaks against opening this file? NULL: nothing. */
static const char *opener_fork(const char *name) {
    pid_t *pid = window.opener;
    int i = 0;

    while (i < OPENERS && pid[i] != 0)
        i++;
    if (i == OPENERS)
        return "too many are being opened";
    if (access(name, F_OK) < 0)
        return strerror(errno);
    pid[i] = fork();
    if (pid[i] == 0)
        opener_run(name);
    if (pid[i] > 0)
        return NULL;
    pid[i] = 0;
    return strerror(errno);
}

/* A name that begins with a '-' is no option. */
static void opener_start(struct program *p, const char *path) {
    const char *fault = "it is in no file";
    char *name = NULL;

    if (path)
        name = text_join(path[0] == '/' ? "" : "./", path);
    if (name)
        fault = opener_fork(name);
    if (fault)
        complain(&p->console, path ? path : "", fault);
    else if (!window.looks)
        window.looks = fetcher_timer(p->f, TICK_MS, opener_look, p);
    free(name);
}

/* -- the menu -------------------------------------------------------------- */

/* The row at this height; NULL: there is none. */
static struct node *row_under(struct program *p, int y) {
    struct window *w = &window;
    int row = (y - line_y(w, 1)) / w->line;

    if (w->paged || y < line_y(w, 1) || row >= p->view->count)
        return NULL;
    return row_step(p, list_top(w, p), row);
}

static void row_choose(struct program *p, struct node *n) {
    p->prompting = false;
    p->view->chosen = true;
    rows_select(p, n);
}

static int64_t row_number(const struct node *n) {
    if (is_ended(n))
        return container_of(n, struct ended, row)->number;
    return container_of(n, struct job, row)->id.key;
}

enum on {
    GOES = 1,
    PAUSED = 2,
    FAILED = 4,
    DONE = 8,
    NO_ROW = 16,
    ENDED = 32,    /* there is something that has ended, ... */
    CANCELLED = 64 /* ... or that was cancelled */
};

/* What may be done there, and the key that does it. */
static const struct {
    const char *text;
    const char *key;
    int code;    /* of the key; 0: it is a command */
    unsigned on; /* where: one of these is enough */
} menu_items[] = {
    {"Open", "Return", '\r', DONE},
    {"Pause", "p", 'p', GOES},
    {"Go on", "p", 'p', PAUSED},
    {"Try again", "r", 'r', FAILED},
    {"Put first", "f", 'f', GOES | PAUSED},
    {"Cancel", "c", 'c', GOES | PAUSED},
    {"Take off the list", "c", 'c', FAILED | DONE},
    {"All about it", "i", 'i', GOES | PAUSED | FAILED | DONE},
    {"Copy the URL", "Ctrl+C", CTRL('c'), GOES | PAUSED | FAILED | DONE},
    {"Paste", "Ctrl+V", CTRL('v'), NO_ROW},
    {"Undo cancel", "u", 'u', CANCELLED},
    {"Clear what has ended", "", 0, ENDED},
    {"What was said", "F2", XK_F2, NO_ROW},
    {"Keys and commands", "F1", XK_F1, NO_ROW},
    {"Quit", "q", 'q', NO_ROW},
};

/* A key for the rows: Return opens what is done, and shows all that is known of
 * another. */
static void window_row_key(struct program *p, int key) {
    struct node *n = rows_selected(p);
    bool done = n && is_ended(n) && !ended_of(n)->r.code;

    if (key == '\r' && done)
        opener_start(p, ended_of(n)->r.path);
    else if (n && (key == '\r' || key == 'i')) {
        page_open(&window, window.said.used);
        view_verb(p, "show");
    } else
        key_put(p->view, key);
}

static unsigned menu_on(struct model *m, struct node *n) {
    unsigned on = NO_ROW;
    bool failed;

    if (n) {
        failed = is_ended(n) ? ended_of(n)->r.code : row_job(n)->failed != NULL;
        if (failed)
            return FAILED;
        if (is_ended(n))
            return DONE;
        return job_info(m, row_job(n)).state == FETCHER_PAUSED ? PAUSED : GOES;
    }
    if (m->ended_count > 0)
        on |= ENDED;
    if (m->cancelled_count > 0)
        on |= CANCELLED;
    return on;
}

static void menu_show(struct window *w) {
    struct menu *m = &w->menu;

    if (!m->at.width || !server_listens(w))
        return;
    draw_onto(w, m->id);
    fill(w, INK_FIELD, rectangle(0, 0, m->at.width, m->at.height));
    for (int i = 0; i < m->items; i++) {
        const char *text = menu_items[m->item[i]].text;
        const char *key = menu_items[m->item[i]].key;
        int y = w->line / 3 + i * w->line;
        char line[100];

        if (i == m->chosen)
            fill(w, INK_MARKED, rectangle(0, y, m->at.width, w->line));
        snprintf(line, sizeof line, "  %s%c%*s", text,
                 i == m->chosen ? PLAIN : DIM,
                 MENU_COLUMNS - 4 - (int)strlen(text), key);
        (void)draw_line(w, line, line + strlen(line), 0, y);
    }
    draw_onto(w, w->back);
}

static void menu_listen(struct window *w, long mask) {
    XSelectInput(w->d, w->id,
                 KeyPressMask | ButtonPressMask | ButtonReleaseMask |
                     ExposureMask | StructureNotifyMask | mask);
}

static void menu_close(struct window *w) {
    w->menu.at.width = 0;
    XUnmapWindow(w->d, w->menu.id);
    menu_listen(w, Button1MotionMask);
}

/* At the pointer, but within the window. */
static void menu_open(struct program *p, int x, int y) {
    struct window *w = &window;
    struct menu *m = &w->menu;
    struct node *n = row_under(p, y);
    unsigned on = menu_on(&p->model, n);
    int width = MENU_COLUMNS * w->cell;
    int height;

    m->row = n ? row_number(n) : 0;
    if (n)
        row_choose(p, n);
    m->items = 0;
    for (size_t i = 0; i < COUNT_OF(menu_items); i++) {
        if (menu_items[i].on & on)
            m->item[m->items++] = (int)i;
    }
    m->chosen = -1;
    height = m->items * w->line + w->line * 2 / 3;
    x = x + width < w->width ? x : w->width - width - 2;
    y = y + height < w->height ? y : w->height - height - 2;
    m->at = rectangle(x, y, width, height);
    XMoveResizeWindow(w->d, m->id, x, y, (unsigned)width, (unsigned)height);
    XMapRaised(w->d, m->id);
    menu_listen(w, PointerMotionMask);
}

/* The item at this place of the window, or -1. */
static int menu_under(const struct window *w, int x, int y) {
    const struct menu *m = &w->menu;
    int top = y - m->at.y - w->line / 3;

    if (x < m->at.x || x >= m->at.x + m->at.width || top < 0 ||
        top >= m->items * w->line)
        return -1;
    return top / w->line;
}

static void menu_point(struct window *w, int item) {
    if (item == w->menu.chosen)
        return;
    w->menu.chosen = item;
    menu_show(w);
}

/* Its row may be another by now: then there is nothing to do. */
static void menu_take(struct program *p, int item, Time time) {
    struct window *w = &window;
    struct node *row = rows_selected(p);
    int code;

    menu_close(w);
    if (item < 0 || (w->menu.row && (!row || row_number(row) != w->menu.row)))
        return;
    code = menu_items[w->menu.item[item]].code;
    w->since = w->said.used;
    p->prompting = p->prompting && !w->menu.row;
    if (code == XK_F1)
        page_help(p);
    else if (code == XK_F2)
        page_said(p);
    else if (code == 0)
        (void)submit(p, "clear", "");
    else if (!window_shortcut(p, code, time)) {
        p->prompting = false;
        window_row_key(p, code);
    }
}

static void menu_click(struct program *p, const XButtonEvent *e) {
    menu_take(p, menu_under(&window, e->x, e->y), e->time);
    keys_act(p);
}

static void menu_key(struct program *p, int key, Time time) {
    struct window *w = &window;
    int items = w->menu.items;

    if (key == KEY_DOWN)
        menu_point(w, (w->menu.chosen + 1) % items);
    else if (key == KEY_UP)
        menu_point(w, (w->menu.chosen + items - (w->menu.chosen < 0 ? 0 : 1)) %
                          items);
    else if (key == '\r')
        menu_take(p, w->menu.chosen, time);
    else
        menu_close(w);
}

/* -- keys ------------------------------------------------------------------ */

/* Keys of the window that are no text, and no codes either. */
static bool window_function(struct program *p, KeySym sym, XKeyEvent *e) {
    bool paged = window.paged;

    if (sym == XK_Insert && (e->state & ShiftMask))
        selection_want(&window, XA_PRIMARY, window.atom[UTF8], e->time);
    else if (sym == XK_F1 || sym == XK_F2) {
        page_close(&window);
        if (!paged && sym == XK_F1)
            page_help(p);
        else if (!paged)
            page_said(p);
    } else
        return false;
    return true;
}

/* What a key does. */
static void window_act(struct program *p, const char *text, int n, int key,
                       Time time) {
    struct window *w = &window;
    int c = n == 1 ? (unsigned char)*text : 0;
    int code = key ? key : c;

    if (n == 0 && !key)
        return; /* no more than a shift */
    if (w->paged && page_key(p, code))
        return;
    if (p->prompting && (key == KEY_PAGE_UP || key == KEY_PAGE_DOWN)) {
        scroll_by(p, key == KEY_PAGE_UP ? 1 - w->rows : w->rows - 1);
        return;
    }
    if (p->prompting && (c == '\r' || c == '\n'))
        line_entered(p, p->view->prompt.text);
    else if (!p->prompting)
        w->since = w->said.used;
    w->reveal = !p->prompting;
    if (key)
        key_put(p->view, key);
    else if (c == '?' && !p->prompting && !p->view->asking)
        page_help(p);
    else if ((c == '\r' || c == 'i') && !p->prompting && !p->view->asking)
        window_row_key(p, c);
    else if (!window_shortcut(p, c, time))
        window_text(p->view, text, n, !w->ic);
}

static void window_key(struct program *p, XEvent *event) {
    struct window *w = &window;
    XKeyEvent *e = &event->xkey;
    char text[64];
    KeySym sym = NoSymbol;
    Status status = 0;
    int key;
    int n;

    if (w->ic)
        n = Xutf8LookupString(w->ic, e, text, sizeof text, &sym, &status);
    else
        n = XLookupString(e, text, sizeof text, &sym, NULL);
    if (n < 0 || status == XBufferOverflow)
        n = 0;
    key = key_of(sym, e->state);
    if (w->menu.at.width > 0 && (n > 0 || key))
        menu_key(p, key ? key : *text, e->time);
    else if (!window_function(p, sym, e))
        window_act(p, text, key ? 0 : n, key, e->time);
    keys_act(p);
}

/* The caret goes where the pointer is. The line may be shorter than when it
 * was drawn. */
static void caret_to(struct program *p, int x) {
    const struct window *w = &window;
    struct prompt *e = &p->view->prompt;
    int column = (x - 2 * w->pad) / w->cell;

    e->caret = e->from < e->length ? e->from : e->length;
    while (e->text[e->caret]) {
        struct glyph g = glyph_at(p->view, e->text + e->caret);

        if (column < g.columns)
            return;
        column -= g.columns;
        e->caret += g.bytes;
    }
}

/* -- the mouse ------------------------------------------------------------- */

/* What was said stands there. */
static bool over_said(const struct window *w, int y) {
    int line = (y - line_y(w, 1)) / w->line;

    return !w->paged && line >= w->rows && line < w->lines - 2 &&
           w->since < w->said.used;
}

/* Twice: what one does most with such a row. */
static void row_click(struct program *p, struct node *n, Time time) {
    struct window *w = &window;
    bool again =
        w->clicked_row == row_number(n) && time - w->clicked < DOUBLE_CLICK_MS;
    unsigned on = menu_on(&p->model, n);

    row_choose(p, n);
    w->clicked_row = again ? 0 : row_number(n);
    w->clicked = time;
    if (!again)
        return;
    w->since = w->said.used;
    if (on & DONE)
        window_row_key(p, '\r');
    else
        window_row_key(p, on & FAILED ? 'r' : 'p');
    keys_act(p);
}

static void window_point(struct program *p, const XButtonEvent *e) {
    struct window *w = &window;
    struct prompt *line = &p->view->prompt;
    struct node *n = row_under(p, e->y);

    if (e->x >= w->width - w->pad && e->y >= line_y(w, 1) &&
        w->scroll.all > w->scroll.shown)
        scroll_grip(p, e->y);
    else if (e->y < line_y(w, 1)) {
        page_close(w);
        p->prompting = true;
        w->drag = DRAG_TEXT;
        caret_to(p, e->x);
        line->mark = line->caret;
    } else if (n)
        row_click(p, n, e->time);
    else if (over_said(w, e->y))
        page_said(p);
}

/* Whether to quit has been asked: a click answers. */
static void window_answer(struct program *p, int x, int y) {
    int column = (x - 2 * window.pad) / window.cell;

    p->view->asking = false;
    if (y < line_y(&window, 1) && column >= YES_AT && column < NO_AT)
        (void)submit(p, "quit", "");
}

static void window_press(struct program *p, XEvent *event) {
    struct window *w = &window;
    XButtonEvent *e = &event->xbutton;

    switch (e->button) {
    case Button4:
        scroll_by(p, -3);
        return;
    case Button5:
        scroll_by(p, 3);
        return;
    case Button2:
        p->view->asking = false;
        selection_want(w, XA_PRIMARY, w->atom[UTF8], e->time);
        return;
    }
    if (w->menu.at.width > 0)
        menu_click(p, e);
    else if (p->view->asking)
        window_answer(p, e->x, e->y);
    else if (e->button == Button1)
        window_point(p, e);
    else if (e->button == Button3)
        menu_open(p, e->x, e->y);
}

static void window_drag(struct program *p, XEvent *event) {
    const XMotionEvent *e = &event->xmotion;
    struct window *w = &window;

    if (w->menu.at.width > 0)
        menu_point(w, menu_under(w, e->x, e->y));
    else if (w->drag == DRAG_TEXT)
        caret_to(p, e->x);
    else if (w->drag == DRAG_SCROLL)
        scroll_drag(p, e->y);
}

static void window_release(struct program *p, XEvent *event) {
    XButtonEvent *e = &event->xbutton;
    struct window *w = &window;

    if (e->button == Button3 && menu_under(w, e->x, e->y) >= 0)
        menu_click(p, e); /* it was dragged there */
    if (w->drag == DRAG_TEXT)
        copy(p, COPIED_PRIMARY, e->time);
    w->drag = DRAG_NONE;
}

static void window_expose(struct program *p, XEvent *event) {
    XExposeEvent *e = &event->xexpose;

    if (e->window == window.menu.id)
        menu_show(&window);
    else if (window.back)
        copy_out(&window, rectangle(e->x, e->y, e->width, e->height));
}

static void window_configure(struct program *p, XEvent *event) {
    struct window *w = &window;
    XConfigureEvent *e = &event->xconfigure;

    if (e->width != w->width || e->height != w->height)
        p->view->redraw = true;
    w->width = e->width;
    w->height = e->height;
}

static void dnd_reply(struct window *w, enum atom type, bool good) {
    XEvent e = {.xclient = {.type = ClientMessage,
                            .window = w->source,
                            .format = 32,
                            .message_type = w->atom[type]}};
    long *l = e.xclient.data.l;

    l[0] = (long)w->id;
    if (good) {
        l[1] = 1;
        l[type == DND_STATUS ? 4 : 2] = (long)w->atom[DND_COPY];
    }
    XSendEvent(w->d, w->source, False, NoEventMask, &e);
}

/* A list of URIs (RFC 2483), which are added, whatever they may be, as long as
 * there is room. */
static bool take_drop(struct program *p, char *uris) {
    bool room = true;

    for (char *s = strtok(uris, "\r\n"); s; s = strtok(NULL, "\r\n")) {
        if (*s != '#' && !submit(p, "add ", s))
            room = false;
    }
    return room;
}

/* A byte of it could be a key, or end it. */
static void take_paste(struct program *p, const unsigned char *text, size_t n) {
    struct view *v = p->view;

    p->prompting = true;
    v->asking = false;
    page_close(&window);
    key_put(v, KEY_PASTE);
    for (size_t i = 0; i < n; i++)
        key_put(v, text[i]);
    key_put(v, KEY_PASTED);
    keys_act(p);
}

struct property { /* what a selection has brought */
    Atom type;
    int format; /* bits of an element */
    unsigned long n;
    unsigned long left; /* bytes that were too many */
    unsigned char *data;
};

static struct property property_read(struct window *w, Atom name) {
    struct property got = {.type = None};

    if (name != None)
        XGetWindowProperty(w->d, w->id, name, 0, PASTE_MAX / 4, True,
                           AnyPropertyType, &got.type, &got.format, &got.n,
                           &got.left, &got.data);
    return got;
}

/* Somebody's selection has come, as one property, or not at all: a paste or a
 * drop. Nobody else may bring us something. */
static void selection_take(struct program *p, XEvent *event) {
    struct window *w = &window;
    XSelectionEvent *e = &event->xselection;
    bool drop = e->selection == w->atom[DND_SELECTION];
    const char *wrong = NULL;
    struct property got;

    if (e->selection != w->wanted || (e->property && e->property != w->wanted))
        return;
    w->wanted = None;
    got = property_read(w, e->property);
    if (w->dead)
        return;
    if (got.type == w->atom[INCR] || got.left > 0)
        wrong = "it is too large";
    else if (got.format != 8 || got.n == 0)
        wrong = "there is no text in it";
    else if (!drop)
        take_paste(p, got.data, got.n);
    else if (!take_drop(p, (char *)got.data))
        wrong = "it is too large";
    if (got.left > 0)
        XDeleteProperty(w->d, w->id, e->property);
    if (wrong)
        complain(&p->console, drop ? "the drop" : "the paste", wrong);
    if (drop)
        dnd_reply(w, DND_FINISHED, !wrong);
    if (got.data)
        XFree(got.data);
}

/* Give others what we have copied. */
static void selection_give(struct program *p, XEvent *event) {
    struct window *w = &window;
    XSelectionRequestEvent *r = &event->xselectionrequest;
    bool clipboard = r->selection == w->atom[CLIPBOARD];
    const char *text = w->copied[clipboard ? COPIED_CLIPBOARD : COPIED_PRIMARY];
    Atom list[] = {w->atom[TARGETS], w->atom[UTF8]};
    Atom property = r->property ? r->property : r->target;
    XEvent e = {.xselection = {.type = SelectionNotify,
                               .requestor = r->requestor,
                               .time = r->time,
                               .selection = r->selection,
                               .target = r->target}};

    if (text && r->target == w->atom[TARGETS])
        XChangeProperty(w->d, r->requestor, property, XA_ATOM, 32,
                        PropModeReplace, (unsigned char *)list, 2);
    else if (text && r->target == w->atom[UTF8])
        XChangeProperty(w->d, r->requestor, property, r->target, 8,
                        PropModeReplace, (const unsigned char *)text,
                        (int)strlen(text));
    else
        property = None;
    e.xselection.property = property;
    XSendEvent(w->d, r->requestor, False, NoEventMask, &e);
}

/* It is to be closed. Where stdin brings commands we go on without it. */
static void window_delete(struct program *p) {
    const struct input *list = &p->input[LIST];

    window.leaving = is_dash(list->name) && input_left(list);
    if (window.leaving)
        return;
    if (p->view->asking || fetcher_count(p->f) == 0)
        (void)submit(p, "quit", "");
    else {
        p->view->asking = true;
        p->prompting = false;
    }
}

static void window_message(struct program *p, XEvent *event) {
    struct window *w = &window;
    XClientMessageEvent *e = &event->xclient;
    const long *l = e->data.l;

    if (e->message_type == w->atom[PROTOCOLS]) {
        if ((Atom)l[0] == w->atom[DELETE_WINDOW])
            window_delete(p);
    } else if (e->message_type == w->atom[DND_POSITION]) {
        w->source = (Window)l[0];
        dnd_reply(w, DND_STATUS, true);
    } else if (e->message_type == w->atom[DND_DROP]) {
        w->source = (Window)l[0];
        selection_want(w, w->atom[DND_SELECTION], w->atom[URI_LIST],
                       (Time)l[2]);
    }
}

static void (*const handlers[LASTEvent])(struct program *, XEvent *) = {
    [Expose] = window_expose,
    [ConfigureNotify] = window_configure,
    [KeyPress] = window_key,
    [ButtonPress] = window_press,
    [MotionNotify] = window_drag,
    [ButtonRelease] = window_release,
    [SelectionNotify] = selection_take,
    [SelectionRequest] = selection_give,
    [ClientMessage] = window_message,
};

static void window_event(struct program *p, XEvent *e) {
    if (e->type >= 0 && e->type < LASTEvent && handlers[e->type])
        handlers[e->type](p, e);
    frame_at(p, p->view->drawn + p->view->pace);
}

/* The end of the window. XCloseDisplay would wait for a server that may be
 * stopped. */
static void window_off(struct program *p) {
    struct window *w = &window;

    if (!p->view->on)
        return;
    if (server_listens(w)) {
        XDestroyWindow(w->d, w->id);
        XFlush(w->d);
    }
    window_log(p);
    view_off(p); /* tty.fd is no terminal, so nothing is sent there */
    close(tty.fd);
    free(w->said.data);
    free(w->visual.data);
    free(w->copied[COPIED_PRIMARY]);
    free(w->copied[COPIED_CLIPBOARD]);
}

static void window_again(struct fetcher *f, void *arg) {
    window_events(f, 0, 0, arg);
}

/* Take events, for a slice; what Xlib holds then is taken in the next turn. */
static void window_events(struct fetcher *f, int fd, int events, void *arg) {
    struct program *p = arg;
    struct window *w = &window;
    usec end = clock_us() + SLICE_INPUT_US;
    XEvent e;

    while (!w->dead && !w->leaving && XPending(w->d) > 0 && clock_us() < end) {
        XNextEvent(w->d, &e);
        if (!w->dead && !XFilterEvent(&e, None))
            window_event(p, &e);
    }
    if (!p->view->on)
        return;
    if (w->dead || w->leaving) {
        view_lost(f, p);
        complain(&p->console,
                 w->dead ? "the X server is gone" : "the window is closed",
                 "downloads go on");
    } else if (XQLength(w->d) > 0)
        (void)fetcher_timer(f, 0, window_again, p);
}

static int error_ignored(Display *d, XErrorEvent *e) {
    return 0;
}

static int server_gone(Display *d) {
    window.dead = true;
    return 0;
}

/* Without it Xlib would end the program. */
static void server_left(Display *d, void *arg) {
}

/* -- the beginning --------------------------------------------------------- */

/* The size follows Xft.dpi. */
static bool fonts_open(struct window *w) {
    FcResult result;
    XGlyphInfo zero;
    double size = 0; /* in pixels */

    w->pattern = FcNameParse((const FcChar8 *)"monospace:size=10");
    if (!w->pattern)
        return false;
    FcConfigSubstitute(NULL, w->pattern, FcMatchPattern);
    XftDefaultSubstitute(w->d, DefaultScreen(w->d), w->pattern);
    w->set = FcFontSort(NULL, w->pattern, FcTrue, NULL, &result);
    for (int i = 0; w->set && i < w->set->nfont && w->fonts == 0; i++)
        (void)font_open(w, i);
    if (w->fonts == 0)
        return false;
    XftTextExtents8(w->d, w->font[0], (const FcChar8 *)"0", 1, &zero);
    (void)FcPatternGetDouble(w->font[0]->pattern, FC_PIXEL_SIZE, 0, &size);
    w->cell = zero.xOff > 1 ? zero.xOff : 2;
    w->line = (int)(size * 8 / 5);
    if (w->line < w->font[0]->ascent + w->font[0]->descent)
        w->line = w->font[0]->ascent + w->font[0]->descent;
    w->pad = w->line * 3 / 4 + 1;
    return true;
}

static bool inks_open(struct window *w, bool dark) {
    int screen = DefaultScreen(w->d);
    Visual *visual = DefaultVisual(w->d, screen);
    Colormap map = DefaultColormap(w->d, screen);

    for (int i = 0; i < INKS; i++) {
        unsigned rgb = palette[dark ? 1 : 0][i];
        XRenderColor c = {(unsigned short)((rgb >> 16) * 257),
                          (unsigned short)((rgb >> 8 & 255) * 257),
                          (unsigned short)((rgb & 255) * 257), 0xffff};

        if (!XftColorAllocValue(w->d, visual, map, &c, &w->ink[i]))
            return false;
    }
    return true;
}

/* An arrow down onto a bar, in a field of SIDE x SIDE. */
static bool icon_has(int x, int y) {
    int aside = x < SIDE / 2 ? SIDE / 2 - 1 - x : x - SIDE / 2;
    bool shaft = y >= SIDE / 8 && y < SIDE / 2 && aside < SIDE / 10;
    bool head = y >= SIDE * 3 / 8 && aside < SIDE * 11 / 16 - y;
    bool bar = y >= SIDE * 3 / 4 && y < SIDE * 7 / 8 && aside < SIDE * 3 / 8;

    return shaft || head || bar;
}

/* Its size, and each pixel with its alpha: in longs, as Xlib has it. */
static void window_icon(struct window *w) {
    unsigned long icon[2 + SIDE * SIDE] = {SIDE, SIDE};

    for (int i = 0; i < SIDE * SIDE; i++) {
        if (icon_has(i % SIDE, i / SIDE))
            icon[2 + i] = 0xff000000 | palette[0][INK_BAR];
    }
    XChangeProperty(w->d, w->id, w->atom[NET_ICON], XA_CARDINAL, 32,
                    PropModeReplace, (const unsigned char *)icon,
                    2 + SIDE * SIDE);
}

/* What window managers and others want to know of it. */
static void window_describe(struct window *w) {
    XSizeHints size = {.flags = PMinSize,
                       .min_width = 40 * w->cell,
                       .min_height = 8 * w->line};
    XWMHints hints = {.flags = InputHint, .input = True};
    char name[] = "fetcher";
    char class[] = "Fetcher";
    XClassHint classes = {name, class};
    long pid = getpid();
    Atom version = 5; /* of Xdnd */

    Xutf8SetWMProperties(w->d, w->id, name, name, NULL, 0, &size, &hints,
                         &classes);
    XSetWMProtocols(w->d, w->id, &w->atom[DELETE_WINDOW], 1);
    XChangeProperty(w->d, w->id, w->atom[NET_PID], XA_CARDINAL, 32,
                    PropModeReplace, (unsigned char *)&pid, 1);
    XChangeProperty(w->d, w->id, w->atom[DND_AWARE], XA_ATOM, 32,
                    PropModeReplace, (unsigned char *)&version, 1);
}

/* An input method that is a program could make us wait: so only dead keys and
 * Compose. The keyboard's map is asked for now. */
static void keyboard_open(struct window *w) {
    XIM im = NULL;

    if (XSetLocaleModifiers("@im=none"))
        im = XOpenIM(w->d, NULL, NULL, NULL);
    if (im)
        w->ic = XCreateIC(im, XNInputStyle,
                          XIMPreeditNothing | XIMStatusNothing, XNClientWindow,
                          w->id, XNFocusWindow, w->id, (char *)NULL);
    (void)XKeysymToKeycode(w->d, XK_a);
}

static void window_create(struct window *w) {
    int screen = DefaultScreen(w->d);

    int most_wide = DisplayWidth(w->d, screen) * 9 / 10;
    int most_high = DisplayHeight(w->d, screen) * 8 / 10; /* there are panels */

    w->width = 100 * w->cell < most_wide ? 100 * w->cell : most_wide;
    w->height = 30 * w->line < most_high ? 30 * w->line : most_high;
    w->id = XCreateSimpleWindow(w->d, DefaultRootWindow(w->d), 0, 0,
                                (unsigned)w->width, (unsigned)w->height, 0, 0,
                                w->ink[INK_PAPER].pixel);
    w->gc = XCreateGC(w->d, w->id, 0, NULL);
    XSetGraphicsExposures(w->d, w->gc, False);
    menu_listen(w, Button1MotionMask);
    w->menu.id =
        XCreateSimpleWindow(w->d, w->id, 0, 0, 1, 1, 1, w->ink[INK_EDGE].pixel,
                            w->ink[INK_FIELD].pixel);
    XSelectInput(w->d, w->menu.id, ExposureMask);
    window_describe(w);
    window_icon(w);
    w->draw = XftDrawCreate(w->d, w->id, DefaultVisual(w->d, screen),
                            DefaultColormap(w->d, screen));
    keyboard_open(w);
    XMapWindow(w->d, w->id);
}

static bool display_open(struct window *w) {
    static char *names[ATOMS] = {
        "WM_PROTOCOLS", "WM_DELETE_WINDOW", "_NET_WM_NAME",  "_NET_WM_PID",
        "_NET_WM_ICON", "UTF8_STRING",      "TARGETS",       "INCR",
        "CLIPBOARD",    "XdndAware",        "XdndPosition",  "XdndStatus",
        "XdndDrop",     "XdndFinished",     "XdndSelection", "XdndActionCopy",
        "text/uri-list"};

    w->d = XOpenDisplay(NULL);
    if (!w->d) {
        refuse(BAD_USAGE, "cannot open a window: no X server at display \"%s\"",
               XDisplayName(NULL));
        return false;
    }
    XSetErrorHandler(error_ignored);
    XSetIOErrorHandler(server_gone);
    XSetIOErrorExitHandler(w->d, server_left, NULL);
    tty.fd = ConnectionNumber(w->d);
    if (XInternAtoms(w->d, names, ATOMS, False, w->atom) && fonts_open(w))
        return true;
    refuse(BAD_USAGE, "cannot open a window: there is no font for it, such as "
                      "DejaVu Sans Mono");
    return false;
}

static void window_begin(struct program *p) {
    struct view *v = &the_view;

    p->view = v;
    v->utf8 = true; /* whatever the locale's is */
    v->window = true;
    v->keys = true;
    v->rows = true;
    v->color = true;
    v->redraw = true;
    v->prompt.stays = true;
    v->out = &p->console.out;
    if (p->s.json || p->stream == &p->console.out)
        v->out = &p->console.err;
    v->show = window_show;
    v->off = window_off;
    v->pace = WINDOW_FRAME_MS;
    p->prompting = true;
    window.top.key = INT64_MIN;
    p->console.windowed = true;
    view_catch_lines(p, true);
}

static enum status window_open(struct program *p) {
    struct window *w = &window;

    if (!display_open(w))
        return BAD_USAGE;
    if (!inks_open(w, p->s.dark))
        return refuse(BAD_USAGE, "cannot open a window: there are no colors");
    window_create(w);
    if (!w->draw ||
        fetcher_watch(p->f, tty.fd, FETCHER_READ, window_events, p) < 0)
        return refuse(BAD_USAGE, "cannot open a window: %s", strerror(errno));
    window_begin(p);
    frame_at(p, fetcher_now(p->f));
    return ALL_DONE;
}
#else
static enum status window_open(struct program *p) {
    return refuse(BAD_USAGE, "this fetcher was built without a window");
}
#endif

/* ====================================================================== Main
 * All is put together, run, and taken apart again.
 */

/* What its reader does not take in time is lost: the loop waits for none. */
static void trace(struct fetcher *f, const char *line, void *arg) {
    struct out *o = arg;

    if (o->used >= OUT_FULL)
        return;
    out_puts(o, line);
    out_puts(o, "\n");
    if (o->tty || o->used >= PIPE_BUF)
        out_flush(f, o);
}

static enum status trace_open(struct program *p) {
    struct door d;
    struct stat st;
    int fd;

    if (!p->s.trace)
        return ALL_DONE;
    fd = door_write(&d, p->s.trace, 0666, &st);
    if (fd >= 0 && d.fd < 0 && S_ISREG(st.st_mode) && ftruncate(fd, 0) < 0) {
        d.why = strerror(errno);
        close(fd);
        fd = -1;
    }
    if (fd < 0)
        return refuse(SOME_FAILED, "cannot write %s: %s", p->s.trace, d.why);
    out_enter(&p->trace, &d, fd);
    return ALL_DONE;
}

static enum status stream_enter(struct program *p, struct door *d) {
    struct stat st;
    int fd = door_open(d, O_WRONLY, 0, &st);

    if (fd < 0)
        return refuse(SOME_FAILED, "cannot write to %s: %s", p->s.output,
                      d->why);
    out_enter(&p->stream_own, d, fd);
    p->stream = &p->stream_own;
    return ALL_DONE;
}

/* What leads to a file is the library's, which follows no link. */
static enum status stream_find(struct program *p) {
    char *path = job_path(&p->s, p->s.output);
    struct door d;
    enum leads leads = LEADS_TO_FILE;

    if (path && door_find(&d, path) == 0)
        leads = door_leads(&d);
    else if (path && is_planted_above(path))
        leads = LEADS_ASTRAY;
    free(path);
    p->discards =
        leads == LEADS_TO_NOTHING || strcmp(p->s.output, "/dev/null") == 0;
    if (p->discards || leads == LEADS_TO_FILE)
        return ALL_DONE;
    if (leads == LEADS_NOWHERE || leads == LEADS_ASTRAY)
        return refuse(SOME_FAILED, "cannot write to %s: %s", p->s.output,
                      leads == LEADS_ASTRAY ? d.why : "it is no file");
    if (d.fd == 1 || d.fd == 2)
        p->stream = d.fd == 1 ? &p->console.out : &p->console.err;
    return p->stream ? ALL_DONE : stream_enter(p, &d);
}

static enum status stream_open(struct program *p) {
    const struct settings *s = &p->s;
    enum status status = ALL_DONE;

    if (s->upload && !s->output && s->json)
        p->discards = true; /* there is no other place for the answer */
    else if (is_dash(s->output) || (s->upload && !s->output))
        p->stream = &p->console.out;
    else if (s->output)
        status = stream_find(p);
    if (!p->stream || status)
        return status;
    if (s->rq.every_ms || s->remote_time ||
        (s->json && p->stream == &p->console.out))
        return refuse(BAD_USAGE,
                      "-o %s leaves no room for --json, --every or "
                      "--remote-time",
                      s->output ? s->output : "-");
    return ALL_DONE;
}

/* A pipe or a terminal is opened once more, lest we wait for it. */
static enum status upload_open(struct program *p) {
    struct settings *s = &p->s;
    bool dash = is_dash(s->upload);
    struct stat st;
    int again = -1;
    int fd = 0;

    if (!s->upload)
        return ALL_DONE;
    if (!dash)
        fd = open(s->upload, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return refuse(SOME_FAILED, "cannot read %s: %s", s->upload,
                      strerror(errno));
    if (S_ISDIR(st.st_mode))
        return refuse(SOME_FAILED, "cannot read %s: %s", s->upload,
                      strerror(EISDIR));
    if (dash && (isatty(0) || is_pipe(&st)))
        again = open_again(0, O_RDONLY);
    p->upload_fd = again > 0 ? again : fd;
    s->rq.send_size = S_ISREG(st.st_mode) ? st.st_size : 0;
    if (S_ISREG(st.st_mode) && st.st_size == 0)
        s->rq.body = "";
    else
        s->rq.on_send = job_send;
    return ALL_DONE;
}

/* Before we have descriptors of our own, which a name could stand for. */
static enum status outputs_open(struct program *p) {
    enum status status;

    p->stream_own.fd = -1;
    p->trace.fd = -1;
    status = stream_open(p);
    if (!status)
        status = upload_open(p);
    return status ? status : trace_open(p);
}

/* libcurl opens them by their name: so this has to be one in whose place
 * nobody else can put anything. */
static int cookies_check(struct door *d, const char *name) {
    struct stat st;
    int fd = door_write(d, name, 0600, &st);

    if (fd < 0)
        return -1;
    close(fd);
    if (d->fd >= 0 || (!S_ISREG(st.st_mode) && !is_null(&st)))
        return door_shut(d, "it is no file");
    return 0;
}

/* Cookies are read and written once, by a handle of their own; if it is NULL,
 * libcurl refuses. */
static enum status cookies_move(struct program *p, bool save) {
    struct door d;
    unsigned bad = 0;
    CURL *e;

    if (cookies_check(&d, p->s.cookies) < 0)
        return refuse(SOME_FAILED, "cannot use %s for cookies: %s",
                      p->s.cookies, d.why);
    if (!p->cookies)
        p->cookies = curl_share_init();
    bad |=
        curl_share_setopt(p->cookies, CURLSHOPT_SHARE, CURL_LOCK_DATA_COOKIE);
    e = curl_easy_init();
    SET(SHARE, p->cookies);
    if (save)
        SET(COOKIEJAR, d.path);
    else {
        SET(COOKIEFILE, d.path);
        SET(COOKIELIST, "RELOAD");
    }
    curl_easy_cleanup(e);
    if (bad)
        return refuse(SOME_FAILED, "cannot use %s for cookies", p->s.cookies);
    return ALL_DONE;
}

static enum status list_open(struct program *p) {
    struct input *list = &p->input[LIST];
    struct stat st;
    int again = -1;

    list->name = p->s.list;
    list->eof = !list->name;
    if (!list->name)
        return ALL_DONE;
    if (!is_dash(list->name)) /* nor is who is to write to a pipe waited for */
        list->fd =
            open(list->name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (list->fd < 0 || fstat(list->fd, &st) < 0)
        return refuse(SOME_FAILED, "cannot read %s: %s", list->name,
                      strerror(errno));
    if (S_ISDIR(st.st_mode))
        return refuse(SOME_FAILED, "cannot read %s: %s", list->name,
                      strerror(EISDIR));
    if (is_dash(list->name) && (isatty(0) || is_pipe(&st)))
        again = open_again(0, O_RDONLY);
    if (again > 0)
        list->fd = again;
    list->ready = S_ISREG(st.st_mode);
    list->polled = !list->ready;
    return ALL_DONE;
}

/* What speaks against using this file as our session? NULL: nothing. */
static const char *session_owner(int fd, const char *name) {
    struct stat st;

    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0)
        return errno == EWOULDBLOCK ? "another fetcher does" : strerror(errno);
    if (!S_ISREG(st.st_mode))
        return "it is no regular file";
    if (!stands_as(fd, name)) /* it was replaced at this moment */
        return "another fetcher does";
    if (st.st_uid != geteuid())
        return "it belongs to another user";
    if (st.st_nlink != 1)
        return "it has another name too";
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return "others may write to it";
    return NULL;
}

struct scan {      /* of a session's bytes, before any is believed */
    int64_t size;  /* looked at */
    int64_t lines; /* whole ones, without a NUL */
    int64_t whole; /* the bytes of these */
    int64_t said;  /* that follow, says the first; -1: it says nothing */
    int64_t kept;  /* the bytes of these, and the first: the snapshot's */
    bool nul;
};

static void scan_lines(struct scan *c, const char *text, size_t n) {
    const char *nul = memchr(text, '\0', n);
    const char *end = nul ? nul : text + n;
    const char *s = text;

    while (!c->nul && (s = memchr(s, '\n', (size_t)(end - s))) != NULL) {
        s++;
        c->lines++;
        c->whole = c->size + (s - text);
        if (c->lines == c->said + 1)
            c->kept = c->whole;
    }
    if (nul)
        c->nul = true;
    c->size += (int64_t)n;
}

/* How many lines does a snapshot say that it has? */
static int64_t scan_head(const char *text) {
    const char *end = text + sizeof session_head - 1;

    if (strncmp(text, session_head, sizeof session_head - 1) != 0)
        return -1;
    return text_number(&end);
}

/* The whole file is looked at: a million lines take 20 ms. A snapshot must have
 * all its lines; behind it a power cut may have left anything, which is cut
 * off at the first line that isn't whole. What somebody wrote by hand must be
 * whole. NULL, or what is wrong. */
static const char *session_scan(struct input *in, struct scan *c) {
    ssize_t n;

    *c = (struct scan){.said = -1};
    while ((n = pread(in->fd, in->text, sizeof in->text - 1, c->size)) > 0) {
        in->text[n] = '\0';
        if (c->size == 0 && strncmp(in->text, "# fetcher", 9) != 0)
            return "it is not a session of fetcher's";
        if (c->size == 0)
            c->said = scan_head(in->text);
        scan_lines(c, in->text, (size_t)n);
    }
    if (n < 0)
        return strerror(errno);
    if (c->size == 0)
        return "it is empty; to begin a new one remove it";
    if (c->lines <= c->said || (c->said < 0 && c->whole < c->size))
        return c->nul ? "it is torn: a NUL is in it"
                      : "it is torn: lines are missing, or an end of line";
    return NULL;
}

static const char *session_make(struct program *p) {
    struct out *o = &p->session.lines;

    out_printf(o, "%s%-10d\n", session_head, 0);
    session_append(p);
    return o->used || fsync(p->session.fd) < 0 ? "it can't be written" : NULL;
}

/* NULL, or what is wrong with it. */
static const char *session_take(struct program *p, bool made) {
    struct session *s = &p->session;
    struct input *in = &p->input[SESSION];
    const char *fault = session_owner(in->fd, in->name);
    struct scan c;

    s->fd = in->fd;
    s->fresh = text_join(in->name, ".new");
    if (!s->fresh)
        return strerror(ENOMEM);
    if (!fault && made)
        fault = session_make(p);
    if (!fault)
        fault = session_scan(in, &c);
    if (fault)
        return fault;
    s->size = c.whole;
    s->grown = c.whole - c.kept;
    s->enough = c.said < 0 ? 0 : growth_for(c.kept);
    if (c.whole == c.size)
        return NULL;
    complain(&p->console, in->name, "its end was torn, and is cut off");
    return ftruncate(in->fd, c.whole) < 0 ? strerror(errno) : NULL;
}

static enum status session_open(struct program *p) {
    const int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    struct input *in = &p->input[SESSION];
    const char *fault;
    bool made;

    in->name = p->s.session;
    in->eof = !in->name;
    in->ready = true;
    if (!in->name)
        return ALL_DONE;
    in->fd = open(in->name, flags | O_CREAT | O_EXCL, 0600);
    made = in->fd >= 0;
    if (!made && errno == EEXIST)
        in->fd = open(in->name, flags);
    fault = in->fd < 0 ? strerror(errno) : session_take(p, made);
    if (fault && made)
        unlink(in->name);
    if (fault)
        return refuse(SOME_FAILED, "cannot use %s: %s", in->name, fault);
    p->session.reading = true;
    p->session.restoring = true;
    return ALL_DONE;
}

static enum status inputs_open(struct program *p) {
    enum status status = list_open(p);

    p->source = &p->input[PROMPT];
    p->source->name = "";
    p->source->eof = !p->stay;
    return status == ALL_DONE ? session_open(p) : status;
}

/* What is left to say is waited for; after a signal, or if it is the trace, for
 * half a second. */
static void outputs_drain(struct program *p) {
    usec end = 0;

    fetcher_trace(p->f, NULL, NULL);
    out_flush(p->f, &p->console.out);
    out_flush(p->f, &p->console.err);
    out_flush(p->f, &p->stream_own);
    out_flush(p->f, &p->trace);
    while (outputs_wait(p) || p->trace.watched) {
        if (p->suspending)
            suspend_now(p);
        if ((tty.seen || !outputs_wait(p)) && !end)
            end = clock_us() + 500000;
        if (end && clock_us() >= end)
            break;
        if (fetcher_step(p->f, end ? 50 : -1) <= 0)
            break;
    }
    if (tty.seen)
        p->status = (enum status)(KILLED + (int)tty.seen);
}

static void put_farewell(struct program *p) {
    struct fetcher_stats st;

    fetcher_stats(p->f, &st);
    if (p->s.stats)
        put_stats(p, &p->console.err);
    else if (p->view && p->view->show && !p->view->window)
        out_printf(p->view->out, "%" PRIu64 " done, %" PRIu64 " failed\n",
                   st.done, st.failed);
}

static bool output_good(struct program *p, struct out *o, const char *name) {
    char what[300];

    if (!out_broken(o))
        return true;
    snprintf(what, sizeof what, "cannot write to %s", name);
    complain(&p->console, what, strerror(o->error));
    return false;
}

/* Was all that there was to write written? */
static bool outputs_good(struct program *p) {
    struct out *out = &p->console.out;
    bool good = output_good(p, out, "standard output");

    if (p->stream && p->stream != out &&
        !output_good(p, p->stream, p->s.output))
        good = false;
    if (p->s.trace && !output_good(p, &p->trace, p->s.trace))
        good = false;
    if (p->s.cookies && cookies_move(p, true) != ALL_DONE)
        good = false;
    return good;
}

static void outputs_free(struct program *p) {
    free(p->console.out.data);
    free(p->console.err.data);
    free(p->stream_own.data);
    free(p->trace.data);
}

static void view_free(struct view *v) {
    for (int i = 0; i < HISTORY; i++)
        free(v->prompt.history[i]);
    free(v->log.data);
    free(v->picture.data);
    free(v->bytes.data);
    free(v->codes.data);
}

static enum status program_close(struct program *p) {
    struct model *m = &p->model;

    session_close(p);
    if (p->view)
        p->view->off(p);
    put_farewell(p);
    p->console.changed = NULL; /* a frame would bring the view back */
    if (p->view)
        p->view->show = NULL;
    outputs_drain(p);
    if (!outputs_good(p))
        p->status = SOME_FAILED;
    signals_set(SIG_DFL, 0, COUNT_OF(handled)); /* they need a fetcher */
    m->shown = false;
    m->keeps = false;
    fetcher_free(p->f);
    while (m->jobs)
        job_free(p, container_of(m->jobs, struct job, id));
    while (m->cancelled)
        cancelled_drop(m, row_job(m->cancelled));
    while (m->ended)
        ended_remove(m, ended_of(m->ended));
    if (p->view)
        view_free(p->view);
    if (p->cookies)
        curl_share_cleanup(p->cookies);
    session_free(&p->session);
    outputs_free(p);
    return p->status;
}

static void console_open(struct program *p) {
    struct console *c = &p->console;

    c->f = p->f;
    c->p = p;
    c->json = p->s.json;
    c->quiet = p->s.quiet;
    out_open(&c->out, 1);
    out_open(&c->err, 2);
    c->out.drained = (struct call){stream_drained, p};
    c->err.drained = c->out.drained;
    c->err.spare = p->stream != &c->err;
    if (p->stream)
        p->stream->drained = c->out.drained;
}

/* The terminal's view, or the window; what follows from there being one. */
static void front_open(struct program *p, bool urls) {
    const struct settings *s = &p->s;

    the_view.log.fd = -1;
    if (s->window)
        p->status = window_open(p);
    else
        view_open(p);
    if (p->view) {
        p->console.changed = frame_later;
        p->interactive = p->view->keys;
    }
    p->stay = p->interactive && (s->window || (!urls && !s->list));
    if (!urls && !s->list && !p->stay && isatty(0) && isatty(1))
        p->s.list = "-";
    p->model.keeps = p->interactive || s->session || is_dash(s->list);
    p->model.shown = p->model.keeps || p->view;
}

/* Until all is done. */
static void main_loop(struct program *p) {
    do {
        if (p->suspending)
            suspend_now(p);
        fetcher_run(p->f);
    } while (p->suspending && !p->given_up);
}

/* Until signals are handled they end us at once. */
static enum status program_work(struct program *p, char **url) {
    bool work = *url || p->s.list || p->s.session || p->stay;

    if (p->status == ALL_DONE)
        p->status = work ? inputs_open(p)
                         : refuse(BAD_USAGE, "no URL, and no list (-i)");
    if (p->status) {
        p->s.session = NULL; /* not ours to write */
        return program_close(p);
    }
    if (lookups_block())
        complain(&p->console, "warning",
                 "this libcurl has no asynchronous resolver: a slow name "
                 "blocks all");
    p->url = url;
    signals_set(on_signal, ENDING, SUSPENDING);
    wake(p);
    main_loop(p);
    return program_close(p);
}

/* Before anything is begun, so that nothing is half done. */
static enum status descriptors_check(const struct settings *s) {
    bool plain = !s->session && !s->trace && !s->window && !isatty(1);
    int least = plain ? DESCRIPTORS_LEAST : DESCRIPTORS_MOST;
    int missing = least - descriptors_left(least);
    long most = sysconf(_SC_OPEN_MAX);

    if (missing <= 0)
        return ALL_DONE;
    return refuse(SOME_FAILED,
                  "%ld descriptors are too few: ulimit -n %ld at least", most,
                  most + missing);
}

static enum status program_run(struct program *p, char **url) {
    struct settings *s = &p->s;
    enum status status;

    status = options_check(s, url);
    if (status == ALL_DONE)
        status = trusts_check(s);
    if (status == ALL_DONE)
        status = descriptors_check(s);
    if (status)
        return status;
    options_apply(s);
    status = outputs_open(p);
    if (status)
        return status;
    p->f = fetcher_new();
    if (!p->f)
        return refuse(SOME_FAILED, "cannot start: %s", strerror(errno));
    signal(SIGPIPE, SIG_IGN);
    tty.program = p;
    p->began = clock_us();
    p->model.f = p->f;
    p->model.sampled = fetcher_now(p->f);
    console_open(p);
    if (s->trace)
        fetcher_trace(p->f, trace, &p->trace);
    (void)set_limits(p, (int)s->jobs, (int)s->per_host, s->rate);
    p->model.limit = s->rate;
    if (s->cookies && cookies_move(p, false) != ALL_DONE)
        return SOME_FAILED;
    front_open(p, *url != NULL);
    return program_work(p, url);
}

/* Descriptors 0 to 2 are taken up, so that no error message is written into a
 * file of ours; the wrong way round, so that input or output which was closed
 * stays an error.
 * And there is to be room for files beside the sockets. */
static void descriptors_prepare(void) {
    struct rlimit limit;
    int fd;

    do {
        fd = open("/dev/null", fcntl(0, F_GETFD) < 0 ? O_WRONLY : O_RDONLY);
    } while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= 4096)
        return;
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

/* libcurl reads a host's name in the locale's charset, wcwidth() too: all that
 * we have is UTF-8. Is it also the terminal's? No other locale stays: to
 * strcasecmp() an I is no i in Turkish. */
static bool charset_set(void) {
    bool utf8 =
        setlocale(LC_CTYPE, "") && strcmp(nl_langinfo(CODESET), "UTF-8") == 0;

    (void)setlocale(LC_CTYPE, "C.UTF-8");
    return utf8;
}

int main(int argc, char **argv) {
    size_t words = (size_t)argc + 1;
    struct program *p = calloc(1, sizeof *p);
    char **url = calloc(words, sizeof *url);
    const char **headers = calloc(words, sizeof *headers);
    enum status status;

    heap_keep();
    signal(SIGXFSZ, SIG_IGN); /* a file too large is an error of that file */
    descriptors_prepare();
    if (!p || !url || !headers)
        return (int)refuse(SOME_FAILED, "out of memory");
    p->utf8 = charset_set();
    p->s.headers = headers;
    p->s.retries = -1;
    status = options_read(&p->s, argv, url);
    if (status == ALL_DONE && p->s.help)
        status = help();
    else if (status == ALL_DONE && p->s.version)
        status = version();
    else if (status == ALL_DONE && p->s.completion)
        status = completion(p->s.completion);
    else if (status == ALL_DONE)
        status = program_run(p, url);
    settings_free(&p->s);
    free(headers);
    free(url);
    free(p);
    return (int)status;
}
#endif
#endif
