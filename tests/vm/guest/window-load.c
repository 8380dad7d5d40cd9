/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * window-load - keeps sessions busy and keeps an account of every operation.
 *
 *   window-load [OPTION...] /path/vm1.sock ACCOUNT    a process on the host
 *   window-load [OPTION...] /dev/vgpu0 ACCOUNT        in a guest, with vgpu_guest.ko
 *
 *   --sessions N   at once (1)       --seed N       of all that is random
 *   --think-us N   mean pause of a session between bursts (5000)
 *   --operations N ends by itself after so many
 *   --steady       no spins, no reopening: what must never lose anything
 *   --spins        spins, also when steady
 *
 * It is written apart from libvgpu, straight from include/vgpu/.  Every operation
 * has a cookie of its own and one letter in the account:
 *
 *   u  unanswered   o  ended as it should   l  DEVICE_LOST   a  its session was closed
 *   q  quiet, not known whether it ran      (nothing else: what is wrong ends it)
 *
 * What an answer must be is known beforehand.  A counter in device memory rises
 * by one with each `increment`, quiet ones too, and is copied out in between: the
 * copy at place n of the ring must hold exactly the increments before it, so none
 * was skipped and none ran twice.  After DEVICE_LOST: everything up to a RESET is
 * lost too, old addresses and handles included; after it they are not known.
 *
 * It prints `progress ANSWERED LOST REOPENED` now and then, ends in order on SIGTERM
 * with `done ANSWERED LOST REOPENED`, and exits with 1 and a reason when something
 * is wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "vgpu/guest.h"
#include "vgpu/link.h"

#define MASK (VGPU_RING_ENTRIES - 1)
#define SESSIONS_MAX 8u
#define INFLIGHT_MAX 64u
#define UNANSWERED_RUN_MAX 512u /* of quiet ones behind the last answer */
#define STUCK_S 90
#define PROGRESS_MS 50
#define RETRY_MS 5
#define LOSSES_MAX 3 /* then the session is opened anew */

#define NAME_AT VGPU_SLOT_ARENA
#define PARAMETERS_AT (VGPU_SLOT_ARENA + 256u)
#define TEXTS_AT (VGPU_SLOT_ARENA + 4096u)
#define TEXT_BYTES 256u /* command, then answer */
#define EVENT 7u

enum phase { CLOSED, OPENING, FRESH, WORKING, LOST, CHECKING, CLOSING };

enum expect { EXPECT_OK, EXPECT_LOST, EXPECT_BAD_ADDRESS, EXPECT_BAD_HANDLE };

struct operation {
    uint64_t cookie;  /* 0: none */
    uint64_t counted; /* COPY_OUT: what it must find */
    uint32_t sequence;
    uint16_t opcode;
    uint8_t expect;
    bool quiet;
    bool answered;
    char answer[64]; /* TEXT: what it must say; "": nothing known */
};

struct session {
    enum phase phase;
    unsigned number;
    int node; /* device */
    uint8_t *slot;
    uint32_t sq_tail, published, cq_head, answered_to, verified_to;
    uint32_t unanswered;
    uint32_t generation; /* of this life's answers, 0: none yet */
    unsigned losses;
    uint64_t address, increments;
    uint64_t next_ns, moved_ns;
    bool reset_is_done;
    struct operation operations[VGPU_RING_ENTRIES];
};

static struct {
    const char *path, *account_path;
    unsigned sessions;
    uint64_t seed, think_us, operations;
    bool steady, spins, local, ending;
    /* The link of a local process. */
    int link, window, interrupt, lifeline, life, doorbells[SESSIONS_MAX];
    bool welcome;
    uint64_t window_bytes, slot_bytes, connect_ns;
    uint8_t *memory;
    uint8_t heard[VGPU_LINK_MESSAGE_BYTES];
    size_t heard_bytes;
    char *account;
    uint64_t cookies, account_room;
    uint64_t answered, lost, reopened;
    struct session all[SESSIONS_MAX];
} load = {.sessions = 1, .seed = 1, .think_us = 5000, .link = -1};

