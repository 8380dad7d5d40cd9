/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The window channel with real sockets, memfds, eventfds and pipes: this process is
 * the peer and, between two of the peer's steps, the mediator's loop.  After each
 * case this process has as many descriptors as before it.
 */
#include "unit.h"

#include "channel/channel.h"
#include "vgpu/link.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#define WINDOW_BYTES (4u << 20)
#define SLOTS 2u
#define WAIT_MS 20000 /* only a failure takes so long */
#define FDS_MAX 16

struct place {
    unsigned descriptors; /* before */
    char *top, *run_dir;
    uv_loop_t loop;
    struct window_channel *channel;
    bool stopped;
    /* what the channel told */
    unsigned opened, closed, refused, opens, closes, resets;
    uint32_t last_slot, refused_vm;
    char reason[600];
    struct window_link *link; /* the newest that was opened */
    struct window_link_info info;
    /* what the mediator does */
    bool refuse_opened, close_in_opened, close_in_open;
};

struct peer {
    int fd;
    int fds[FDS_MAX]; /* of HELLO, then doorbells */
    struct vgpu_link_message hello;
};

static unsigned count_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* --- the mediator ------------------------------------------------------------------- */

static int on_opened(struct window_link *link, const struct window_link_info *info, void **ret_data,
                     void *context, struct vgpu_error *error)
{
    struct place *place = context;

    if (place->refuse_opened)
        return error_set(error, ENOENT, "VM %u is not wanted", info->vm_id);
    place->opened++;
    place->link = link;
    place->info = *info;
    *ret_data = place;
    if (place->close_in_opened)
        window_link_close(link, "second thoughts");
    else
        window_link_welcome(link, 'B', 2, 5);
    return 0;
}

static void on_open_session(struct window_link *link, uint32_t slot, void *data, void *context)
{
    struct place *place = context;

    assert_ptr_equal(data, place);
    place->opens++;
    place->last_slot = slot;
    if (place->close_in_open)
        window_link_close(link, "third thoughts");
    else
        window_link_state(link, slot, VGPU_SESSION_READY, 0, NULL);
}

static void on_close_session(struct window_link *link, uint32_t slot, void *data, void *context)
{
    struct place *place = context;

    (void)data;
    place->closes++;
    place->last_slot = slot;
    window_link_state(link, slot, VGPU_SESSION_CLOSED, 0, NULL);
}

static void on_reset(struct window_link *link, void *data, void *context)
{
    struct place *place = context;

    (void)data;
    place->resets++;
    window_link_reset_done(link);
}

static void on_closed(struct window_link *link, const char *reason, void *data, void *context)
{
    struct place *place = context;

    (void)link;
    assert_ptr_equal(data, place);
    place->closed++;
    snprintf(place->reason, sizeof(place->reason), "%s", reason);
}

static void on_refused(uint32_t vm_id, const char *reason, void *context)
{
    struct place *place = context;

    place->refused++;
    place->refused_vm = vm_id;
    snprintf(place->reason, sizeof(place->reason), "%s", reason);
}

static void start(struct place *place, uint32_t hello_timeout_ms)
{
    const struct file_channel_vm vms[] = {{7, (uid_t)-1, (gid_t)-1, 0770},
                                          {8, getuid(), getgid(), 0700}};
    const struct window_channel_config config = {.run_dir = place->run_dir,
                                                 .vms = vms,
                                                 .vm_count = 2,
                                                 .hello_timeout_ms = hello_timeout_ms,
                                                 .links_max = 3};
    const struct window_channel_events events = {.opened = on_opened,
                                                 .open_session = on_open_session,
                                                 .close_session = on_close_session,
                                                 .reset = on_reset,
                                                 .closed = on_closed,
                                                 .refused = on_refused,
                                                 .context = place};
    struct vgpu_error error = {.message = ""};

    window_channel_new(&config, &place->channel, &error);
    window_channel_start(place->channel, &place->loop, &events, &error);
    assert_string_equal(error.message, "");
    place->stopped = false;
}

static void stop(struct place *place)
{
    if (!place->stopped)
        window_channel_stop(place->channel);
    place->stopped = true;
    window_channel_free(place->channel);
    uv_run(&place->loop, UV_RUN_DEFAULT);
    place->channel = NULL;
}

static int make(void **state, uint32_t hello_timeout_ms)
{
    struct place *place = calloc(1, sizeof(*place));

    place->descriptors = count_descriptors();
    place->top = unit_temporary_directory();
    if (asprintf(&place->run_dir, "%s/run", place->top) < 0)
        return -1;
    uv_loop_init(&place->loop);
    *state = place;
    start(place, hello_timeout_ms);
    return 0;
}

static int place_make(void **state)
{
    return make(state, WAIT_MS);
}

static int hasty_place_make(void **state)
{
    return make(state, 20);
}

static int place_remove(void **state)
{
    struct place *place = *state;
    unsigned left;

    if (place->channel)
        stop(place);
    if (uv_loop_close(&place->loop) != 0)
        return -1;
    unit_remove_directory(place->top);
    free(place->run_dir);
    left = count_descriptors();
    if (left != place->descriptors)
        print_error("%u descriptors before, %u after\n", place->descriptors, left);
    left -= place->descriptors;
    free(place);
    return left == 0 ? 0 : -1;
}

/* One turn of the loop that waits a moment when there is nothing to do. */
static void turn(struct place *place)
{
    uv_run(&place->loop, UV_RUN_NOWAIT);
    usleep(200);
}

