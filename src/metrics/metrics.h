/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics/ - numbers about what is done: latency histograms, counters, and how they are
 * told to Prometheus.
 *
 *   record ─▶ histograms, counters ─▶ text (format 0.0.4) ─▶ HTTP on sockets of the caller's
 *             (scopes: VM, pool and                          loop; who asks waits for the text
 *              priority, others)
 *
 * It knows nothing of VMs and devices: who uses it says what is counted and how it is
 * called.  Not thread-safe: the loop's thread owns all of it.
 */
#ifndef VGPU_METRICS_H
#define VGPU_METRICS_H

#include "base/base.h"

#include <uv.h>

/* --- histograms (histogram.c) --------------------------------------------------------- */

/* From so many microseconds on (19 hours) a duration counts as one of that. */
#define METRICS_DURATION_BITS 36u
#define METRICS_DURATION_MAX_US ((1ull << METRICS_DURATION_BITS) - 1)

struct metrics_table;

/*
 * Durations in buckets of 0.8 % of their value or 1 us, whichever is more.  All zero is
 * empty.  Its memory comes with what is recorded: at most 31 KiB, and about 4 KiB where
 * durations are spread over a factor of ten.
 */
struct metrics_histogram {
    struct metrics_table *table; /* NULL: nothing was recorded */
    uint64_t count, sum_us, max_us;
};

/* Without memory the duration is in `count`, sum and maximum only. */
void metrics_histogram_record(struct metrics_histogram *histogram, uint64_t duration_us);

/* Adds all of `from` to `into`. */
void metrics_histogram_merge(struct metrics_histogram *into, const struct metrics_histogram *from);
void metrics_histogram_clear(struct metrics_histogram *histogram);

/* How many durations are below `bound_us`, a power of two up to 2^35. */
uint64_t metrics_histogram_below(const struct metrics_histogram *histogram, uint64_t bound_us);

/* What it takes of memory, itself not counted. */
size_t metrics_histogram_bytes(const struct metrics_histogram *histogram);

/* All 0 where there was nothing.  Percentiles are at most 0.8 % and 1 us too large, and
 * never larger than the maximum, which is exact. */
struct metrics_summary {
    uint64_t count, sum_us;
    uint64_t p50_us, p95_us, p99_us, p999_us, max_us;
};

/* Of several together; entries may be NULL. */
struct metrics_summary metrics_summarize(const struct metrics_histogram *const *histograms,
                                         size_t count);

/*
 * Durations since the start, and those of about the last minute: two tables take turns,
 * and what is older is put to the rest.  All zero is empty.
 */
struct metrics_latency {
    struct metrics_histogram settled, older, newer;
    uint64_t turned_ns;
};

/* `now_ns` is of any monotonic clock. */
void metrics_latency_record(struct metrics_latency *latency, uint64_t duration_us, uint64_t now_ns);

/* As many that took as long, recorded at once. */
void metrics_latency_add(struct metrics_latency *latency, uint64_t duration_us, uint64_t count,
                         uint64_t now_ns);

/* Since the start, and of between 30 and 60 s ago until now. */
struct metrics_summary metrics_latency_all(const struct metrics_latency *latency);
struct metrics_summary metrics_latency_recent(struct metrics_latency *latency, uint64_t now_ns);

/* Of all since the start. */
uint64_t metrics_latency_count(const struct metrics_latency *latency);
uint64_t metrics_latency_sum_us(const struct metrics_latency *latency);
uint64_t metrics_latency_below(const struct metrics_latency *latency, uint64_t bound_us);
size_t metrics_latency_bytes(const struct metrics_latency *latency);
void metrics_latency_clear(struct metrics_latency *latency);

/* --- scopes (scope.c) -------------------------------------------------------------------- */

enum metrics_counter {
    METRICS_OPERATIONS,      /* that ran */
    METRICS_ANSWERS,         /* to file requests */
    METRICS_DEVICE_US,       /* device time, microseconds */
    METRICS_QUARANTINES,     /* that the mediator began by itself */
    METRICS_WORKER_RESTARTS, /* workers that died or were ended at work */
    METRICS_CONTEXT_WAITS,   /* sessions that had to wait for a context */
    METRICS_THROTTLED_US,    /* its budget kept what waited, microseconds, each session by itself */
    METRICS_DIFFERENCES,     /* requests whose claim was not the registry's */
    METRICS_COUNTERS,
};

/* What went wrong with a VM's work. */
enum metrics_fault {
    METRICS_FAULT_WORKER,     /* a worker died, whatever of */
    METRICS_FAULT_KERNEL,     /* one of its kernels did what the GPU forbids */
    METRICS_FAULT_TIME_LIMIT, /* an operation ran too long */
    METRICS_FAULT_RINGS,      /* its rings made no sense */
    METRICS_FAULTS,
};

