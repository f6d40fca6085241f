#include "tests/lib/disk_fault.h"

void disk_fault_arm(struct disk_fault *f, char op, long n, int how,
                    bool persists)
{
    atomic_store(&f->countdown, 0);
    atomic_store(&f->op, op);
    atomic_store(&f->how, how);
    atomic_store(&f->persists, persists);
    atomic_store(&f->fired, 0);
    atomic_store(&f->countdown, n);
}

int disk_fault_hook(void *ctx, char op, size_t len)
{
    struct disk_fault *f = ctx;
    int wanted = atomic_load(&f->op), how = atomic_load(&f->how);
    long n = atomic_load(&f->countdown);

    atomic_fetch_add(&f->ops, 1);
    if (wanted != 0 && wanted != op) {
        return 0;
    }
    while (n > 1 || (n == 1 && !atomic_load(&f->persists))) {
        if (!atomic_compare_exchange_weak(&f->countdown, &n, n - 1)) {
            continue;
        }
        if (n > 1) {
            return 0;
        }
        break;
    }
    if (n != 1 || (how > 0 && (op == 'a' || (size_t)how >= len))) {
        return 0;
    }
    atomic_fetch_add(&f->fired, 1);
    return how;
}