static volatile sig_atomic_t asked_to_end;

static void write_account(void)
{
    int fd = open(load.account_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint64_t at = 0;
    ssize_t put;

    while (at < load.cookies && (put = write(fd, load.account + 1 + at, load.cookies - at)) > 0)
        at += (uint64_t)put;
    if (fd >= 0)
        close(fd);
}

static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list list;

    printf("wrong: ");
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf("\n");
    fflush(stdout);
    write_account();
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* xorshift: the same with the same seed, wherever it runs. */
static uint64_t random_below(uint64_t bound)
{
    static uint64_t state;

    if (state == 0)
        state = load.seed * 0x9e3779b97f4a7c15u + 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % bound;
}

static struct vgpu_slot_guest *guest_page(const struct session *session)
{
    return (struct vgpu_slot_guest *)(void *)(session->slot + VGPU_SLOT_GUEST);
}

static struct vgpu_slot_host *host_page(const struct session *session)
{
    return (struct vgpu_slot_host *)(void *)(session->slot + VGPU_SLOT_HOST);
}

/* --- the account -------------------------------------------------------------------- */

static uint64_t new_cookie(void)
{
    if (load.cookies + 2 >= load.account_room) {
        load.account_room = load.account_room ? load.account_room * 2 : 1 << 16;
        load.account = realloc(load.account, load.account_room);
        if (!load.account)
            fail("no memory for the account");
    }
    load.account[++load.cookies] = 'u';
    return load.seed << 32 | load.cookies;
}

static void note(uint64_t cookie, char letter)
{
    load.account[cookie & 0xffffffffu] = letter;
}

/* The counter was right: so quiet operations before `sequence` have run. */
static void verify_quiet(struct session *session, uint32_t sequence)
{
    while (session->verified_to != sequence) {
        const struct operation *one = &session->operations[session->verified_to & MASK];

        if (one->quiet && one->sequence == session->verified_to)
            note(one->cookie, 'o');
        session->verified_to++;
    }
}

/* --- submitting -------------------------------------------------------------------------- */

static struct operation *submit(struct session *session, struct vgpu_descriptor *descriptor,
                                enum expect expect)
{
    struct operation *operation = &session->operations[session->sq_tail & MASK];

    descriptor->cookie = new_cookie();
    *operation = (struct operation){.cookie = descriptor->cookie,
                                    .sequence = session->sq_tail,
                                    .opcode = descriptor->opcode,
                                    .quiet = descriptor->flags & VGPU_FLAG_QUIET,
                                    .expect = (uint8_t)expect};
    memcpy(session->slot + VGPU_SLOT_SQ + (session->sq_tail & MASK) * sizeof(*descriptor),
           descriptor, sizeof(*descriptor));
    session->sq_tail++;
    if (operation->quiet)
        note(operation->cookie, 'q');
    else
        session->unanswered++;
    return operation;
}

static void submit_increment(struct session *session, uint8_t flags, enum expect expect)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_LAUNCH, .flags = flags};

    descriptor.launch.name_offset = NAME_AT;
    descriptor.launch.name_bytes = 9;
    descriptor.launch.parameters_offset = PARAMETERS_AT;
    descriptor.launch.parameters_bytes = 16;
    for (int i = 0; i < 3; i++)
        descriptor.launch.grid[i] = descriptor.launch.block[i] = 1;
    submit(session, &descriptor, expect);
    if (expect == EXPECT_OK)
        session->increments++;
}

static uint64_t copy_place(uint32_t sequence)
{
    return VGPU_SLOT_HEAP + (sequence & MASK) * sizeof(uint64_t);
}

static void submit_copy(struct session *session, enum expect expect)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_COPY_OUT};

    descriptor.copy.target = copy_place(session->sq_tail);
    descriptor.copy.source = session->address;
    descriptor.copy.bytes = sizeof(uint64_t);
    submit(session, &descriptor, expect)->counted = session->increments;
}

