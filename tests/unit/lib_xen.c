/* SPDX-License-Identifier: Apache-2.0 */
/* See lib_xen.h. */
#include "lib_xen.h"

#include "vgpu/vgpu.h"
#include "vgpu/xen.h"
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

typedef uint16_t domid_t;
#include <xen/evtchn.h>
#include <xen/gntalloc.h>

#define NODES 64
#define WATCHES 32
#define CONNECTIONS 16
#define FILES 64
#define ALLOCATIONS 64
#define CHANNELS 64
#define PORTS 64
#define PATH_CHARS 128
#define FIRST_REFERENCE 8u
#define DEFAULT_PAGES 1024u

enum { STORE_READ = 2, STORE_WATCH = 4, STORE_WRITE = 11, STORE_REMOVE = 13 };
enum { STORE_EVENT = 15, STORE_ERROR = 16 };

struct node {
    char path[PATH_CHARS]; /* "": free */
    char value[PATH_CHARS];
};

struct watch {
    int connection; /* -1: free */
    char path[PATH_CHARS], token[32];
};

struct pages_file {
    int fd; /* the program's; -1: closed */
    ino_t inode;
    unsigned notified_port; /* 0: none */
};

struct allocation {
    const struct pages_file *file;
    uint32_t first_reference, count;
    uint64_t offset;
};

struct channel {
    int fd, peer; /* the program's end; -1: closed, and ours */
    bool is_forgotten;
};

static struct {
    pthread_mutex_t lock;
    pthread_t thread;
    pid_t program;
    int stop_fd, doorbell_fd;
    struct node nodes[NODES];
    struct watch watches[WATCHES];
    int connections[CONNECTIONS];
    struct pages_file files[FILES];
    struct allocation allocations[ALLOCATIONS];
    struct channel channels[CHANNELS];
    const struct channel *ports[PORTS];
    unsigned connection_count, file_count, allocation_count, channel_count;
    unsigned domain, pages_max, next_reference, harm, session_port;
    bool is_open, is_silent;
    int refusal;
    unsigned *abandoned; /* shared with children */
    struct lib_host worker;
} xen;

static const struct channel somebody;

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __real_stat64(const char *path, struct stat *info);
int __wrap_stat64(const char *path, struct stat *info);
int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __real_close(int fd);
int __wrap_close(int fd);
FILE *__real_fopen64(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);

static void lock(void)
{
    pthread_mutex_lock(&xen.lock);
}

static void unlock(void)
{
    pthread_mutex_unlock(&xen.lock);
}

/* --- XenStore ----------------------------------------------------------------------------- */