#define PUMP_UNTIL(place, condition)                                                               \
    do {                                                                                           \
        uint64_t limit_ns = clock_monotonic_ns() + WAIT_MS * NS_PER_MS;                            \
                                                                                                   \
        while (!(condition)) {                                                                     \
            if (clock_monotonic_ns() > limit_ns)                                                   \
                fail_msg("never came: " #condition);                                               \
            turn(place);                                                                           \
        }                                                                                          \
    } while (0)

/* --- a peer ------------------------------------------------------------------------------ */

static int make_window(uint64_t bytes, unsigned seals)
{
    int fd = memfd_create("window", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static int make_eventfd(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static int connect_to(struct place *place, uint32_t vm_id)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/vm%u.sock", place->run_dir, vm_id);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    close(fd);
    return -1;
}

/* Someone who does everything right; cases change one thing. */
static struct peer peer_make(struct place *place, uint32_t vm_id)
{
    struct peer peer = {.fd = connect_to(place, vm_id)};
    int pipe_fds[2];

    assert_true(peer.fd >= 0);
    peer.hello = (struct vgpu_link_message){.magic = VGPU_LINK_MAGIC,
                                            .version = VGPU_LINK_VERSION,
                                            .type = VGPU_LINK_HELLO,
                                            .fd_count = VGPU_LINK_HELLO_FDS};
    peer.hello.hello.owner = VGPU_LINK_OWNER_LOCAL;
    peer.hello.hello.window_bytes = WINDOW_BYTES;
    peer.hello.hello.slot_count = SLOTS;
    peer.hello.hello.min_version = 1;
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    peer.fds[0] = make_window(WINDOW_BYTES, F_SEAL_SHRINK | F_SEAL_GROW);
    peer.fds[1] = make_eventfd();
    peer.fds[2] = pipe_fds[0];
    peer.fds[3] = make_eventfd();
    peer.fds[4] = make_eventfd();
    peer.fds[5] = pipe_fds[1];
    for (int i = 6; i < FDS_MAX; i++)
        peer.fds[i] = -1;
    return peer;
}

static void peer_remove(struct peer *peer)
{
    fd_close(&peer->fd);
    for (int i = 0; i < FDS_MAX; i++)
        fd_close(&peer->fds[i]);
}

static void replace(struct peer *peer, int which, int fd)
{
    assert_true(fd >= 0);
    fd_close(&peer->fds[which]);
    peer->fds[which] = fd;
}

static void send_bytes(int fd, const void *data, size_t bytes, const int *fds, size_t fd_count)
{
    char control[CMSG_SPACE(253 * sizeof(int))] = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd_count > 0) {
        struct cmsghdr *rights = (struct cmsghdr *)control;

        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &header, MSG_NOSIGNAL), (ssize_t)bytes);
}

static void send_hello(struct peer *peer)
{
    send_bytes(peer->fd, &peer->hello, sizeof(peer->hello), peer->fds, VGPU_LINK_HELLO_FDS);
}

static struct vgpu_link_message message_of(uint16_t type)
{
    return (struct vgpu_link_message){
        .magic = VGPU_LINK_MAGIC, .version = VGPU_LINK_VERSION, .type = type};
}

static void send_doorbells(struct peer *peer, uint32_t first, uint32_t count, const int *fds)
{
    struct vgpu_link_message message = message_of(VGPU_LINK_DOORBELLS);

    message.fd_count = count;
    message.doorbells.first_slot = first;
    send_bytes(peer->fd, &message, sizeof(message), fds, count);
}

static void send_order(struct peer *peer, uint16_t type, uint32_t slot)
{
    struct vgpu_link_message message = message_of(type);

    message.open.slot = slot;
    send_bytes(peer->fd, &message, sizeof(message), NULL, 0);
}

/* Bytes of the next message, 0 at the link's end. */
static ssize_t receive(struct place *place, struct peer *peer, struct vgpu_link_message *message)
{
    ssize_t got = -1;

    *message = (struct vgpu_link_message){.magic = 0};
    PUMP_UNTIL(place, (got = recv(peer->fd, message, sizeof(*message), MSG_DONTWAIT)) >= 0 ||
                          errno != EAGAIN);
    return got < 0 && errno == ECONNRESET ? 0 : got;
}

static void assert_message(struct place *place, struct peer *peer, uint16_t type,
                           struct vgpu_link_message *message)
{
    assert_int_equal(receive(place, peer, message), sizeof(*message));
    assert_int_equal(message->magic, VGPU_LINK_MAGIC);
    assert_int_equal(message->type, type);
}

/* The peer reads why, then the end; the mediator was told the same. */
static void assert_ended(struct place *place, struct peer *peer, const char *text)
{
    struct vgpu_link_message message;

    assert_message(place, peer, VGPU_LINK_REFUSED, &message);
    if (!strstr(message.refused.text, text))
        fail_msg("'%s' was expected, '%s' came", text, message.refused.text);
    assert_true(message.refused.code > 0);
    assert_int_equal(receive(place, peer, &message), 0);
    assert_non_null(strstr(place->reason, text));
}

static void open_peer(struct place *place, struct peer *peer)
{
    struct vgpu_link_message message;

    send_hello(peer);
    send_doorbells(peer, 0, SLOTS, peer->fds + 3);
    assert_message(place, peer, VGPU_LINK_WELCOME, &message);
}

/* Whatever came before: somebody else of the same VM is served. */
static void assert_served(struct place *place, uint32_t vm_id)
{
    struct peer peer = peer_make(place, vm_id);
    unsigned opened = place->opened;

    open_peer(place, &peer);
    assert_int_equal(place->opened, opened + 1);
    peer_remove(&peer);
}

static void assert_hello_refused(struct place *place, struct peer *peer, const char *text)
{
    send_hello(peer);
    assert_ended(place, peer, text);
    assert_int_equal(place->opened, 0);
    assert_int_equal(place->refused, 1);
    assert_int_equal(place->refused_vm, 7);
    assert_served(place, 7);
    peer_remove(peer);
}

static void assert_doorbells_refused(struct place *place, struct peer *peer, const char *text)
{
    assert_ended(place, peer, text);
    assert_int_equal(place->opened, 0);
    assert_int_equal(place->refused, 1);
    assert_served(place, 7);
    peer_remove(peer);
}

static bool same_file(int a, int b)
{
    struct stat first, second;

    return fstat(a, &first) == 0 && fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

/* --- a good link ------------------------------------------------------------------------------ */

static void a_link_that_says_hello_and_doorbells_is_opened_and_welcomed(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message message;
    struct stat window;

    peer.hello.hello.open_slots = 2;
    peer.hello.hello.flags = VGPU_LINK_HELLO_RESETTING;
    send_hello(&peer);
    send_doorbells(&peer, 0, SLOTS, peer.fds + 3);
    assert_message(place, &peer, VGPU_LINK_WELCOME, &message);
    assert_int_equal(message.version, VGPU_LINK_VERSION);
    assert_int_equal(message.welcome.vm_id, 7);
    assert_int_equal(message.welcome.pool, 'B');
    assert_int_equal(message.welcome.priority, 2);
    assert_int_equal(message.welcome.sessions_max, 5);
    assert_int_equal(place->info.vm_id, 7);
    assert_int_equal(place->info.owner, VGPU_LINK_OWNER_LOCAL);
    assert_int_equal(place->info.peer_pid, getpid());
    assert_int_equal(place->info.peer_uid, getuid());
    assert_int_equal(place->info.window_bytes, WINDOW_BYTES);
    assert_int_equal(place->info.slot_count, SLOTS);
    assert_int_equal(place->info.slot_bytes, vgpu_window_slot_bytes(WINDOW_BYTES, SLOTS));
    assert_int_equal(place->info.open_slots, 2);
    assert_true(place->info.resetting);
    assert_int_equal(fstat(peer.fds[0], &window), 0);
    assert_int_equal(place->info.window_device, window.st_dev);
    assert_int_equal(place->info.window_inode, window.st_ino);
    assert_true(same_file(place->info.window_fd, peer.fds[0]));
    assert_true(same_file(place->info.lifeline_fd, peer.fds[2]));
    assert_int_equal(place->refused, 0);
    peer_remove(&peer);
}

/* eventfds all look alike to fstat: add to one side, read at the other. */
static void assert_rings(int rung, int heard)
{
    uint64_t one = 1, got = 0;

    assert_int_equal(write(rung, &one, sizeof(one)), sizeof(one));
    assert_int_equal(read(heard, &got, sizeof(got)), sizeof(got));
    assert_int_equal(got, 1);
}

static void each_descriptor_is_in_its_place(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    open_peer(place, &peer);
    assert_rings(place->info.interrupt_fd, peer.fds[1]);
    assert_rings(peer.fds[3], place->info.doorbell_fds[0]);
    assert_rings(peer.fds[4], place->info.doorbell_fds[1]);
    for (uint32_t slot = SLOTS; slot < VGPU_SLOTS_MAX; slot++)
        assert_int_equal(place->info.doorbell_fds[slot], -1);
    assert_int_equal(fcntl(place->info.window_fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(place->info.doorbell_fds[0], F_GETFD), FD_CLOEXEC);
    peer_remove(&peer);
}

static void sixteen_slots_have_their_doorbells_in_two_messages(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message message;
    const int same[8] = {peer.fds[3], peer.fds[3], peer.fds[3], peer.fds[3],
                         peer.fds[3], peer.fds[3], peer.fds[3], peer.fds[3]};

    replace(&peer, 0, make_window(16u << 20, F_SEAL_SHRINK));
    peer.hello.hello.window_bytes = 16u << 20;
    peer.hello.hello.slot_count = 16;
    send_hello(&peer);
    send_doorbells(&peer, 8, 8, same);
    send_doorbells(&peer, 0, 8, same);
    assert_message(place, &peer, VGPU_LINK_WELCOME, &message);
    assert_int_equal(place->info.slot_count, 16);
    assert_rings(peer.fds[3], place->info.doorbell_fds[15]);
    peer_remove(&peer);
}

static void a_message_may_come_in_pieces(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    const char *bytes = (const char *)&peer.hello;
    struct vgpu_link_message message;

    send_bytes(peer.fd, bytes, 3, peer.fds, VGPU_LINK_HELLO_FDS);
    for (size_t at = 3; at < sizeof(peer.hello); at += 11) {
        turn(place);
        send_bytes(peer.fd, bytes + at, sizeof(peer.hello) - at < 11 ? sizeof(peer.hello) - at : 11,
                   NULL, 0);
    }
    send_doorbells(&peer, 0, SLOTS, peer.fds + 3);
    assert_message(place, &peer, VGPU_LINK_WELCOME, &message);
    peer_remove(&peer);
}

static void a_newer_owner_that_still_speaks_our_version_is_welcome(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    peer.hello.version = 9;
    peer.hello.hello.vm_id = 7;
    open_peer(place, &peer);
    peer_remove(&peer);
}

static void orders_reach_the_mediator_and_its_answers_the_peer(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message message;

    open_peer(place, &peer);
    send_order(&peer, VGPU_LINK_OPEN, 1);
    assert_message(place, &peer, VGPU_LINK_STATE, &message);
    assert_int_equal(message.state.slot, 1);
    assert_int_equal(message.state.state, VGPU_SESSION_READY);
    send_order(&peer, VGPU_LINK_CLOSE, 1);
    assert_message(place, &peer, VGPU_LINK_STATE, &message);
    assert_int_equal(message.state.state, VGPU_SESSION_CLOSED);
    send_order(&peer, VGPU_LINK_RESET, 0);
    assert_message(place, &peer, VGPU_LINK_RESET_DONE, &message);
    assert_int_equal(place->opens, 1);
    assert_int_equal(place->closes, 1);
    assert_int_equal(place->resets, 1);
    window_link_state(place->link, 0, VGPU_SESSION_REFUSED, EBUSY, "no room");
    assert_message(place, &peer, VGPU_LINK_STATE, &message);
    assert_int_equal(message.state.code, EBUSY);
    assert_string_equal(message.state.text, "no room");
    window_link_config(place->link, 'C', 1, 5);
    assert_message(place, &peer, VGPU_LINK_CONFIG, &message);
    assert_int_equal(message.config.vm_id, 7);
    assert_int_equal(message.config.pool, 'C');
    assert_int_equal(message.config.priority, 1);
    assert_int_equal(message.config.sessions_max, 5);
    peer_remove(&peer);
}

static void the_socket_decides_who_it_is(void **state)
{
    struct place *place = *state;

    assert_served(place, 8);
    assert_int_equal(place->info.vm_id, 8);
    assert_served(place, 7);
    assert_int_equal(place->info.vm_id, 7);
}

static void a_peer_that_hangs_up_is_closed(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    open_peer(place, &peer);
    peer_remove(&peer);
    PUMP_UNTIL(place, place->closed == 1);
    assert_string_equal(place->reason, "it hung up");
    assert_int_equal(place->refused, 0);
}

/* --- the sockets in the file system --------------------------------------------------------------
 */

static char *path_of(const struct place *place, const char *name)
{
    char *path = NULL;

    if (asprintf(&path, "%s/%s", place->run_dir, name) < 0)
        abort();
    return path;
}

static bool is_there(const struct place *place, const char *name)
{
    char *path = path_of(place, name);
    bool there = access(path, F_OK) == 0;

    free(path);
    return there;
}

static void a_socket_has_its_vms_mode_without_the_execute_bits(void **state)
{
    struct place *place = *state;
    char *path = path_of(place, "vm7.sock");
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    assert_true(S_ISSOCK(status.st_mode));
    assert_int_equal(status.st_mode & 07777, 0660);
    free(path);
    path = path_of(place, "vm8.sock");
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    free(path);
    assert_int_equal(stat(place->run_dir, &status), 0);
    assert_int_equal(status.st_mode & 07022, 0);
    assert_false(is_there(place, "vm7.sock.new"));
}

static void a_vm_can_be_added_changed_and_removed_live(void **state)
{
    struct place *place = *state;
    struct file_channel_vm vm = {9, (uid_t)-1, (gid_t)-1, 0700, 2};
    char *path = path_of(place, "vm9.sock");
    struct vgpu_error error;
    struct stat status;
    unsigned closed;

    assert_int_equal(window_channel_set_vm(place->channel, &vm, &error), 0);
    assert_served(place, 9);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    vm.mode = 0770;
    if (geteuid() == 0)
        vm.owner_uid = 12345;
    assert_int_equal(window_channel_set_vm(place->channel, &vm, &error), 0);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0660);
    assert_int_equal(status.st_uid, geteuid() == 0 ? 12345 : geteuid());
    vm.owner_uid = (uid_t)-1;
    assert_int_equal(window_channel_set_vm(place->channel, &vm, &error), 0);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_uid, geteuid());
    assert_served(place, 9);
    closed = place->closed;
    window_channel_remove_vm(place->channel, 9);
    window_channel_remove_vm(place->channel, 9);
    assert_false(is_there(place, "vm9.sock"));
    assert_int_equal(place->closed, closed);
    assert_served(place, 7);
    assert_int_equal(window_channel_set_vm(place->channel, &vm, &error), 0);
    assert_served(place, 9);
    free(path);
}

static void a_socket_belongs_to_its_vms_owner(void **state)
{
    struct place *place = *state;
    const struct file_channel_vm vm = {9, 12345, 23456, 0700};
    const struct window_channel_config config = {
        .run_dir = place->top, .vms = &vm, .vm_count = 1, .hello_timeout_ms = 1000, .links_max = 1};
    const struct window_channel_events events = {.context = place};
    struct window_channel *channel;
    struct vgpu_error error;
    struct stat status;
    char path[600];

    if (geteuid() != 0)
        skip();
    assert_int_equal(window_channel_new(&config, &channel, &error), 0);
    assert_int_equal(window_channel_start(channel, &place->loop, &events, &error), 0);
    snprintf(path, sizeof(path), "%s/vm9.sock", place->top);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_uid, 12345);
    assert_int_equal(status.st_gid, 23456);
    window_channel_stop(channel);
    window_channel_free(channel);
}