static void submit_object(struct session *session, uint16_t opcode, uint32_t handle,
                          enum expect expect)
{
    struct vgpu_descriptor descriptor = {.opcode = opcode};

    descriptor.object.handle = handle;
    submit(session, &descriptor, expect);
}

static void submit_text(struct session *session)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_TEXT};
    uint32_t at = TEXTS_AT + (session->sq_tail & MASK) % 128 * TEXT_BYTES;
    char command[64], answer[64];
    uint64_t a = load.cookies, b = random_below(1000000);

    if ((load.spins || !load.steady) && random_below(4) == 0) {
        snprintf(command, sizeof(command), "SPIN %u", (unsigned)b % 3 + 1);
        snprintf(answer, sizeof(answer), "Spun %u ms", (unsigned)b % 3 + 1);
    } else {
        snprintf(command, sizeof(command), "%u:%u", (unsigned)a, (unsigned)b);
        snprintf(answer, sizeof(answer), "%u + %u = %u", (unsigned)a, (unsigned)b,
                 (unsigned)(a + b));
    }
    memcpy(session->slot + at, command, strlen(command));
    descriptor.text.command_offset = at;
    descriptor.text.command_bytes = (uint32_t)strlen(command);
    descriptor.text.answer_offset = at + TEXT_BYTES / 2;
    descriptor.text.answer_bytes = TEXT_BYTES / 2;
    strcpy(submit(session, &descriptor, EXPECT_OK)->answer, answer);
}

static void submit_any(struct session *session)
{
    uint64_t choice = random_below(100);

    if (choice < 55)
        submit_increment(session, 0, EXPECT_OK);
    else if (choice < 70)
        submit_increment(session, VGPU_FLAG_QUIET, EXPECT_OK);
    else if (choice < 82)
        submit_copy(session, EXPECT_OK);
    else if (choice < 90)
        submit_object(session, VGPU_OP_PING, 0, EXPECT_OK);
    else if (choice < 95)
        submit_object(session, VGPU_OP_EVENT_SYNC, EVENT, EXPECT_OK);
    else
        submit_text(session);
}

static void ring(struct session *session)
{
    if (load.local)
        eventfd_write(load.doorbells[session->number], 1);
    else
        ioctl(session->node, VGPU_IOCTL_RING);
}

static void publish(struct session *session)
{
    uint32_t old_tail = session->published;

    if (session->sq_tail == old_tail)
        return;
    session->published = session->sq_tail;
    vgpu_store_release(&guest_page(session)->sq_tail, session->sq_tail);
    vgpu_fence_full();
    if (vgpu_event_passed(vgpu_load_acquire(&host_page(session)->sq_event), session->sq_tail,
                          old_tail))
        ring(session);
}

/* --- what each phase submits ------------------------------------------------------------------ */

static void begin(struct session *session)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_ALLOC};

    session->phase = FRESH;
    session->generation = 0;
    session->increments = 0;
    session->address = 0;
    descriptor.alloc.bytes = 4096;
    submit(session, &descriptor, EXPECT_OK);
}

static void prepare(struct session *session, uint64_t address)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_SET};
    const uint64_t parameters[2] = {address, 1};

    session->phase = WORKING;
    session->address = address;
    session->verified_to = session->sq_tail;
    memcpy(session->slot + NAME_AT, "increment", 9);
    memcpy(session->slot + PARAMETERS_AT, parameters, sizeof(parameters));
    descriptor.set.address = address;
    descriptor.set.count = 512;
    descriptor.set.width = 4;
    submit(session, &descriptor, EXPECT_OK);
    submit_object(session, VGPU_OP_EVENT_CREATE, EVENT, EXPECT_OK);
}

