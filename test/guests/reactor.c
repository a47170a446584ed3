// A reactor for the tests of WASI: a library with a constructor.
// test/guests/build makes reactor.wasm of it.

#include <stdio.h>
#include <time.h>

#define EXPORT(name) __attribute__((export_name(name)))

static int initialized;

__attribute__((constructor)) static void initialize(void) {
    initialized++;
}

EXPORT("initialized") int how_often(void) {
    return initialized;
}

EXPORT("say") void say(int number) {
    printf("number %d\n", number);
    fflush(stdout);
}

EXPORT("sleep") int sleep_for(int milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    return nanosleep(&time, NULL);
}
