/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers in words: one table, in the order of the offsets.  The doorbell is
 * not in it, as it is only written.
 */
#include "client.h"

#include <inttypes.h>
#include <string.h>

struct bit_name {
    uint32_t bit;
    const char *name;
};

static const struct bit_name status_bits[] = {
    {VGPU_STATUS_READY, "ready"},
    {VGPU_STATUS_HOST, "mediator connected"},
    {VGPU_STATUS_RESETTING, "resetting"},
    {0},
};

static const struct bit_name capability_bits[] = {
    {VGPU_CAP_WINDOW, "window"},
    {VGPU_CAP_MSIX, "MSI-X"},
    {0},
};

static const struct bit_name interrupt_bits[] = {
    {VGPU_IRQ_COMPLETION, "completion"},
    {VGPU_IRQ_CONFIG, "configuration changed"},
    {0},
};

static const struct bit_name error_bits[] = {
    {VGPU_DEVERR_ACCESS, "access not 32 bits wide and aligned"},
    {VGPU_DEVERR_READ_ONLY, "write to a read-only register"},
    {VGPU_DEVERR_OFFSET, "access beyond the last register"},
    {VGPU_DEVERR_SESSION, "open or close of a slot that could not"},
    {0},
};

static void say_bits(char *out, size_t bytes, uint32_t value, const struct bit_name *names)
{
    size_t used = 0;

    snprintf(out, bytes, "none");
    for (; names->name; names++) {
        if (!(value & names->bit))
            continue;
        snprintf(out + used, bytes - used, "%s%s", used ? ", " : "", names->name);
        used = strlen(out);
        value &= ~names->bit;
    }
    if (value)
        snprintf(out + used, bytes - used, "%sunknown bits 0x%x", used ? ", " : "", value);
}

static void say_status(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    say_bits(out, bytes, value, status_bits);
}

static void say_capabilities(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    say_bits(out, bytes, value, capability_bits);
}

static void say_interrupts(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    say_bits(out, bytes, value, interrupt_bits);
}

static void say_pool(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    if (value >= 'A' && value <= 'Z')
        snprintf(out, bytes, "pool %c", (char)value);
    else
        snprintf(out, bytes, "no letter");
}

static void say_priority(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    snprintf(out, bytes, "%s", text_priority_name(value));
}

static void say_number(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    snprintf(out, bytes, "%u", value);
}

static void say_magic(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    snprintf(out, bytes, "%s", value == VGPU_MAGIC ? "VGPU" : "wrong");
}

static void say_version(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    snprintf(out, bytes, "%u.%u", value >> 16, value & 0xffff);
}

static void say_window(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    uint64_t whole = (uint64_t)device_register(device, VGPU_REG_WINDOW_HI) << 32 |
                     device_register(device, VGPU_REG_WINDOW_LO);

    (void)value;
    if (whole == 0)
        snprintf(out, bytes, "no window");
    else
        snprintf(out, bytes, "window of %" PRIu64 " bytes", whole);
}

static void say_error(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)device;
    say_bits(out, bytes, value, error_bits);
}

static void say_scratch(char *out, size_t bytes, uint32_t value, const struct device *device)
{
    (void)value;
    (void)device;
    snprintf(out, bytes, "the guest's own");
}

static const struct {
    unsigned offset;
    const char *name;
    void (*say)(char *out, size_t bytes, uint32_t value, const struct device *device);
} register_table[] = {
    {VGPU_REG_STATUS, "status", say_status},
    {VGPU_REG_POOL_ID, "pool_id", say_pool},
    {VGPU_REG_PRIORITY, "priority", say_priority},
    {VGPU_REG_VM_ID, "vm_id", say_number},
    {VGPU_REG_MAGIC, "magic", say_magic},
    {VGPU_REG_VERSION, "version", say_version},
    {VGPU_REG_CAPS, "caps", say_capabilities},
    {VGPU_REG_WINDOW_LO, "window_lo", say_window},
    {VGPU_REG_WINDOW_HI, "window_hi", say_window},
    {VGPU_REG_ERROR, "error", say_error},
    {VGPU_REG_IRQ_MASK, "irq_mask", say_interrupts},
    {VGPU_REG_IRQ_STATUS, "irq_status", say_interrupts},
    {VGPU_REG_DOORBELLS, "doorbells", say_number},
    {VGPU_REG_SCRATCH, "scratch", say_scratch},
    {VGPU_REG_SLOTS, "slots", say_number},
};

static const char *const state_names[] = {
    [VGPU_SESSION_CLOSED] = "free",     [VGPU_SESSION_OPENING] = "opening",
    [VGPU_SESSION_READY] = "in use",    [VGPU_SESSION_LOST] = "in use, device lost",
    [VGPU_SESSION_FAULTED] = "faulted", [VGPU_SESSION_RESETTING] = "resetting",
    [VGPU_SESSION_REFUSED] = "refused",
};

/* The slots that the window has. */
static unsigned describe_slots(const struct device *device, struct device_register_text *texts,
                               unsigned most)
{
    static const char *const names[VGPU_SLOTS_MAX] = {
        "slot 0", "slot 1", "slot 2",  "slot 3",  "slot 4",  "slot 5",  "slot 6",  "slot 7",
        "slot 8", "slot 9", "slot 10", "slot 11", "slot 12", "slot 13", "slot 14", "slot 15"};
    unsigned slots = device_register(device, VGPU_REG_SLOTS), count = 0;

    for (; count < slots && count < VGPU_SLOTS_MAX && count < most; count++) {
        struct device_register_text *text = &texts[count];
        uint32_t state;

        text->name = names[count];
        text->offset = VGPU_REG_SESSION_STATE + 4 * count;
        text->value = device_register(device, text->offset);
        state = text->value & VGPU_SESSION_STATE_MASK;
        snprintf(text->meaning, sizeof(text->meaning), "%s%s%s",
                 state <= VGPU_SESSION_REFUSED ? state_names[state] : "unknown",
                 text->value >> VGPU_SESSION_CODE_SHIFT ? ": " : "",
                 text->value >> VGPU_SESSION_CODE_SHIFT
                     ? strerror((int)(text->value >> VGPU_SESSION_CODE_SHIFT))
                     : "");
    }
    return count;
}

unsigned device_describe(const struct device *device, struct device_register_text *texts,
                         unsigned most)
{
    unsigned count = 0;

    for (; count < sizeof(register_table) / sizeof(register_table[0]) && count < most; count++) {
        struct device_register_text *text = &texts[count];

        text->offset = register_table[count].offset;
        text->name = register_table[count].name;
        text->value = device_register(device, text->offset);
        register_table[count].say(text->meaning, sizeof(text->meaning), text->value, device);
    }
    return count + describe_slots(device, texts + count, most - count);
}
