/* clock.h - the clocks of hedge, and one that tests set by hand.
 *
 * Ownership: a struct clock is a value; `ctx` stays the caller's.
 * Threads:   any thread.
 * Errors:    none; the kernel's clocks do not fail.
 * Units:     milliseconds (_ms), nanoseconds (_ns).
 * Limits:    boot time counts suspended time; monotonic time does not. */
#ifndef STORE_BASE_CLOCK_H
#define STORE_BASE_CLOCK_H

#include <stdint.h>

/* What code that waits or expires is given instead of the kernel's clock. */
struct clock {
    uint64_t (*now_ms)(void *ctx);
    void *ctx;
};

uint64_t clock_now_ms(const struct clock *c);

/* CLOCK_BOOTTIME: what leases are measured on. */
const struct clock *clock_boottime(void);

uint64_t clock_mono_ns(void);
uint64_t clock_mono_ms(void);
uint64_t clock_boot_ms(void);
uint64_t clock_wall_ms(void);
uint64_t clock_wall_ns(void);

/* RFC 3339 in UTC with milliseconds, 24 bytes and the terminator. */
#define CLOCK_RFC3339_SIZE 32
void clock_format(uint64_t wall_ms, char out[CLOCK_RFC3339_SIZE]);

void clock_sleep_ms(uint64_t ms);

/* The kernel's id of this boot: processes with the same one share a machine
 * and its CLOCK_BOOTTIME. "" where it cannot be read. */
#define CLOCK_BOOT_ID_SIZE 40
void clock_boot_id(char out[CLOCK_BOOT_ID_SIZE]);

#endif
