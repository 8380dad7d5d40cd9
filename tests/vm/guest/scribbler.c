/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * scribbler - a guest that means harm, or has gone mad: what it writes into its
 * window, its registers and its rings is random, from a seed.
 *
 *   scribbler node SEED SECONDS /dev/vgpu0       sessions by vgpu_guest.ko: opened,
 *                                                scribbled over, closed
 *   scribbler raw SEED SECONDS 0000:00:03.0      the whole window and all registers by
 *                                                sysfs (root, without the module)
 *   scribbler fd SEED SECONDS FD BYTES BELL...   a window and doorbells that it was
 *                                                born with, on the host
 *   scribbler mark 0000:00:03.0 TEXT             writes TEXT into the window, often
 *   scribbler search 0000:00:03.0 TEXT           how often TEXT is in BAR0 and BAR2
 *
 * Pure noise makes the host end a session at once and learns little of it.  So most
 * rounds keep the indices honest and publish descriptors that are nearly right:
 * known operations with offsets, addresses, sizes and handles from the edges of what
 * is allowed; what they name changes while they run.  The other rounds write
 * anything anywhere.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vgpu/guest.h"
#include "vgpu/regs.h"
#include "vgpu/window.h"

#define SLOTS_MAX 16u
#define MASK (VGPU_RING_ENTRIES - 1)

static uint64_t random_state;

/* Where the noise goes. */
static struct {
    volatile uint8_t *slots[SLOTS_MAX]; /* NULL: none there */
    uint64_t slot_bytes;
    unsigned count;
    volatile uint8_t *whole; /* the window, where it is seen whole */
    uint64_t whole_bytes;
    volatile uint8_t *registers;
    int nodes[SLOTS_MAX], bells[SLOTS_MAX]; /* -1: none */
} target;

static struct {
    uint64_t descriptors, words, bells, registers, opened, refused, completions;
} did;

