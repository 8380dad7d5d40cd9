/* SPDX-License-Identifier: Apache-2.0 */
/* The account of a VM, the mediator's hold on it: see account.h. */
#include "exec/account.h"
#include "exec/private.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct exec_account {
    struct account_memory *memory;
    char path[PATH_MAX];
    bool taken[EXEC_ACCOUNT_SHARES]; /* shares that sessions have */
};

/* --- opening -------------------------------------------------------------------------------- */

static int make_file(const char *path, struct vgpu_error *error)
{
    int code, fd;

    unlink(path); /* whose it was, it is in nobody's hands */
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(error, "cannot make account '%s'", path);
    code = posix_fallocate(fd, 0, sizeof(struct account_memory));
    if (code != 0) {
        error_set(error, code, "cannot make room for account '%s': %s", path, strerror(code));
        fd_close(&fd);
    }
    return fd;
}

static int open_file(const char *path, struct vgpu_error *error)
{
    struct stat info;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return error_set_errno(error, "cannot open account '%s'", path);
    if (fstat(fd, &info) < 0 || !S_ISREG(info.st_mode) ||
        (size_t)info.st_size != sizeof(struct account_memory)) {
        error_set(error, EINVAL, "account '%s' is not of this release", path);
        fd_close(&fd);
    }
    return fd;
}

static struct account_memory *map(int fd, const char *path, struct vgpu_error *error)
{
    void *memory =
        mmap(NULL, sizeof(struct account_memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory != MAP_FAILED)
        return memory;
    error_set_errno(error, "cannot map account '%s'", path);
    return NULL;
}

static bool makes_sense(const struct account_memory *memory)
{
    return memory->magic == ACCOUNT_MAGIC && memory->bytes == sizeof(*memory);
}

/* NULL with an error. */
static struct account_memory *map_file(const char *path, bool adopt, struct vgpu_error *error)
{
    int fd = adopt ? open_file(path, error) : make_file(path, error);
    struct account_memory *memory = fd < 0 ? NULL : map(fd, path, error);

    fd_close(&fd);
    if (!memory || !adopt || makes_sense(memory))
        return memory;
    error_set(error, EINVAL, "account '%s' is not of this release", path);
    munmap(memory, sizeof(*memory));
    return NULL;
}

int exec_account_open(const char *path, uint64_t limit_bytes, bool adopt,
                      struct exec_account **ret_account, struct vgpu_error *error)
{
    struct exec_account *account = calloc(1, sizeof(*account));