/* All that it had is lost: that must show before the RESET, and after it. */
static void check_loss(struct session *session)
{
    session->phase = CHECKING;
    session->reset_is_done = false;
    session->generation = 0;
    if (session->address)
        submit_increment(session, 0, EXPECT_LOST);
    submit_object(session, VGPU_OP_EVENT_SYNC, EVENT, EXPECT_LOST);
    submit_object(session, VGPU_OP_PING, 0, EXPECT_LOST);
    submit_object(session, VGPU_OP_RESET, 0, EXPECT_OK);
    if (session->address)
        submit_copy(session, EXPECT_BAD_ADDRESS);
    submit_object(session, VGPU_OP_EVENT_SYNC, EVENT, EXPECT_BAD_HANDLE);
}

static void work(struct session *session, uint64_t now)
{
    uint64_t burst = 1 + random_below(16);

    if (now < session->next_ns || load.ending)
        return;
    session->next_ns = now + random_below(2 * load.think_us + 1) * 1000;
    while (burst-- > 0 && session->unanswered < INFLIGHT_MAX &&
           session->sq_tail - session->answered_to < UNANSWERED_RUN_MAX)
        submit_any(session);
}

/* --- taking
 * ---------------------------------------------------------------------------------------- */

static void check_answer(struct session *session, const struct operation *operation,
                         const struct vgpu_completion *completion)
{
    static const uint32_t wanted[] = {VGPU_OK, VGPU_DEVICE_LOST, VGPU_BAD_ADDRESS, VGPU_BAD_HANDLE};
    uint64_t found;
    char text[TEXT_BYTES / 2];

    if (completion->status != wanted[operation->expect])
        fail("slot %u: operation %u (opcode %u) ended with status %u, %u expected", session->number,
             operation->sequence, operation->opcode, completion->status, wanted[operation->expect]);
    if (completion->status != VGPU_OK)
        return;
    if (session->generation == 0)
        session->generation = completion->generation;
    if (completion->generation != session->generation)
        fail("slot %u: operation %u succeeded in generation %u, %u expected", session->number,
             operation->sequence, completion->generation, session->generation);
    if (operation->opcode == VGPU_OP_COPY_OUT) {
        memcpy(&found, session->slot + copy_place(operation->sequence), sizeof(found));
        if (found != operation->counted)
            fail("slot %u: the counter is %llu after %llu increments", session->number,
                 (unsigned long long)found, (unsigned long long)operation->counted);
        verify_quiet(session, operation->sequence);
    } else if (operation->opcode == VGPU_OP_TEXT) {
        memcpy(text,
               session->slot + TEXTS_AT + (operation->sequence & MASK) % 128 * TEXT_BYTES +
                   TEXT_BYTES / 2,
               sizeof(text));
        if (completion->result != strlen(operation->answer) ||
            memcmp(text, operation->answer, completion->result) != 0)
            fail("slot %u: a text said '%.*s', '%s' expected", session->number,
                 (int)(completion->result & 127), text, operation->answer);
    }
}

static void take_loss(struct session *session, const struct operation *operation)
{
    if (load.steady)
        fail("slot %u: operation %u ended with DEVICE_LOST", session->number, operation->sequence);
    note(operation->cookie, 'l');
    load.lost++;
    if (session->phase == CHECKING && operation->expect == EXPECT_LOST)
        return;
    if (session->phase != LOST)
        session->losses++;
    session->phase = LOST;
}

static void take_success(struct session *session, const struct operation *operation,
                         const struct vgpu_completion *completion)
{
    if (session->phase == LOST)
        fail("slot %u: operation %u succeeded after a loss", session->number, operation->sequence);
    check_answer(session, operation, completion);
    note(operation->cookie, 'o');
    if (operation->opcode == VGPU_OP_ALLOC)
        prepare(session, completion->result);
    else if (operation->opcode == VGPU_OP_RESET)
        session->reset_is_done = true;
}

