/* SPDX-License-Identifier: 0BSD
 *
 *     measure FILE COMMAND...      run COMMAND; write "CPU_S WALL_S PEAK_KIB THREADS" into FILE
 *
 * As time(1), but with the most threads that were seen, by a look each 10 ms.
 */
#include "contract.h"

#include <sys/resource.h>
#include <sys/wait.h>

static int threads_of(pid_t pid) {
    char name[40], line[200];
    int n = 0;
    snprintf(name, sizeof name, "/proc/%d/status", (int)pid);
    FILE *status = fopen(name, "r");
    while (status && fgets(line, sizeof line, status) && sscanf(line, "Threads: %d", &n) != 1)
        ;
    if (status)
        fclose(status);
    return n;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    sigset_t child, before;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    int64_t begun = clock_now_us();
    pid_t pid = fork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        execvp(argv[2], argv + 2);
        perror(argv[2]);
        _exit(127);
    }
    int status, most = 1;
    struct rusage u;
    while (wait4(pid, &status, WNOHANG, &u) == 0) {
        int n = threads_of(pid);
        most = n > most ? n : most;
        sigtimedwait(&child, NULL, &(struct timespec){.tv_nsec = 10000000});
    }
    double wall = (double)(clock_now_us() - begun) / 1e6;
    double cpu = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                 (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    FILE *out = fopen(argv[1], "w");
    if (out && fprintf(out, "%.3f %.3f %ld %d\n", cpu, wall, u.ru_maxrss, most) > 0 && !fclose(out))
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    perror(argv[1]);
    return 2;
}
