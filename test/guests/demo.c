// The guest of `mix beamr.demo`: plain C that works on text and knows nothing of the BEAM.
// test/guests/build makes demo.wasm of it.

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

// Implemented in Elixir: answers the value of `key` as a new string, which is ours to free.
IMPORT("env", "lookup") char *lookup(const char *key);

EXPORT("count_words") int count_words(const char *text) {
    int words = 0;
    for (int inside = 0; *text; text++) {
        int letter = !isspace((unsigned char)*text);
        words += letter && !inside;
        inside = letter;
    }
    return words;
}

// Answers a new string, which is the caller's to free, and so does fill_in.
EXPORT("title_case") char *title_case(const char *text) {
    char *title = strdup(text);
    int inside = 0;
    for (char *c = title; *c; c++) {
        if (!inside) *c = toupper((unsigned char)*c);
        inside = !isspace((unsigned char)*c);
    }
    return title;
}

static char *append(char *string, const char *more, size_t length) {
    size_t old = strlen(string);
    string = realloc(string, old + length + 1);
    memcpy(string + old, more, length);
    string[old + length] = '\0';
    return string;
}

// Fills in a form: each {key} gives way to what the host answers for it.
EXPORT("fill_in") char *fill_in(const char *form) {
    char *filled = strdup("");
    const char *left, *right;

    while ((left = strchr(form, '{')) && (right = strchr(left, '}'))) {
        char *key = strndup(left + 1, right - left - 1);
        char *value = lookup(key);
        filled = append(filled, form, left - form);
        filled = append(filled, value, strlen(value));
        free(value);
        free(key);
        form = right + 1;
    }
    return append(filled, form, strlen(form));
}

// Not inlined, so that the backtrace of a trap has both functions.
__attribute__((noinline)) static int average(int sum, int count) {
    return sum / count;
}

// Has a defect, for the demo's sake: for a text without words it divides by zero.
EXPORT("word_length") int word_length(const char *text) {
    int letters = 0;
    for (const char *c = text; *c; c++) letters += !isspace((unsigned char)*c);
    return average(letters, count_words(text));
}

// Counts for ever. The count lies in memory, where the host can watch it grow.
EXPORT("spin") void spin(volatile unsigned long long *count) {
    for (;;) ++*count;
}
