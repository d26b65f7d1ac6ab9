/* SPDX-License-Identifier: 0BSD
 *
 * bench.c - from a key to the screen, and what the display costs (make bench). The server is a
 * process of its own, since one in this process would be measured too.
 */
#define TEST_MAIN
#include "../test_fetcher.c"

static int term_mark(const void *arg) {
    const struct term *t = arg;
    for (int r = 0; r < t->rows; r++)
        if (*t->cell[r][0] == '>')
            return r;
    return -1;
}

static void term_press(const void *arg, const char *key) {
    const struct term *t = arg;
    type(t, key);
}

static int by_size(const void *a, const void *b) {
    usec x = *(const usec *)a, y = *(const usec *)b;
    if (x < y)
        return -1;
    return x > y ? 1 : 0;
}

/* Press j and k by turns, at odd times; how long until the mark has moved? */
static void press_keys(const void *screen_of, int (*mark_on)(const void *),
                       void (*press)(const void *, const char *), int presses, const char *label) {
    static usec took[1000];
    unsigned random = 3;
    until(mark_on(screen_of) >= 0);
    for (int i = 0; i < presses; i++) {
        random = random * 1103515245 + 12345;
        usec rest = clock_us() + 20000 + random / 65536 % 100000;
        while (clock_us() < rest)
            fetcher_step(f, 10);
        int before = mark_on(screen_of);
        usec begun = clock_us();
        press(screen_of, i % 2 ? "k" : "j");
        while (mark_on(screen_of) == before && clock_us() < begun + 5000000)
            fetcher_step(f, 1);
        took[i] = clock_us() - begun;
    }
    qsort(took, (size_t)presses, sizeof *took, by_size);
    printf("%s: from key to screen: median %.1f ms, 99%% within %.1f ms, longest %.1f ms\n", label,
           MS(took[presses / 2]), MS(took[presses * 99 / 100]), MS(took[presses - 1]));
}

