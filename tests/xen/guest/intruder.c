/* SPDX-License-Identifier: Apache-2.0 */
/*
 * intruder - a program in a Xen guest that tells the host whatever it is told to tell.
 *
 *   intruder [KEY=VALUE]...       straight from include/vgpu/, apart from libvgpu
 *
 * What it grants, all to Dom0:
 *   pages=106       of the slot         write=1     0: for reading only
 *   list=honest     what the directory page says of them: `self` (it names itself),
 *                   `same` (one page in all places), `from:N` (N, N+1, ...), `random`
 *   revoke=0        1: takes all pages back before it tells the host of them
 * What it writes into XenStore, where that is not what is so:
 *   slot-bytes=TEXT directory=TEXT event-channel=TEXT version=TEXT name=TEXT
 *   extra=KEY=TEXT  one node more
 *   sessions=1      so often, each with a name of its own, without a pause
 * What it does when the host has answered (wait=1; 0: it does not wait for that):
 *   then=close      ends its session in order
 *   then=vanish     ends at once           then=stay      does nothing until SIGTERM
 *   then=tail       publishes an index that cannot be      then=head  takes too many
 *   then=scribble   writes nearly right descriptors, and anything anywhere, until the host
 *                   ends it or for seconds=5, from seed=1
 *   then=revoke     takes the pages back, and goes on writing into them
 *   then=relist     has the directory name other pages
 *
 * It prints `granted DIRECTORY FIRST LAST PORT`, then for one session `NAME STATE ERROR` as
 * the host says them, and again when then= is over; for several `asked N`.  Exit status 0
 * when it could do what it was told, whatever the host did.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <xen/gntalloc.h>

typedef uint16_t domid_t; /* which the next header of some versions needs */
#include <xen/evtchn.h>

#include "vgpu/xen.h"

#define DOM0 0
#define PAGES_MAX 1024u
#define ANSWER_S 60
#define POLL_US 20000
#define MASK (VGPU_RING_ENTRIES - 1)

enum { XENSTORE_READ = 2, XENSTORE_WRITE = 11, XENSTORE_ERROR = 16 };

static struct {
    const char *list, *slot_bytes, *directory, *event_channel, *version, *name, *extra, *then;
    unsigned long pages, write, revoke, sessions, wait, seconds, seed;
} told = {.list = "honest",
          .version = VGPU_XEN_VERSION,
          .then = "close",
          .pages = 106,
          .write = 1,
          .sessions = 1,
          .wait = 1,
          .seconds = 5,
          .seed = 1};

static struct {
    int grants, events, store;
    uint64_t slot_index, directory_index;
    uint32_t references[PAGES_MAX], directory;
    uint32_t *list;
    volatile uint8_t *slot;
    unsigned port;
    char name[64];
} has;

static volatile sig_atomic_t asked_to_end;

static void ask_to_end(int number)
{
    (void)number;
    asked_to_end = 1;
}

