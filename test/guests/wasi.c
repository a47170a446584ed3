// A command for the tests of WASI: its first argument says what to do.
// test/guests/build makes wasi.wasm of it.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int failed(void) {
    printf("%s\n", strerror(errno));
    return 1;
}

static int done(int result) {
    if (result < 0) return failed();
    puts("done");
    return 0;
}

static int cat(FILE *file) {
    char buffer[512];
    size_t length;
    if (!file) return failed();
    while ((length = fread(buffer, 1, sizeof buffer, file)) > 0) fwrite(buffer, 1, length, stdout);
    return ferror(file) ? failed() : 0;
}

static int write_file(const char *path, int flags, const char *text) {
    int fd = open(path, O_WRONLY | flags, 0644);
    if (fd < 0) return failed();
    return done(write(fd, text, strlen(text)));
}

static int list(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return failed();
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.') puts(entry->d_name);
    return closedir(dir);
}

static int sleep_for(long long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    return nanosleep(&time, NULL);
}

static long long now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// Waits for input, for at most so many milliseconds.
static int wait_for_input(int milliseconds) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    int ready = poll(&input, 1, milliseconds);
    if (ready < 0) return failed();
    printf("%s\n", ready ? "input" : "nothing");
    return 0;
}

static int random_bytes(void) {
    unsigned char bytes[8];
    if (getentropy(bytes, sizeof bytes)) return failed();
    for (size_t n = 0; n < sizeof bytes; n++) printf("%02x", bytes[n]);
    puts("");
    return 0;
}

// Each byte there is, and a character that does not end.
static int all_bytes(void) {
    for (int byte = 0; byte < 256; byte++) putchar(byte);
    putchar(0xc3);
    return 0;
}

// So many bytes of one write.
static int blob(size_t length) {
    char *bytes = malloc(length);
    memset(bytes, 'x', length);
    ssize_t written = write(1, bytes, length);
    if (written < 0) return 100 + (errno == ENOSPC);
    return (size_t)written == length ? 0 : 1;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    const char *arg = argc > 2 ? argv[2] : "";
    const char *more = argc > 3 ? argv[3] : "";
#define IS(name) (!strcmp(what, name))
    if (IS("")) return 0;
    if (IS("args")) {
        for (int n = 0; n < argc; n++) puts(argv[n]);
        return 0;
    }
    if (IS("env")) {
        for (char **entry = environ; entry && *entry; entry++) puts(*entry);
        return 0;
    }
    if (IS("exit")) exit(atoi(arg));
    if (IS("abort")) abort();
    if (IS("both")) return fprintf(stderr, "to stderr\n") < 0 || printf("to stdout\n") < 0;
    if (IS("cat")) return *arg ? cat(fopen(arg, "r")) : cat(stdin);
    if (IS("create")) return write_file(arg, O_CREAT | O_TRUNC, more);
    if (IS("append")) return write_file(arg, O_APPEND, more);
    if (IS("overwrite")) return write_file(arg, 0, more);
    if (IS("list")) return list(arg);
    if (IS("remove")) return done(unlink(arg));
    if (IS("mkdir")) return done(mkdir(arg, 0755));
    if (IS("rename")) return done(rename(arg, more));
    if (IS("symlink")) return done(symlink(arg, more));
    if (IS("truncate")) return done(truncate(arg, 0));
    if (IS("sleep")) return sleep_for(atoll(arg));
    if (IS("poll")) return wait_for_input(atoi(arg));
    if (IS("time")) return printf("%lld %lld\n", now(CLOCK_REALTIME), now(CLOCK_MONOTONIC)) < 0;
    if (IS("random")) return random_bytes();
    if (IS("bytes")) return all_bytes();
    if (IS("blob")) return blob(atoll(arg));
    if (IS("utf8")) {
        // More than stdio's buffer holds, so that characters are cut in two.
        for (int n = 0; n < 5000; n++) fputs("aé€😀", stdout);
        return 0;
    }
    fprintf(stderr, "what is %s?\n", what);
    return 2;
}
