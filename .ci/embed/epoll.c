/* Under epoll: fetch the arguments.
 *
 * epoll remembers descriptors, and forgets one that is closed, even if the next one gets its number. So each turn
 * names all of them again: EPOLL_CTL_MOD, or _ADD if epoll has forgotten it.
 *
 *     cc -o app epoll.c fetcher.c -lcurl
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "fetcher.h"

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)f, (void)arg;
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
}

/* Those that are wanted no more. */
static void forget(int ep, const struct fetcher_want *was, int count, const char *wanted) {
    for (int i = 0; i < count; i++)
        if (!wanted[was[i].fd])
            epoll_ctl(ep, EPOLL_CTL_DEL, was[i].fd, NULL);
}

static void turn(struct fetcher *f, int ep) {
    static struct fetcher_want want[2][FD_SETSIZE];
    static int count, now; /* how many there were, and where they are */
    char wanted[FD_SETSIZE] = "";
    struct epoll_event e = {0};
    int ms = fetcher_prepare(f, NULL, NULL, NULL);
    int n = fetcher_wants(f, want[!now], FD_SETSIZE);

    for (int i = 0; i < n; i++) {
        const struct fetcher_want *w = &want[!now][i];
        e.events = 0;
        if (w->events & FETCHER_READ)
            e.events |= EPOLLIN;
        if (w->events & FETCHER_WRITE)
            e.events |= EPOLLOUT;
        if (epoll_ctl(ep, EPOLL_CTL_MOD, w->fd, &e) < 0 && errno == ENOENT)
            epoll_ctl(ep, EPOLL_CTL_ADD, w->fd, &e);
        wanted[w->fd] = 1;
    }
    forget(ep, want[now], count, wanted);
    now = !now;
    count = n;
    epoll_wait(ep, &e, 1, ms); /* that there is something is enough to know */
    fetcher_dispatch(f, NULL, NULL);
}

int main(int argc, char **argv) {
    struct fetcher *f = fetcher_new();
    int ep = epoll_create1(EPOLL_CLOEXEC);

    signal(SIGPIPE, SIG_IGN);
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