static _Noreturn __attribute__((format(printf, 1, 2))) void die(const char *format, ...)
{
    va_list list;

    fprintf(stderr, "scribbler: ");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t random64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t below(uint64_t bound)
{
    return random64() % bound;
}

static uint32_t get32(volatile uint8_t *base, uint64_t offset)
{
    return *(volatile uint32_t *)(volatile void *)(base + offset);
}

static void put32(volatile uint8_t *base, uint64_t offset, uint32_t value)
{
    *(volatile uint32_t *)(volatile void *)(base + offset) = value;
    did.words++;
}

/* Byte by byte: never an access that hardware would refuse. */
static void put(volatile uint8_t *base, uint64_t offset, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        base[offset + i] = ((const uint8_t *)data)[i];
}

/* --- numbers that somebody may have got wrong -------------------------------------- */

static uint64_t edge(volatile uint8_t *slot)
{
    const uint64_t edges[] = {0,
                              1,
                              UINT64_MAX,
                              UINT32_MAX,
                              1ull << 63,
                              1ull << 32,
                              VGPU_SLOT_ARENA,
                              VGPU_SLOT_ARENA - 1,
                              VGPU_SLOT_HEAP,
                              VGPU_SLOT_HOST,
                              target.slot_bytes,
                              target.slot_bytes - 1,
                              target.slot_bytes - 4096,
                              -target.slot_bytes,
                              4096,
                              65536};
    uint64_t value;

    switch (below(5)) {
    case 0:
        return random64();
    case 1:
        return VGPU_SLOT_ARENA + below(target.slot_bytes - VGPU_SLOT_ARENA);
    case 2: /* what some completion said: perhaps a device address */
        memcpy(&value, (const void *)(uintptr_t)(slot + VGPU_SLOT_CQ + below(1024) * 32 + 8), 8);
        return value + below(3) * 256;
    case 3:
        return below(4096);
    default:
        return edges[below(sizeof(edges) / sizeof(edges[0]))];
    }
}

static uint16_t opcode(void)
{
    static const uint16_t known[] = {
        VGPU_OP_PING,          VGPU_OP_TEXT,           VGPU_OP_RESET,       VGPU_OP_CANCEL,
        VGPU_OP_QUERY,         VGPU_OP_ALLOC,          VGPU_OP_ALLOC,       VGPU_OP_FREE,
        VGPU_OP_SET,           VGPU_OP_COPY_IN,        VGPU_OP_COPY_OUT,    VGPU_OP_COPY,
        VGPU_OP_STREAM_CREATE, VGPU_OP_STREAM_SYNC,    VGPU_OP_STREAM_WAIT, VGPU_OP_EVENT_CREATE,
        VGPU_OP_EVENT_RECORD,  VGPU_OP_EVENT_SYNC,     VGPU_OP_EVENT_QUERY, VGPU_OP_EVENT_ELAPSED,
        VGPU_OP_EVENT_DESTROY, VGPU_OP_DEVICE_SYNC,    VGPU_OP_MODULE_LOAD, VGPU_OP_MODULE_UNLOAD,
        VGPU_OP_LAUNCH,        VGPU_OP_STREAM_DESTROY, VGPU_OP_MODULE_PART};

    return below(10) ? known[below(sizeof(known) / sizeof(known[0]))] : (uint16_t)random64();
}

static const char *const words[] = {"PING",       "SPIN 3",     "MATRIX_MUL 16", "increment",
                                    "VECTOR_ADD", "vector_add", "fill",          "matrix_mul",
                                    "GPU_INFO",   "reduce_sum", "1:2",           "\n\0\x7f%n%s"};

static void scribble_word(volatile uint8_t *slot)
{
    const char *word = words[below(sizeof(words) / sizeof(words[0]))];

    put(slot, VGPU_SLOT_ARENA + below(64) * 64, word, strlen(word));
}

static void make_descriptor(volatile uint8_t *slot, struct vgpu_descriptor *descriptor)
{
    *descriptor = (struct vgpu_descriptor){.opcode = opcode(),
                                           .flags = below(4) ? 0 : (uint8_t)random64(),
                                           .device = below(9) ? 0 : (uint8_t)random64(),
                                           .stream = below(3) ? 0 : (uint32_t)below(4),
                                           .cookie = random64()};
    for (int i = 0; i < 6; i++)
        descriptor->words[i] = edge(slot);
    if (descriptor->opcode == VGPU_OP_TEXT && below(3)) {
        descriptor->text.command_offset = VGPU_SLOT_ARENA + below(64) * 64;
        descriptor->text.command_bytes = (uint32_t)below(20);
        descriptor->text.answer_bytes = (uint32_t)below(2048);
    } else if (descriptor->opcode == VGPU_OP_LAUNCH && below(3)) {
        descriptor->launch.module = 0;
        descriptor->launch.name_offset = (uint32_t)(VGPU_SLOT_ARENA + below(64) * 64);
        descriptor->launch.name_bytes = (uint32_t)below(16);
        descriptor->launch.parameters_bytes = (uint32_t)below(6) * 8;
    } else if (descriptor->opcode == VGPU_OP_ALLOC && below(3)) {
        descriptor->alloc.bytes = below(1 << 20);
    } else if (descriptor->opcode >= VGPU_OP_STREAM_CREATE && below(3)) {
        descriptor->object.handle = (uint32_t)below(8);
    }
}

static void ring_bell(unsigned slot)
{
    if (target.registers)
        put32(target.registers, VGPU_REG_SLOT_DOORBELL + 4 * slot, (uint32_t)random64());
    else if (target.nodes[slot] >= 0)
        ioctl(target.nodes[slot], VGPU_IOCTL_RING);
    else if (target.bells[slot] >= 0)
        eventfd_write(target.bells[slot], 1 + below(3));
    did.bells++;
}

/* --- rounds ------------------------------------------------------------------------- */

/* Descriptors that are nearly right, with indices that are. */
static void publish(unsigned number)
{
    volatile uint8_t *slot = target.slots[number];
    uint32_t tail = get32(slot, VGPU_SLOT_GUEST), head = get32(slot, VGPU_SLOT_HOST + 0x40);
    uint32_t cq_tail = get32(slot, VGPU_SLOT_HOST);
    uint64_t count = 1 + below(64);

    did.completions += (cq_tail - get32(slot, VGPU_SLOT_GUEST + 0x40)) % (VGPU_RING_ENTRIES + 1);
    put32(slot, VGPU_SLOT_GUEST + 0x40, cq_tail);
    scribble_word(slot);
    for (; count > 0 && tail - head < VGPU_RING_ENTRIES; count--, tail++) {
        struct vgpu_descriptor descriptor;

        make_descriptor(slot, &descriptor);
        put(slot, VGPU_SLOT_SQ + (tail & MASK) * sizeof(descriptor), &descriptor,
            sizeof(descriptor));
        did.descriptors++;
    }
    __sync_synchronize();
    put32(slot, VGPU_SLOT_GUEST, tail);
    ring_bell(number);
}

/* What is published changes while it is read. */
static void change(unsigned number)
{
    volatile uint8_t *slot = target.slots[number];

    for (int i = 0; i < 200; i++) {
        uint64_t offset = VGPU_SLOT_SQ + below((VGPU_SLOT_HEAP - VGPU_SLOT_SQ) / 4) * 4;

        put32(slot, offset, (uint32_t)(below(2) ? random64() : edge(slot)));
    }
    scribble_word(slot);
}

static void break_indices(unsigned number)
{
    static const uint32_t places[] = {VGPU_SLOT_GUEST,        VGPU_SLOT_GUEST + 0x40,
                                      VGPU_SLOT_GUEST + 0x80, VGPU_SLOT_HOST,
                                      VGPU_SLOT_HOST + 0x40,  VGPU_SLOT_HOST + 0x80,
                                      VGPU_SLOT_HOST + 0xc0,  VGPU_SLOT_HOST + 0xc4};
    volatile uint8_t *slot = target.slots[number];
    uint32_t near = get32(slot, VGPU_SLOT_HOST + 0x40);

    for (uint64_t i = 1 + below(8); i > 0; i--)
        put32(slot, places[below(8)],
              below(2) ? near + (uint32_t)below(2100) - 1050 : (uint32_t)random64());
    ring_bell(number);
}

static void flood(void)
{
    uint64_t at = below(target.whole_bytes / 4), count = below(20000);

    for (; count > 0 && at < target.whole_bytes / 4; count--, at++)
        put32(target.whole, at * 4, (uint32_t)random64());
}

/* Identity, masks, sessions, doorbells, and what there is not. */
static void scribble_registers(void)
{
    for (uint64_t i = below(20); i > 0; i--) {
        uint64_t offset = below(4) ? below(VGPU_REG_END) : below(VGPU_BAR0_BYTES - 4);
        uint32_t value = below(2) ? (uint32_t)below(SLOTS_MAX) : (uint32_t)random64();

        if (below(3) == 0)
            target.registers[offset] = (uint8_t)value;
        else
            put32(target.registers, offset & ~3ull, value);
        did.registers++;
    }
}

static void open_and_close_by_register(void)
{
    uint32_t slot = (uint32_t)below(target.count);
    uint32_t state =
        get32(target.registers, VGPU_REG_SESSION_STATE + 4 * slot) & VGPU_SESSION_STATE_MASK;

    if (state == VGPU_SESSION_CLOSED || state == VGPU_SESSION_REFUSED) {
        put32(target.registers, VGPU_REG_SESSION_OPEN, slot);
        did.opened++;
    } else if (state == VGPU_SESSION_FAULTED || below(20) == 0) {
        put32(target.registers, VGPU_REG_SESSION_CLOSE, slot);
    }
}

static void round_of_slot(unsigned number)
{
    uint64_t choice = below(5000);

    if (choice < 4000)
        publish(number);
    else if (choice < 4999)
        change(number);
    else
        break_indices(number);
}

/* --- sessions of the module -------------------------------------------------------------- */

static void close_node(unsigned number)
{
    if (target.nodes[number] < 0)
        return;
    if (below(2)) { /* the mapping alone keeps a session */
        close(target.nodes[number]);
        munmap((void *)(uintptr_t)target.slots[number], target.slot_bytes);
    } else {
        munmap((void *)(uintptr_t)target.slots[number], target.slot_bytes);
        close(target.nodes[number]);
    }
    target.nodes[number] = -1;
    target.slots[number] = NULL;
}

static void open_node(unsigned number, const char *path)
{
    struct vgpu_guest_info info;
    void *slot;
    int node = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (node < 0) {
        did.refused++;
        usleep(1000);
        return;
    }
    if (ioctl(node, VGPU_IOCTL_INFO, &info) < 0)
        die("%s: no information", path);
    slot = mmap(NULL, info.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, node, 0);
    if (slot == MAP_FAILED) { /* it ended already */
        close(node);
        return;
    }
    target.slot_bytes = info.slot_bytes;
    target.slots[number] = slot;
    target.nodes[number] = node;
    did.opened++;
}

static void round_of_node(const char *path)
{
    unsigned number = (unsigned)below(target.count);
    struct vgpu_guest_info info;

    if (target.nodes[number] < 0) {
        open_node(number, path);
        return;
    }
    if (ioctl(target.nodes[number], VGPU_IOCTL_INFO, &info) < 0 ||
        (info.state != VGPU_SESSION_READY && info.state != VGPU_SESSION_LOST) || below(200) == 0)
        close_node(number);
    else
        round_of_slot(number);
}

/* --- a device by sysfs ------------------------------------------------------------------------ */

static volatile uint8_t *map_bar(const char *address, int bar, uint64_t *ret_bytes)
{
    char path[256];
    struct stat info;
    void *memory;
    int fd;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource%d", address, bar);
    fd = open(path, O_RDWR | O_CLOEXEC | O_SYNC);
    if (fd < 0 || fstat(fd, &info) < 0)
        die("%s", path);
    memory = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        die("%s", path);
    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, info.st_size) != MAP_FAILED ||
        mmap(NULL, (size_t)info.st_size + 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED)
        die("%s: more than the BAR can be mapped", path);
    close(fd);
    *ret_bytes = (uint64_t)info.st_size;
    return memory;
}

