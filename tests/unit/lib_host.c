/* SPDX-License-Identifier: Apache-2.0 */
/* See lib_host.h. */
#include "lib_host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

/* --- the worker's part ------------------------------------------------------------ */

static uint64_t device_offset(uint64_t address)
{
    return (address - LIB_HOST_DEVICE_BASE) % LIB_HOST_DEVICE_BYTES;
}

/* A launch names `sum` and gives numbers and, last, their sum. */
static void check_launch(struct lib_host *host, const struct vgpu_descriptor *descriptor)
{
    const uint64_t *words = (const uint64_t *)(host->slot + descriptor->launch.parameters_offset);
    uint64_t sum = 0, count = descriptor->launch.parameters_bytes / 8;

    host->launches++;
    host->last_launch = *descriptor;
    memcpy(host->last_parameters, words, count * 8);
    for (uint64_t i = 0; i + 1 < count; i++)
        sum += words[i];
    if (descriptor->launch.name_bytes != 3 || count < 1 || sum != words[count - 1] ||
        memcmp(host->slot + descriptor->launch.name_offset, "sum", 3) != 0)
        host->launch_errors++;
}

static uint32_t do_text(struct lib_host *host, const struct vgpu_descriptor *descriptor,
                        uint64_t *ret_result)
{
    char answer[2048];
    const char *command = (const char *)host->slot + descriptor->text.command_offset;
    int bytes =
        snprintf(answer, sizeof(answer), "did %.*s", (int)descriptor->text.command_bytes, command);

    if ((uint32_t)bytes > descriptor->text.answer_bytes)
        bytes = (int)descriptor->text.answer_bytes;
    memcpy(host->slot + descriptor->text.answer_offset, answer, (size_t)bytes);
    *ret_result = (uint64_t)bytes;
    return memcmp(command, "FAIL", 4) == 0 ? VGPU_COMMAND_FAILED : VGPU_OK;
}

static uint32_t run_one(struct lib_host *host, const struct vgpu_descriptor *descriptor,
                        uint64_t *ret_result)
{
    uint64_t bytes = descriptor->copy.bytes;

    switch (descriptor->opcode) {
    case VGPU_OP_TEXT:
        return do_text(host, descriptor, ret_result);
    case VGPU_OP_ALLOC:
        *ret_result = LIB_HOST_DEVICE_BASE + host->allocated;
        host->allocated += descriptor->alloc.bytes;
        return VGPU_OK;
    case VGPU_OP_COPY_IN:
        memcpy(host->device + device_offset(descriptor->copy.target),
               host->slot + descriptor->copy.source, bytes);
        return VGPU_OK;
    case VGPU_OP_COPY_OUT:
        memcpy(host->slot + descriptor->copy.target,
               host->device + device_offset(descriptor->copy.source), bytes);
        return VGPU_OK;
    case VGPU_OP_CANCEL:
        *ret_result = 1;
        return VGPU_OK;
    case VGPU_OP_LAUNCH:
        check_launch(host, descriptor);
        return VGPU_OK;
    default:
        return VGPU_OK;
    }
}

static void complete(struct lib_host *host, const struct vgpu_descriptor *descriptor,
                     uint32_t sequence)
{
    struct vgpu_completion completion = {
        .cookie = descriptor->cookie, .sequence = sequence, .generation = 1, .run_us = 3};

    completion.status = run_one(host, descriptor, &completion.result);
    if (host->answers_with)
        completion.status = host->answers_with;
    host->operations++;
    if (descriptor->flags & VGPU_FLAG_QUIET)
        return;
    host->completions[host->cq_tail % VGPU_RING_ENTRIES] = completion;
    host->cq_tail++;
}

static void publish(struct lib_host *host, uint32_t old_tail)
{
    const uint64_t one = 1;

    if (host->cq_tail == old_tail)
        return;
    vgpu_store_release(&host->host->cq_tail, host->cq_tail);
    vgpu_fence_full();
    if (!host->is_mute &&
        vgpu_event_passed(__atomic_load_n(&host->guest->cq_event, __ATOMIC_RELAXED), host->cq_tail,
                          old_tail)) {
        host->interrupts++;
        if (write(host->interrupt_fd, &one, sizeof(one)) < 0)
            abort();
    }
}

/* What the completion ring has room for. */
static unsigned room(const struct lib_host *host)
{
    return VGPU_RING_ENTRIES - (host->cq_tail - vgpu_load_acquire(&host->guest->cq_head));
}

