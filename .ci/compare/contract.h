/* SPDX-License-Identifier: 0BSD
 *
 * What the C and C++ programs of the comparison share, so that it is not counted among their lines.
 * All of them, the Python ones too (contract.py), are called in the same way:
 *
 *     PROGRAM LIST DIR JOBS [CANCEL_MS]
 *
 * fetches each URL of LIST (one a line) into DIR/<last segment>, JOBS in flight, while a timer of 1 ms
 * ticks in the program's loop, as a user interface would. With CANCEL_MS a transfer is given up that
 * has run so long. At the end there is one line:
 *
 *     ticks N MEDIAN P99 LONGEST SECONDS
 *
 * the delays in microseconds: how much more than 1 ms each tick came after the one before.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct contract {
    char **url;
    size_t count, next; /* next: the first that has not been started */
    const char *dir;
    int jobs;
    long cancel_ms; /* -1: never */
};

static int64_t clock_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static struct contract contract_read(int argc, char **argv) {
    struct contract c = {NULL, 0, 0, NULL, 0, -1};
    FILE *list = argc < 4 ? NULL : fopen(argv[1], "r");
    char line[4096];
    if (!list) {
        fprintf(stderr, "usage: %s LIST DIR JOBS [CANCEL_MS]\n", argv[0]);
        exit(2);
    }
    while (fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = '\0';
        c.url = (char **)realloc(c.url, (c.count + 1) * sizeof *c.url);
        c.url[c.count++] = strdup(line);
    }
    fclose(list);
    c.dir = argv[2];
    c.jobs = atoi(argv[3]);
    c.cancel_ms = argc > 4 ? atol(argv[4]) : -1;
    signal(SIGPIPE, SIG_IGN);
    return c;
}

/* Where a URL goes. Valid until the next call. */
static const char *contract_path(const struct contract *c, const char *url) {
    static char path[4096];
    snprintf(path, sizeof path, "%s%s", c->dir, strrchr(url, '/'));
    return path;
}

static uint32_t tick_delay[1 << 20]; /* 17 minutes; untouched pages cost no memory */
static size_t tick_count;
static int64_t tick_begin, tick_last;

/* The first call begins, each other one is a tick. */
static void tick(void) {
    int64_t now = clock_now_us(), late = now - tick_last - 1000;
    if (!tick_begin)
        tick_begin = now;
    else if (tick_count < sizeof tick_delay / sizeof *tick_delay)
        tick_delay[tick_count++] = late > 0 ? (uint32_t)late : 0;
    tick_last = now;
}

static int tick_order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Tell, and end at once: what a library does when it shuts down is not compared. */
static void tick_report(void) {
    if (!tick_count || clock_now_us() > tick_last + 1000) /* one that is owed counts too */
        tick();
    double seconds = (double)(clock_now_us() - tick_begin) / 1e6;
    qsort(tick_delay, tick_count, sizeof *tick_delay, tick_order);
    printf("ticks %zu %u %u %u %.3f\n", tick_count, tick_delay[tick_count / 2],
           tick_delay[tick_count * 99 / 100], tick_delay[tick_count - 1], seconds);
    fflush(stdout);
    _exit(0);
}
