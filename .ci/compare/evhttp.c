/* SPDX-License-Identifier: 0BSD
 *
 * libevent's evhttp: JOBS connections to the host of the first URL (a connection is made for one host,
 * and a pool for many is left to its user), each of which fetches one URL after the other.
 */
#include "contract.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <fcntl.h>

static struct contract c;
static struct event_base *base;
static int running;

struct job {
    struct evhttp_connection *connection;
    const char *host, *url;
};

static void on_tick(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what, (void)arg;
    tick();
}

static void save(const char *url, struct evbuffer *body) {
    int fd = open(contract_path(&c, url), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    while (fd >= 0 && evbuffer_get_length(body) > 0 && evbuffer_write(body, fd) > 0)
        ;
    if (fd < 0 || evbuffer_get_length(body) > 0)
        perror(url);
    if (fd >= 0)
        close(fd);
}

static void start_next(struct job *job);

static void on_answer(struct evhttp_request *request, void *arg) {
    struct job *job = arg;
    if (request && evhttp_request_get_response_code(request) == HTTP_OK)
        save(job->url, evhttp_request_get_input_buffer(request));
    else
        fprintf(stderr, "%s failed\n", job->url);
    start_next(job);
    if (--running == 0)
        event_base_loopbreak(base);
}

static void start_next(struct job *job) {
    if (c.next == c.count)
        return;
    job->url = c.url[c.next++];
    struct evhttp_request *request = evhttp_request_new(on_answer, job);
    evhttp_add_header(evhttp_request_get_output_headers(request), "Host", job->host);
    const char *path = strchr(strstr(job->url, "//") + 2, '/');
    evhttp_make_request(job->connection, request, EVHTTP_REQ_GET, path);
    running++;
}

int main(int argc, char **argv) {
    c = contract_read(argc, argv);
    struct evhttp_uri *uri = evhttp_uri_parse(c.url[0]);
    struct event_config *config = event_config_new();
    event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
    base = event_base_new_with_config(config);
    tick();
    struct event *timer = event_new(base, -1, EV_PERSIST, on_tick, NULL);
    event_add(timer, &(struct timeval){.tv_usec = 1000});
    struct job *job = calloc((size_t)c.jobs, sizeof *job);
    for (int i = 0; i < c.jobs; i++) {
        job[i].host = evhttp_uri_get_host(uri);
        job[i].connection = evhttp_connection_base_new(base, NULL, job[i].host,
                                                       (unsigned short)evhttp_uri_get_port(uri));
        start_next(&job[i]);
    }
    event_base_dispatch(base);
    tick_report();
}