static unsigned run_locked(struct lib_host *host, unsigned most)
{
    uint32_t tail = vgpu_load_acquire(&host->guest->sq_tail), old_tail = host->cq_tail;
    struct vgpu_descriptor taken[VGPU_RING_ENTRIES];
    unsigned count = tail - host->sq_head;

    if (count > most)
        count = most;
    if (count > room(host))
        count = room(host);
    for (unsigned i = 0; i < count; i++)
        taken[i] = host->descriptors[(host->sq_head + i) % VGPU_RING_ENTRIES];
    for (unsigned i = 0; i < count; i++) {
        unsigned which = host->answers_backwards ? count - 1 - i : i;

        complete(host, &taken[which], host->sq_head + which);
    }
    host->sq_head += count;
    vgpu_store_release(&host->host->sq_head, host->sq_head);
    publish(host, old_tail);
    return count;
}

unsigned lib_host_run(struct lib_host *host, unsigned most)
{
    unsigned count;

    pthread_mutex_lock(&host->lock);
    count = run_locked(host, most);
    pthread_mutex_unlock(&host->lock);
    return count;
}

void lib_host_interrupt(struct lib_host *host)
{
    const uint64_t one = 1;

    if (write(host->interrupt_fd, &one, sizeof(one)) < 0)
        abort();
}

/* --- the mediator's part --------------------------------------------------------------- */

static void say(const struct lib_host *host, struct vgpu_link_message *message)
{
    message->magic = VGPU_LINK_MAGIC;
    message->version = VGPU_LINK_VERSION;
    if (send(host->link, message, sizeof(*message), MSG_NOSIGNAL) != (ssize_t)sizeof(*message))
        perror("lib_host: send");
}

static void say_state(const struct lib_host *host, uint32_t state, int code)
{
    struct vgpu_link_message message = {.type = VGPU_LINK_STATE,
                                        .state = {.state = state, .code = (uint32_t)code}};

    if (code)
        strcpy(message.state.text, "the test wants it so");
    say(host, &message);
}

void lib_host_say(struct lib_host *host, uint32_t state)
{
    pthread_mutex_lock(&host->lock);
    say_state(host, state, 0);
    pthread_mutex_unlock(&host->lock);
}

static void forget_window(struct lib_host *host)
{
    if (!host->slot)
        return;
    munmap(host->slot, host->slot_bytes);
    close(host->window_fd);
    close(host->interrupt_fd);
    close(host->lifeline_fd);
    close(host->doorbell_fd);
    host->slot = NULL;
    host->doorbell_fd = -1;
}

static void begin_slot(struct lib_host *host)
{
    host->sq_head = host->cq_tail = host->first_index;
    host->host->sq_head = host->host->sq_event = host->first_index;
    host->host->cq_tail = host->first_index;
    host->guest->sq_tail = host->guest->cq_head = host->first_index;
    /* A consumer that polls leaves its index behind. */
    host->guest->cq_event = host->first_index - 1;
    host->host->state = VGPU_SESSION_READY;
    host->host->generation = 1;
}

static void take_hello(struct lib_host *host, const struct vgpu_link_message *message,
                       const int *fds)
{
    host->hellos++;
    host->open_slots = message->hello.open_slots;
    forget_window(host);
    host->window_bytes = (uint32_t)message->hello.window_bytes;
    host->window_fd = fds[VGPU_LINK_FD_WINDOW];
    host->interrupt_fd = fds[VGPU_LINK_FD_INTERRUPT];
    host->lifeline_fd = fds[VGPU_LINK_FD_LIFELINE];
    host->slot_bytes = vgpu_window_slot_bytes(host->window_bytes, 1);
    host->slot = mmap(NULL, host->slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, host->window_fd,
                      VGPU_WINDOW_HEADER_BYTES);
    if (host->slot == MAP_FAILED)
        abort();
    host->guest = (struct vgpu_slot_guest *)(host->slot + VGPU_SLOT_GUEST);
    host->host = (struct vgpu_slot_host *)(host->slot + VGPU_SLOT_HOST);
    host->descriptors = (struct vgpu_descriptor *)(host->slot + VGPU_SLOT_SQ);
    host->completions = (struct vgpu_completion *)(host->slot + VGPU_SLOT_CQ);
}

static void welcome(struct lib_host *host)
{
    struct vgpu_link_message message = {
        .type = VGPU_LINK_WELCOME,
        .welcome = {.vm_id = 7, .pool = 'B', .priority = 2, .sessions_max = 8}};

    if (host->refuse_hello) {
        message.type = VGPU_LINK_REFUSED;
        message.refused.code = (uint32_t)host->refuse_hello;
        strcpy(message.refused.text, "the test wants it so");
    }
    say(host, &message);
    if (!host->refuse_hello && host->open_slots)
        say_state(host, host->forgets ? VGPU_SESSION_CLOSED : VGPU_SESSION_READY, 0);
}