static void take_one(struct session *session)
{
    struct vgpu_completion completion;
    struct operation *operation;

    memcpy(&completion,
           session->slot + VGPU_SLOT_CQ + (session->cq_head & MASK) * sizeof(completion),
           sizeof(completion));
    session->cq_head++;
    operation = &session->operations[completion.sequence & MASK];
    if (operation->cookie == 0 || operation->cookie != completion.cookie ||
        operation->sequence != completion.sequence)
        fail("slot %u: a completion of operation %u with cookie %llx; there is %llx",
             session->number, completion.sequence, (unsigned long long)completion.cookie,
             (unsigned long long)operation->cookie);
    if (operation->answered || operation->quiet)
        fail("slot %u: operation %u was answered twice, or was quiet", session->number,
             completion.sequence);
    operation->answered = true;
    session->unanswered--;
    session->answered_to = completion.sequence + 1;
    session->moved_ns = now_ns();
    load.answered++;
    if (completion.status == VGPU_DEVICE_LOST)
        take_loss(session, operation);
    else
        take_success(session, operation, &completion);
}

static bool take(struct session *session)
{
    uint32_t tail = vgpu_load_acquire(&host_page(session)->cq_tail);

    if (tail - session->cq_head > VGPU_RING_ENTRIES)
        fail("slot %u: cq_tail %u, taken %u", session->number, tail, session->cq_head);
    if (tail == session->cq_head)
        return false;
    while (session->cq_head != tail)
        take_one(session);
    vgpu_store_release(&guest_page(session)->cq_head, session->cq_head);
    return true;
}

/* --- opening and closing
 * ----------------------------------------------------------------------------- */

static bool is_open(const struct session *session)
{
    return session->phase >= FRESH && session->phase <= CHECKING;
}

static void opened(struct session *session)
{
    session->sq_tail = session->published = session->cq_head = session->answered_to = 0;
    session->unanswered = 0;
    session->losses = 0;
    session->moved_ns = now_ns();
    memset(session->operations, 0, sizeof(session->operations));
    begin(session);
    publish(session);
}

static void forget(struct session *session)
{
    for (uint32_t i = 0; i < VGPU_RING_ENTRIES; i++) {
        const struct operation *one = &session->operations[i];

        if (one->cookie && !one->answered && !one->quiet)
            note(one->cookie, 'a');
    }
    session->unanswered = 0;
}

static void tell(enum vgpu_link_type type, uint32_t slot)
{
    struct vgpu_link_message message = {
        .magic = VGPU_LINK_MAGIC, .version = VGPU_LINK_VERSION, .type = (uint16_t)type};

    message.open.slot = slot;
    send(load.link, &message, sizeof(message), MSG_NOSIGNAL); /* an end shows on reading */
}

