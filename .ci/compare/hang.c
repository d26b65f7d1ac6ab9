/* SPDX-License-Identifier: 0BSD
 *
 * To be preloaded: a getaddrinfo() that takes 10 s for names that end in ".hang", and then fails, as
 * when no name server answers.
 */
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **res) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    size_t n = node ? strlen(node) : 0;
    if (n > 5 && !strcmp(node + n - 5, ".hang")) {
        sleep(10);
        return EAI_AGAIN;
    }
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, res);
}