static void sockets_are_removed_at_the_end(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message message;

    open_peer(place, &peer);
    assert_true(is_there(place, "vm7.sock"));
    stop(place);
    assert_false(is_there(place, "vm7.sock"));
    assert_false(is_there(place, "vm8.sock"));
    assert_int_equal(recv(peer.fd, &message, sizeof(message), 0), 0);
    assert_int_equal(place->closed, 0);
    peer_remove(&peer);
}

static void somebody_elses_socket_is_not_removed(void **state)
{
    struct place *place = *state;
    char *path = path_of(place, "vm7.sock");
    FILE *other;

    assert_int_equal(unlink(path), 0);
    other = fopen(path, "we");
    assert_non_null(other);
    fclose(other);
    stop(place);
    assert_true(is_there(place, "vm7.sock"));
    free(path);
}

static void leave_socket(struct place *place, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", place->run_dir, name);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
}

static void what_a_killed_mediator_left_is_replaced_or_removed(void **state)
{
    struct place *place = *state;

    stop(place);
    leave_socket(place, "vm7.sock");
    leave_socket(place, "vm7.sock.new");
    leave_socket(place, "vm9.sock");
    leave_socket(place, "other.sock");
    start(place, WAIT_MS);
    assert_served(place, 7);
    assert_false(is_there(place, "vm7.sock.new"));
    assert_false(is_there(place, "vm9.sock"));
    assert_true(is_there(place, "other.sock"));
}

