/* Under epoll: fetch the arguments.
 *
 * epoll remembers descriptors, and forgets one that is closed, even if the next one gets its number. So each turn
 * names all of them again: EPOLL_CTL_MOD, or _ADD if epoll has forgotten it.
 *
 *     cc -o app epoll.c fetcher.c -lcurl
 */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "fetcher.h"

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)f, (void)arg;
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
}

static void turn(struct fetcher *f, int ep) {
    static char was[FD_SETSIZE]; /* epoll was told of it */
    struct epoll_event e, ready[64];
    fd_set rd, wr;
    int max = -1, ms, n;

    FD_ZERO(&rd);
    FD_ZERO(&wr);
    ms = fetcher_prepare(f, &rd, &wr, &max);
    for (int fd = 0; fd < FD_SETSIZE; fd++) {
        e.events = (FD_ISSET(fd, &rd) ? EPOLLIN : 0u) | (FD_ISSET(fd, &wr) ? EPOLLOUT : 0u);
        e.data.fd = fd;
        if (e.events && epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) < 0 && errno == ENOENT)
            epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
        else if (!e.events && was[fd])
            epoll_ctl(ep, EPOLL_CTL_DEL, fd, &e);
        was[fd] = e.events != 0;
    }
    n = epoll_wait(ep, ready, 64, ms);
    FD_ZERO(&rd);
    FD_ZERO(&wr);
    for (int i = 0; i < n; i++) {
        if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            FD_SET(ready[i].data.fd, &rd);
        if (ready[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            FD_SET(ready[i].data.fd, &wr);
    }
    fetcher_dispatch(f, &rd, &wr);
}

int main(int argc, char **argv) {
    struct fetcher *f = fetcher_new();
    int ep = epoll_create1(EPOLL_CLOEXEC);

    if (!f || ep < 0)
        return 1;
    for (int i = 1; i < argc; i++)
        fetcher_get(f, argv[i], done, NULL);
    while (fetcher_count(f))
        turn(f, ep);
    fetcher_free(f);
    close(ep);
    return 0;
}