static void open_node(struct session *session)
{
    struct vgpu_guest_info info;

    session->node = open(load.path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (session->node < 0) {
        if (errno != EHOSTDOWN && errno != EAGAIN && errno != ETIMEDOUT && errno != EBUSY &&
            errno != ECONNREFUSED && errno != EEXIST &&
            (errno != EIO || load.steady)) /* its worker died before it was ready */
            fail("%s: %s", load.path, strerror(errno));
        session->next_ns = now_ns() + RETRY_MS * 1000000u;
        return;
    }
    if (ioctl(session->node, VGPU_IOCTL_INFO, &info) < 0)
        fail("%s: no information: %s", load.path, strerror(errno));
    load.slot_bytes = info.slot_bytes;
    session->slot =
        mmap(NULL, info.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, session->node, 0);
    if (session->slot == MAP_FAILED)
        fail("%s: no mapping: %s", load.path, strerror(errno));
    opened(session);
}

static void open_session(struct session *session, uint64_t now)
{
    if (load.ending || now < session->next_ns || (load.local && !load.welcome))
        return;
    if (load.local) {
        session->phase = OPENING;
        session->moved_ns = now;
        tell(VGPU_LINK_OPEN, session->number);
    } else {
        open_node(session);
    }
}

static void close_session(struct session *session)
{
    forget(session);
    load.reopened++;
    if (load.local) {
        session->phase = CLOSING;
        session->moved_ns = now_ns();
        if (load.welcome) /* else after the next WELCOME */
            tell(VGPU_LINK_CLOSE, session->number);
        return;
    }
    session->phase = CLOSED;
    munmap(session->slot, load.slot_bytes);
    close(session->node);
}

/* --- the link of a local process
 * --------------------------------------------------------------------- */

static void make_window(void)
{
    int lifeline[2];

    load.window_bytes = VGPU_WINDOW_MIN_BYTES + load.sessions * (1u << 20);
    load.slot_bytes = vgpu_window_slot_bytes(load.window_bytes, load.sessions);
    load.window = memfd_create("window-load", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (ftruncate(load.window, (off_t)load.window_bytes) < 0 ||
        fcntl(load.window, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0 ||
        pipe2(lifeline, O_CLOEXEC) < 0)
        fail("no window: %s", strerror(errno));
    load.lifeline = lifeline[0];
    load.life = lifeline[1];
    load.memory = mmap(NULL, load.window_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, load.window, 0);
    if (load.memory == MAP_FAILED)
        fail("no mapping: %s", strerror(errno));
    load.interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < load.sessions; i++) {
        load.doorbells[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        load.all[i].slot = load.memory + vgpu_window_slot_offset(load.slot_bytes, i);
    }
}

static bool send_fds(const struct vgpu_link_message *message, const int *fds)
{
    char control[CMSG_SPACE(VGPU_LINK_FDS_MAX * sizeof(int))] = {0};
    struct iovec part = {(void *)(uintptr_t)message, sizeof(*message)};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control,
                            .msg_controllen = CMSG_SPACE(message->fd_count * sizeof(int))};
    struct cmsghdr *descriptors = CMSG_FIRSTHDR(&header);

    descriptors->cmsg_level = SOL_SOCKET;
    descriptors->cmsg_type = SCM_RIGHTS;
    descriptors->cmsg_len = CMSG_LEN(message->fd_count * sizeof(int));
    memcpy(CMSG_DATA(descriptors), fds, message->fd_count * sizeof(int));
    return sendmsg(load.link, &header, MSG_NOSIGNAL) == sizeof(*message);
}

static bool say_hello(void)
{
    const int fds[VGPU_LINK_HELLO_FDS] = {load.window, load.interrupt, load.lifeline};
    struct vgpu_link_message hello = {.magic = VGPU_LINK_MAGIC,
                                      .version = VGPU_LINK_VERSION,
                                      .type = VGPU_LINK_HELLO,
                                      .fd_count = VGPU_LINK_HELLO_FDS};
    struct vgpu_link_message doorbells = hello;

    hello.hello.owner = VGPU_LINK_OWNER_LOCAL;
    hello.hello.window_bytes = load.window_bytes;
    hello.hello.slot_count = load.sessions;
    hello.hello.min_version = VGPU_LINK_VERSION;
    for (unsigned i = 0; i < load.sessions; i++) {
        if (is_open(&load.all[i]))
            hello.hello.open_slots |= 1u << i;
    }
    doorbells.type = VGPU_LINK_DOORBELLS;
    doorbells.fd_count = load.sessions;
    return send_fds(&hello, fds) && send_fds(&doorbells, load.doorbells);
}

static void hang_up(void)
{
    if (load.link >= 0)
        close(load.link);
    load.link = -1;
    load.welcome = false;
    load.heard_bytes = 0;
    load.connect_ns = now_ns() + RETRY_MS * 1000000u;
}

static void try_connect(uint64_t now)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (load.link >= 0 || now < load.connect_ns)
        return;
    if (strlen(load.path) >= sizeof(address.sun_path))
        fail("the path of the socket is too long");
    strcpy(address.sun_path, load.path);
    load.link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(load.link, (const struct sockaddr *)&address, sizeof(address)) < 0 || !say_hello())
        hang_up();
}