static void a_run_directory_with_a_long_path_works(void **state)
{
    struct place *place = *state;
    char *path, *old = place->run_dir;

    stop(place);
    if (asprintf(&place->run_dir, "%s/%0120d", place->top, 7) < 0)
        abort();
    free(old);
    start(place, WAIT_MS);
    path = path_of(place, "vm7.sock");
    assert_int_equal(access(path, R_OK | W_OK), 0);
    free(path);
    stop(place);
    assert_false(is_there(place, "vm7.sock"));
}

static void a_run_directory_that_cannot_be_is_an_error(void **state)
{
    struct place *place = *state;
    const struct file_channel_vm vm = {9, (uid_t)-1, (gid_t)-1, 0700};
    const struct window_channel_config config = {
        .run_dir = "/proc/no/such", .vms = &vm, .vm_count = 1, .links_max = 1};
    const struct window_channel_events events = {.context = place};
    struct window_channel *channel;
    struct vgpu_error error;

    assert_int_equal(window_channel_new(&config, &channel, &error), 0);
    assert_int_equal(window_channel_start(channel, &place->loop, &events, &error), -1);
    assert_non_null(strstr(error.message, "/proc/no"));
    window_channel_stop(channel);
    window_channel_free(channel);
}

/* --- HELLO's numbers
 * ------------------------------------------------------------------------------ */

