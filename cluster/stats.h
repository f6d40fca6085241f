/* stats.h - the figures of a node, for operators: one table of what there is to
 * know, and the checks of whether it lives and is ready.
 *
 * Ownership: texts are static, or the caller's.
 * Threads:   any; what is asked of the engine may block for a moment.
 * Errors:    a figure that cannot be had is left out.
 * Units:     as the figure's name says.
 * Limits:    labels come from tables in the program: their number is bounded.
 */
#ifndef CLUSTER_STATS_H
#define CLUSTER_STATS_H

#include "cluster/hedge.h"

enum stat_type { STAT_GAUGE, STAT_COUNTER };
/* How a value is kept; shown in seconds where it is a time. */
enum stat_scale { STAT_PLAIN, STAT_MS, STAT_NS };

struct stat_info {
    const char *name; /* As Prometheus wants it: base units, _total. */
    enum stat_type type;
    enum stat_scale scale;
    const char *label; /* NULL: none. */
    const char *help;
};

/* All values of one figure come one after the other. */
typedef void (*stats_fn)(void *ctx, const struct stat_info *info,
                         const char *label_value, uint64_t value);
void stats_each(struct hedge_node *n, stats_fn fn, void *ctx);

enum { NODE_CHECK_LIVE = 1, NODE_CHECK_READY = 2 };
#define NODE_CHECKS_MAX 8
struct node_check {
    const char *name;
    bool ok;
    char text[128]; /* Why not. */
};
/* How many checks there are of these kinds. */
size_t node_checks(struct hedge_node *n, unsigned kinds,
                   struct node_check out[NODE_CHECKS_MAX]);

/* Another way in to the node, such as a server of another protocol.
 * hedge_node_stop() calls `end` once calls that wait have been told to give up,
 * before anything is freed; when it returns, nobody uses the node any more.
 * Once, before the node is stopped. */
void node_set_front(struct hedge_node *n, void (*end)(void *ctx), void *ctx);

#endif
