/* SPDX-License-Identifier: 0BSD
 *
 *     trickle PORT SECONDS     a server that answers with a byte a second
 *
 * Each connection has a millisecond of the second that is its own, by its descriptor. So the bytes of
 * many connections come one by one, as from many servers, not all at once.
 */
#include "contract.h"

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { CONNECTIONS = 10000 };

static int left[CONNECTIONS]; /* bytes to send, by descriptor */

static void accept_all(int server, int epoll) {
    for (int fd; (fd = accept4(server, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= CONNECTIONS || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
            close(fd);
    }
}

/* A request is small, so it is taken for whole when its last piece ends in an empty line. */
static void answer(int fd, int seconds) {
    char in[4096];
    ssize_t n = read(fd, in, sizeof in);
    if (n <= 0) {
        left[fd] = 0;
        close(fd);
    } else if (n >= 4 && !memcmp(in + n - 4, "\r\n\r\n", 4)) {
        dprintf(fd, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", seconds);
        left[fd] = seconds;
    }
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    int seconds = atoi(argv[2]), one = 1, epoll = epoll_create1(0);
    int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(argv[1])),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event e[64], mine = {.events = EPOLLIN, .data.fd = server};
    signal(SIGPIPE, SIG_IGN);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&to, sizeof to) < 0 || listen(server, 4096) < 0 ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, server, &mine) < 0) {
        perror("trickle");
        return 1;
    }
    for (int64_t ms = clock_now_us() / 1000;;) {
        int n = epoll_wait(epoll, e, 64, 1);
        for (int i = 0; i < n; i++)
            if (e[i].data.fd == server)
                accept_all(server, epoll);
            else
                answer(e[i].data.fd, seconds);
        for (; ms <= clock_now_us() / 1000; ms++)
            for (int fd = (int)(ms % 1000); fd < CONNECTIONS; fd += 1000)
                if (left[fd] && write(fd, "x", 1) == 1)
                    left[fd]--;
    }
}
