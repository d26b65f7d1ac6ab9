/* In a program of ncurses: the arguments are fetched, a line each, and q ends it.
 *
 * The keyboard is a descriptor like others: where something is typed getch() has it at once, and no call waits.
 *
 *     cc -o app ncurses.c fetcher.c -lcurl -lncurses
 */
#include <curses.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fetcher.h"

static struct line { char text[400]; } * lines;

static int count, over;

static void show(void) {
    erase();
    for (int i = 0; i < count && i < LINES; i++)
        mvaddnstr(i, 0, lines[i].text, COLS);
    refresh();
}

static void progress(struct fetcher *f, const struct fetcher_info *info, void *arg) {
    struct line *line = arg;

    (void)f;
    snprintf(line->text, sizeof line->text, "%s: %lld bytes", info->url, (long long)info->bytes);
    show();
}

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    struct line *line = arg;

    (void)f;
    snprintf(line->text, sizeof line->text, "%s: %s, %zu bytes", r->url, r->message, r->size);
    show();
}

static void typed(struct fetcher *f, int fd, int events, void *arg) {
    int key = getch();

    (void)events, (void)arg;
    if (key == 'q')
        over = 1;
    if (key == ERR) /* nobody is there any more */
        fetcher_watch(f, fd, 0, NULL, NULL);
}

int main(int argc, char **argv) {
    struct fetcher *f = fetcher_new();
    FILE *out = fopen(getenv("CURSES_TTY") ? getenv("CURSES_TTY") : "/dev/tty", "w");
    SCREEN *screen = out ? newterm(NULL, out, stdin) : NULL;

    signal(SIGPIPE, SIG_IGN);
    if (!f || !screen || (lines = calloc((size_t)argc, sizeof *lines)) == NULL)
        return 1;
    cbreak();
    noecho();
    nodelay(stdscr, TRUE);
    fetcher_watch(f, 0, FETCHER_READ, typed, NULL);
    for (int i = 1; i < argc; i++) {
        struct fetcher_request rq = {
            .url = argv[i], .on_progress = progress, .on_done = done, .arg = &lines[count++]};
        fetcher_start(f, &rq);
    }
    while (!over && fetcher_count(f) && fetcher_step(f, -1) > 0)
        continue;
    fetcher_free(f);
    endwin();
    delscreen(screen);
    for (int i = 0; i < count; i++)
        puts(lines[i].text);
    free(lines);
    return 0;
}
