/* SPDX-License-Identifier: 0BSD
 *
 * A loop around libcurl as its manual shows it: curl_multi_fdset(), select(), curl_multi_perform().
 * With NOTICK in the environment there are no ticks, for what is compared with programs.
 */
#include "contract.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/select.h>

static struct contract c;
static CURLM *multi;

struct job {
    CURL *easy;
    const char *url; /* NULL: idle */
    FILE *file;
    int64_t begun;
};

/* select() takes descriptors below FD_SETSIZE only: leave these to the sockets. */
static FILE *open_file(const char *path) {
    int low = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int fd = low < 0 ? -1 : fcntl(low, F_DUPFD_CLOEXEC, FD_SETSIZE);
    if (low >= 0)
        close(low);
    return fd < 0 ? NULL : fdopen(fd, "w");
}

static size_t on_data(char *data, size_t size, size_t n, void *arg) {
    struct job *job = arg;
    if (!job->file)
        job->file = open_file(contract_path(&c, job->url));
    return job->file ? size * fwrite(data, size, n, job->file) : 0;
}

static bool start_next(struct job *job) {
    if (c.next == c.count)
        return false;
    job->url = c.url[c.next++];
    job->begun = clock_now_us();
    curl_easy_setopt(job->easy, CURLOPT_URL, job->url);
    curl_multi_add_handle(multi, job->easy);
    return true;
}

/* Returns whether another one has been started in its place. */
static bool end(struct job *job, const char *error) {
    curl_multi_remove_handle(multi, job->easy);
    if (error)
        fprintf(stderr, "%s: %s\n", job->url, error);
    if (job->file && fclose(job->file))
        perror(job->url);
    job->file = NULL;
    job->url = NULL;
    return start_next(job);
}

/* Sleep until a socket is ready, libcurl wants to be called, or the time `until` has come. */
static void sleep_on_sockets(int64_t until) {
    fd_set rd, wr, ex;
    int most = -1;
    long ms = -1;
    FD_ZERO(&rd);
    FD_ZERO(&wr);
    FD_ZERO(&ex);
    curl_multi_fdset(multi, &rd, &wr, &ex, &most);
    curl_multi_timeout(multi, &ms);
    if (ms < 0 || ms > 1000)
        ms = 1000;
    if (most < 0 && ms > 100) /* nothing to wait for: the manual says so */
        ms = 100;
    int64_t us = until - clock_now_us();
    us = us < 0 ? 0 : us < ms * 1000 ? us : ms * 1000;
    select(most + 1, &rd, &wr, &ex,
           &(struct timeval){.tv_sec = us / 1000000, .tv_usec = us % 1000000});
}

int main(int argc, char **argv) {
    bool ticks = getenv("NOTICK") == NULL;
    c = contract_read(argc, argv);
    curl_global_init(CURL_GLOBAL_ALL);
    multi = curl_multi_init();
    tick();
    int busy = 0;
    struct job *job = calloc((size_t)c.jobs, sizeof *job);
    for (int i = 0; i < c.jobs; i++) {
        job[i].easy = curl_easy_init();
        curl_easy_setopt(job[i].easy, CURLOPT_PRIVATE, &job[i]);
        curl_easy_setopt(job[i].easy, CURLOPT_WRITEFUNCTION, on_data);
        curl_easy_setopt(job[i].easy, CURLOPT_WRITEDATA, &job[i]);
        curl_easy_setopt(job[i].easy, CURLOPT_FAILONERROR, 1L);
        curl_easy_setopt(job[i].easy, CURLOPT_NOSIGNAL, 1L);
        busy += start_next(&job[i]);
    }
    int64_t next_tick = clock_now_us() + (ticks ? 1000 : INT64_MAX / 2);
    while (busy) {
        int running, left;
        sleep_on_sockets(next_tick);
        if (clock_now_us() >= next_tick) {
            tick();
            next_tick = clock_now_us() + 1000;
        }
        curl_multi_perform(multi, &running);
        for (CURLMsg *m; (m = curl_multi_info_read(multi, &left)) != NULL;) {
            struct job *ended;
            CURLcode code = m->data.result;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &ended);
            busy -= !end(ended, code ? curl_easy_strerror(code) : NULL);
        }
        for (int i = 0; c.cancel_ms >= 0 && i < c.jobs; i++)
            if (job[i].url && clock_now_us() >= job[i].begun + c.cancel_ms * 1000)
                busy -= !end(&job[i], "cancelled");
    }
    tick_report();
}
