/* SPDX-License-Identifier: 0BSD
 *
 * fuzz.c - what comes from outside, made up by libFuzzer (make fuzz): FUZZ_TARGET says which target
 * it goes to. What must hold stands in must(); the sanitizers see the rest. Nothing here reaches a
 * network.
 */
#define TEST_MAIN
#include "../test_fetcher.c"

static void must(bool good, const char *what, const char *text) {
    if (good)
        return;
    fprintf(stderr, "This does not hold: %s: \"%s\"\n", what, text);
    abort();
}

/* A copy that ends where it ends, for the sanitizer to see. */
static char *fuzz_text(const uint8_t *data, size_t n) {
    char *text = malloc(n + 1);
    if (!text)
        die("malloc");
    if (n > 0)
        memcpy(text, data, n);
    text[n] = '\0';
    return text;
}

static bool printable(const char *text) {
    while (*text) {
        size_t n = utf8_length(text);
        if (n == 0)
            return false;
        text += n;
    }
    return true;
}

static void must_be_name(const char *name) {
    must(*name && *name != '.' && !strchr(name, '/') && printable(name), "a safe name", name);
    must(strlen(name) <= 255, "a name that the file system takes", name);
}

/* -- names, and other text for the eye -- */
static void fuzz_names(const uint8_t *data, size_t n) {
    char *text = fuzz_text(data, n), path[300];
    char *names[2] = {malloc(DISPOSITION_ROOM(text)), fuzz_text(data, n)};
    struct out o = {.fd = -1};
    disposition_name(text, names[0]);
    name_make_safe(names[1]);
    for (int i = 0; i < 2; i++) { /* of the head, and of the URL */
        if (!*names[i])
            continue;
        must_be_name(names[i]);
        snprintf(path, sizeof path, "./%s", names[i]);
        for (unsigned long number = 0; number <= 1000000; number = number * 10 + 1) {
            char *numbered = name_numbered(path, number, ".part");
            must(numbered && strncmp(numbered, "./", 2) == 0, "a name below the directory", path);
            must_be_name(numbered + 2);
            free(numbered);
        }
    }
    free(names[0]);
    free(names[1]);
    out_json_text(&o, text);
    out_add(&o, "", 1);
    must(printable(o.data), "JSON that is safe to print", o.data);
    for (const char *s = o.data; *s; s++) {
        must(*s != '"', "no quote in a text of JSON", o.data);
        if (*s == '\\')
            s++;
    }
    free(o.data);
    free(text);
}

/* -- URLs: where they lead, and how they are shown -- */

/* Behind the host, and if it is a URL at all. */
static void must_be_encoded(const struct transfer *t) {
    const char *url = t->rq.url, *path = url + authority_size(url);
    if (t->code == FETCHER_OK)
        must(!path[strcspn(path, " \"<>^`{|}\x7f\x80\xff")], "a URL that is encoded", url);
}

