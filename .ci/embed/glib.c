/* Under GLib's main loop, and so in a GTK program: fetch the arguments. fetcher_source() is all that is needed.
 *
 *     cc -o app glib.c fetcher.c -lcurl $(pkg-config --cflags --libs glib-2.0)
 */
#include <glib.h>
#include <signal.h>
#include <stdio.h>
#include "fetcher.h"

struct source {
    GSource base;
    struct fetcher *f;
    gpointer tag[FD_SETSIZE]; /* what GLib watches for us ... */
    int events[FD_SETSIZE];   /* ... and for what */
    gint64 until;             /* when to turn even if nothing comes */
};

static gboolean prepare(GSource *base, gint *ms) {
    static struct fetcher_want want[FD_SETSIZE];
    struct source *s = (struct source *)base;
    int n, i = 0;

    *ms = fetcher_prepare(s->f, NULL, NULL, NULL);
    s->until = g_get_monotonic_time() + *ms * 1000;
    n = fetcher_wants(s->f, want, FD_SETSIZE);
    for (int fd = 0; fd < FD_SETSIZE; fd++) {
        int events = i < n && want[i].fd == fd ? want[i++].events : 0;
        if (events == s->events[fd])
            continue;
        GIOCondition condition =
            (events & FETCHER_READ ? G_IO_IN : 0) | (events & FETCHER_WRITE ? G_IO_OUT : 0);
        if (s->tag[fd] && condition)
            g_source_modify_unix_fd(base, s->tag[fd], condition);
        else if (s->tag[fd])
            g_source_remove_unix_fd(base, s->tag[fd]);
        else if (condition)
            s->tag[fd] = g_source_add_unix_fd(base, fd, condition);
        if (!condition)
            s->tag[fd] = NULL;
        s->events[fd] = events;
    }
    return *ms == 0;
}

static gboolean check(GSource *base) {
    struct source *s = (struct source *)base;

    for (int fd = 0; fd < FD_SETSIZE; fd++)
        if (s->tag[fd] && g_source_query_unix_fd(base, s->tag[fd]))
            return TRUE;
    return g_get_monotonic_time() >= s->until;
}

static gboolean dispatch(GSource *base, GSourceFunc callback, gpointer data) {
    (void)callback, (void)data;
    fetcher_dispatch(((struct source *)base)->f, NULL, NULL);
    return G_SOURCE_CONTINUE;
}

/* Serve a fetcher from the main loop; g_source_destroy() ends it, before fetcher_free(). */
static GSource *fetcher_source(struct fetcher *f) {
    static GSourceFuncs functions = {.prepare = prepare, .check = check, .dispatch = dispatch};
    struct source *s = (struct source *)g_source_new(&functions, sizeof *s);

    s->f = f;
    g_source_attach(&s->base, NULL);
    return &s->base;
}

/* ---- the program ---- */

static int ticks;

static void done(struct fetcher *f, const struct fetcher_result *r, void *loop) {
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
    if (fetcher_count(f) == 0)
        g_main_loop_quit(loop);
}

static gboolean tick(gpointer data) {
    (void)data;
    ticks++;
    return G_SOURCE_CONTINUE;
}

int main(int argc, char **argv) {
    GMainLoop *loop = g_main_loop_new(NULL, FALSE);
    struct fetcher *f = fetcher_new();
    GSource *source;

    signal(SIGPIPE, SIG_IGN);
    if (!f || argc < 2)
        return 1;
    source = fetcher_source(f);
    for (int i = 1; i < argc; i++)
        fetcher_get(f, argv[i], done, loop);
    g_timeout_add(1, tick, NULL);
    g_main_loop_run(loop);
    printf("GLib's own timer ticked %s\n", ticks ? "meanwhile" : "never");
    g_source_destroy(source);
    g_source_unref(source);
    fetcher_free(f);
    g_main_loop_unref(loop);
    return 0;
}