#define REFUSED_HELLO(name, change, text)                                                          \
    static void name(void **state)                                                                 \
    {                                                                                              \
        struct place *place = *state;                                                              \
        struct peer peer = peer_make(place, 7);                                                    \
                                                                                                   \
        change;                                                                                    \
        assert_hello_refused(place, &peer, text);                                                  \
    }

REFUSED_HELLO(an_owner_that_is_too_new_is_refused,
              peer.hello.version = peer.hello.hello.min_version = 2,
              "it speaks link versions 2 to 2, this mediator speaks 1: update the mediator")
REFUSED_HELLO(a_version_range_that_is_none_is_refused, peer.hello.hello.min_version = 0,
              "which is no range")
REFUSED_HELLO(an_owner_that_is_nobody_is_refused, peer.hello.hello.owner = 3, "HELLO says owner 3")
REFUSED_HELLO(another_vms_number_is_refused, peer.hello.hello.vm_id = 8,
              "it says that it is VM 8, but this is the socket of VM 7")
REFUSED_HELLO(no_slots_are_refused, peer.hello.hello.slot_count = 0, "cannot have 0 slots")
REFUSED_HELLO(seventeen_slots_are_refused, peer.hello.hello.slot_count = 17, "cannot have 17 slots")
REFUSED_HELLO(slots_that_are_too_small_are_refused, peer.hello.hello.slot_count = 10,
              "cannot have 10 slots")
REFUSED_HELLO(a_window_of_odd_size_is_refused, peer.hello.hello.window_bytes += 1,
              "a window of 4194305 bytes")
REFUSED_HELLO(a_window_of_all_bytes_is_refused, peer.hello.hello.window_bytes = UINT64_MAX,
              "a window of 18446744073709551615 bytes")
REFUSED_HELLO(an_open_slot_that_is_none_is_refused, peer.hello.hello.open_slots = 4,
              "slots 0x4 are open; there are only 2")

/* --- HELLO's descriptors
 * ---------------------------------------------------------------------------- */

static int open_again(int fd, int flags)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, flags | O_CLOEXEC);
}

static int make_file(struct place *place, const char *name)
{
    char path[600];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", place->top, name);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, WINDOW_BYTES), 0);
    return fd;
}

static int make_fifo(struct place *place)
{
    char path[600];

    snprintf(path, sizeof(path), "%s/fifo", place->top);
    assert_int_equal(mkfifo(path, 0600), 0);
    return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

REFUSED_HELLO(a_window_that_is_not_sealed_is_refused,
              replace(&peer, 0, make_window(WINDOW_BYTES, F_SEAL_GROW)),
              "sealed against shrinking (F_SEAL_SHRINK)")
REFUSED_HELLO(a_window_that_cannot_be_written_is_refused,
              replace(&peer, 0, make_window(WINDOW_BYTES, F_SEAL_SHRINK | F_SEAL_WRITE)),
              "sealed against writing")
REFUSED_HELLO(a_window_that_is_shorter_than_said_is_refused,
              replace(&peer, 0, make_window(WINDOW_BYTES - 1, F_SEAL_SHRINK)),
              "its memfd has 4194303")
REFUSED_HELLO(an_empty_window_is_refused, replace(&peer, 0, make_window(0, F_SEAL_SHRINK)),
              "its memfd has 0")
REFUSED_HELLO(a_window_open_for_reading_is_refused,
              replace(&peer, 0, open_again(peer.fds[0], O_RDONLY)), "open for reading and writing")
REFUSED_HELLO(a_file_as_window_is_refused, replace(&peer, 0, make_file(place, "file")),
              "the window has to be a memfd; what came is '/")
REFUSED_HELLO(a_directory_as_window_is_refused,
              replace(&peer, 0, open("/dev/shm", O_RDONLY | O_CLOEXEC)),
              "the window has to be a memfd; what came is '/dev/shm'")
REFUSED_HELLO(a_file_as_interrupt_is_refused, replace(&peer, 1, make_file(place, "file")),
              "the interrupt has to be an eventfd; what came is '/")
REFUSED_HELLO(a_file_named_as_an_eventfd_is_refused,
              replace(&peer, 1, make_file(place, "anon_inode:[eventfd]")),
              "the interrupt has to be an eventfd; what came is '/")
REFUSED_HELLO(a_timer_as_interrupt_is_refused,
              replace(&peer, 1, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)),
              "what came is 'anon_inode:[timerfd]'")