/* A mediator is there (again).  What was on its way to the last one is lost. */
static void take_welcome(void)
{
    load.welcome = true;
    for (unsigned i = 0; i < load.sessions; i++) {
        if (load.all[i].phase == OPENING)
            load.all[i].phase = CLOSED;
        else if (load.all[i].phase == CLOSING)
            tell(VGPU_LINK_CLOSE, i);
    }
}

static void take_state(const struct vgpu_link_message *message)
{
    struct session *session;

    if (message->state.slot >= load.sessions)
        fail("a state of slot %u", message->state.slot);
    session = &load.all[message->state.slot];
    if (message->state.state == VGPU_SESSION_READY && session->phase == OPENING) {
        opened(session);
    } else if (message->state.state == VGPU_SESSION_REFUSED && session->phase == OPENING) {
        session->phase = CLOSED; /* "not yet" while the old one ends */
        session->next_ns = now_ns() + RETRY_MS * 1000000u;
    } else if (message->state.state == VGPU_SESSION_CLOSED && session->phase == CLOSING) {
        session->phase = CLOSED;
    } else if (is_open(session) && message->state.state != VGPU_SESSION_READY &&
               message->state.state != VGPU_SESSION_LOST) {
        fail("slot %u: state %u: %s", session->number, message->state.state, message->state.text);
    }
}

static void hear(void)
{
    struct vgpu_link_message message;
    ssize_t got = recv(load.link, load.heard + load.heard_bytes,
                       sizeof(load.heard) - load.heard_bytes, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        hang_up();
        return;
    }
    load.heard_bytes += (size_t)got;
    if (load.heard_bytes < sizeof(load.heard))
        return;
    load.heard_bytes = 0;
    memcpy(&message, load.heard, sizeof(message));
    if (message.type == VGPU_LINK_WELCOME)
        take_welcome();
    else if (message.type == VGPU_LINK_STATE)
        take_state(&message);
    else if (message.type == VGPU_LINK_REFUSED)
        fail("refused: %s", message.refused.text);
}

/* --- the loop
 * -------------------------------------------------------------------------------------------- */

static void step(struct session *session, uint64_t now)
{
    if (session->phase == WORKING)
        work(session, now);
    else if (session->phase == LOST && session->unanswered == 0 && !load.ending)
        session->losses < LOSSES_MAX ? check_loss(session) : close_session(session);
    else if (session->phase == CHECKING && session->unanswered == 0 && session->reset_is_done)
        begin(session);
    else if (session->phase == CLOSED)
        open_session(session, now);
    if (session->phase == WORKING && !load.steady && !load.ending && random_below(4000) == 0)
        close_session(session);
    if (is_open(session))
        publish(session);
    if ((session->unanswered > 0 || session->phase == OPENING || session->phase == CLOSING) &&
        now > session->moved_ns + STUCK_S * 1000000000ull)
        fail("slot %u: phase %d, %u unanswered and nothing came for %d s: cq_tail %u of %u, "
             "sq_tail %u, sq_event %u, state %u",
             session->number, session->phase, session->unanswered, STUCK_S,
             host_page(session)->cq_tail, session->cq_head, session->sq_tail,
             host_page(session)->sq_event, host_page(session)->state);
    if (session->unanswered == 0 && is_open(session))
        session->moved_ns = now;
}

/* Asks for an interrupt; true when something is there already. */
static bool arm(struct session *session)
{
    if (!is_open(session))
        return false;
    vgpu_store_release(&guest_page(session)->cq_event, session->cq_head);
    vgpu_fence_full();
    return vgpu_load_acquire(&host_page(session)->cq_tail) != session->cq_head;
}

