// The guest of struct_test.exs: structs of all kinds, and what C itself says of their layouts.
// test/guests/build makes structs.wasm of it.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))

struct point { double x, y; };

struct line { struct point ends[2]; char label[5]; };

enum color { RED, GREEN = 5, BLUE };

struct person {
    uint8_t age;
    char name[16];
    struct point home;
    int16_t scores[3];
    bool active;
    enum color color;
    const char *note;
    int64_t id;
    float ratio;
    int8_t mood;
};

struct __attribute__((packed)) header { uint8_t tag; uint32_t length; uint16_t check; };

union number { int32_t i; float f; double d; uint8_t bytes[6]; };

struct tagged { uint8_t kind; union number as; };

struct node { uint16_t value; struct node *next; };

struct place { uint8_t level; const struct point *at; };

struct wide { uint16_t a; uint64_t b; uint8_t c; };

// One number alone: passed and returned as that number.
struct meters { double value; };
struct step { int8_t by; };
struct flag { bool on; };
struct nested_meters { struct meters inner[1]; };
struct handle { void *pointer; };

#define SIZE(name, type) \
    EXPORT("sizeof_" #name) size_t sizeof_##name(void) { return sizeof(type); } \
    EXPORT("alignof_" #name) size_t alignof_##name(void) { return _Alignof(type); }
#define OFFSET(name, type, field) \
    EXPORT("offsetof_" #name "_" #field) size_t offsetof_##name##_##field(void) { return offsetof(type, field); }

SIZE(point, struct point)
OFFSET(point, struct point, x)
OFFSET(point, struct point, y)
SIZE(line, struct line)
OFFSET(line, struct line, ends)
OFFSET(line, struct line, label)
SIZE(person, struct person)
OFFSET(person, struct person, age)
OFFSET(person, struct person, name)
OFFSET(person, struct person, home)
OFFSET(person, struct person, scores)
OFFSET(person, struct person, active)
OFFSET(person, struct person, color)
OFFSET(person, struct person, note)
OFFSET(person, struct person, id)
OFFSET(person, struct person, ratio)
OFFSET(person, struct person, mood)
SIZE(header, struct header)
OFFSET(header, struct header, tag)
OFFSET(header, struct header, length)
OFFSET(header, struct header, check)
SIZE(number, union number)
OFFSET(number, union number, i)
OFFSET(number, union number, f)
OFFSET(number, union number, d)
OFFSET(number, union number, bytes)
SIZE(tagged, struct tagged)
OFFSET(tagged, struct tagged, kind)
OFFSET(tagged, struct tagged, as)
SIZE(node, struct node)
OFFSET(node, struct node, value)
OFFSET(node, struct node, next)
SIZE(place, struct place)
OFFSET(place, struct place, level)
OFFSET(place, struct place, at)
SIZE(wide, struct wide)
OFFSET(wide, struct wide, a)
OFFSET(wide, struct wide, b)
OFFSET(wide, struct wide, c)

EXPORT("offsetof_line_ends_1_y") size_t offsetof_line_ends_1_y(void) {
    return offsetof(struct line, ends[1].y);
}

EXPORT("make_point") struct point make_point(double x, double y) {
    return (struct point){x, y};
}

EXPORT("midpoint") struct point midpoint(struct point a, struct point b) {
    return (struct point){(a.x + b.x) / 2, (a.y + b.y) / 2};
}

EXPORT("sum_points") struct point sum_points(const struct point *points, int count) {
    struct point sum = {0, 0};
    for (int i = 0; i < count; i++) sum.x += points[i].x, sum.y += points[i].y;
    return sum;
}

// Answers the first point, and changes its own copy of the line.
EXPORT("begin_of") struct point begin_of(struct line line) {
    struct point begin = line.ends[0];
    line.ends[0].x = -1;
    return *(volatile double *)&line.ends[0].x == -1 ? begin : line.ends[0];
}

EXPORT("make_person") struct person make_person(const char *name, int age) {
    struct person person = {
        .age = age,
        .home = {1.5, -2.5},
        .scores = {-1, 0, 32767},
        .active = true,
        .color = GREEN,
        .note = "a note, in C's own memory",
        .id = -9000000000,
        .ratio = 0.1f,
        .mood = -3,
    };
    strncpy(person.name, name, sizeof person.name - 1);
    return person;
}

EXPORT("birthday") void birthday(struct person *person) {
    person->age++;
    person->active = !person->active;
    person->color = BLUE;
    strcat(person->name, "!");
}

// What C sees in a person that the host wrote: answers the number of the first field that is not
// what the host was told to write, or 0.
EXPORT("check_person") int check_person(struct person person) {
    if (person.age != 200) return 1;
    if (strcmp(person.name, "J\xc3\xbcrgen")) return 2;
    if (person.home.x != 0.25 || person.home.y != -0.0) return 3;
    if (person.scores[0] != -32768 || person.scores[1] != 7 || person.scores[2] != 8) return 4;
    if (person.active) return 5;
    if (person.color != BLUE) return 6;
    if (strcmp(person.note, "from the host")) return 7;
    if (person.id != INT64_MIN) return 8;
    if (person.ratio != 0.5f) return 9;
    if (person.mood != -128) return 10;
    return 0;
}

EXPORT("header_sum") uint32_t header_sum(const struct header *header) {
    return header->tag + header->length + header->check;
}

EXPORT("double_it") struct tagged double_it(struct tagged tagged) {
    switch (tagged.kind) {
        case 0: tagged.as.i *= 2; break;
        case 1: tagged.as.f *= 2; break;
        default: tagged.as.d *= 2;
    }
    return tagged;
}

// count, count - 1, ..., 1
EXPORT("make_list") struct node *make_list(int count) {
    struct node *list = NULL;
    for (int i = 1; i <= count; i++) {
        struct node *node = malloc(sizeof *node);
        *node = (struct node){i, list};
        list = node;
    }
    return list;
}

EXPORT("add_meters") struct meters add_meters(struct meters a, struct meters b) {
    return (struct meters){a.value + b.value};
}

EXPORT("turn") struct step turn(struct step step) { return (struct step){-step.by}; }
EXPORT("flip") struct flag flip(struct flag flag) { return (struct flag){!flag.on}; }

EXPORT("half") struct nested_meters half(struct nested_meters m) {
    return (struct nested_meters){{{m.inner[0].value / 2}}};
}

EXPORT("high_handle") struct handle high_handle(struct handle handle) {
    return (struct handle){(void *)((uintptr_t)handle.pointer | 0x80000000)};
}

EXPORT("meters_at") double meters_at(const struct meters *meters) { return meters->value; }