static void fuzz_urls(const uint8_t *data, size_t n) {
    char *text = fuzz_text(data, n), *shown = url_shown(text), origin[512], *password = NULL;
    CURLU *u = curl_url();
    must(shown && printable(shown), "a URL that is safe to print", shown);
    if (!url_origin(text, origin, sizeof origin))
        must(!strncmp(origin, "http", 4) && strstr(origin, "://") && strrchr(origin, ':')[1],
             "an origin", origin);
    if (curl_url_set(u, CURLUPART_URL, text, CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK)
        password = url_part(u, CURLUPART_PASSWORD, 0);
    const char *at = password && strlen(password) > 4 ? strstr(text, password) : NULL;
    if (at && !strstr(at + 1, password))
        must(!strstr(shown, password), "no password in what is shown", shown);
    curl_free(password);
    curl_url_cleanup(u);
    f = fetcher_new();
    if (fetcher_get(f, text, NULL, NULL)) {
        must(fetcher_count(f) == 1, "one transfer", text);
        must_be_encoded(container_of(tree_first(f->transfers), struct transfer, id));
    }
    fetcher_free(f);
    free(shown);
    free(text);
}

/* -- the head of an answer, a line at a time -- */
static void must_be_head(const struct head *h) {
    usec rest = read_retry_after(h->retry_after, h->validators.date);
    must(h->length >= -1 && h->range.first >= -1 && h->range.last >= -1 && h->range.total >= -1,
         "numbers of the head are in range", "");
    must(rest >= -1 && rest <= HOUR_US, "a rest of an hour at most", h->retry_after);
    must(printable(h->reason), "a reason that is safe to print", h->reason);
    if (*h->name)
        must_be_name(h->name);
}

static void fuzz_head(const uint8_t *data, size_t n) {
    static struct host host;
    struct attempt a = {0};
    struct transfer t = {.host = &host, .attempt = &a};
    struct head *h = &a.head;
    f = fetcher_new();
    t.f = a.f = f;
    a.transfer = &t;
    h->length = -1;
    h->range = NO_RANGE;
    for (size_t line; n > 0; data += line, n -= line) {
        const uint8_t *end = memchr(data, '\n', n);
        line = end ? (size_t)(end - data) + 1 : n;
        char *exact = malloc(line);
        memcpy(exact, data, line);
        size_t taken = on_header(exact, 1, line, &a);
        free(exact);
        must(taken == line || t.code == FETCHER_TOO_BIG, "a line of the head is taken", "");
        must_be_head(h);
        struct body b = {.validators = h->validators};
        (void)validator(&b);
    }
    free(a.fields);
    fetcher_free(f);
}

/* -- .part.meta -- */
static void fuzz_meta(const uint8_t *data, size_t n) {
    struct meta m;
    char *part = in_work("x.part");
    write_file(in_work("x.part.meta"), (const char *)data, n);
    if (meta_read(part, &m) == OURS) {
        const char *url = m.line[META_URL], *validator = m.line[META_VALIDATOR];
        must(!strncasecmp(url, "http", 4) && !strpbrk(url, "\n"), "a URL", url);
        must(m.length >= -1 && !strchr(validator, '\n'), "a validator and a length", validator);
    }
}

/* -- options -- */
static void fuzz_options(const uint8_t *data, size_t n) {
    static FILE *null;
    char *text = fuzz_text(data, n), *argv[20] = {"fetcher"}, *urls[20] = {NULL}, *amount = NULL;
    const char *headers[20];
    struct settings s = {.headers = headers};
    int argc = 1;
    for (char *word = strtok(text, "\n"); word && argc < 18; word = strtok(NULL, "\n"))
        if (!strchr(word, '@')) /* files that have no end */
            argv[argc++] = amount = word;
    for (int kind = COUNT; amount && kind <= SIZE; kind++) {
        int64_t value = read_amount(amount, (enum kind)kind);
        must(value >= -1 && value <= 9000000000000000, "an amount", amount);
        must(value < 0 || isdigit((unsigned char)*amount), "a number begins with a digit", amount);
    }
    if (!null)
        null = fopen("/dev/null", "w");
    if (!null)
        die("/dev/null");
    FILE *kept = stderr;
    stderr = null;
    int status = options_read(&s, argv, urls);
    if (status == 0)
        status = options_check(&s, urls);
    stderr = kept;
    must(status >= 0 && status <= 2, "0, 1 or 2", "");
    must(status || (s.rq.retries >= -1 && s.rq.every_ms >= 0 && s.rq.max_bytes >= 0),
         "numbers in range", "");
    settings_free(&s);
    free(text);
}

/* -- a program without descriptors, whose transfers never start -- */
static struct program *fuzz_program(void) {
    struct program *p = calloc(1, sizeof *p);
    struct console *c = &p->console;
    f = p->f = p->model.f = c->f = fetcher_new();
    f->capacity = f->limit_total = 0;
    c->p = p;
    c->out.fd = c->err.fd = -1;
    c->out.tty = true;
    p->source = &p->input[PROMPT];
    for (int i = 0; i < INPUTS; i++) {
        p->input[i].fd = -1;
        p->input[i].eof = true;
        p->input[i].name = "";
    }
    memset(&the_view, 0, sizeof the_view);
    the_view.log.fd = the_view.picture.fd = the_view.bytes.fd = the_view.codes.fd = -1;
    p->model.shown = p->model.keeps = p->interactive = true;
    p->s.retries = -1;
    p->began = clock_us();
    p->model.sampled = fetcher_now(f);
    return p;
}

/* Turn until nothing is left to be done at once. What is said must be safe to print. */
static void fuzz_turn(struct program *p) {
    struct loop *l = &p->f->loop;
    wake(p);
    for (int i = 0; i < 1000 && (i < 2 || p->work_timer || l->more) && !l->stopped; i++) {
        (void)fetcher_step(p->f, 0);
        p->console.out.used = p->console.err.used = 0;
    }
}

static void fuzz_end(struct program *p) {
    struct fetcher_stats st;
    fetcher_stats(p->f, &st);
    must(st.running == 0 && st.received == 0, "nothing is fetched", "");
    p->s.session = NULL;
    p->console.out.used = p->console.err.used = 0;
    p->console.out.watched = p->console.err.watched = false;
    struct sigaction kept[COUNT_OF(handled)]; /* libFuzzer has handlers too */
    for (size_t i = 0; i < COUNT_OF(handled); i++)
        sigaction(handled[i].number, NULL, &kept[i]);
    program_close(p);
    for (size_t i = 0; i < COUNT_OF(handled); i++)
        sigaction(handled[i].number, &kept[i], NULL);
    free(p);
    f = NULL;
}

/* -- lines of commands, and the session that they leave -- */
static char *fuzz_session(const char *text, size_t n, bool session) {
    struct program *p = fuzz_program();
    struct input *in = &p->input[session ? SESSION : LIST];
    struct session *s = &p->session;
    int64_t size = 0;
    if (n >= sizeof in->text)
        n = sizeof in->text - 1;
    memcpy(in->text, text, n);
    in->end = n;
    s->reading = s->restoring = session;
    fuzz_turn(p);
    must(!input_left(in) || p->f->loop.stopped, "all lines are taken", in->text + in->begin);
    char *saved = NULL;
    unlink(in_work("session"));
    p->s.session = p->closing ? NULL : in_work("session");
    s->fresh = text_join(in_work("session"), ".new");
    s->grown = 1;
    s->fd = -1;
    session_close(p);
    if (s->fd >= 0)
        saved = slurp(in_work("session"), &size);
    fuzz_end(p);
    return saved;
}

static void fuzz_lines(const uint8_t *data, size_t n) {
    char *text = fuzz_text(data, n), *line = fuzz_text(data, n), *word[4], *again[4], *saved,
         *second;
    int words = words_split(line, word, 4);
    struct out out = {.fd = -1};
    must(words >= -1, "a number of words", text);
    bool whole = words > 0 && words <= 4;
    for (int i = 0; whole && i < words; i++)
        whole = *word[i] != '\0';
    for (int i = 0; whole && i < words; i++)
        write_word(&out, word[i]);
    out_add(&out, "", 1);
    must(!whole || words_split(out.data, again, 4) == words,
         "as many words are read as were written", text);
    for (int i = 0; whole && i < words; i++)
        must(strcmp(word[i], again[i]) == 0, "the word that was written", word[i]);
    saved = fuzz_session(text, n, false);
    /* One without downloads may forget what the next number was. */
    bool some = saved && (strstr(saved, "\nadd ") || strstr(saved, "\nevery "));
    if (some && strlen(saved) < LINE_LONGEST) {
        second = fuzz_session(saved, strlen(saved), true);
        if (!second || strcmp(saved, second))
            fprintf(stderr, "after:\n%s", second ? second : "(none)\n");
        must(second && strcmp(saved, second) == 0,
             "a session that is read and written stays as it is", saved);
        free(second);
    }
    free(saved);
    free(out.data);
    free(line);
    free(text);
}

/* -- keys, and what is drawn: 0xff reads what came, 0xfe lets time pass, 0xfd is another size -- */
static int fuzz_columns, fuzz_rows;

static void fuzz_show(struct program *p) {
    p->console.out.used = 0;
    p->view->drawn = fetcher_now(p->f);
    view_paint(p->view, view_compose(p, fuzz_columns, fuzz_rows));
    wake(p);
}

static void nothing_off(struct program *p) {
    p->view->on = false;
}

static void must_fit(struct program *p, const char *text) {
    struct out o = {.fd = -1};
    put_padded(p->view, &o, text, fuzz_columns);
    out_add(&o, "", 1);
    must(text_columns(p->view, o.data) == fuzz_columns, "so many columns", o.data);
    free(o.data);
}

/* Another size of the terminal, or time passes. */
static size_t fuzz_event(struct program *p, const uint8_t *data, size_t n) {
    size_t used = 0;
    if (n > 1 && data[0] == 0xfd) {
        fuzz_columns = data[1] + 1;
        fuzz_rows = data[1] % 40 + 1;
        p->view->redraw = true;
        used = 1;
    }
    if (n > used && data[used] == 0xfe)
        p->f->loop.skew += 1000000;
    if (n > used && data[used] >= 0xfd)
        used++;
    return used;
}

static void must_hold(struct program *p) {
    struct view *v = p->view;
    struct prompt *e = &v->prompt;
    must(e->length < sizeof e->text && e->caret <= e->length && e->mark <= e->length &&
             strlen(e->text) == e->length,
         "caret and mark stand in the line", e->text);
    must(e->entry >= 0 && e->entry <= e->entries && e->entry >= e->entries - HISTORY,
         "a line of the history", e->text);
    must((v->bytes.used == 0 && v->codes.used == 0) || v->key_timer || !v->show,
         "keys that wait are looked at again", "");
}

static struct program *fuzz_view(void) {
    struct program *p = fuzz_program();
    struct view *v = p->view = &the_view;
    tty.fd = -1;
    v->out = &p->console.out;
    v->keys = v->rows = v->utf8 = v->color = p->stay = true;
    view_catch_lines(p, true);
    v->show = fuzz_show;
    v->off = nothing_off;
    v->pace = FRAME_MS;
    p->console.changed = frame_later;
    p->input[PROMPT].eof = false;
    fuzz_columns = 79;
    fuzz_rows = 16;
    for (int i = 0; i < 3; i++)
        (void)job_start(p, "http://127.0.0.1/a", NULL, NULL, 0);
    return p;
}

static void fuzz_keys(const uint8_t *data, size_t n) {
    struct program *p = fuzz_view();
    struct view *v = p->view;
    while (n > 0 && !p->f->loop.stopped) {
        size_t piece = 0;
        while (piece < n && data[piece] < 0xfd)
            piece++;
        out_add(&v->bytes, (const char *)data, piece);
        keys_pump(p, false);
        data += piece;
        n -= piece;
        piece = fuzz_event(p, data, n);
        data += piece;
        n -= piece;
        fuzz_turn(p);
        must_hold(p);
        if (!p->f->loop.stopped)
            fuzz_show(p);
        must_fit(p, v->prompt.text);
    }
    v->show = NULL;
    fuzz_end(p);
}

/* -- whole answers, 0x1e between them; 0x1d: the rest comes later; 0x1f stands for 8 KiB -- */
static struct {
    int fd;
    const uint8_t *data, *end;
} fuzz_conn[64], fuzz_server;

static int fuzz_conns;
static int fuzz_answers; /* that were given, of this transfer */
static struct bytes fuzz_sent;

static void fuzz_write(struct fetcher *on, int fd, int events, void *arg) {
    static char many[8192], out[200000];
    const uint8_t **at = arg, *end = fuzz_server.end;
    size_t n = 0;
    int stop = 0;
    (void)events;
    memset(many, 'x', sizeof many);
    for (; *at < end && (stop = **at) != 0x1e && stop != 0x1d && n + sizeof many < sizeof out;
         ++*at) {
        size_t size = stop == 0x1f ? sizeof many : 1;
        memcpy(out + n, stop == 0x1f ? many : (const char *)*at, size);
        n += size;
    }
    if (*at < end && stop == 0x1d)
        ++*at;
    bytes_add(&fuzz_sent, out, n);
    if (n > 0 && write(fd, out, n) == (ssize_t)n && *at < end && stop == 0x1d)
        return;
    (void)fetcher_watch(on, fd, 0, NULL, NULL);
    shutdown(fd, SHUT_RDWR);
}

static void fuzz_read(struct fetcher *on, int fd, int events, void *arg) {
    char request[70000];
    const uint8_t **at = arg, *next;
    (void)events;
    if (read(fd, request, sizeof request) <= 0 || !fuzz_server.data) {
        (void)fetcher_watch(on, fd, 0, NULL, NULL);
        shutdown(fd, SHUT_RDWR);
        return;
    }
    fuzz_answers++;
    *at = fuzz_server.data; /* the next request gets the next answer */
    next = memchr(*at, 0x1e, (size_t)(fuzz_server.end - *at));
    fuzz_server.data = next ? next + 1 : NULL;
    (void)fetcher_watch(on, fd, FETCHER_WRITE, fuzz_write, at);
}

static void fuzz_accept(struct fetcher *on, int fd, int events, void *arg) {
    int conn = accept(fd, NULL, NULL);
    (void)events;
    (void)arg;
    if (conn < 0)
        return;
    if (fuzz_conns == (int)COUNT_OF(fuzz_conn) || set_flags(conn, O_NONBLOCK) < 0) {
        close(conn);
        return;
    }
    fuzz_conn[fuzz_conns].fd = conn;
    (void)fetcher_watch(on, conn, FETCHER_READ, fuzz_read, &fuzz_conn[fuzz_conns++].data);
}

static int fuzz_setup(void *easy, void *arg) {
    (void)arg;
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    return curl_easy_setopt(easy, CURLOPT_ABSTRACT_UNIX_SOCKET, work) == CURLE_OK ? 0 : -1;
}

static void fuzz_done(struct fetcher *on, const struct fetcher_result *r, void *arg) {
    struct outcome *o = arg;
    keep_outcome(on, r, arg);
    must(printable(r->message) && printable(r->url) && printable(r->final_url) &&
             printable(r->content_type),
         "texts that are safe to print", r->message);
    must(r->code == FETCHER_OK || *r->message, "a reason", fetcher_strerror(r->code));
    must(!r->data || (r->data[r->size] == '\0' && r->bytes == (int64_t)r->size),
         "a NUL behind the data", r->message);
    must(r->attempts >= 0 && r->attempts < 30 && r->received >= 0 && r->bytes >= 0,
         "counts in range", r->message);
    must(o->calls == 1, "on_done comes once", r->message);
}

static struct outcome fuzz_fetch(struct fetcher_request rq) {
    struct outcome o = {.hasten = true};
    bytes_free(&fuzz_sent);
    bytes_add(&fuzz_sent, "", 0);
    fuzz_answers = 0;
    f = fetcher_new();
    f->random = 1;
    rq.url = "http://127.0.0.1/name.ext";
    rq.on_done = fuzz_done;
    rq.on_progress = hasten;
    rq.setup = fuzz_setup;
    rq.arg = &o;
    rq.retries = 3;
    if (fetcher_watch(f, fuzz_server.fd, FETCHER_READ, fuzz_accept, NULL) < 0 ||
        !fetcher_start(f, &rq))
        die("fuzz_fetch");
    for (int i = 0; i < 20000 && !o.calls; i++)
        fetcher_step(f, 1000);
    must(o.calls == 1, "it ends", "");
    must(o.code || o.status != 200 || o.bytes <= rq.max_bytes, "no more than is allowed", "");
    fetcher_free(f);
    while (fuzz_conns > 0)
        close(fuzz_conn[--fuzz_conns].fd);
    for (int fd; (fd = accept(fuzz_server.fd, NULL, NULL)) >= 0;)
        close(fd);
    return o;
}

/* What may lie in the directory when all has ended; it is removed. */
static void fuzz_clear(const struct outcome *o) {
    DIR *dir = opendir(work);
    char path[600];
    int whole = 0;
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        size_t n = strlen(e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        must_be_name(e->d_name);
        snprintf(path, sizeof path, "%s/%s", work, e->d_name);
        if (n > 10 && !strcmp(e->d_name + n - 10, ".part.meta"))
            path[strlen(path) - 5] = '\0';
        else if (n > 5 && !strcmp(e->d_name + n - 5, ".part"))
            strcat(path, ".meta");
        else
            whole++;
        must(o->path[0] || exists(path), "a .part with its .meta", e->d_name);
    }
    rewinddir(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", work, e->d_name);
        unlink(path);
    }
    closedir(dir);
    must(whole == (o->path[0] != '\0'), "one file if it is whole, else none", o->path);
}

/* An earlier run has left it. */
static void fuzz_leave_part(const char *name) {
    char meta[100];
    snprintf(meta, sizeof meta, "%s.meta", name);
    write_file(in_work(name), "xxxx", 4);
    write_file(in_work(meta), "http://127.0.0.1/name.ext\n\"e\"\n-1\n", 34);
}

static void must_be_same(const struct outcome *ram, const struct outcome *file, bool varied) {
    static char kept[200000];
    struct stat st;
    must(stat(file->path, &st) == 0 && st.st_size == file->bytes, "a file of the size", file->path);
    FILE *stream = fopen(file->path, "r");
    size_t got = fread(kept, 1, sizeof kept, stream);
    fclose(stream);
    must(varied || file->attempts != ram->attempts || !ram->data || got != ram->size ||
             !memcmp(kept, ram->data, got),
         "the same bytes in memory and in a file", file->path);
}

/* Is there but one way to read it? Else libcurl may have read it in another one. */
static bool fuzz_is_plain(const struct told *t) {
    struct reader r = {fuzz_sent.data, fuzz_sent.data + fuzz_sent.size};
    char line[1000];
    for (const char *s = r.at; s < r.end; s++)
        if ((*s == '\n' && (s == r.at || s[-1] != '\r')) || (*s == '\r' && s[1] != '\n') || !*s)
            return false;
    if (t->doubtful || (t->chunked && t->invalid) || !next_line(&r, line, sizeof line) ||
        strncmp(line, "HTTP/1.1 ", 9) != 0 || strspn(line + 9, "0123456789") != 3 ||
        (line[12] && line[12] != ' ') || t->status != atoi(line + 9))
        return false;
    while (next_line(&r, line, sizeof line) && *line) {
        size_t name = strspn(line, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-");
        if (name == 0 || line[name] != ':' || strlen(line) > 900)
            return false;
    }
    return true;
}

/* What came of one answer must be all of it. */
static void must_be_whole(const struct outcome *o) {
    if (o->code || fuzz_answers != 1)
        return;
    struct told t = told_of(&fuzz_sent);
    t.word = true;
    if (fuzz_is_plain(&t)) {
        must(told_whole(&t), "only what is whole ends well", fuzz_sent.data);
        must(bytes_are(&t.body, o->data, o->size), "and it has these bytes", fuzz_sent.data);
    }
    bytes_free(&t.body);
}

static struct fetcher_request fuzz_request(unsigned mode) {
    struct fetcher_request rq = {0};
    rq.max_bytes = mode & 1 ? 1000 : 1000000;
    rq.flags = mode & 2 ? FETCHER_COMPRESSED : 0;
    rq.method = mode & 4 ? "HEAD" : NULL;
    rq.existing = mode & 8 ? FETCHER_OVERWRITE : FETCHER_KEEP_BOTH;
    return rq;
}

/* Some words of success are no file. */
static bool brings_word(int status) {
    return status > 200 && status < 300 && status != 203 && status != 206;
}

static void fuzz_http(const uint8_t *data, size_t n) {
    struct outcome ram, file;
    if (n < 1)
        return;
    unsigned mode = *data;
    struct fetcher_request rq = fuzz_request(mode);
    fuzz_server.data = data + 1;
    fuzz_server.end = data + n;
    ram = fuzz_fetch(rq);
    if (!(mode & 6)) /* a body as it is */
        must_be_whole(&ram);
    rq.path = mode & 16 ? in_work("") : in_work("file");
    rq.flags |= FETCHER_FILE_TIME;
    if (mode & 32)
        fuzz_leave_part(mode & 16 ? "name.ext.part" : "file.part");
    fuzz_server.data = data + 1;
    file = fuzz_fetch(rq);
    if (file.code && fuzz_server.data) { /* the next run goes on */
        forget(&file);
        file = fuzz_fetch(rq);
    } else if (!(mode & 34) && !brings_word(ram.status) && !brings_word(file.status)) {
        must(ram.code == file.code && ram.status == file.status, "as in memory, so in a file",
             file.message);
        must(file.code || ram.bytes == file.bytes, "as many bytes in memory as in a file",
             file.message);
    }
    if (*file.path)
        must_be_same(&ram, &file, mode & 34);
    fuzz_clear(&file);
    forget(&ram);
    forget(&file);
}

static const struct {
    const char *name;
    void (*run)(const uint8_t *, size_t);
} fuzz_target[] = {
    {"names", fuzz_names},     {"urls", fuzz_urls},   {"head", fuzz_head}, {"meta", fuzz_meta},
    {"options", fuzz_options}, {"lines", fuzz_lines}, {"keys", fuzz_keys}, {"http", fuzz_http},
};

static size_t fuzz_chosen;

static void fuzz_leave(void) {
    nftw(work, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = getenv("FUZZ_TARGET");
    (void)argc;
    (void)argv;
    while (fuzz_chosen < COUNT_OF(fuzz_target) && name &&
           strcmp(fuzz_target[fuzz_chosen].name, name))
        fuzz_chosen++;
    if (!name || fuzz_chosen == COUNT_OF(fuzz_target))
        die("FUZZ_TARGET");
    signal(SIGPIPE, SIG_IGN);
    setlocale(LC_CTYPE, "C.UTF-8");
    curl_global_init(CURL_GLOBAL_DEFAULT); /* once, not for each input */
    snprintf(work, sizeof work, "/dev/shm/fetcher-fuzz-%d", (int)getpid());
    mkdir(work, 0700);
    atexit(fuzz_leave);
    fuzz_server.fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(address.sun_path + 1, work); /* an abstract name */
    if (bind(fuzz_server.fd, (struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(work))) < 0 ||
        listen(fuzz_server.fd, 16) < 0 || set_flags(fuzz_server.fd, O_NONBLOCK) < 0)
        die("bind");
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_target[fuzz_chosen].run(data, n);
    return 0;
}