enum metrics_refusal {
    METRICS_REFUSED_MALFORMED,    /* not a request */
    METRICS_REFUSED_QUARANTINED,  /* its VM is in quarantine */
    METRICS_REFUSED_POOL,         /* its pool is disabled, or has no device that can be used */
    METRICS_REFUSED_SESSIONS,     /* its VM has its sessions, or the slot is not free */
    METRICS_REFUSED_RATE,         /* too many requests of its VM */
    METRICS_REFUSED_DEVICE_SHARE, /* too much device time */
    METRICS_REFUSED_QUEUE_DEPTH,  /* too many requests that wait */
    METRICS_REFUSED_STOPPING,     /* the VM is removed, or the mediator stops */
    METRICS_REFUSED_FAILED,       /* no worker could be started */
    METRICS_REFUSALS,
};

enum metrics_duration {
    METRICS_WAIT,  /* from work that waits to its grant */
    METRICS_RUN,   /* from the grant to its return; in a long one, each operation */
    METRICS_TOTAL, /* both; in a long one, from when the operation was taken from its ring */
    METRICS_DURATIONS,
};

/* One VM's numbers, or one pool's at one priority.  All zero is empty. */
struct metrics_scope {
    uint64_t counters[METRICS_COUNTERS];
    uint64_t faults[METRICS_FAULTS];
    uint64_t refusals[METRICS_REFUSALS];
    struct metrics_latency durations[METRICS_DURATIONS];
};

/* "malformed", "quarantined" and so on; "worker", "kernel" and so on. */
const char *metrics_refusal_name(enum metrics_refusal refusal);
const char *metrics_fault_name(enum metrics_fault fault);

/* Of all reasons; of all kinds. */
uint64_t metrics_scope_refusals(const struct metrics_scope *scope);
uint64_t metrics_scope_faults(const struct metrics_scope *scope);
void metrics_scope_clear(struct metrics_scope *scope);

/* --- text for Prometheus (text.c) ----------------------------------------------------------- */

/* What Content-Type says of it. */
#define METRICS_TEXT_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Text that grows.  All zero is empty. */
struct metrics_text {
    char *data; /* owned; no NUL behind it */
    size_t bytes, room;
    bool failed; /* no memory: what followed is missing */
};

void metrics_text_clear(struct metrics_text *text);
void metrics_text_append(struct metrics_text *text, const char *data, size_t bytes);

/* `key="value"` with what the format wants escaped, behind a comma unless `labels` is
 * empty.  What is not UTF-8 or does not fit is left out. */
void metrics_label(char *labels, size_t bytes, const char *key, const char *value);
void metrics_label_number(char *labels, size_t bytes, const char *key, uint64_t value);

/* # HELP and # TYPE; `type` is "counter", "gauge", "histogram" or "summary". */
void metrics_text_family(struct metrics_text *text, const char *name, const char *type,
                         const char *help);

/* One sample: value / 10^decimals, exactly.  `suffix` may be "". */
void metrics_text_sample(struct metrics_text *text, const char *name, const char *suffix,
                         const char *labels, uint64_t value, unsigned decimals);

/* The samples of a histogram, in seconds, with bounds of 32 us, 64 us ... 67 s. */
void metrics_text_histogram(struct metrics_text *text, const char *name, const char *labels,
                            const struct metrics_latency *latency);

/* Its percentiles are recent ones, as Prometheus has it; count and sum are of all. */
void metrics_text_summary(struct metrics_text *text, const char *name, const char *labels,
                          const struct metrics_summary *recent,
                          const struct metrics_latency *latency);

/* --- HTTP (server.c) ----------------------------------------------------------------------------
 */

#define METRICS_CONNECTIONS_MAX 16u /* a socket; more wait in its queue */
#define METRICS_LISTENERS_MAX 3u

struct metrics_server;

struct metrics_server_config {
    int listeners[METRICS_LISTENERS_MAX]; /* sockets that listen, non-blocking; taken over */
    unsigned listener_count;
    uint32_t patience_ms; /* a connection's whole life; 0: 30 s */
    uint32_t idle_s;      /* nothing came on it for so long; 0: 10 s */
    /* Somebody wants the text: metrics_server_answer() is to follow, after this has returned.
     * Not called again before. */
    void (*wanted)(void *context);
    void *context;
};

/*
 * Answers GET and HEAD of /metrics on the caller's loop.  All who ask while the text is
 * being made get the same one.  A connection is for one request, and ends after
 * patience_ms in any case; when there is no place for another one, the oldest that has not asked
 * ends at once.  On failure the sockets stay the caller's.
 */
int metrics_server_start(uv_loop_t *loop, const struct metrics_server_config *config,
                         struct metrics_server **ret_server, struct vgpu_error *error);

/* The text that was wanted, which is taken over and is empty then.  One that failed is told as
 * 503. */
void metrics_server_answer(struct metrics_server *server, struct metrics_text *text);

/* Ends all connections; its memory goes when the loop has turned.  NULL is fine. */
void metrics_server_stop(struct metrics_server *server);

#endif /* VGPU_METRICS_H */
