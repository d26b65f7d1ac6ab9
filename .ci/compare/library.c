/* SPDX-License-Identifier: 0BSD
 *
 * fetcher as a library. To be linked with fetcher.c.
 */
#include "contract.h"

#include "../../fetcher.h"

static struct contract c;

static void start_next(struct fetcher *f);

static void on_tick(struct fetcher *f, void *arg) {
    tick();
    fetcher_timer(f, 1, on_tick, arg);
}

static void on_done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)arg;
    if (r->code != FETCHER_OK)
        fprintf(stderr, "%s: %s\n", r->url, r->message);
    start_next(f);
    if (fetcher_count(f) == 0)
        fetcher_stop(f);
}

static void on_late(struct fetcher *f, void *arg) {
    fetcher_cancel(f, (uintptr_t)arg); /* one that has ended is no error: ids are not reused */
}

static void start_next(struct fetcher *f) {
    if (c.next == c.count)
        return;
    const char *url = c.url[c.next++];
    fetcher_id id = fetcher_start(
        f,
        &(struct fetcher_request){.url = url, .path = contract_path(&c, url), .on_done = on_done});
    if (c.cancel_ms >= 0)
        fetcher_timer(f, c.cancel_ms, on_late, (void *)(uintptr_t)id);
}

int main(int argc, char **argv) {
    c = contract_read(argc, argv);
    struct fetcher *f = fetcher_new();
    fetcher_limit(f, c.jobs, c.jobs, 0);
    tick();
    fetcher_timer(f, 1, on_tick, NULL);
    for (int i = 0; i < c.jobs; i++)
        start_next(f);
    fetcher_run(f);
    tick_report();
}