static void switch_memory_on(const char *address)
{
    char path[256];
    int fd;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/enable", address);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "1", 1) < 0)
        die("%s", path);
    close(fd);
}

static void find_device(const char *address)
{
    uint64_t bytes;

    switch_memory_on(address);
    target.registers = map_bar(address, 0, &bytes);
    target.whole = map_bar(address, 2, &target.whole_bytes);
    target.count = get32(target.registers, VGPU_REG_SLOTS);
    if (target.count < 1 || target.count > SLOTS_MAX)
        die("the device has %u slots", target.count);
}

static void find_slots(void)
{
    target.slot_bytes = vgpu_window_slot_bytes(target.whole_bytes, target.count);
    for (unsigned i = 0; i < target.count; i++)
        target.slots[i] = target.whole + vgpu_window_slot_offset(target.slot_bytes, i);
}

/* --- marks --------------------------------------------------------------------------------------
 */

static uint64_t count_text(volatile uint8_t *memory, uint64_t bytes, const char *text)
{
    uint8_t page[4096 + 256];
    size_t length = strlen(text);
    uint64_t found = 0;

    for (uint64_t at = 0; at < bytes; at += 4096) {
        uint64_t take = bytes - at < sizeof(page) ? bytes - at : sizeof(page);

        for (uint64_t i = 0; i < take / 4; i++)
            ((uint32_t *)(void *)page)[i] = get32(memory, at + i * 4);
        for (uint64_t i = 0; i < 4096 && i + length <= take; i++)
            found += page[i] == (uint8_t)text[0] && memcmp(page + i, text, length) == 0;
    }
    return found;
}

