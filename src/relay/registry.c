/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry on its way to a worker domain:
 *
 *   Dom0    vgpu.db ──▶ all.db ──rows──▶ own.db ──without others' VMs──▶ sent.db ──▶ bytes
 *   worker  bytes ──▶ a file ──rows, one transaction──▶ the mediator's database
 *
 * Rows alone, so who changed what stays in Dom0; and only what this domain serves.  What
 * came last is kept beside the database: what is otherwise there is the mediator's own.
 */
#include "relay/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATH_ROOM (PATH_MAX + 32)
#define LOCK_PAUSE_NS (20 * NS_PER_MS)

static const struct store_actor actor = {"vgpu-relay", "restore"};

/* -1: none, with ETIMEDOUT when another one has it until `end_ns`.  Ends with its descriptor. */
static int lock_file(const char *path, uint64_t end_ns)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        bool is_late = clock_monotonic_ns() >= end_ns;

        if (errno == EWOULDBLOCK && !is_late) {
            nanosleep(&pause, NULL);
            continue;
        }
        errno = errno == EWOULDBLOCK ? ETIMEDOUT : errno;
        fd_close(&fd);
    }
    return fd;
}

/* --- narrowed to one worker domain ------------------------------------------------------ */

static int drop_vms(struct store *store, const struct relay_worker *worker,
                    struct vgpu_error *error)
{
    struct store_vm *vms;
    size_t count;
    int result = 0;

    if (store_list_vms(store, &vms, &count, error) < 0)
        return -1;
    for (size_t i = 0; result == 0 && i < count; i++) {
        if (!strchr(worker->pools, vms[i].pool))
            result = store_remove_vm(store, vms[i].vm_id, NULL, error);
    }
    free(vms);
    return result;
}

static int drop_pools(struct store *store, const struct relay_worker *worker,
                      struct vgpu_error *error)
{
    struct store_pool *pools;
    size_t count, left = 0;
    int result = 0;

    if (store_list_pools(store, &pools, &count, error) < 0)
        return -1;
    for (size_t i = 0; i < count; i++)
        left += strchr(worker->pools, pools[i].id) != NULL;
    if (left == 0)
        result = error_set(error, ENOENT,
                           "domain %s serves pools %s, and the registry has none of them: create "
                           "them (vgpu-admin create-pool), or name others",
                           worker->name, worker->pools);
    for (size_t i = 0; result == 0 && i < count; i++) {
        if (!strchr(worker->pools, pools[i].id))
            result = store_remove_pool(store, pools[i].id, error);
    }
    free(pools);
    return result;
}

static int narrow(struct store *store, const struct relay_worker *worker, struct vgpu_error *error)
{
    if (store_begin(store, error) < 0)
        return -1;
    if (drop_vms(store, worker, error) == 0 && drop_pools(store, worker, error) == 0)
        return store_commit(store, error);
    store_rollback(store);
    return -1;
}

/* --- files on the way ----------------------------------------------------------------------- */

struct way {
    char directory[PATH_MAX];
    char all[PATH_ROOM];
    char own[PATH_ROOM];
    char sent[PATH_ROOM];
};

static int make_way(struct way *way, const char *run_dir, struct vgpu_error *error)
{
    snprintf(way->directory, sizeof(way->directory), "%.4000s/relay-XXXXXX", run_dir);
    if (!mkdtemp(way->directory))
        return error_set_errno(error, "cannot make a directory in %s", run_dir);
    snprintf(way->all, sizeof(way->all), "%s/all.db", way->directory);
    snprintf(way->own, sizeof(way->own), "%s/own.db", way->directory);
    snprintf(way->sent, sizeof(way->sent), "%s/sent.db", way->directory);
    return 0;
}

static void remove_way(const struct way *way)
{
    static const char *const names[] = {"all.db", "own.db", "own.db-wal", "own.db-shm", "sent.db"};
    char path[PATH_ROOM];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", way->directory, names[i]);
        unlink(path);
    }
    rmdir(way->directory);
}

static int copy_all(const char *database, const struct way *way, struct vgpu_error *error)
{
    struct store *store;
    int result;

    if (store_open(database, STORE_READ, &store, error) < 0)
        return -1;
    result = store_backup(store, way->all, error);
    store_close(store);
    return result;
}

static int copy_own(const struct way *way, const struct relay_worker *worker,
                    struct vgpu_error *error)
{
    struct store *store;
    int result;