REFUSED_HELLO(a_socket_as_lifeline_is_refused,
              replace(&peer, 2, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
              "the lifeline has to be a pipe; what came is 'socket:[")
REFUSED_HELLO(a_pipe_with_a_name_as_lifeline_is_refused, replace(&peer, 2, make_fifo(place)),
              "the lifeline has to be a pipe; what came is '/")
REFUSED_HELLO(a_pipes_write_end_as_lifeline_is_refused,
              replace(&peer, 2, fcntl(peer.fds[5], F_DUPFD_CLOEXEC, 0)), "the read end of its pipe")
REFUSED_HELLO(more_descriptors_than_said_are_refused, peer.hello.fd_count = 2,
              "says that 2 descriptors come with it; 3 came")
REFUSED_HELLO(fewer_descriptors_than_said_are_refused, peer.hello.fd_count = 4,
              "says that 4 descriptors come with it; 3 came")

static void a_window_of_huge_pages_is_refused(void **state)
{
    struct place *place = *state;
    int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    struct peer peer;

    if (fd < 0)
        skip();
    assert_int_equal(ftruncate(fd, WINDOW_BYTES), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    peer = peer_make(place, 7);
    replace(&peer, 0, fd);
    assert_hello_refused(place, &peer, "huge pages are not supported");
}

static void a_hello_without_descriptors_is_refused(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    peer.hello.fd_count = 0;
    send_bytes(peer.fd, &peer.hello, sizeof(peer.hello), NULL, 0);
    assert_ended(place, &peer, "HELLO comes with 3 descriptors (window, interrupt, lifeline)");
    assert_served(place, 7);
    peer_remove(&peer);
}

static void too_many_descriptors_are_refused(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    int many[253];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(many); i++)
        many[i] = peer.fds[0];
    peer.hello.fd_count = 9;
    send_bytes(peer.fd, &peer.hello, sizeof(peer.hello), many, 9);
    assert_ended(place, &peer, "more descriptors came with a message than the 8");
    peer_remove(&peer);
    peer = peer_make(place, 7);
    peer.hello.fd_count = 253;
    send_bytes(peer.fd, &peer.hello, sizeof(peer.hello), many, 253);
    assert_ended(place, &peer, "more descriptors came with a message than the 8");
    assert_served(place, 7);
    peer_remove(&peer);
}

static void descriptors_in_the_middle_of_a_message_are_refused(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    const char *bytes = (const char *)&peer.hello;

    send_bytes(peer.fd, bytes, 100, NULL, 0);
    for (int i = 0; i < 3; i++)
        turn(place);
    send_bytes(peer.fd, bytes + 100, 156, peer.fds, 3);
    assert_ended(place, &peer, "in the middle of a message");
    assert_served(place, 7);
    peer_remove(&peer);
}

/* --- DOORBELLS
 * ---------------------------------------------------------------------------------------- */

#define REFUSED_DOORBELLS(name, steps, text)                                                       \
    static void name(void **state)                                                                 \
    {                                                                                              \
        struct place *place = *state;                                                              \
        struct peer peer = peer_make(place, 7);                                                    \
                                                                                                   \
        send_hello(&peer);                                                                         \
        steps;                                                                                     \
        assert_doorbells_refused(place, &peer, text);                                              \
    }

REFUSED_DOORBELLS(a_second_doorbell_for_a_slot_is_refused,
                  (send_doorbells(&peer, 0, 1, peer.fds + 3),
                   send_doorbells(&peer, 0, 1, peer.fds + 4)),
                  "a second doorbell came for slot 0")
REFUSED_DOORBELLS(doorbells_beyond_the_slots_are_refused, send_doorbells(&peer, 1, 2, peer.fds + 3),
                  "for 2 slots from 1 on; there are only 2")
REFUSED_DOORBELLS(a_first_slot_that_overflows_is_refused,
                  send_doorbells(&peer, UINT32_MAX, 2, peer.fds + 3),
                  "for 2 slots from 4294967295 on")
REFUSED_DOORBELLS(doorbells_without_descriptors_are_refused, send_doorbells(&peer, 0, 0, NULL),
                  "DOORBELLS came without a descriptor")
REFUSED_DOORBELLS(a_doorbell_that_is_no_eventfd_is_refused,
                  send_doorbells(&peer, 0, 1, peer.fds + 2),
                  "the doorbell has to be an eventfd; what came is 'pipe:[")
REFUSED_DOORBELLS(an_order_before_the_doorbells_is_refused, send_order(&peer, VGPU_LINK_OPEN, 0),
                  "message 3 came where DOORBELLS (2) were expected")
REFUSED_DOORBELLS(a_second_hello_is_refused, send_hello(&peer),
                  "message 1 came where DOORBELLS (2) were expected")

/* --- what is no message
 * ----------------------------------------------------------------------------------- */

static void garbage_is_refused_at_its_first_bytes(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    send_bytes(peer.fd, "GET / HTTP/1.1\r\n", 16, NULL, 0);
    assert_ended(place, &peer, "it does not speak the link protocol");
    assert_served(place, 7);
    peer_remove(&peer);
}

static void a_link_that_does_not_begin_with_hello_is_refused(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    send_order(&peer, VGPU_LINK_RESET, 0);
    assert_ended(place, &peer, "message 5 came where HELLO (1) was expected");
    assert_int_equal(place->resets, 0);
    peer_remove(&peer);
}

static void half_a_message_and_a_hang_up_is_refused(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    send_bytes(peer.fd, &peer.hello, 100, peer.fds, 3);
    peer_remove(&peer);
    PUMP_UNTIL(place, place->refused == 1);
    assert_string_equal(place->reason, "it hung up in the middle of a message (100 of 256 bytes)");
    assert_served(place, 7);
}

static void silence_is_refused_after_its_time(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    assert_ended(place, &peer, "HELLO and DOORBELLS did not come within 20 ms");
    peer_remove(&peer);
}

static void half_a_hello_is_refused_after_its_time(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    send_bytes(peer.fd, &peer.hello, 100, peer.fds, 3);
    assert_ended(place, &peer, "HELLO and DOORBELLS did not come within 20 ms");
    peer_remove(&peer);
}

static void a_hello_without_doorbells_is_refused_after_its_time(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    send_hello(&peer);
    assert_ended(place, &peer, "HELLO and DOORBELLS did not come within 20 ms");
    peer_remove(&peer);
}

static void half_an_order_ends_the_link_after_its_time(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    open_peer(place, &peer);
    send_bytes(peer.fd, &peer.hello, 100, NULL, 0);
    assert_ended(place, &peer, "the rest of a message did not come within 20 ms");
    assert_int_equal(place->closed, 1);
    peer_remove(&peer);
}

static void an_open_link_may_be_silent_for_as_long_as_it_likes(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7), late;
    struct vgpu_link_message message;

    open_peer(place, &peer);
    late = peer_make(place, 7); /* its timeout passes: so it would have for the other */
    assert_ended(place, &late, "did not come within 20 ms");
    send_order(&peer, VGPU_LINK_OPEN, 0);
    assert_message(place, &peer, VGPU_LINK_STATE, &message);
    peer_remove(&peer);
    peer_remove(&late);
}

/* --- an open link that breaks the rules
 * ------------------------------------------------------------------- */

static void assert_order_ends(struct place *place, struct peer *peer, const char *text)
{
    assert_ended(place, peer, text);
    assert_int_equal(place->closed, 1);
    assert_int_equal(place->refused, 0);
    assert_int_equal(place->opens + place->closes, 0);
    assert_served(place, 7);
    peer_remove(peer);
}

#define ENDING_ORDER(name, steps, text)                                                            \
    static void name(void **state)                                                                 \
    {                                                                                              \
        struct place *place = *state;                                                              \
        struct peer peer = peer_make(place, 7);                                                    \
                                                                                                   \
        open_peer(place, &peer);                                                                   \
        steps;                                                                                     \
        assert_order_ends(place, &peer, text);                                                     \
    }