    if (!account)
        return error_set(error, ENOMEM, "no memory for account '%s'", path);
    account->memory = map_file(path, adopt, error);
    if (!account->memory) {
        free(account);
        return -1;
    }
    text_copy(account->path, sizeof(account->path), path);
    account->memory->magic = ACCOUNT_MAGIC;
    account->memory->bytes = sizeof(*account->memory);
    exec_account_set_limit(account, limit_bytes);
    *ret_account = account;
    return 0;
}

void exec_account_close(struct exec_account *account)
{
    if (!account)
        return;
    munmap(account->memory, sizeof(*account->memory));
    free(account);
}

void exec_account_end(struct exec_account *account)
{
    if (account)
        unlink(account->path);
    exec_account_close(account);
}

int exec_account_descriptor(const struct exec_account *account, struct vgpu_error *error)
{
    return open_file(account->path, error);
}

/* --- shares ----------------------------------------------------------------------------------- */

void exec_account_clear(struct exec_account *account, uint32_t share)
{
    __atomic_store_n(&account->memory->shares[share], 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&account->memory->work[share].queued, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&account->memory->work[share].inflight_ops, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&account->memory->work[share].inflight_bytes, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&account->memory->work[share].image_bytes, 0, __ATOMIC_SEQ_CST);
}

bool exec_account_claim(struct exec_account *account, uint32_t share)
{
    if (share >= EXEC_ACCOUNT_SHARES || account->taken[share])
        return false;
    account->taken[share] = true;
    return true;
}

int exec_account_take(struct exec_account *account, uint32_t *ret_share, struct vgpu_error *error)
{
    for (uint32_t share = 0; share < EXEC_ACCOUNT_SHARES; share++) {
        if (!exec_account_claim(account, share))
            continue;
        exec_account_clear(account, share);
        *ret_share = share;
        return 0;
    }
    return error_set(error, EUSERS, "all %u shares of account '%s' are taken: end a session first",
                     EXEC_ACCOUNT_SHARES, account->path);
}

void exec_account_give(struct exec_account *account, uint32_t share)
{
    exec_account_clear(account, share);
    account->taken[share] = false;
}

void exec_account_settle(struct exec_account *account)
{
    for (uint32_t share = 0; share < EXEC_ACCOUNT_SHARES; share++) {
        if (!account->taken[share])
            exec_account_clear(account, share);
    }
}

/* --- numbers ------------------------------------------------------------------------------------
 */

void exec_account_set_limit(struct exec_account *account, uint64_t limit_bytes)
{
    __atomic_store_n(&account->memory->limit_bytes, limit_bytes, __ATOMIC_RELAXED);
}

uint64_t exec_account_used_bytes(const struct exec_account *account)
{
    return account_used_bytes(account->memory);
}

bool exec_account_is_empty(const struct exec_account *account, uint32_t share)
{
    const struct account_memory *memory = account->memory;

    return __atomic_load_n(&memory->shares[share], __ATOMIC_SEQ_CST) == 0 &&
           __atomic_load_n(&memory->work[share].image_bytes, __ATOMIC_SEQ_CST) == 0;
}

/* --- the budget ------------------------------------------------------------------------------ */

#define DEVICE_PERIOD_NS (100 * NS_PER_US)
#define DEVICE_BURST_NS (10 * NS_PER_MS) /* of the clock, whatever the share */

/* A tenth of a second's, unless it says otherwise. */
static uint64_t burst_of(const struct exec_budget *budget)
{
    return budget->request_burst ? budget->request_burst : budget->request_rate / 10;
}

static void change_rate(struct bucket_rate *rate, uint64_t *bucket, struct bucket_rate wanted,
                        uint64_t now_ns)
{
    struct bucket_rate now = account_rate(rate);

    if (now.token_ticks == wanted.token_ticks && now.burst_ticks == wanted.burst_ticks)
        return;
    bucket_change(bucket, &now, &wanted, now_ns);
    __atomic_store_n(&rate->burst_ticks, wanted.burst_ticks, __ATOMIC_RELAXED);
    __atomic_store_n(&rate->token_ticks, wanted.token_ticks, __ATOMIC_RELAXED);
}

void exec_account_set_budget(struct exec_account *account, const struct exec_budget *budget,
                             uint64_t now_ns)
{
    struct account_memory *memory = account->memory;
    uint64_t percent = budget->device_share_percent;

    change_rate(&memory->budget.requests, &memory->request_bucket,
                bucket_rate(budget->request_rate, NS_PER_S, burst_of(budget)), now_ns);
    change_rate(
        &memory->budget.device, &memory->device_bucket,
        bucket_rate(percent, DEVICE_PERIOD_NS, percent * (DEVICE_BURST_NS / DEVICE_PERIOD_NS)),
        now_ns);
    __atomic_store_n(&memory->budget.queue_depth_max, budget->queue_depth_max, __ATOMIC_RELAXED);
    __atomic_store_n(&memory->budget.inflight_ops_max, budget->inflight_ops_max, __ATOMIC_RELAXED);
    __atomic_store_n(&memory->budget.inflight_bytes_max, budget->inflight_bytes_max,
                     __ATOMIC_RELAXED);
    __atomic_store_n(&memory->budget.image_bytes_max, budget->image_bytes_max, __ATOMIC_RELAXED);
    __atomic_store_n(&memory->budget.context_bytes, budget->context_bytes, __ATOMIC_RELAXED);
}

bool exec_account_take_request(struct exec_account *account, uint64_t now_ns, uint64_t *ret_wait_ns)
{
    struct account_memory *memory = account->memory;
    struct bucket_rate rate = account_rate(&memory->budget.requests);

    if (bucket_take(&memory->request_bucket, &rate, 1, now_ns) == 1)
        return true;
    *ret_wait_ns = bucket_wait_ns(&memory->request_bucket, &rate, 1, now_ns);
    return false;
}

void exec_account_charge(struct exec_account *account, uint64_t used_us, uint64_t now_ns)
{
    struct bucket_rate rate = account_rate(&account->memory->budget.device);

    bucket_charge(&account->memory->device_bucket, &rate, used_us, now_ns);
}

uint64_t exec_account_device_wait_ns(const struct exec_account *account, uint64_t now_ns)
{
    struct bucket_rate rate = account_rate(&account->memory->budget.device);

    return bucket_wait_ns(&account->memory->device_bucket, &rate, 0, now_ns);
}