    if (store_create(way->own, &actor, error) < 0 ||
        store_open(way->own, STORE_WRITE, &store, error) < 0)
        return -1;
    store_set_actor(store, &actor);
    result = store_restore(store, way->all, error);
    if (result == 0)
        result = narrow(store, worker, error);
    if (result == 0)
        result = store_backup(store, way->sent, error);
    store_close(store);
    return result;
}

static int read_file(const char *path, char **ret_data, size_t *ret_bytes, struct vgpu_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    char *data = NULL;

    if (fd < 0 || fstat(fd, &status) < 0) {
        fd_close(&fd);
        return error_set_errno(error, "cannot read '%s'", path);
    }
    if (status.st_size <= MESSAGE_REGISTRY_MAX_BYTES)
        data = malloc((size_t)status.st_size + 1);
    if (!data || fd_pread_all(fd, data, (size_t)status.st_size, 0) < 0) {
        fd_close(&fd);
        free(data);
        return error_set(error, EFBIG,
                         "the registry of a worker domain has %lld bytes, and %u can be sent: "
                         "remove VMs, or serve their pools from another one",
                         (long long)status.st_size, MESSAGE_REGISTRY_MAX_BYTES);
    }
    fd_close(&fd);
    *ret_data = data;
    *ret_bytes = (size_t)status.st_size;
    return 0;
}

int registry_copy(const struct relay *relay, const struct relay_worker *worker, char **ret_data,
                  size_t *ret_bytes, struct vgpu_error *error)
{
    struct way way;
    int result;

    if (make_way(&way, relay->config.run_dir, error) < 0)
        return -1;
    result = copy_all(relay->config.database, &way, error);
    if (result == 0)
        result = copy_own(&way, worker, error);
    if (result == 0)
        result = read_file(way.sent, ret_data, ret_bytes, error);
    remove_way(&way);
    return result;
}

/* --- there ----------------------------------------------------------------------------- */

static int send_copy(const struct relay *relay, struct xenbus *bus,
                     const struct relay_worker *worker, uint64_t end_ns, struct vgpu_error *error)
{
    struct message message = {.kind = MESSAGE_REGISTRY};
    char *data = NULL, *answer, shown[301];
    int result;

    if (registry_copy(relay, worker, &data, &message.bytes, error) < 0)
        return -1;
    message.data = data;
    result = message_exchange(bus, worker, &message, end_ns, &answer, error);
    free(data);
    if (result < 0)
        return -1;
    text_escape(shown, sizeof(shown), answer, strlen(answer));
    if (answer[0])
        result = error_set(error, EREMOTEIO, "worker domain %s: %s", worker->name, shown);
    free(answer);
    return result;
}

int registry_send(const struct relay *relay, struct xenbus *bus, const struct relay_worker *worker,
                  uint64_t end_ns, struct vgpu_error *error)
{
    char path[PATH_ROOM + RELAY_NAME_BYTES];
    int lock, result;

    snprintf(path, sizeof(path), "%s/relay.%s.lock", relay->config.run_dir, worker->name);
    lock = lock_file(path, end_ns);
    if (lock < 0)
        return error_set_errno(error, "cannot lock '%s'", path);
    result = send_copy(relay, bus, worker, end_ns, error);
    fd_close(&lock);
    return result;
}

/* --- here, in the worker domain -------------------------------------------------------- */

int registry_prepare(const struct relay *relay, struct vgpu_error *error)
{
    if (access(relay->config.database, F_OK) == 0)
        return 0;
    return store_create(relay->config.database, &actor, error);
}

static int write_file(const char *path, const void *data, size_t bytes, struct vgpu_error *error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int result = 0;

    if (fd < 0 || fd_pwrite_all(fd, data, bytes, 0) < 0)
        result = error_set_errno(error, "cannot write '%s'", path);
    fd_close(&fd);
    return result;
}

/* --- quarantines that the mediator began by itself: Dom0 does not know them --------------- */

struct rows {
    struct store_vm *vms;
    size_t count;
};

static bool is_same_vm(const struct store_vm *one, const struct store_vm *other)
{
    return one->vm_id == other->vm_id && one->created_us == other->created_us;
}

static const struct store_vm *find_same(const struct rows *rows, const struct store_vm *vm)
{
    for (size_t i = 0; i < rows->count; i++) {
        if (is_same_vm(&rows->vms[i], vm))
            return &rows->vms[i];
    }
    return NULL;
}

