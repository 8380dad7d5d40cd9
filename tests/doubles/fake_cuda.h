/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A double of libcuda.so.1 over host memory: every function that gpu/cuda.h names, with the
 * semantics that the product relies on, and faults on demand.
 *
 *   fake_cuda_control.c   what a test orders: the file `<path of the library>.conf`
 *   fake_cuda_device.c    devices, contexts, handles
 *   fake_cuda_memory.c    device memory, host memory that the device knows
 *   fake_cuda_queue.c     streams and events; threads that are a device's engines
 *   fake_cuda_module.c    modules, functions, launches
 *   fake_cuda_kernels.c   kernels by name
 *
 * Work runs asynchronously, in the order in which it was submitted to the device: one of the
 * orders that CUDA allows, whatever the streams.  With more than one engine streams run beside
 * each other, as far as events and the default stream allow.  Memory is counted for one process.
 *
 * The file is read again whenever it changes; without one all is well.  A line each:
 *
 *   devices 2                    how many there are (default 1)
 *   memory_bytes 1073741824      of each device (default 1 GiB)
 *   bus 1                        of the first on the PCI bus, decimal (default 101)
 *   granule_bytes 2097152        allocations are rounded up to it (default 2 MiB)
 *   context_bytes 549453824      what a context takes of that (default 0)
 *   pin_bytes 65536              more host memory at once cannot be registered (default: no limit)
 *   code_bytes 4194304           what a kernel's code takes when it is asked for (default 0)
 *   others_free 2097152          what other processes give back (negative: take) while this one
 *                                loads its first module (default 0)
 *   multiprocessor_threads 32    that one of 132 holds (default 2048): local memory is for all
 *   version 12020                what cuDriverGetVersion says (default 13000)
 *   fail cuMemAlloc_v2 3 2       the 3rd call in this process returns 2; `*`: each call
 *   delay cuInit 50ms            the call takes longer; units us, ms, s
 *   busy cuLaunchKernel 50ms     what the call submits keeps the device busy before it runs
 *   hang cuCtxCreate_v2          the call never returns
 *   crash cuModuleLoadDataEx     the call ends the process by SIGSEGV
 *   only 4711                    fail, delay, busy, hang, crash, log are for this process alone
 *   lost 1 214                   from now on each call returns 214 (default 999)
 *   queue_depth 1024             what puts something into a stream waits while so much is queued
 *   engines 4                    how many things a device does at once (default 1); 0: none, what
 *                                is submitted has ended when the call returns
 *   keep 1                       what memory holds lies in `<path of the library>.memory`,
 *                                which the test made, of twice memory_bytes: the next
 *                                process finds it
 *   delay_us 100                 how long a kernel of unknown name takes
 *   forge 1                      a value that a stream is to write is there at once, as where a
 *                                kernel wrote it that runs before
 *   skip gate                    this kernel, or what this function submits, does nothing
 *   entry saxpy 8 8 4 8          an entry of every cubin, with its parameters' bytes
 *   models 1                     each device is of a model of its own
 *   log 1                        a line for each call, "PID FUNCTION", goes to
 *                                `<path of the library>.log`; one more, "PID failed FUNCTION",
 *                                where `fail` is ordered for it
 *   contexts 1                   also which device a context is made on, "PID device N"
 *   trace 1                      also what runs on the device, "PID begin" and "PID end"
 *   images 1                     also each binary image that is loaded, "PID image BYTES FNV", by
 *                                the lengths in its own header: the 64-bit FNV-1a hash of all
 *                                that, as hexadecimal digits
 *
 * Devices have the UUIDs GPU-00000000-0000-0000-0000-00000000000N and the PCI addresses
 * 0000:65:00.0 (hexadecimal), 0000:66:00.0, ...  CUDA_VISIBLE_DEVICES=MIG-<uuid> shows that MIG
 * device alone; any other value of it but "" is ignored.
 *
 * Every context of a process that met a fault on the device answers that fault to every later
 * call, as a GPU's does.  glibc loads one file once: for two in one process, copy it.
 */
#ifndef VGPU_FAKE_CUDA_H
#define VGPU_FAKE_CUDA_H

#include "gpu/cuda.h"

#include <limits.h>
#include <pthread.h>
#include <sys/queue.h>
#include <sys/types.h>

#define FAKE_DEVICES_MAX 16
#define FAKE_NAME_BYTES 128
#define FAKE_PARAMETERS_MAX 64
#define FAKE_UNLIMITED_NS UINT64_MAX

/* The library shows these functions and no others; the types are those of the list. */
#define FAKE_EXPORT(member, symbol, need, parameters)                                              \
    __attribute__((visibility("default"))) cuda_result symbol parameters;
CUDA_FUNCTIONS(FAKE_EXPORT)

/* --- control (fake_cuda_control.c) ------------------------------------------------------- */

#define FAKE_RULES_MAX 64

enum fake_rule_kind { RULE_FAIL, RULE_DELAY, RULE_BUSY, RULE_HANG, RULE_CRASH, RULE_SKIP };

struct fake_rule {
    enum fake_rule_kind kind;
    char name[FAKE_NAME_BYTES];
    uint64_t number; /* of the call, 0: each */
    cuda_result code;
    uint64_t time_ns;
};

struct fake_entry {
    char name[FAKE_NAME_BYTES];
    size_t count;
    size_t offsets[FAKE_PARAMETERS_MAX], sizes[FAKE_PARAMETERS_MAX]; /* bytes */
    size_t local_bytes;                                              /* of a thread */
    bool has_code;                                                   /* on the device */
};