static void say(int connection, const struct xenbus_header *header, const void *payload)
{
    struct iovec parts[2] = {{(void *)(uintptr_t)header, sizeof(*header)},
                             {(void *)(uintptr_t)payload, header->bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    if (connection >= 0)
        sendmsg(connection, &message, MSG_NOSIGNAL); /* it may have hung up */
}

static void copy_text(char *target, size_t bytes, const char *text)
{
    if (strlen(text) >= bytes)
        abort();
    memcpy(target, text, strlen(text) + 1);
}

static bool is_below(const char *path, const char *top)
{
    size_t length = strlen(top);

    return strncmp(path, top, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

static void tell(const struct watch *watch, const char *path)
{
    char payload[PATH_CHARS + sizeof(watch->token)];
    int bytes = snprintf(payload, sizeof(payload), "%s%c%s", path, 0, watch->token) + 1;
    const struct xenbus_header header = {.type = STORE_EVENT, .bytes = (uint32_t)bytes};

    say(watch->connection, &header, payload);
}

static void tell_all(const char *path)
{
    for (size_t i = 0; i < WATCHES; i++) {
        if (xen.watches[i].connection >= 0 && is_below(path, xen.watches[i].path))
            tell(&xen.watches[i], path);
    }
}

static struct node *find_node(const char *path)
{
    for (size_t i = 0; i < NODES; i++) {
        if (strcmp(xen.nodes[i].path, path) == 0)
            return &xen.nodes[i];
    }
    return NULL;
}

static void put_node(const char *path, const char *value)
{
    struct node *node = find_node(path);

    if (!node)
        node = find_node("");
    if (!node)
        abort();
    copy_text(node->path, sizeof(node->path), path);
    copy_text(node->value, sizeof(node->value), value);
    tell_all(path);
}

static bool remove_nodes(const char *top)
{
    bool is_any = false;

    for (size_t i = 0; i < NODES; i++) {
        if (xen.nodes[i].path[0] && is_below(xen.nodes[i].path, top)) {
            xen.nodes[i].path[0] = '\0';
            is_any = true;
        }
    }
    if (is_any)
        tell_all(top);
    return is_any;
}

static void add_watch(int connection, const char *path, const char *token)
{
    for (size_t i = 0; i < WATCHES; i++) {
        struct watch *watch = &xen.watches[i];

        if (watch->connection >= 0)
            continue;
        watch->connection = connection;
        copy_text(watch->path, sizeof(watch->path), path);
        copy_text(watch->token, sizeof(watch->token), token);
        tell(watch, path);
        return;
    }
    abort();
}

/* --- vgpu-xen ------------------------------------------------------------------------------- */

static void answer_session(const char *name, const char *key, const char *value)
{
    char path[PATH_CHARS];

    snprintf(path, sizeof(path), VGPU_XEN_BACKEND "/%.16s/%s", name, key);
    put_node(path, value);
}

static unsigned long asked(const char *name, const char *key)
{
    char path[PATH_CHARS];
    const struct node *node;

    snprintf(path, sizeof(path), VGPU_XEN_FRONTEND "/%.16s/%s", name, key);
    node = find_node(path);
    return node ? strtoul(node->value, NULL, 10) : 0;
}

static const struct allocation *find_allocation(unsigned long reference)
{
    for (unsigned i = 0; i < xen.allocation_count; i++) {
        if (reference - xen.allocations[i].first_reference < xen.allocations[i].count)
            return &xen.allocations[i];
    }
    abort();
}

/* The pages are let go; the guest's kernel, not the host, would clear the byte. */
static void leave_slot(void)
{
    pthread_mutex_lock(&xen.worker.lock);
    if (xen.worker.slot)
        munmap(xen.worker.slot, xen.worker.slot_bytes);
    xen.worker.slot = NULL;
    pthread_mutex_unlock(&xen.worker.lock);
}

static void begin_slot(struct lib_host *worker)
{
    worker->guest = (struct vgpu_slot_guest *)(worker->slot + VGPU_SLOT_GUEST);
    worker->host = (struct vgpu_slot_host *)(worker->slot + VGPU_SLOT_HOST);
    worker->descriptors = (struct vgpu_descriptor *)(worker->slot + VGPU_SLOT_SQ);
    worker->completions = (struct vgpu_completion *)(worker->slot + VGPU_SLOT_CQ);
    worker->sq_head = worker->cq_tail = 0;
    worker->host->state = VGPU_SESSION_READY;
    worker->host->generation = 1;
    worker->slot[VGPU_SLOT_HOST + VGPU_XEN_ALIVE] = 1;
}

static void connect_session(const char *name)
{
    const struct allocation *directory = find_allocation(asked(name, VGPU_XEN_DIRECTORY)), *pages;
    struct lib_host *worker = &xen.worker;
    uint32_t reference;

    if (pread(directory->file->fd, &reference, sizeof(reference), (off_t)directory->offset) !=
        (ssize_t)sizeof(reference))
        abort();
    pages = find_allocation(reference);
    xen.session_port = (unsigned)asked(name, VGPU_XEN_EVENT_CHANNEL);
    pthread_mutex_lock(&worker->lock);
    worker->interrupt_fd = xen.ports[xen.session_port]->peer;
    worker->slot_bytes = asked(name, VGPU_XEN_SLOT_BYTES);
    worker->slot = mmap(NULL, worker->slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                        pages->file->fd, (off_t)pages->offset);
    if (worker->slot == MAP_FAILED)
        abort();
    begin_slot(worker);
    worker->opens++;
    pthread_mutex_unlock(&worker->lock);
    answer_session(name, VGPU_XEN_VM_ID, "7");
    answer_session(name, VGPU_XEN_POOL, "B");
    answer_session(name, VGPU_XEN_STATE, VGPU_XEN_CONNECTED);
}

static void refuse_session(const char *name)
{
    char code[16];

    snprintf(code, sizeof(code), "%d", xen.refusal);
    answer_session(name, VGPU_XEN_CODE, code);
    answer_session(name, VGPU_XEN_ERROR, "the test wants it so");
    answer_session(name, VGPU_XEN_STATE, VGPU_XEN_REFUSED);
}

/* The guest has written `value` into `path`. */
static void look_at_node(const char *path, const char *value)
{
    const char *name = path + strlen(VGPU_XEN_FRONTEND "/");

    if (!is_below(path, VGPU_XEN_FRONTEND) ||
        strcmp(path + strlen(path) - strlen("/" VGPU_XEN_STATE), "/" VGPU_XEN_STATE) != 0 ||
        xen.is_silent)
        return;
    if (strcmp(value, VGPU_XEN_CLOSING) == 0) {
        leave_slot();
        answer_session(name, VGPU_XEN_STATE, VGPU_XEN_CLOSED);
    } else if (xen.refusal) {
        refuse_session(name);
    } else {
        connect_session(name);
    }
}

/* --- the thread ------------------------------------------------------------------------------ */

static void answer(int connection, struct xenbus_header *header, const char *payload)
{
    const char *second = payload + strlen(payload) + 1;
    const struct node *node = find_node(payload);
    bool is_wrong = false;

    if (header->type == STORE_WRITE)
        put_node(payload, second);
    else if (header->type == STORE_WATCH)
        add_watch(connection, payload, second);
    else if (header->type == STORE_REMOVE)
        is_wrong = !remove_nodes(payload);
    else
        is_wrong = header->type != STORE_READ || !node;
    if (is_wrong) {
        header->type = STORE_ERROR;
        header->bytes = sizeof("ENOENT");
        say(connection, header, "ENOENT");
        return;
    }
    header->bytes = header->type == STORE_READ ? (uint32_t)strlen(node->value) : sizeof("OK");
    say(connection, header, header->type == STORE_READ ? node->value : "OK");
    if (header->type == STORE_WRITE)
        look_at_node(payload, second);
}

static void hang_up(int *connection)
{
    for (size_t i = 0; i < WATCHES; i++) {
        if (xen.watches[i].connection == *connection)
            xen.watches[i].connection = -1;
    }
    __real_close(*connection);
    *connection = -1;
}

static void serve_store(int *connection)
{
    struct xenbus_header header;
    char payload[XENBUS_PAYLOAD_MAX + 1];

    if (recv(*connection, &header, sizeof(header), MSG_WAITALL) != (ssize_t)sizeof(header) ||
        (header.bytes > 0 &&
         recv(*connection, payload, header.bytes, MSG_WAITALL) != (ssize_t)header.bytes)) {
        hang_up(connection);
        return;
    }
    payload[header.bytes] = '\0';
    answer(*connection, &header, payload);
}

/* As a good host does, until it may sleep. */
static void serve_slot(void)
{
    struct lib_host *worker = &xen.worker;

    if (worker->by_hand || !worker->slot)
        return;
    do {
        while (lib_host_run(worker, VGPU_RING_ENTRIES) > 0)
            ;
        worker->host->sq_event = worker->sq_head;
        vgpu_fence_full();
    } while (vgpu_load_acquire(&worker->guest->sq_tail) != worker->sq_head);
}

static void *xen_main(void *argument)
{
    struct pollfd waits[CONNECTIONS + 2];
    uint64_t rung;

    (void)argument;
    for (;;) {
        waits[0] = (struct pollfd){.fd = xen.stop_fd, .events = POLLIN};
        waits[1] = (struct pollfd){.fd = xen.doorbell_fd, .events = POLLIN};
        lock();
        for (size_t i = 0; i < CONNECTIONS; i++)
            waits[i + 2] = (struct pollfd){.fd = xen.connections[i], .events = POLLIN};
        unlock();
        poll(waits, CONNECTIONS + 2, 2);
        if (waits[0].revents)
            return NULL;
        lock();
        if (waits[1].revents && read(xen.doorbell_fd, &rung, sizeof(rung)) < 0)
            abort();
        for (size_t i = 0; i < CONNECTIONS; i++) {
            if (waits[i + 2].revents && xen.connections[i] == waits[i + 2].fd)
                serve_store(&xen.connections[i]);
        }
        serve_slot();
        unlock();
    }
}

/* --- the guest's kernel: pages ---------------------------------------------------------------- */

static bool is_mapped(ino_t inode)
{
    char *maps = unit_read_file("/proc/self/maps"), words[64];
    bool is_there;

    snprintf(words, sizeof(words), " %lu  ", (unsigned long)inode);
    is_there = strstr(maps, words) != NULL;
    free(maps);
    return is_there;
}

static unsigned count_pages(void)
{
    unsigned count = 0;

    for (unsigned i = 0; i < xen.allocation_count; i++) {
        const struct pages_file *file = xen.allocations[i].file;

        if (file->fd >= 0 || is_mapped(file->inode))
            count += xen.allocations[i].count;
    }
    return count;
}

static struct pages_file *find_file(int fd)
{
    for (unsigned i = 0; i < xen.file_count; i++) {
        if (xen.files[i].fd == fd)
            return &xen.files[i];
    }
    return NULL;
}

static int open_pages(void)
{
    struct pages_file *file = &xen.files[xen.file_count++];
    struct stat info;

    if (xen.file_count > FILES)
        abort();
    file->fd = memfd_create("gntalloc", MFD_CLOEXEC);
    if (fstat(file->fd, &info) < 0)
        abort();
    file->inode = info.st_ino;
    return file->fd;
}

static int share(const struct pages_file *file, struct ioctl_gntalloc_alloc_gref *request)
{
    struct allocation *one = &xen.allocations[xen.allocation_count];
    struct stat info;

    if (count_pages() + request->count > xen.pages_max) {
        errno = ENOSPC;
        return -1;
    }
    if (++xen.allocation_count > ALLOCATIONS || fstat(file->fd, &info) < 0 ||
        ftruncate(file->fd, info.st_size + (off_t)request->count * VGPU_PAGE_BYTES) < 0)
        abort();
    *one = (struct allocation){file, xen.next_reference, request->count, (uint64_t)info.st_size};
    xen.next_reference += request->count;
    request->index = one->offset;
    for (uint32_t i = 0; i < request->count; i++)
        request->gref_ids[i] = one->first_reference + i;
    return 0;
}

static int set_notice(struct pages_file *file, const struct ioctl_gntalloc_unmap_notify *notify)
{
    bool has_port = notify->action & UNMAP_NOTIFY_SEND_EVENT;

    if (has_port && (!xen.ports[notify->event_channel_port] ||
                     xen.ports[notify->event_channel_port] == &somebody)) {
        errno = EINVAL;
        return -1;
    }
    file->notified_port = has_port ? notify->event_channel_port : 0;
    return 0;
}

/* --- the guest's kernel: ports -----------------------------------------------------------------
 */

static struct channel *find_channel(int fd)
{
    for (unsigned i = 0; i < xen.channel_count; i++) {
        if (xen.channels[i].fd == fd)
            return &xen.channels[i];
    }
    return NULL;
}

static int open_channel(void)
{
    struct channel *channel = &xen.channels[xen.channel_count++];
    int ends[2];

    if (xen.channel_count > CHANNELS ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
        abort();
    *channel = (struct channel){.fd = ends[0], .peer = ends[1]};
    return ends[0];
}

static int offer_port(const struct channel *channel)
{
    for (unsigned port = LIB_XEN_FIRST_PORT; port < PORTS; port++) {
        if (!xen.ports[port]) {
            xen.ports[port] = channel;
            return (int)port;
        }
    }
    errno = ENOSPC;
    return -1;
}

static int unbind_port(const struct channel *channel, unsigned port)
{
    if (port >= PORTS || xen.ports[port] != channel) {
        errno = ENOTCONN;
        return -1;
    }
    xen.ports[port] = NULL;
    return 0;
}

/* --- the guest's kernel: devices -----------------------------------------------------------------
 */

static int open_store(void)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0 ||
        fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0)
        abort();
    for (size_t i = 0; i < CONNECTIONS; i++) {
        if (xen.connections[i] < 0) {
            xen.connections[i] = ends[1];
            return ends[0];
        }
    }
    abort();
}

int __wrap_open64(const char *path, int flags, ...)
{
    static const struct {
        const char *path;
        int (*open)(void);
    } devices[] = {{"/dev/xen/xenbus", open_store},
                   {"/dev/xen/gntalloc", open_pages},
                   {"/dev/xen/evtchn", open_channel}};
    va_list args;
    mode_t mode;
    int fd;

    for (size_t i = 0; xen.is_open && i < sizeof(devices) / sizeof(devices[0]); i++) {
        if (strcmp(path, devices[i].path) != 0)
            continue;
        lock();
        fd = devices[i].open();
        unlock();
        return fd;
    }
    va_start(args, flags);
    mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return __real_open64(path, flags, mode);
}

int __wrap_stat64(const char *path, struct stat *info)
{
    return __real_stat64(strcmp(path, XENBUS_DEVICE) == 0 ? "/dev/null" : path, info);
}

static int control_channel(const struct channel *channel, unsigned long request,
                           const void *argument)
{
    const uint64_t one = 1;

    if (request == IOCTL_EVTCHN_BIND_UNBOUND_PORT)
        return offer_port(channel);
    if (request == IOCTL_EVTCHN_UNBIND)
        return unbind_port(channel, ((const struct ioctl_evtchn_unbind *)argument)->port);
    if (!channel->is_forgotten && write(xen.doorbell_fd, &one, sizeof(one)) < 0)
        abort();
    return 0;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    struct pages_file *file;
    struct channel *channel;
    void *argument;
    va_list args;
    int result;

    va_start(args, request);
    argument = va_arg(args, void *);
    va_end(args);
    lock();
    file = find_file(fd);
    channel = find_channel(fd);
    if (file && request == IOCTL_GNTALLOC_ALLOC_GREF)
        result = share(file, argument);
    else if (file)
        result = set_notice(file, argument);
    else if (channel)
        result = control_channel(channel, request, argument);
    else
        result = __real_ioctl(fd, request, argument);
    unlock();
    return result;
}

/* Pages and ports go with their descriptors; a port that was forgotten goes in a child, who
 * would die of it. */
static void release(int fd)
{
    struct pages_file *file = find_file(fd);
    struct channel *channel = find_channel(fd);

    if (file) {
        const struct channel *there = xen.ports[file->notified_port];

        xen.harm += file->notified_port > 0 && (!there || there == &somebody);
        file->fd = -1;
    }
    if (!channel)
        return;
    for (unsigned port = 0; port < PORTS; port++) {
        if (xen.ports[port] == channel)
            xen.ports[port] = NULL;
    }
    if (!channel->is_forgotten)
        __real_close(channel->peer);
    channel->fd = -1;
}

int __wrap_close(int fd)
{
    if (getpid() != xen.program) {
        const struct channel *channel = xen.is_open ? find_channel(fd) : NULL;

        if (channel && channel->is_forgotten)
            ++*xen.abandoned;
        return __real_close(fd);
    }
    if (xen.is_open) {
        lock();
        release(fd);
        unlock();
    }
    return __real_close(fd);
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
    static char no[] = "0\n";

    if (strcmp(path, "/proc/sys/kernel/panic_on_oops") != 0)
        return __real_fopen64(path, mode);
    return fmemopen(no, strlen(no), "r");
}

/* --- for tests
 * ------------------------------------------------------------------------------------ */

static void offer(void)
{
    put_node(VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL, VGPU_XEN_VERSION);
    put_node(VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, "0");
}

static void become_domain(unsigned number)
{
    char text[16];

    xen.domain = number;
    snprintf(text, sizeof(text), "%u", number);
    put_node("domid", text);
}

void lib_xen_open(void)
{
    memset(&xen, 0, sizeof(xen));
    for (size_t i = 0; i < CONNECTIONS; i++)
        xen.connections[i] = -1;
    for (size_t i = 0; i < WATCHES; i++)
        xen.watches[i].connection = -1;
    pthread_mutex_init(&xen.lock, NULL);
    pthread_mutex_init(&xen.worker.lock, NULL);
    xen.worker.device = calloc(1, LIB_HOST_DEVICE_BYTES);
    xen.program = getpid();
    xen.stop_fd = eventfd(0, EFD_CLOEXEC);
    xen.doorbell_fd = eventfd(0, EFD_CLOEXEC);
    xen.abandoned =
        mmap(NULL, VGPU_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    xen.pages_max = DEFAULT_PAGES;
    xen.next_reference = FIRST_REFERENCE;
    become_domain(5);
    offer();
    xen.is_open = true;
    if (!xen.worker.device || xen.abandoned == MAP_FAILED ||
        pthread_create(&xen.thread, NULL, xen_main, NULL))
        abort();
}

void lib_xen_close(void)
{
    const uint64_t one = 1;

    if (write(xen.stop_fd, &one, sizeof(one)) < 0)
        abort();
    pthread_join(xen.thread, NULL);
    xen.is_open = false;
    leave_slot();
    for (size_t i = 0; i < CONNECTIONS; i++) {
        if (xen.connections[i] >= 0)
            hang_up(&xen.connections[i]);
    }
    for (unsigned i = 0; i < xen.channel_count; i++) {
        if (xen.channels[i].is_forgotten)
            __real_close(xen.channels[i].peer);
    }
    __real_close(xen.stop_fd);
    __real_close(xen.doorbell_fd);
    munmap(xen.abandoned, VGPU_PAGE_BYTES);
    free(xen.worker.device);
}

void lib_xen_by_hand(bool is_by_hand)
{
    lock(); /* the thread is not in the middle of it */
    xen.worker.by_hand = is_by_hand;
    unlock();
}

struct lib_host *lib_xen_worker(void)
{
    return &xen.worker;
}

void lib_xen_set_offer(bool is_offered)
{
    lock();
    if (is_offered)
        offer();
    else
        remove_nodes(VGPU_XEN_BACKEND);
    unlock();
}

void lib_xen_set_refusal(int code)
{
    lock();
    xen.refusal = code;
    unlock();
}

void lib_xen_set_silence(bool is_silent)
{
    lock();
    xen.is_silent = is_silent;
    unlock();
}

void lib_xen_end_session(void)
{
    lock();
    xen.worker.slot[VGPU_SLOT_HOST + VGPU_XEN_ALIVE] = 0;
    lib_host_interrupt(&xen.worker);
    leave_slot();
    unlock();
}

bool lib_xen_offer_is_awaited(void)
{
    bool is_watched = false;

    lock();
    for (size_t i = 0; i < WATCHES; i++)
        is_watched |= xen.watches[i].connection >= 0 &&
                      strcmp(xen.watches[i].path, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN) == 0;
    unlock();
    return is_watched;
}

bool lib_xen_session_is_asked_for(void)
{
    bool is_asked = false;

    lock();
    for (size_t i = 0; i < sizeof(xen.nodes) / sizeof(xen.nodes[0]); i++)
        is_asked |= is_below(xen.nodes[i].path, VGPU_XEN_FRONTEND) &&
                    strcmp(xen.nodes[i].value, VGPU_XEN_INITIALISING) == 0;
    unlock();
    return is_asked;
}

void lib_xen_await(bool (*condition)(void))
{
    const struct timespec pause = {.tv_nsec = 1000000};

    for (unsigned i = 0; i < 90000 && !condition(); i++)
        nanosleep(&pause, NULL);
}

/* Memory and descriptors stay; the rest is a new domain's, whose kernel tells all who watch. */
void lib_xen_restore(void)
{
    lock();
    leave_slot();
    memset(xen.nodes, 0, sizeof(xen.nodes));
    become_domain(xen.domain + 1);
    offer();
    memset(xen.ports, 0, sizeof(xen.ports));
    for (unsigned i = 0; i < xen.channel_count; i++)
        xen.channels[i].is_forgotten |= xen.channels[i].fd >= 0;
    for (size_t i = 0; i < WATCHES; i++) {
        if (xen.watches[i].connection >= 0)
            tell(&xen.watches[i], xen.watches[i].path);
    }
    unlock();
}

void lib_xen_set_pages_max(unsigned pages)
{
    lock();
    xen.pages_max = pages;
    unlock();
}

unsigned lib_xen_pages(void)
{
    unsigned count;

    lock();
    count = count_pages();
    unlock();
    return count;
}

void lib_xen_take_port(unsigned port)
{
    lock();
    xen.ports[port] = &somebody;
    unlock();
}

unsigned lib_xen_port(void)
{
    unsigned port;

    lock();
    port = xen.session_port;
    unlock();
    return port;
}

unsigned lib_xen_ports(void)
{
    unsigned count = 0;

    lock();
    for (unsigned port = 0; port < PORTS; port++)
        count += xen.ports[port] && xen.ports[port] != &somebody;
    unlock();
    return count;
}

unsigned lib_xen_abandoned(void)
{
    return *xen.abandoned;
}

unsigned lib_xen_harm(void)
{
    unsigned harm;

    lock();
    harm = xen.harm;
    unlock();
    return harm;
}
