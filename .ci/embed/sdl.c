/* In a game of SDL 2: a square moves at 60 frames a second while the arguments are fetched.
 *
 * The game owns the loop, and calls once a frame for what has come since the last. The slice says what that may
 * cost: 8 of the 16.7 ms that a frame has.
 *
 *     cc -o app sdl.c fetcher.c -lcurl $(pkg-config --cflags --libs sdl2)
 */
#include <SDL.h>
#include <signal.h>
#include <stdio.h>
#include "fetcher.h"

enum { WIDTH = 320, HEIGHT = 200, SIDE = 20, FRAME_MS = 16 };

static void done(struct fetcher *f, const struct fetcher_result *r, void *arg) {
    (void)f, (void)arg;
    printf("%s: %s, %zu bytes\n", r->url, r->message, r->size);
}

static void draw(SDL_Renderer *renderer, int frame) {
    int way = 2 * (WIDTH - SIDE), at = 3 * frame % way;
    SDL_Rect square = {at < way / 2 ? at : way - at, (HEIGHT - SIDE) / 2, SIDE, SIDE};

    SDL_SetRenderDrawColor(renderer, 20, 20, 30, 255);
    SDL_RenderClear(renderer);
    SDL_SetRenderDrawColor(renderer, 240, 180, 60, 255);
    SDL_RenderFillRect(renderer, &square);
    SDL_RenderPresent(renderer);
}

/* Frames until all has come. How many of them were late? */
static int play(SDL_Renderer *renderer, struct fetcher *f, int *frames) {
    SDL_Event event;
    int late = 0;

    for (*frames = 0; fetcher_count(f); ++*frames) {
        Uint32 begun = SDL_GetTicks(), took;

        while (SDL_PollEvent(&event))
            if (event.type == SDL_QUIT)
                return late;
        fetcher_step(f, 0); /* all that is new */
        draw(renderer, *frames);
        took = SDL_GetTicks() - begun;
        if (took < FRAME_MS)
            SDL_Delay(FRAME_MS - took);
        else if (took > FRAME_MS)
            late++;
    }
    return late;
}

int main(int argc, char **argv) {
    SDL_Window *window = NULL;
    SDL_Renderer *renderer = NULL;
    struct fetcher *f = fetcher_new();
    int frames = 0, late;

    signal(SIGPIPE, SIG_IGN);
    if (!f || SDL_Init(SDL_INIT_VIDEO) ||
        SDL_CreateWindowAndRenderer(WIDTH, HEIGHT, 0, &window, &renderer))
        return 1;
    fetcher_slice(f, 8000);
    for (int i = 1; i < argc; i++)
        fetcher_get(f, argv[i], done, NULL);
    late = play(renderer, f, &frames);
    printf("%d frames, %d late\n", frames, late);
    fetcher_free(f);
    SDL_DestroyRenderer(renderer);
    SDL_DestroyWindow(window);
    SDL_Quit();
    return 0;
}
