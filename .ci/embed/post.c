/* Work for the loop, from another thread and from a signal handler: fetcher_post is the one function that both may
 * call. A thread thinks of URLs, the loop fetches them; SIGTERM ends the program cleanly.
 *
 *     cc -o app post.c fetcher.c -lcurl -lpthread
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include "fetcher.h"

static struct fetcher *f;
static char **urls;
static int stopping;

static void done(struct fetcher *on, const struct fetcher_result *r, void *arg) {
    (void)on, (void)arg;
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
    fflush(stdout);
}

/* In the loop's thread, so that anything may be called. */
static void start(struct fetcher *on, void *url) {
    fetcher_get(on, url, done, NULL);
}

static void stop(struct fetcher *on, void *arg) {
    (void)on, (void)arg;
    stopping = 1;
}

static void *think(void *arg) {
    for (char **url = urls; *url; url++)
        while (fetcher_post(f, start, *url) < 0)
            sched_yield(); /* some 4,000 wait already */
    return arg;
}

static void on_signal(int number) {
    (void)number;
    fetcher_post(f, stop, NULL);
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t thread;

    (void)argc;
    signal(SIGPIPE, SIG_IGN);
    urls = argv + 1;
    if ((f = fetcher_new()) == NULL || pthread_create(&thread, NULL, think, NULL))
        return 1;
    sigaction(SIGTERM, &action, NULL);
    while (!stopping)
        fetcher_step(f, -1);
    pthread_join(thread, NULL);
    fetcher_free(f); /* what still ran is cancelled, and says so */
    printf("stopped\n");
    return 0;
}