struct fake_orders {
    int devices, version, bus;
    size_t memory_bytes, granule_bytes, context_bytes, code_bytes, pin_bytes;
    int multiprocessor_threads;
    cuda_result lost;
    pid_t only; /* 0: rules are for all */
    unsigned queue_depth, engines;
    uint64_t kernel_us;
    int64_t others_free_bytes;
    bool log, keep, trace, images, forge, models, contexts;
    struct fake_rule rules[FAKE_RULES_MAX];
    size_t rule_count;
    struct fake_entry entries[FAKE_RULES_MAX];
    size_t entry_count;
};

enum fake_need { NEEDS_NOTHING, NEEDS_INIT, NEEDS_CONTEXT };

/* What each function begins with: does what is ordered for it, and says whether the call may
 * go on.  To be called without the lock. */
cuda_result fake_enter(const char *function, enum fake_need need);

/* The orders as last read; their use needs the lock. */
const struct fake_orders *fake_orders(void);
bool fake_is_ordered(enum fake_rule_kind kind, const char *name);
uint64_t fake_busy_ns(const char *function);

/* With the lock: a line for the log. */
void fake_note(const char *word);

/* The library's own path with this ending; false when it is too long. */
bool fake_path(char path[PATH_MAX], const char *ending);

uint64_t fake_now_ns(void);
void fake_sleep_ns(uint64_t time_ns);

/* --- devices, contexts, handles (fake_cuda_device.c) --------------------------------------- */

/* One lock for everything, and one condition for every change. */
extern pthread_mutex_t fake_lock;
extern pthread_cond_t fake_changed;

enum fake_kind {
    KIND_CONTEXT,
    KIND_STREAM,
    KIND_EVENT,
    KIND_MODULE,
    KIND_LINK,
    KIND_FUNCTION,
};

/* What each object that has a handle begins with. */
struct fake_object {
    enum fake_kind kind;
    cuda_context context;
    struct fake_object *next;
};

struct fake_allocation {
    cuda_pointer address;
    size_t bytes;
    cuda_context context;
    struct fake_allocation *next; /* by address */
};

struct fake_work;

struct fake_device {
    uint8_t *base;    /* addresses, which the host cannot read */
    uint8_t *storage; /* and where their bytes are */
    size_t arena_bytes, used_bytes;
    struct fake_allocation *allocations;
    TAILQ_HEAD(, fake_work) works; /* that have not ended, in the order of submission */
    uint64_t submitted;            /* numbers of work */
    unsigned queued;               /* or running, of all streams */
    bool started;
};

struct CUctx_st {
    struct fake_object object;
    struct fake_device *device;
    cuda_result fault;  /* that stays */
    size_t held_bytes;  /* of the device, besides allocations */
    size_t local_bytes; /* that each thread has of it */
    cuda_stream default_stream;
};

#define FAKE_MULTIPROCESSORS 132
#define FAKE_STACK_BYTES 1024 /* of local memory, that each thread has from the beginning */

/* The calling thread's; NULL: none. */
cuda_context fake_current(void);
bool fake_is_initialised(void);

/* With the lock: a zeroed object that is known from now on; whether one is known; forgets and
 * frees. */
void *fake_object_new(enum fake_kind kind, cuda_context context, size_t bytes);
bool fake_object_is(enum fake_kind kind, const void *object);
void fake_object_free(void *object);

/* --- memory (fake_cuda_memory.c) ------------------------------------------------------------ */

/* With the lock.  Where `bytes` at a device's address lie; NULL when not all of them are in
 * one allocation or in one range of registered host memory. */
void *fake_memory_at(cuda_context context, cuda_pointer address, size_t bytes);
bool fake_is_registered(const void *memory, size_t bytes);
bool fake_memory_open(struct fake_device *device);
void fake_memory_free_all(cuda_context context);

/* With the lock: what is no allocation; false when the device has not so much. */
bool fake_memory_hold(cuda_context context, size_t bytes);
void fake_memory_let_go(cuda_context context, size_t bytes);

/* --- modules (fake_cuda_module.c) ----------------------------------------------------------- */

/* This process has loaded one. */
bool fake_has_loaded(void);

/* --- work (fake_cuda_queue.c) ------------------------------------------------------------------
 */

struct CUstream_st {
    struct fake_object object;
    uint64_t id;       /* the default stream's is 0 */
    bool non_blocking; /* does not wait for the default stream, nor that for it */
    uint64_t last;     /* number of its last work */
};

struct fake_launch {
    char name[FAKE_NAME_BYTES];
    cuda_context context;
    uint64_t words[FAKE_PARAMETERS_MAX]; /* parameters, each in the low bytes of its word */
    size_t count;
    unsigned blocks, threads; /* of a block */
};

struct fake_work {
    TAILQ_ENTRY(fake_work) link;
    uint64_t number, busy_ns, stream;
    const struct fake_device *awaits_on; /* the device that has it */
    uint64_t awaits;                     /* the number of work that must have ended, 0: none */
    bool non_blocking, running;
    cuda_context context;
    void (*run)(struct fake_work *work); /* without the lock; sets `result` */
    cuda_result result;
    void *target;
    const void *source;
    void *staged; /* freed with the work */
    uint64_t value;
    size_t width, count;
    cuda_event event;
    cuda_host_function function;
    void *argument;
    struct fake_launch launch;
};

struct fake_work *fake_work_new(const char *function, void (*run)(struct fake_work *work));

/* Takes the work over. Gives its result; waits while the queue is full. */
cuda_result fake_submit(cuda_stream handle, struct fake_work *work);

/* With the lock: waits until all work up to this is done; gives the context's fault. */
cuda_result fake_wait(cuda_context context, uint64_t number);

/* --- kernels (fake_cuda_kernels.c) -------------------------------------------------------------
 */

cuda_result fake_kernel_run(const struct fake_launch *launch);

#endif /* VGPU_FAKE_CUDA_H */
