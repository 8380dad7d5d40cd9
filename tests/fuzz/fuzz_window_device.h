/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device for fuzz_window.c whose operations only begin in a call: the cpu backend's, which
 * does them at once, behind streams that come to their end when a generator says so.
 *
 * Streams, events and modules are memory of their own, so that a sanitizer sees each use of
 * one that has ended.  The device may also be lost, at any look at it.
 */
#ifndef VGPU_TESTS_FUZZ_WINDOW_DEVICE_H
#define VGPU_TESTS_FUZZ_WINDOW_DEVICE_H

#include "exec/device.h"

/* The order of all that follows; `may_be_lost`: the device is, sooner or later. */
void fuzz_device_seed(uint32_t seed, bool may_be_lost);

/* A number below `bound`, 1 or more, of the same order. */
uint32_t fuzz_device_random(uint32_t bound);

/* The cpu backend's memory behind a state of these operations. */
const struct device_memory *fuzz_device_memory(const void *state);

extern const struct device_ops fuzz_device_ops;

#endif /* VGPU_TESTS_FUZZ_WINDOW_DEVICE_H */