ENDING_ORDER(a_slot_that_does_not_exist_ends_the_link, send_order(&peer, VGPU_LINK_OPEN, SLOTS),
             "slot 2 was asked for; there are only 2")
ENDING_ORDER(closing_a_slot_that_does_not_exist_ends_the_link,
             send_order(&peer, VGPU_LINK_CLOSE, UINT32_MAX), "slot 4294967295 was asked for")
ENDING_ORDER(an_order_that_is_none_ends_the_link, send_order(&peer, 77, 0),
             "message 77 came where OPEN, CLOSE or RESET was expected")
ENDING_ORDER(hello_again_ends_the_link, send_hello(&peer), "message 1 came with descriptors")
ENDING_ORDER(garbage_after_hello_ends_the_link, send_bytes(peer.fd, "garbage", 7, NULL, 0),
             "it does not speak the link protocol")

static void descriptors_with_an_order_end_the_link(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message message = message_of(VGPU_LINK_OPEN);

    open_peer(place, &peer);
    send_bytes(peer.fd, &message, sizeof(message), peer.fds, 1);
    assert_order_ends(place, &peer, "a message says that 0 descriptors come with it; 1 came");
}

/* --- floods
 * ---------------------------------------------------------------------------------------------- */

static void a_peer_that_never_reads_loses_its_link(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7), honest = peer_make(place, 7);

    open_peer(place, &peer);
    for (int i = 0; i < 5000; i++)
        window_link_config(place->link, 'A', 0, 8);
    assert_int_equal(place->closed, 0); /* not while the mediator is in the middle of something */
    open_peer(place, &honest);
    PUMP_UNTIL(place, place->closed == 1);
    assert_string_equal(place->reason, "it does not read what it is told");
    peer_remove(&peer);
    peer_remove(&honest);
}

static void one_visit_takes_a_bounded_number_of_messages(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    unsigned before;

    open_peer(place, &peer);
    for (uint32_t i = 0; i < 100; i++)
        send_order(&peer, VGPU_LINK_OPEN, i % SLOTS);
    do {
        before = place->opens;
        uv_run(&place->loop, UV_RUN_NOWAIT);
        assert_true(place->opens - before <= 8);
    } while (place->opens < 100);
    peer_remove(&peer);
}

static void a_flood_of_orders_is_taken_slowly_and_nobody_else_waits(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message answer;
    unsigned sent = 0;

    open_peer(place, &peer);
    while (place->opens < 256) {
        if (sent - place->opens < 32) {
            send_order(&peer, VGPU_LINK_OPEN, sent % SLOTS);
            sent++;
        }
        turn(place);
        while (recv(peer.fd, &answer, sizeof(answer), MSG_DONTWAIT) > 0)
            continue;
    }
    assert_served(place, 7);
    assert_served(place, 8);
    PUMP_UNTIL(place, place->opens == sent); /* none is lost */
    assert_int_equal(place->last_slot, (sent - 1) % SLOTS);
    assert_int_equal(place->closed, 2); /* the honest ones, who have gone */
    peer_remove(&peer);
}

static void too_many_links_are_refused_until_one_ends(void **state)
{
    struct place *place = *state;
    struct peer peers[3], more;
    struct vgpu_link_message message;

    for (int i = 0; i < 3; i++) {
        peers[i] = peer_make(place, 7);
        open_peer(place, &peers[i]);
    }
    more = peer_make(place, 7);
    assert_message(place, &more, VGPU_LINK_REFUSED, &message);
    assert_string_equal(message.refused.text, "VM 7 has its 3 links already: end one first");
    assert_int_equal(message.refused.code, EBUSY);
    assert_served(place, 8);
    peer_remove(&more);
    peer_remove(&peers[0]);
    PUMP_UNTIL(place, place->closed >= 2);
    assert_served(place, 7);
    peer_remove(&peers[1]);
    peer_remove(&peers[2]);
}