static int do_marks(bool write_them, const char *address, const char *text)
{
    uint64_t found;

    find_device(address);
    for (uint64_t at = 0; write_them && at + 256 <= target.whole_bytes; at += 4096)
        put(target.whole, at + 64, text, strlen(text));
    found = count_text(target.whole, target.whole_bytes, text) +
            count_text(target.registers, VGPU_BAR0_BYTES, text);
    printf("%llu\n", (unsigned long long)found);
    return 0;
}

/* --- all
 * ------------------------------------------------------------------------------------------ */

static void round_of(const char *mode, const char *where)
{
    if (strcmp(mode, "node") == 0) {
        round_of_node(where);
        return;
    }
    round_of_slot((unsigned)below(target.count));
    if (below(2000) == 0)
        flood();
    if (target.registers && below(20) == 0)
        open_and_close_by_register();
    if (target.registers && below(500) == 0)
        scribble_registers();
}

static void prepare(const char *mode, int argc, char **argv)
{
    for (unsigned i = 0; i < SLOTS_MAX; i++)
        target.nodes[i] = target.bells[i] = -1;
    target.count = 6;
    target.slot_bytes = 1 << 20;
    if (strcmp(mode, "raw") == 0) {
        find_device(argv[4]);
        find_slots();
    } else if (strcmp(mode, "fd") == 0 && argc > 6) {
        target.whole_bytes = (uint64_t)atoll(argv[5]);
        target.whole =
            mmap(NULL, target.whole_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[4]), 0);
        if (target.whole == MAP_FAILED)
            die("the window");
        target.count = (unsigned)argc - 6;
        for (unsigned i = 0; i < target.count; i++)
            target.bells[i] = atoi(argv[6 + i]);
        find_slots();
    } else if (strcmp(mode, "node") != 0) {
        fprintf(stderr, "scribbler: no mode '%s'\n", mode);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    uint64_t until_ns;

    if (argc == 4 && (strcmp(argv[1], "mark") == 0 || strcmp(argv[1], "search") == 0))
        return do_marks(argv[1][0] == 'm', argv[2], argv[3]);
    if (argc < 5) {
        fprintf(stderr, "scribbler node|raw|fd SEED SECONDS WHERE..., mark|search ADDRESS TEXT\n");
        return 2;
    }
    random_state = (uint64_t)atoll(argv[2]) * 0x9e3779b97f4a7c15u + 1;
    until_ns = now_ns() + (uint64_t)atoll(argv[3]) * 1000000000u;
    prepare(argv[1], argc, argv);
    while (now_ns() < until_ns)
        round_of(argv[1], argv[4]);
    printf("descriptors=%llu words=%llu bells=%llu registers=%llu opened=%llu refused=%llu "
           "completions=%llu\n",
           (unsigned long long)did.descriptors, (unsigned long long)did.words,
           (unsigned long long)did.bells, (unsigned long long)did.registers,
           (unsigned long long)did.opened, (unsigned long long)did.refused,
           (unsigned long long)did.completions);
    return 0;
}
