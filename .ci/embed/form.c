/* A form with a file, as a browser sends it (multipart/form-data). libcurl builds it, in setup; it belongs to the
 * handle of one attempt, so it is made anew for each.
 *
 *     cc -o app form.c fetcher.c -lcurl && ./app URL FILE
 */
#include <curl/curl.h>
#include <signal.h>
#include <stdio.h>
#include "fetcher.h"

struct form {
    const char *file;
    curl_mime *mime; /* of the last attempt */
};

static int setup(void *easy, void *arg) {
    struct form *form = arg;
    curl_mimepart *part;
    unsigned bad = 0;

    curl_mime_free(form->mime);
    form->mime = curl_mime_init(easy);
    if (!form->mime)
        return -1;
    part = curl_mime_addpart(form->mime);
    bad |= (unsigned)curl_mime_name(part, "comment") |
           (unsigned)curl_mime_data(part, "from fetcher", CURL_ZERO_TERMINATED);
    part = curl_mime_addpart(form->mime);
    bad |= (unsigned)curl_mime_name(part, "file") | (unsigned)curl_mime_filedata(part, form->file);
    bad |= (unsigned)curl_easy_setopt(easy, CURLOPT_MIMEPOST, form->mime);
    return bad ? -1 : 0;
}

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)f, (void)arg;
    printf("%s: %s\n%s", r->url, r->message, r->data ? r->data : "");
}

int main(int argc, char **argv) {
    struct fetcher *f = fetcher_new();
    struct form form = {argc > 2 ? argv[2] : NULL, NULL};
    struct fetcher_request rq = {
        .url = argv[1], .method = "POST", .setup = setup, .on_done = done, .arg = &form};

    signal(SIGPIPE, SIG_IGN);
    if (!f || argc < 3 || !fetcher_start(f, &rq))
        return 1;
    fetcher_run(f);
    fetcher_free(f);
    curl_mime_free(form.mime);
    return 0;
}
