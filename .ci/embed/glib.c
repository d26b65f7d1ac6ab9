/* Under GLib's main loop, and so in a GTK program: fetch the arguments. fetcher_source() is all that is needed.
 *
 *     cc -o app glib.c fetcher.c -lcurl $(pkg-config --cflags --libs glib-2.0)
 */
#include <glib.h>
#include <stdio.h>
#include "fetcher.h"

struct source {
    GSource base;
    struct fetcher *f;
    gpointer tag[FD_SETSIZE];        /* what GLib watches for us ... */
    GIOCondition events[FD_SETSIZE]; /* ... and for what */
    gint64 until;                    /* when to turn even if nothing comes */
};

static gboolean prepare(GSource *base, gint *ms) {
    struct source *s = (struct source *)base;
    fd_set rd, wr;
    int max = -1;

    FD_ZERO(&rd);
    FD_ZERO(&wr);
    *ms = fetcher_prepare(s->f, &rd, &wr, &max);
    s->until = g_get_monotonic_time() + *ms * 1000;
    for (int fd = 0; fd < FD_SETSIZE; fd++) {
        GIOCondition events =
            (FD_ISSET(fd, &rd) ? G_IO_IN : 0) | (FD_ISSET(fd, &wr) ? G_IO_OUT : 0);
        if (events == s->events[fd])
            continue;
        if (!s->tag[fd])
            s->tag[fd] = g_source_add_unix_fd(base, fd, events);
        else if (events)
            g_source_modify_unix_fd(base, s->tag[fd], events);
        else {
            g_source_remove_unix_fd(base, s->tag[fd]);
            s->tag[fd] = NULL;
        }
        s->events[fd] = events;
    }
    return *ms == 0;
}

static int ready(struct source *s, fd_set *rd, fd_set *wr) {
    int n = 0;

    FD_ZERO(rd);
    FD_ZERO(wr);
    for (int fd = 0; fd < FD_SETSIZE; fd++) {
        GIOCondition got = s->tag[fd] ? g_source_query_unix_fd(&s->base, s->tag[fd]) : 0;
        if (got & (G_IO_IN | G_IO_HUP | G_IO_ERR) && s->events[fd] & G_IO_IN)
            FD_SET(fd, rd);
        if (got & (G_IO_OUT | G_IO_HUP | G_IO_ERR) && s->events[fd] & G_IO_OUT)
            FD_SET(fd, wr);
        n += got != 0;
    }
    return n;
}

static gboolean check(GSource *base) {
    struct source *s = (struct source *)base;
    fd_set rd, wr;

    return ready(s, &rd, &wr) || g_get_monotonic_time() >= s->until;
}

static gboolean dispatch(GSource *base, GSourceFunc callback, gpointer data) {
    struct source *s = (struct source *)base;
    fd_set rd, wr;

    (void)callback, (void)data;
    ready(s, &rd, &wr);
    fetcher_dispatch(s->f, &rd, &wr);
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
