/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend of a session whose device cannot be had: it holds nothing, and answers all
 * that needs a device with DEVICE_LOST, so that a guest knows what became of its work and
 * its next steps.  Pings and questions are answered as ever.
 */
#include "exec/device.h"

#include <errno.h>

#define NO_DEVICE "there is no device now: try again later, or ask the host's administrator"

static int none_open(const struct exec_backend_config *config, struct vgpu_error *error)
{
    (void)config;
    (void)error;
    return 0;
}

static void none_close(void)
{
}

static int none_vector_add(const float *a, const float *b, float *sum, size_t count,
                           struct vgpu_error *error)
{
    (void)a;
    (void)b;
    (void)sum;
    (void)count;
    return error_set(error, EIO, NO_DEVICE);
}

static int none_matrix_mul(const float *a, const float *b, float *product, size_t n,
                           struct vgpu_error *error)
{
    return none_vector_add(a, b, product, n, error);
}

static int none_reduce(const float *x, size_t count, double *ret_sum, struct vgpu_error *error)
{
    (void)ret_sum;
    return none_vector_add(x, NULL, NULL, count, error);
}

static int none_spin(uint32_t spin_ms, struct vgpu_error *error)
{
    (void)spin_ms;
    return error_set(error, EIO, NO_DEVICE);
}

static void none_describe(char *text, size_t bytes)
{
    text_copy(text, bytes, NO_DEVICE);
}

/* --- the device of a window session ------------------------------------------------------ */

static int device_open_none(const struct device_config *config, void **ret_state,
                            struct device_place *ret_place, struct vgpu_error *error)
{
    static char state;

    (void)config;
    (void)error;
    *ret_state = &state;
    *ret_place = (struct device_place){.features = 0};
    return 0;
}

static void nothing(void *state)
{
    (void)state;
}

static enum vgpu_status alloc(void *state, uint64_t bytes, uint64_t *ret_address,
                              struct device_wait *ret_wait)
{
    (void)state;
    (void)bytes;
    (void)ret_address;
    (void)ret_wait;
    return VGPU_DEVICE_LOST;
}

static enum vgpu_status free_one(void *state, uint64_t address)
{
    (void)state;
    (void)address;
    return VGPU_DEVICE_LOST;
}

static enum vgpu_status set(void *state, void *stream, uint64_t address, uint32_t value,
                            uint32_t width, uint64_t count)
{
    (void)stream;
    (void)value;
    (void)width;
    (void)count;
    return free_one(state, address);
}

static enum vgpu_status copy_in(void *state, void *stream, uint64_t target, const void *source,
                                uint64_t bytes)
{
    (void)stream;
    (void)source;
    (void)bytes;
    return free_one(state, target);
}

static enum vgpu_status copy_out(void *state, void *stream, void *target, uint64_t source,
                                 uint64_t bytes)
{
    (void)stream;
    (void)target;
    (void)bytes;
    return free_one(state, source);
}

static enum vgpu_status copy(void *state, void *stream, uint64_t target, uint64_t source,
                             uint64_t bytes)
{
    (void)stream;
    (void)source;
    (void)bytes;
    return free_one(state, target);
}

static enum vgpu_status launch(void *state, void *stream, const struct device_launch *request)
{
    (void)stream;
    (void)request;
    return free_one(state, 0);
}

static enum vgpu_status query(void *state, uint32_t attribute, uint64_t *ret_value)
{
    (void)attribute;
    (void)ret_value;
    return free_one(state, 0);
}

static const struct device_ops none_device_ops = {
    .open = device_open_none,
    .close = nothing,
    .free_all = nothing,
    .alloc = alloc,
    .free = free_one,
    .set = set,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .copy = copy,
    .launch = launch,
    .query = query,
};

const struct exec_backend exec_backend_none = {
    .name = "none",
    .open = none_open,
    .close = none_close,
    .vector_add = none_vector_add,
    .matrix_mul = none_matrix_mul,
    .reduce = none_reduce,
    .spin = none_spin,
    .describe = none_describe,
    .device = &none_device_ops,
};