static void take_message(struct lib_host *host, const struct vgpu_link_message *message,
                         const int *fds)
{
    switch (host->is_silent ? 0 : message->type) {
    case VGPU_LINK_HELLO:
        take_hello(host, message, fds);
        break;
    case VGPU_LINK_DOORBELLS:
        host->doorbell_fd = fds[0];
        welcome(host);
        break;
    case VGPU_LINK_OPEN:
        host->opens++;
        if (!host->refuse_open)
            begin_slot(host);
        say_state(host, host->refuse_open ? VGPU_SESSION_REFUSED : VGPU_SESSION_READY,
                  host->refuse_open);
        break;
    case VGPU_LINK_CLOSE:
        host->closes++;
        break;
    default:
        for (uint32_t i = 0; i < message->fd_count; i++)
            close(fds[i]);
    }
}

static void hang_up(struct lib_host *host)
{
    if (host->link >= 0)
        close(host->link);
    host->link = -1;
}

static void read_link(struct lib_host *host)
{
    struct vgpu_link_message message;
    char control[CMSG_SPACE(VGPU_LINK_FDS_MAX * sizeof(int))];
    struct iovec part = {.iov_base = &message, .iov_len = sizeof(message)};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control,
                            .msg_controllen = sizeof(control)};
    struct cmsghdr *rights;
    int fds[VGPU_LINK_FDS_MAX] = {-1};

    if (recvmsg(host->link, &header, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(message)) {
        hang_up(host);
        return;
    }
    rights = CMSG_FIRSTHDR(&header);
    if (rights)
        memcpy(fds, CMSG_DATA(rights), rights->cmsg_len - CMSG_LEN(0));
    take_message(host, &message, fds);
}

/* --- the thread ---------------------------------------------------------------------------- */

static void serve(struct lib_host *host, struct pollfd *waits)
{
    uint64_t rung;

    if (waits[1].revents && host->listener >= 0 && host->link < 0)
        host->link = accept4(host->listener, NULL, NULL, SOCK_CLOEXEC);
    else if (waits[2].revents && host->link == waits[2].fd)
        read_link(host);
    if (host->by_hand || !host->slot || host->doorbell_fd < 0)
        return;
    if (read(host->doorbell_fd, &rung, sizeof(rung)) > 0)
        host->doorbells += rung;
    do {
        while (run_locked(host, VGPU_RING_ENTRIES) > 0)
            ;
        host->host->sq_event = host->sq_head;
        vgpu_fence_full();
    } while (vgpu_load_acquire(&host->guest->sq_tail) != host->sq_head && room(host) > 0);
}

static void *host_main(void *argument)
{
    struct lib_host *host = argument;

    for (;;) {
        struct pollfd waits[4] = {{.fd = host->stop_fd, .events = POLLIN}};

        pthread_mutex_lock(&host->lock);
        waits[1] = (struct pollfd){.fd = host->link < 0 ? host->listener : -1, .events = POLLIN};
        waits[2] = (struct pollfd){.fd = host->link, .events = POLLIN};
        waits[3] = (struct pollfd){.fd = host->by_hand ? -1 : host->doorbell_fd, .events = POLLIN};
        pthread_mutex_unlock(&host->lock);
        /* A full completion ring, or a test that leaves and returns, rings nothing. */
        poll(waits, 4, 2);
        if (waits[0].revents)
            return NULL;
        pthread_mutex_lock(&host->lock);
        serve(host, waits);
        pthread_mutex_unlock(&host->lock);
    }
}

static void listen_there(struct lib_host *host)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", host->path);
    host->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (host->listener < 0 || bind(host->listener, (struct sockaddr *)&address, sizeof(address)) ||
        listen(host->listener, 8) < 0)
        abort();
}

void lib_host_leave(struct lib_host *host)
{
    pthread_mutex_lock(&host->lock);
    close(host->listener);
    unlink(host->path);
    host->listener = -1;
    hang_up(host);
    pthread_mutex_unlock(&host->lock);
}

void lib_host_return(struct lib_host *host)
{
    pthread_mutex_lock(&host->lock);
    listen_there(host);
    pthread_mutex_unlock(&host->lock);
}

void lib_host_open(struct lib_host *host)
{
    host->directory = unit_temporary_directory();
    snprintf(host->path, sizeof(host->path), "%s/vm7.sock", host->directory);
    host->link = host->doorbell_fd = -1;
    host->stop_fd = eventfd(0, EFD_CLOEXEC);
    host->device = calloc(1, LIB_HOST_DEVICE_BYTES);
    pthread_mutex_init(&host->lock, NULL);
    listen_there(host);
    if (!host->device || pthread_create(&host->thread, NULL, host_main, host))
        abort();
}

void lib_host_close(struct lib_host *host)
{
    const uint64_t one = 1;

    if (write(host->stop_fd, &one, sizeof(one)) < 0)
        abort();
    pthread_join(host->thread, NULL);
    hang_up(host);
    forget_window(host);
    if (host->listener >= 0)
        close(host->listener);
    close(host->stop_fd);
    free(host->device);
    unit_remove_directory(host->directory);
}
