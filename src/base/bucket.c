/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Token buckets: see base.h.
 *
 *          now            full
 *   ────────┼──────────────┼────▶        owed = full - now, none when that is past
 *           │◀──── owed ──▶│
 *           │◀──────── burst ──────────▶│   there is burst - owed to take
 *
 * The generic cell rate algorithm (ITU-T I.371, virtual scheduling).  All that a bucket knows
 * is when it will be full, so nothing has to fill it and nothing drifts: it is one number,
 * which several processes may share.  Instants are ticks of a sixteenth of a nanosecond and
 * wrap after 36 years; only their differences count.
 */
#include "base/base.h"

#define TICKS_PER_NS 16u
/* Nobody owes more; what says that it does is a bucket that was left alone for decades. */
#define OWED_MAX_TICKS (172800ull * NS_PER_S * TICKS_PER_NS) /* two days */

static uint64_t ticks_of(uint64_t now_ns)
{
    return now_ns * TICKS_PER_NS;
}

static uint64_t load(const uint64_t *bucket)
{
    return __atomic_load_n(bucket, __ATOMIC_RELAXED);
}

static uint64_t owed_ticks(uint64_t full, uint64_t now)
{
    uint64_t owed = full - now;

    return owed <= OWED_MAX_TICKS ? owed : 0;
}

static uint64_t times(uint64_t tokens, uint64_t token_ticks)
{
    uint64_t ticks;

    return __builtin_mul_overflow(tokens, token_ticks, &ticks) || ticks > OWED_MAX_TICKS
               ? OWED_MAX_TICKS
               : ticks;
}

struct bucket_rate bucket_rate(uint64_t tokens, uint64_t per_ns, uint64_t burst)
{
    struct bucket_rate rate = {0};

    if (tokens == 0)
        return rate;
    rate.token_ticks = (per_ns * TICKS_PER_NS + tokens - 1) / tokens; /* never more than the rate */
    rate.burst_ticks = times(burst > 0 ? burst : 1, rate.token_ticks);
    return rate;
}

uint32_t bucket_take(uint64_t *bucket, const struct bucket_rate *rate, uint32_t most,
                     uint64_t now_ns)
{
    uint64_t now = ticks_of(now_ns), full = load(bucket), owed, count;

    if (rate->token_ticks == 0)
        return most;
    do {
        owed = owed_ticks(full, now);
        count = owed < rate->burst_ticks ? (rate->burst_ticks - owed) / rate->token_ticks : 0;
        if (count > most)
            count = most;
        if (count == 0)
            return 0;
    } while (!__atomic_compare_exchange_n(bucket, &full, now + owed + count * rate->token_ticks,
                                          false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return (uint32_t)count;
}

void bucket_charge(uint64_t *bucket, const struct bucket_rate *rate, uint64_t tokens,
                   uint64_t now_ns)
{
    uint64_t now = ticks_of(now_ns), full = load(bucket), owed;

    if (rate->token_ticks == 0 || tokens == 0)
        return;
    do {
        owed = owed_ticks(full, now) + times(tokens, rate->token_ticks);
        if (owed > OWED_MAX_TICKS)
            owed = OWED_MAX_TICKS;
    } while (!__atomic_compare_exchange_n(bucket, &full, now + owed, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
}

uint64_t bucket_wait_ns(const uint64_t *bucket, const struct bucket_rate *rate, uint64_t tokens,
                        uint64_t now_ns)
{
    uint64_t owed = owed_ticks(load(bucket), ticks_of(now_ns));
    uint64_t wanted = times(tokens, rate->token_ticks);

    if (rate->token_ticks == 0)
        return 0;
    if (wanted > rate->burst_ticks)
        wanted = rate->burst_ticks; /* there never are more */
    if (owed + wanted <= rate->burst_ticks)
        return 0;
    return (owed + wanted - rate->burst_ticks + TICKS_PER_NS - 1) / TICKS_PER_NS;
}

uint64_t bucket_tokens(const struct bucket_rate *rate, uint64_t in_ns)
{
    return in_ns * TICKS_PER_NS / rate->token_ticks;
}

void bucket_change(uint64_t *bucket, const struct bucket_rate *from, const struct bucket_rate *to,
                   uint64_t now_ns)
{
    uint64_t now = ticks_of(now_ns), full = load(bucket), owed, tokens;

    do {
        tokens = from->token_ticks ? owed_ticks(full, now) / from->token_ticks : 0;
        owed = times(tokens, to->token_ticks);
    } while (!__atomic_compare_exchange_n(bucket, &full, now + owed, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
}