static double cpu_of(pid_t pid) {
    char path[40], text[400] = "";
    unsigned long user = 0, kernel = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file && fgets(text, sizeof text, file))
        sscanf(strrchr(text, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
               &kernel);
    if (file)
        fclose(file);
    return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static double cpu_while(pid_t pid, usec us) {
    double before = cpu_of(pid);
    turn_for(us);
    return (cpu_of(pid) - before) / (double)us * 1e8;
}

/* A session of so many downloads. */
static const char *bench_session(int count, const char *bytes_a_tick) {
    static char list[20000000], session[300];
    size_t used = (size_t)sprintf(list, "# fetcher: a session\n");
    for (int i = 0; i < count; i++)
        used += (size_t)sprintf(list + used, "add http://127.0.0.1:%d/b%d?size=900000000&slow=%s\n",
                                server.port, i, bytes_a_tick);
    snprintf(session, sizeof session, "%s", in_work("bench"));
    write_file(session, list, used);
    return session;
}

static void bench_rows(int count, const char *bytes_a_tick, const char *label) {
    struct term t;
    const char *session = bench_session(count, bytes_a_tick);
    TERM(&t, 50, 120, "--session", session, "-j", "200", "--per-host", "200");
    until(sees(&t, count > 200 ? "99800 waiting" : " 0 waiting"));
    press_keys(&t, term_mark, term_press, count > 200 ? 100 : 500, label);
    if (count <= 200) {
        printf("    and with the display %.1f%% of a core", cpu_while(t.pid, 5000000));
        term_kill(&t);
        TERM(&t, 50, 120, "--session", session, "-j", "200", "--per-host", "200", "-q");
        turn_for(1000000);
        printf(", without %.1f%%\n", cpu_while(t.pid, 5000000));
    }
    term_kill(&t);
}

#ifdef FETCHER_X11
/* Which row has the mark of the chosen one at its left edge? */
static int gui_mark(const void *arg) {
    const struct gui *g = arg;
    int top = line_y(&window, 1), found = -1;
    XImage *image = XGetImage(desk.d, g->id, window.pad / 2 + 1, top, 1, 300, AllPlanes, ZPixmap);
    for (int y = 4; image && y < 300 && found < 0; y += window.line)
        if ((XGetPixel(image, 0, y) & 0xffffff) == palette[0][INK_BAR])
            found = y / window.line;
    if (image)
        XDestroyImage(image);
    return found;
}

static void gui_key(const struct gui *g, KeySym key) {
    XEvent e = {.xkey = {.type = KeyPress,
                         .window = g->id,
                         .root = DefaultRootWindow(desk.d),
                         .same_screen = True,
                         .keycode = XKeysymToKeycode(desk.d, key)}};
    XSendEvent(desk.d, g->id, False, KeyPressMask, &e);
    XFlush(desk.d);
}

static void gui_press(const void *arg, const char *key) {
    gui_key(arg, (KeySym)*key);
}

static long switches_of(pid_t pid) {
    char path[40], line[200];
    long n = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        sscanf(line, "voluntary_ctxt_switches: %ld", &n);
    if (file)
        fclose(file);
    return n;
}

static void bench_window(int count, const char *bytes_a_tick, const char *label) {
    struct gui g;
    const char *session = bench_session(count, bytes_a_tick);
    GUI(&g, "--session", session, "-j", "200", "--per-host", "200");
    gui_key(&g, XK_Tab);
    turn_for(count > 200 ? 3000000 : 1000000);
    press_keys(&g, gui_mark, gui_press, count > 200 ? 100 : 200, label);
    if (count <= 200) {
        printf("    and with the window %.1f%% of a core", cpu_while(g.c.pid, 5000000));
        gui_quit(&g);
        struct child c;
        child_start(&c, (const char *const[]){"./fetcher", "-q", "--session", session, "-j", "200",
                                              "--per-host", "200", "-d", in_work("gui"), NULL});
        turn_for(1000000);
        printf(", without %.1f%%\n", cpu_while(c.pid, 5000000));
        kill(c.pid, SIGTERM);
        child_wait(&c);
        child_free(&c);
    } else
        gui_quit(&g);
}

static bool has_picture(struct gui *g) {
    g->id = window_of(g->c.pid);
    return g->id != None && pixels(g, INK_TEXT, false, 0, line_y(&window, 1)) > 0;
}

static void bench_windows(void) {
    struct gui g;
    usec took[9];
    if (!desk_open("window"))
        return;
    for (int i = 0; i < 9; i++) {
        usec begun = clock_us();
        child_start(&g.c, (const char *const[]){"./fetcher", "-w", NULL});
        while (!has_picture(&g))
            fetcher_step(f, 1);
        took[i] = clock_us() - begun;
        if (i < 8)
            gui_quit(&g);
    }
    qsort(took, 9, sizeof *took, by_size);
    long before = switches_of(g.c.pid);
    turn_for(10000000);
    printf("the window: first picture after %.0f ms (median of 9); idle for 10 s: %ld wake-ups\n",
           MS(took[4]), switches_of(g.c.pid) - before);
    gui_quit(&g);
    bench_window(6, "200000", "the window, 6 downloads, 120 MB/s");
    bench_window(200, "2000", "the window, 200 downloads, 40 MB/s");
    bench_window(100000, "1", "the window, 100,000 rows, 200 of them running");
    desk_close();
}
#else
static void bench_windows(void) {
}
#endif

/* What the loop does with 2,000 files, 900 at a time: a line a turn. (make score) */
static void put_trace(struct fetcher *on, const char *line, void *arg) {
    (void)on;
    fprintf(arg, "%s\n", line);
}

static void score(int slice_us) {
    fetcher_slice(f, slice_us);
    fetcher_limit(f, 900, 900, 0);
    for (int i = 0; i < 2000; i++)
        fetcher_get(f, url("/score%d?size=1000", i), count_done, NULL);
    fetcher_trace(f, put_trace, stdout);
    fetcher_run(f);
}

int main(int argc, char **argv) {
    int port[2];
    tests_prepare(argv[0]);
    if (pipe(port) < 0)
        die("pipe");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    f = fetcher_new();
    if (child == 0) {
        server_open(&server, f, 0);
        if (write(port[1], &server.port, sizeof server.port) < 0)
            die("write");
        fetcher_run(f);
    }
    if (read(port[0], &server.port, sizeof server.port) < 0)
        die("read");
    snprintf(work, sizeof work, "/dev/shm/fetcher-bench-%d", (int)getpid());
    mkdir(work, 0700);
    if (argc == 3 && strcmp(argv[1], "score") == 0)
        score(atoi(argv[2]));
    else {
        bench_rows(6, "200000", "6 downloads, 120 MB/s");
        bench_rows(200, "2000", "200 downloads, 40 MB/s");
        bench_rows(100000, "1", "100,000 rows, 200 of them running");
        bench_windows();
    }
    kill(child, SIGKILL);
    struct child c = SH("rm -rf /dev/shm/fetcher-bench-*");
    child_free(&c);
    fetcher_free(f);
    return 0;
}
