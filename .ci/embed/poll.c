/* Under poll(): fetch the arguments. After prepare, walk the sets; after poll(), set what is ready.
 *
 *     cc -o app poll.c fetcher.c -lcurl
 */
#include <poll.h>
#include <stdio.h>
#include "fetcher.h"

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)f, (void)arg;
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
}

static void turn(struct fetcher *f) {
    static struct pollfd p[FD_SETSIZE];
    fd_set rd, wr;
    nfds_t n = 0;
    int max = -1, ms, ready;

    FD_ZERO(&rd);
    FD_ZERO(&wr);
    ms = fetcher_prepare(f, &rd, &wr, &max);
    for (int fd = 0; fd <= max; fd++) {
        int events = (FD_ISSET(fd, &rd) ? POLLIN : 0) | (FD_ISSET(fd, &wr) ? POLLOUT : 0);
        if (events)
            p[n++] = (struct pollfd){.fd = fd, .events = (short)events};
    }
    ready = poll(p, n, ms); /* add your own descriptors before this, and look at them after it */
    FD_ZERO(&rd);
    FD_ZERO(&wr);
    for (nfds_t i = 0; ready > 0 && i < n; i++) {
        if (p[i].revents & (POLLIN | POLLHUP | POLLERR) && p[i].events & POLLIN)
            FD_SET(p[i].fd, &rd);
        if (p[i].revents & (POLLOUT | POLLHUP | POLLERR) && p[i].events & POLLOUT)
            FD_SET(p[i].fd, &wr);
    }
    fetcher_dispatch(f, &rd, &wr);
}

int main(int argc, char **argv) {
    struct fetcher *f = fetcher_new();

    if (!f)
        return 1;
    for (int i = 1; i < argc; i++)
        fetcher_get(f, argv[i], done, NULL);
    while (fetcher_count(f))
        turn(f);
    fetcher_free(f);
    return 0;
}