static void a_flood_of_links_is_let_in_slowly_and_reported_briefly(void **state)
{
    struct place *place = *state;
    unsigned came = 0;
    bool summed = false;

    while (!summed) {
        int fd = connect_to(place, 7);

        assert_true(fd >= 0);
        assert_int_equal(send(fd, "garbage", 7, MSG_NOSIGNAL), 7);
        came++;
        PUMP_UNTIL(place, recv(fd, &(char){0}, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN);
        close(fd);
        turn(place);
        if (came == 40)
            assert_served(place, 8);
        summed = strstr(place->reason, "refusals before were too many to tell") != NULL;
        assert_true(came < 2000);
    }
    assert_true(place->refused < came);
    assert_served(place, 7);
}

static void no_descriptors_left_is_survived(void **state)
{
    struct place *place = *state;
    struct rlimit before, tight;
    struct peer peer = peer_make(place, 7);
    int low = dup(0);

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    close(low);
    tight = before;
    tight.rlim_cur = (rlim_t)low + 2; /* the link itself, and one of the three */
    send_hello(&peer);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    PUMP_UNTIL(place, place->refused == 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_non_null(strstr(place->reason, "than this process has room for"));
    assert_served(place, 7);
    peer_remove(&peer);
}

/* --- the mediator's own will
 * ------------------------------------------------------------------------------- */

static void a_link_that_the_mediator_does_not_want_is_refused(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    place->refuse_opened = true;
    send_hello(&peer);
    send_doorbells(&peer, 0, SLOTS, peer.fds + 3);
    assert_ended(place, &peer, "VM 7 is not wanted");
    assert_int_equal(place->refused, 1);
    assert_int_equal(place->closed, 0);
    peer_remove(&peer);
}

static void assert_closed_by_mediator(struct place *place, struct peer *peer, const char *text)
{
    struct vgpu_link_message message;

    assert_message(place, peer, VGPU_LINK_REFUSED, &message);
    assert_string_equal(message.refused.text, text);
    assert_int_equal(receive(place, peer, &message), 0);
    assert_int_equal(place->closed, 0);
    assert_int_equal(place->refused, 0);
    peer_remove(peer);
}

static void a_link_may_be_closed_from_its_own_opened(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    place->close_in_opened = true;
    send_hello(&peer);
    send_doorbells(&peer, 0, SLOTS, peer.fds + 3);
    assert_closed_by_mediator(place, &peer, "second thoughts");
}

static void a_link_may_be_closed_from_its_own_order(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);

    place->close_in_open = true;
    open_peer(place, &peer);
    send_order(&peer, VGPU_LINK_OPEN, 0);
    assert_closed_by_mediator(place, &peer, "third thoughts");
}

/* A message that is longer than its field is cut, with its NUL. */
static void a_long_reason_is_cut(void **state)
{
    struct place *place = *state;
    struct peer peer = peer_make(place, 7);
    struct vgpu_link_message message;
    char text[400];

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    open_peer(place, &peer);
    window_link_close(place->link, text);
    assert_message(place, &peer, VGPU_LINK_REFUSED, &message);
    assert_int_equal(strlen(message.refused.text), VGPU_LINK_TEXT_BYTES - 1);
    peer_remove(&peer);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, place_make, place_remove)
#define HASTY(name) cmocka_unit_test_setup_teardown(name, hasty_place_make, place_remove)

static const struct CMUnitTest tests[] = {
    CASE(a_link_that_says_hello_and_doorbells_is_opened_and_welcomed),
    CASE(each_descriptor_is_in_its_place),
    CASE(sixteen_slots_have_their_doorbells_in_two_messages),
    CASE(a_message_may_come_in_pieces),
    CASE(a_newer_owner_that_still_speaks_our_version_is_welcome),
    CASE(orders_reach_the_mediator_and_its_answers_the_peer),
    CASE(the_socket_decides_who_it_is),
    CASE(a_peer_that_hangs_up_is_closed),
    CASE(a_socket_has_its_vms_mode_without_the_execute_bits),
    CASE(a_socket_belongs_to_its_vms_owner),
    CASE(a_vm_can_be_added_changed_and_removed_live),
    CASE(sockets_are_removed_at_the_end),
    CASE(somebody_elses_socket_is_not_removed),
    CASE(what_a_killed_mediator_left_is_replaced_or_removed),
    CASE(a_run_directory_with_a_long_path_works),
    CASE(a_run_directory_that_cannot_be_is_an_error),
    CASE(an_owner_that_is_too_new_is_refused),
    CASE(a_version_range_that_is_none_is_refused),
    CASE(an_owner_that_is_nobody_is_refused),
    CASE(another_vms_number_is_refused),
    CASE(no_slots_are_refused),
    CASE(seventeen_slots_are_refused),
    CASE(slots_that_are_too_small_are_refused),
    CASE(a_window_of_odd_size_is_refused),
    CASE(a_window_of_all_bytes_is_refused),
    CASE(an_open_slot_that_is_none_is_refused),
    CASE(a_window_that_is_not_sealed_is_refused),
    CASE(a_window_that_cannot_be_written_is_refused),
    CASE(a_window_that_is_shorter_than_said_is_refused),
    CASE(an_empty_window_is_refused),
    CASE(a_window_open_for_reading_is_refused),
    CASE(a_file_as_window_is_refused),
    CASE(a_directory_as_window_is_refused),
    CASE(a_file_as_interrupt_is_refused),
    CASE(a_file_named_as_an_eventfd_is_refused),
    CASE(a_timer_as_interrupt_is_refused),
    CASE(a_socket_as_lifeline_is_refused),
    CASE(a_pipe_with_a_name_as_lifeline_is_refused),
    CASE(a_pipes_write_end_as_lifeline_is_refused),
    CASE(more_descriptors_than_said_are_refused),
    CASE(fewer_descriptors_than_said_are_refused),
    CASE(a_window_of_huge_pages_is_refused),
    CASE(a_hello_without_descriptors_is_refused),
    CASE(too_many_descriptors_are_refused),
    CASE(descriptors_in_the_middle_of_a_message_are_refused),
    CASE(a_second_doorbell_for_a_slot_is_refused),
    CASE(doorbells_beyond_the_slots_are_refused),
    CASE(a_first_slot_that_overflows_is_refused),
    CASE(doorbells_without_descriptors_are_refused),
    CASE(a_doorbell_that_is_no_eventfd_is_refused),
    CASE(an_order_before_the_doorbells_is_refused),
    CASE(a_second_hello_is_refused),
    CASE(garbage_is_refused_at_its_first_bytes),
    CASE(a_link_that_does_not_begin_with_hello_is_refused),
    CASE(half_a_message_and_a_hang_up_is_refused),
    HASTY(silence_is_refused_after_its_time),
    HASTY(half_a_hello_is_refused_after_its_time),
    HASTY(a_hello_without_doorbells_is_refused_after_its_time),
    HASTY(half_an_order_ends_the_link_after_its_time),
    HASTY(an_open_link_may_be_silent_for_as_long_as_it_likes),
    CASE(a_slot_that_does_not_exist_ends_the_link),
    CASE(closing_a_slot_that_does_not_exist_ends_the_link),
    CASE(an_order_that_is_none_ends_the_link),
    CASE(hello_again_ends_the_link),
    CASE(garbage_after_hello_ends_the_link),
    CASE(descriptors_with_an_order_end_the_link),
    CASE(a_peer_that_never_reads_loses_its_link),
    CASE(one_visit_takes_a_bounded_number_of_messages),
    CASE(a_flood_of_orders_is_taken_slowly_and_nobody_else_waits),
    CASE(too_many_links_are_refused_until_one_ends),
    CASE(a_flood_of_links_is_let_in_slowly_and_reported_briefly),
    CASE(no_descriptors_left_is_survived),
    CASE(a_link_that_the_mediator_does_not_want_is_refused),
    CASE(a_link_may_be_closed_from_its_own_opened),
    CASE(a_link_may_be_closed_from_its_own_order),
    CASE(a_long_reason_is_cut),
};

int main(void)
{
    uv_loop_t first;

    /* libuv keeps a pipe for signals from its first loop on. */
    uv_loop_init(&first);
    uv_loop_close(&first);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