static void wait_for_something(uint64_t now)
{
    struct pollfd files[SESSIONS_MAX + 2];
    uint64_t until = now + PROGRESS_MS * 1000000u, count;
    nfds_t used = 0;

    for (unsigned i = 0; i < load.sessions; i++) {
        struct session *session = &load.all[i];

        if (arm(session))
            until = now;
        if ((session->phase == WORKING || session->phase == CLOSED) && session->next_ns < until)
            until = session->next_ns > now ? session->next_ns : now;
        if (!load.local && is_open(session))
            files[used++] = (struct pollfd){.fd = session->node, .events = POLLIN};
    }
    if (load.local) {
        files[used++] = (struct pollfd){.fd = load.interrupt, .events = POLLIN};
        files[used++] = (struct pollfd){.fd = load.link, .events = POLLIN};
        if (load.link < 0 && load.connect_ns < until)
            until = load.connect_ns > now ? load.connect_ns : now;
    }
    poll(files, used, (int)((until - now + 999999) / 1000000));
    for (nfds_t i = 0; i < used; i++) {
        if (load.local && files[i].fd == load.link && files[i].revents && load.link >= 0)
            hear();
        else if (files[i].revents & POLLIN && read(files[i].fd, &count, sizeof(count)) < 0 &&
                 errno != EAGAIN && errno != EPIPE)
            fail("no interrupt can be read: %s", strerror(errno));
        if (!load.local && files[i].revents & POLLHUP)
            fail("a session has ended by itself");
    }
}

static bool all_answered(void)
{
    for (unsigned i = 0; i < load.sessions; i++) {
        if (load.all[i].unanswered > 0)
            return false;
    }
    return true;
}

static void say(const char *word)
{
    printf("%s %llu %llu %llu\n", word, (unsigned long long)load.answered,
           (unsigned long long)load.lost, (unsigned long long)load.reopened);
    fflush(stdout);
}

static void run(void)
{
    uint64_t now, said_ns = 0;

    while (!load.ending || !all_answered()) {
        now = now_ns();
        load.ending = asked_to_end || (load.operations && load.answered >= load.operations);
        if (load.local)
            try_connect(now);
        for (unsigned i = 0; i < load.sessions; i++) {
            if (is_open(&load.all[i]))
                take(&load.all[i]);
            step(&load.all[i], now);
        }
        if (now - said_ns >= PROGRESS_MS * 1000000u) {
            said_ns = now;
            say("progress");
        }
        wait_for_something(now_ns());
    }
}

static void on_terminate(int number)
{
    (void)number;
    asked_to_end = 1;
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {{"sessions", required_argument, NULL, 'n'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"think-us", required_argument, NULL, 't'},
                                            {"operations", required_argument, NULL, 'o'},
                                            {"steady", no_argument, NULL, 'y'},
                                            {"spins", no_argument, NULL, 'p'},
                                            {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        switch (option) {
        case 'n':
            load.sessions = (unsigned)atoi(optarg);
            break;
        case 's':
            load.seed = (uint64_t)atoll(optarg);
            break;
        case 't':
            load.think_us = (uint64_t)atoll(optarg);
            break;
        case 'o':
            load.operations = (uint64_t)atoll(optarg);
            break;
        case 'y':
            load.steady = true;
            break;
        case 'p':
            load.spins = true;
            break;
        default:
            exit(2);
        }
    }
    if (argc - optind != 2 || load.sessions < 1 || load.sessions > SESSIONS_MAX) {
        fprintf(stderr, "window-load [OPTION...] SOCKET|DEVICE ACCOUNT\n");
        exit(2);
    }
    load.path = argv[optind];
    load.account_path = argv[optind + 1];
}

int main(int argc, char **argv)
{
    struct stat info;

    read_options(argc, argv);
    signal(SIGTERM, on_terminate);
    load.local = !(stat(load.path, &info) == 0 && S_ISCHR(info.st_mode));
    if (load.local)
        make_window();
    for (unsigned i = 0; i < load.sessions; i++)
        load.all[i].number = i;
    run();
    say("done");
    write_account();
    return 0;
}