static _Noreturn __attribute__((format(printf, 1, 2))) void die(const char *format, ...)
{
    va_list list;

    fprintf(stderr, "intruder: ");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

static uint64_t random64(void)
{
    static uint64_t state;

    if (state == 0)
        state = told.seed * 0x9e3779b97f4a7c15ull + 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t below(uint64_t bound)
{
    return random64() % bound;
}

static time_t now_s(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

/* --- XenStore ---------------------------------------------------------------------------- */

struct message {
    struct {
        uint32_t type, request, transaction, bytes;
    } head;
    char text[4097];
};

/* -1: XenStore says no. */
static int ask(struct message *message)
{
    size_t got = 0, whole = sizeof(message->head) + message->head.bytes;

    if (write(has.store, message, whole) != (ssize_t)whole)
        die("XenStore");
    whole = sizeof(message->head);
    while (got < whole) {
        ssize_t more = read(has.store, (char *)message + got, whole - got);

        if (more <= 0)
            die("XenStore");
        got += (size_t)more;
        if (got == sizeof(message->head))
            whole = got + message->head.bytes;
    }
    message->text[message->head.bytes] = '\0';
    return message->head.type == XENSTORE_ERROR ? -1 : 0;
}

static int put_node(const char *key, const char *value)
{
    struct message message = {.head = {.type = XENSTORE_WRITE}};
    int path =
        snprintf(message.text, sizeof(message.text), VGPU_XEN_FRONTEND "/%s/%s", has.name, key) + 1;

    snprintf(message.text + path, sizeof(message.text) - (size_t)path, "%s", value);
    message.head.bytes = (uint32_t)path + (uint32_t)strlen(value);
    return ask(&message);
}

static int put_number(const char *key, const char *text, unsigned long number)
{
    char value[32];

    snprintf(value, sizeof(value), "%lu", number);
    return put_node(key, text ? text : value);
}

static void get_answer(const char *key, char *value, size_t bytes)
{
    struct message message = {.head = {.type = XENSTORE_READ}};

    message.head.bytes = (uint32_t)snprintf(message.text, sizeof(message.text),
                                            VGPU_XEN_BACKEND "/%s/%s", has.name, key) +
                         1;
    if (ask(&message) < 0)
        message.text[0] = '\0';
    message.text[bytes - 1] = '\0';
    memcpy(value, message.text, bytes);
}

static void choose_name(void)
{
    if (told.name)
        snprintf(has.name, sizeof(has.name), "%s", told.name);
    else
        snprintf(has.name, sizeof(has.name), "%016" PRIx64, random64() ^ (uint64_t)getpid());
}

/* -1: XenStore takes no more nodes of this domain. */
static int tell_host(void)
{
    const char *equals = told.extra ? strchr(told.extra, '=') : NULL;
    char key[64];

    if (equals) {
        snprintf(key, sizeof(key), "%.*s", (int)(equals - told.extra), told.extra);
        if (put_node(key, equals + 1) < 0)
            return -1;
    }
    if (put_node(VGPU_XEN_PROTOCOL, told.version) < 0 ||
        put_number(VGPU_XEN_SLOT_BYTES, told.slot_bytes, told.pages * VGPU_PAGE_BYTES) < 0 ||
        put_number(VGPU_XEN_DIRECTORY, told.directory, has.directory) < 0 ||
        put_number(VGPU_XEN_EVENT_CHANNEL, told.event_channel, has.port) < 0)
        return -1;
    return put_node(VGPU_XEN_STATE, VGPU_XEN_INITIALISING);
}

/* Prints what the host says, when it says something that is not `state`. */
static bool await_other_than(const char *state)
{
    time_t end = now_s() + ANSWER_S;
    char value[64] = "", error[300];

    do {
        get_answer(VGPU_XEN_STATE, value, sizeof(value));
        if (value[0] && strcmp(value, state) != 0)
            break;
        usleep(POLL_US);
    } while (now_s() < end && !asked_to_end);
    get_answer(VGPU_XEN_ERROR, error, sizeof(error));
    printf("%s %s %s\n", has.name, value[0] ? value : "nothing", error);
    fflush(stdout);
    return strcmp(value, VGPU_XEN_CONNECTED) == 0;
}

/* --- pages ---------------------------------------------------------------------------------- */

static uint64_t grant(uint32_t count, uint32_t *references)
{
    struct ioctl_gntalloc_alloc_gref *request =
        calloc(1, sizeof(*request) + count * sizeof(request->gref_ids[0]));
    uint64_t index;

    request->domid = DOM0;
    request->flags = told.write ? GNTALLOC_FLAG_WRITABLE : 0;
    request->count = count;
    if (ioctl(has.grants, IOCTL_GNTALLOC_ALLOC_GREF, request) < 0)
        die("%u pages", count);
    memcpy(references, request->gref_ids, count * sizeof(*references));
    index = request->index;
    free(request);
    return index;
}

static void *map(uint64_t index, uint32_t pages)
{
    void *memory = mmap(NULL, (size_t)pages * VGPU_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                        has.grants, (off_t)index);

    if (memory == MAP_FAILED)
        die("mapping %u pages", pages);
    return memory;
}

static void take_back(uint64_t index, uint32_t pages)
{
    struct ioctl_gntalloc_dealloc_gref request = {.index = index, .count = pages};

    if (ioctl(has.grants, IOCTL_GNTALLOC_DEALLOC_GREF, &request) < 0)
        die("taking pages back");
}

static void write_list(void)
{
    bool is_from = strncmp(told.list, "from:", 5) == 0;
    uint32_t from = is_from ? (uint32_t)strtoul(told.list + 5, NULL, 10) : 0;

    for (uint32_t i = 0; i < VGPU_XEN_REFERENCES_A_PAGE; i++) {
        if (is_from)
            has.list[i] = from + i;
        else if (strcmp(told.list, "self") == 0)
            has.list[i] = has.directory;
        else if (strcmp(told.list, "same") == 0)
            has.list[i] = has.references[0];
        else if (strcmp(told.list, "random") == 0)
            has.list[i] = (uint32_t)random64();
        else
            has.list[i] = i < told.pages ? has.references[i] : 0;
    }
}

static void open_all(void)
{
    struct ioctl_evtchn_bind_unbound_port bind = {.remote_domain = DOM0};
    int port;

    has.grants = open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC);
    has.events = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
    has.store = open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC);
    if (has.grants < 0 || has.events < 0 || has.store < 0)
        die("/dev/xen");
    port = ioctl(has.events, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &bind);
    if (port < 0)
        die("a port");
    has.port = (unsigned)port;
    has.slot_index = grant((uint32_t)told.pages, has.references);
    has.directory_index = grant(1, &has.directory);
    has.slot = map(has.slot_index, (uint32_t)told.pages);
    has.list = map(has.directory_index, 1);
    write_list();
    printf("granted %u %u %u %u\n", has.directory, has.references[0],
           has.references[told.pages - 1], has.port);
    fflush(stdout);
}

/* As libvgpu does it: the host learns of our end. */
static void announce_life(void)
{
    struct ioctl_gntalloc_unmap_notify notify = {
        .index = has.slot_index + VGPU_SLOT_GUEST + VGPU_XEN_ALIVE,
        .action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
        .event_channel_port = has.port,
    };

    has.slot[VGPU_SLOT_GUEST + VGPU_XEN_ALIVE] = 1;
    if (ioctl(has.grants, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &notify) < 0)
        die("the notification");
}

static void take_all_back(void)
{
    munmap((void *)(uintptr_t)has.slot, told.pages * VGPU_PAGE_BYTES);
    munmap(has.list, VGPU_PAGE_BYTES);
    take_back(has.slot_index, (uint32_t)told.pages);
    take_back(has.directory_index, 1);
}

/* --- what lies in the slot ---------------------------------------------------------------------
 */

static uint32_t get32(uint64_t offset)
{
    return *(volatile uint32_t *)(volatile void *)(has.slot + offset);
}

static void put32(uint64_t offset, uint32_t value)
{
    *(volatile uint32_t *)(volatile void *)(has.slot + offset) = value;
}

static void ring(void)
{
    struct ioctl_evtchn_notify notify = {.port = has.port};

    ioctl(has.events, IOCTL_EVTCHN_NOTIFY, &notify);
}

/* A place that is nearly right: in the slot, at an edge of it, or far away. */
static uint64_t place(void)
{
    const uint64_t bytes = told.pages * VGPU_PAGE_BYTES;
    const uint64_t edges[] = {0,          1,          UINT64_MAX,    UINT32_MAX,
                              1ull << 63, bytes,      bytes - 1,     VGPU_SLOT_ARENA - 1,
                              -bytes,     bytes + 64, VGPU_SLOT_HOST};

    return below(3) ? VGPU_SLOT_ARENA + below(bytes - VGPU_SLOT_ARENA)
                    : edges[below(sizeof(edges) / sizeof(edges[0]))];
}

static void write_descriptor(uint32_t at)
{
    static const uint16_t known[] = {
        VGPU_OP_PING,  VGPU_OP_TEXT,     VGPU_OP_RESET,       VGPU_OP_CANCEL,      VGPU_OP_QUERY,
        VGPU_OP_ALLOC, VGPU_OP_FREE,     VGPU_OP_SET,         VGPU_OP_COPY_IN,     VGPU_OP_COPY_OUT,
        VGPU_OP_COPY,  VGPU_OP_COPY_OUT, VGPU_OP_MODULE_LOAD, VGPU_OP_MODULE_PART, VGPU_OP_LAUNCH};
    struct vgpu_descriptor descriptor = {
        .opcode = below(9) ? known[below(sizeof(known) / sizeof(known[0]))] : (uint16_t)random64(),
        .flags = below(3) ? 0 : (uint8_t)random64(),
        .cookie = random64()};
    volatile uint64_t *to = (volatile void *)(has.slot + VGPU_SLOT_SQ + (size_t)(at & MASK) * 64);
    uint64_t words[8];

    for (int i = 0; i < 6; i++)
        descriptor.words[i] = below(4) ? place() : below(1 << 20);
    memcpy(words, &descriptor, sizeof(words));
    for (int i = 0; i < 8; i++)
        to[i] = words[i];
}

/* Indices are honest, so that the host goes on listening; then all that was told changes. */
static void scribble_once(void)
{
    uint32_t tail = get32(VGPU_SLOT_GUEST), head = get32(VGPU_SLOT_HOST + 0x40);
    uint64_t count = 1 + below(64);

    put32(VGPU_SLOT_GUEST + 0x40, get32(VGPU_SLOT_HOST));
    for (; count > 0 && tail - head < VGPU_RING_ENTRIES; count--)
        write_descriptor(tail++);
    __sync_synchronize();
    put32(VGPU_SLOT_GUEST, tail);
    ring();
    for (int i = 0; i < 200; i++)
        put32(VGPU_SLOT_SQ + below((told.pages * VGPU_PAGE_BYTES - VGPU_SLOT_SQ) / 4) * 4,
              (uint32_t)random64());
    has.list[below(VGPU_XEN_REFERENCES_A_PAGE)] = (uint32_t)random64();
}

static void scribble(void)
{
    time_t end = now_s() + (time_t)told.seconds;
    unsigned rounds = 0;

    while (now_s() < end && !asked_to_end && has.slot[VGPU_SLOT_HOST + VGPU_XEN_ALIVE] == 1) {
        scribble_once();
        rounds++;
        usleep(1000);
    }
    printf("scribbled %u\n", rounds);
}

/* --- what it was told
 * ------------------------------------------------------------------------------ */

static void do_then(void)
{
    if (strcmp(told.then, "vanish") == 0) {
        _exit(0);
    } else if (strcmp(told.then, "tail") == 0) {
        put32(VGPU_SLOT_GUEST, get32(VGPU_SLOT_HOST + 0x40) + 5000);
        ring();
        await_other_than(VGPU_XEN_CONNECTED);
    } else if (strcmp(told.then, "head") == 0) {
        put32(VGPU_SLOT_GUEST + 0x40, get32(VGPU_SLOT_HOST) + 1);
        ring();
        await_other_than(VGPU_XEN_CONNECTED);
    } else if (strcmp(told.then, "scribble") == 0) {
        scribble();
        await_other_than("");
    } else if (strcmp(told.then, "revoke") == 0) {
        take_back(has.slot_index, (uint32_t)told.pages);
        take_back(has.directory_index, 1);
        scribble();
        await_other_than("");
    } else if (strcmp(told.then, "relist") == 0) {
        told.list = "random";
        write_list();
        ring();
        await_other_than("");
    }
    while (strcmp(told.then, "stay") == 0 && !asked_to_end)
        usleep(POLL_US);
    put_node(VGPU_XEN_STATE, VGPU_XEN_CLOSING);
}

static void ask_for_many(void)
{
    unsigned long asked = 0;

    while (asked < told.sessions) {
        choose_name();
        if (tell_host() < 0)
            break;
        asked++;
    }
    printf("asked %lu\n", asked);
    fflush(stdout);
    while (strcmp(told.then, "stay") == 0 && !asked_to_end)
        usleep(POLL_US);
}

static void parse(char *word)
{
    const struct {
        const char *key;
        const char **text;
        unsigned long *number;
    } keys[] = {{"list=", &told.list, NULL},
                {"slot-bytes=", &told.slot_bytes, NULL},
                {"directory=", &told.directory, NULL},
                {"event-channel=", &told.event_channel, NULL},
                {"version=", &told.version, NULL},
                {"name=", &told.name, NULL},
                {"extra=", &told.extra, NULL},
                {"then=", &told.then, NULL},
                {"pages=", NULL, &told.pages},
                {"write=", NULL, &told.write},
                {"revoke=", NULL, &told.revoke},
                {"sessions=", NULL, &told.sessions},
                {"wait=", NULL, &told.wait},
                {"seconds=", NULL, &told.seconds},
                {"seed=", NULL, &told.seed}};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        size_t length = strlen(keys[i].key);

        if (strncmp(word, keys[i].key, length) != 0)
            continue;
        if (keys[i].text)
            *keys[i].text = word + length;
        else
            *keys[i].number = strtoul(word + length, NULL, 10);
        return;
    }
    errno = EINVAL;
    die("what is '%s'", word);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        parse(argv[i]);
    if (told.pages < 1 || told.pages > PAGES_MAX) {
        errno = EINVAL;
        die("1 to %u pages", PAGES_MAX);
    }
    signal(SIGTERM, ask_to_end);
    open_all();
    announce_life();
    if (told.revoke)
        take_all_back();
    if (told.sessions > 1) {
        ask_for_many();
        return 0;
    }
    choose_name();
    if (tell_host() < 0)
        die("XenStore refused a node");
    if (!told.wait || await_other_than(""))
        do_then();
    return 0;
}