/* What Dom0 had sent before says so of its own ones. */
static bool is_own(const struct store_vm *vm, const struct rows *sent)
{
    const struct store_vm *there = find_same(sent, vm);

    return vm->state == STORE_VM_QUARANTINED &&
           !(there && there->state == STORE_VM_QUARANTINED &&
             there->quarantine_until_us == vm->quarantine_until_us &&
             strcmp(there->reason, vm->reason) == 0);
}

static int list_rows(struct store *store, struct rows *rows, struct vgpu_error *error)
{
    return store_list_vms(store, &rows->vms, &rows->count, error);
}

/* Of a file that is not there, or cannot be read: none. */
static void read_rows(const char *path, struct rows *rows)
{
    struct vgpu_error error;
    struct store *store;

    *rows = (struct rows){0};
    if (access(path, F_OK) < 0)
        return;
    if (store_open(path, STORE_READ, &store, &error) < 0) {
        log_warning("%s", error.message);
        return;
    }
    if (list_rows(store, rows, &error) < 0)
        log_warning("%s", error.message);
    store_close(store);
}

static int keep_quarantine(struct store *store, const struct store_vm *vm, struct vgpu_error *error)
{
    struct store_vm_change change = {.fields = STORE_VM_STATE, .values = *vm};
    struct store_vm now;

    if (store_get_vm(store, vm->vm_id, &now, error) < 0)
        return error->code == ENOENT ? 0 : -1;
    if (!is_same_vm(&now, vm) || now.state == STORE_VM_QUARANTINED)
        return 0;
    return store_change_vm(store, vm->vm_id, &change, NULL, NULL, error);
}

static int restore_and_keep(struct store *store, const char *path, const struct rows *sent,
                            struct vgpu_error *error)
{
    struct rows had = {0};
    int result = list_rows(store, &had, error);

    if (result == 0)
        result = store_restore(store, path, error);
    for (size_t i = 0; result == 0 && i < had.count; i++) {
        if (is_own(&had.vms[i], sent))
            result = keep_quarantine(store, &had.vms[i], error);
    }
    free(had.vms);
    return result;
}

static int take_rows(const struct relay *relay, const char *path, const char *sent_path,
                     struct vgpu_error *error)
{
    struct store *store;
    struct rows sent;
    int result;

    if (store_open(relay->config.database, STORE_WRITE, &store, error) < 0)
        return -1;
    store_set_actor(store, &actor);
    read_rows(sent_path, &sent);
    result = restore_and_keep(store, path, &sent, error);
    free(sent.vms);
    store_close(store);
    return result;
}

int registry_put(const struct relay *relay, const void *data, size_t bytes,
                 struct vgpu_error *error)
{
    char path[PATH_ROOM], sent[PATH_ROOM], lock_path[PATH_ROOM];
    int lock, result;

    snprintf(path, sizeof(path), "%.4000s.new", relay->config.database);
    snprintf(sent, sizeof(sent), "%.4000s.sent", relay->config.database);
    snprintf(lock_path, sizeof(lock_path), "%.4000s.lock", relay->config.database);
    lock = lock_file(lock_path, clock_monotonic_ns() + RELAY_ANSWER_MS * NS_PER_MS);
    if (lock < 0)
        return error_set_errno(error, "cannot lock '%s'", lock_path);
    result = write_file(path, data, bytes, error);
    if (result == 0)
        result = take_rows(relay, path, sent, error);
    if (result == 0 && rename(path, sent) < 0)
        result = error_set_errno(error, "cannot rename '%s' to '%s'", path, sent);
    fd_close(&lock);
    return result;
}

int registry_release(const struct relay *relay, const char *word, struct vgpu_error *error)
{
    const struct store_vm_change change = {.fields = STORE_VM_STATE,
                                           .values.state = STORE_VM_ACTIVE};
    struct store *store;
    struct store_vm vm;
    int result;

    if (store_open(relay->config.database, STORE_WRITE, &store, error) < 0)
        return -1;
    store_set_actor(store, &actor);
    result = store_find_vm(store, word, &vm, error);
    if (result == 0 && vm.state == STORE_VM_QUARANTINED)
        result = store_change_vm(store, vm.vm_id, &change, NULL, NULL, error);
    store_close(store);
    return result;
}
