/* Under poll(): fetch the arguments. What is wanted comes as an array, and dispatch looks for itself.
 *
 *     cc -o app poll.c fetcher.c -lcurl
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include "fetcher.h"

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)f, (void)arg;
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
}

static void turn(struct fetcher *f) {
    static struct fetcher_want want[FD_SETSIZE];
    static struct pollfd p[FD_SETSIZE];
    int ms = fetcher_prepare(f, NULL, NULL, NULL);
    int n = fetcher_wants(f, want, FD_SETSIZE);

    for (int i = 0; i < n; i++) {
        p[i] = (struct pollfd){.fd = want[i].fd};
        if (want[i].events & FETCHER_READ)
            p[i].events |= POLLIN;
        if (want[i].events & FETCHER_WRITE)
            p[i].events |= POLLOUT;
    }
    poll(p, (nfds_t)n, ms); /* add your own descriptors before this, and look at them after it */
    fetcher_dispatch(f, NULL, NULL);
}

int main(int argc, char **argv) {
    struct fetcher *f = fetcher_new();

    signal(SIGPIPE, SIG_IGN);
    if (!f)
        return 1;
    for (int i = 1; i < argc; i++)
        fetcher_get(f, argv[i], done, NULL);
    while (fetcher_count(f))
        turn(f);
    fetcher_free(f);
    return 0;
}
