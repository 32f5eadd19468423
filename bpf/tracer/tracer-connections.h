/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Entries of conn_stats from their beginning to their end, and the events of the end.
 *
 * Closed connections are gathered in batches of four for each CPU; when the fourth is in, the batch waits for the
 * program on the function's exit, which sends it. Whoever finds it full or in use sends its connection alone.
 */
#ifndef TRACER_CONNECTIONS_H
#define TRACER_CONNECTIONS_H

#include "tracer-maps.h"

static __always_inline bool is_bound(void *bindings, const struct conn_tuple *tuple)
{
	struct port_binding port = { .netns = tuple->netns, .port = tuple->sport };
	__u32 *number = bpf_map_lookup_elem(bindings, &port);

	return number && *number;
}

/* One more, or one less, who waits at that port. */
#define bind_port(bindings, port)                                                        \
	({                                                                               \
		__u32 bind_one = 1, *bind_number;                                        \
		if (map_insert(bindings, port, &bind_one)) {                             \
			bind_number = bpf_map_lookup_elem(&bindings, port);              \
			if (bind_number)                                                 \
				__sync_fetch_and_add(bind_number, 1);                    \
		}                                                                        \
	})

static __always_inline void unbind_port(void *bindings, const struct port_binding *port)
{
	__u32 *number = bpf_map_lookup_elem(bindings, port);

	if (number && *number > 1)
		__sync_fetch_and_add(number, -1);
	else if (number)
		bpf_map_delete_elem(bindings, port);
}

/* Who opened a connection whose beginning was not seen: the other side, if somebody waits at our port. */
static __always_inline __u8 guess_direction(const struct conn_tuple *tuple)
{
	bool bound = tuple->metadata & CONN_TCP ? is_bound(&port_bindings, tuple) : is_bound(&udp_port_bindings, tuple);

	return bound ? CONN_DIRECTION_INCOMING : CONN_DIRECTION_OUTGOING;
}

static __always_inline void fill_new(struct conn_stats *stats, __u8 direction)
{
	__builtin_memset(stats, 0, sizeof(*stats));
	stats->timestamp = stats->duration = bpf_ktime_get_ns();
	stats->cookie = bpf_get_prandom_u32();
	stats->direction = direction;
}

/* The entry of that connection, made if need be; *begun says whether it was. Without room: a loss, and NULL. */
static __always_inline struct conn_stats *stats_of(const struct conn_tuple *tuple, bool *begun)
{
	struct conn_stats *stats = bpf_map_lookup_elem(&conn_stats, tuple);
	struct conn_stats fresh;

	*begun = false;
	if (stats)
		return stats;
	fill_new(&fresh, guess_direction(tuple));
	*begun = !map_insert(conn_stats, tuple, &fresh);
	log_debug("port %u to %u of process %u begins with its use", tuple->sport, tuple->dport, tuple->pid);
	stats = bpf_map_lookup_elem(&conn_stats, tuple);
	if (!stats)
		count(stats_lost);
	return stats;
}

static __always_inline void add_bytes(struct conn_stats *stats, __u64 sent, __u64 received)
{
	if ((sent || received) && !(stats->flags & (CONN_L_INIT | CONN_R_INIT)))
		stats->flags |= sent ? CONN_L_INIT : CONN_R_INIT;
	if (sent)
		__sync_fetch_and_add(&stats->sent_bytes, sent);
	if (received)
		__sync_fetch_and_add(&stats->recv_bytes, received);
	if (stats->sent_bytes && stats->recv_bytes)
		stats->flags |= CONN_ASSURED;
	stats->timestamp = bpf_ktime_get_ns();
}

static __always_inline void lose_bytes(__u64 sent, __u64 received)
{
	if (sent)
		count_many(sent_bytes_lost, sent);
	if (received)
		count_many(recv_bytes_lost, received);
}

/*
 * Takes the CPU's batch, unless a program that this one interrupted (or was preempted for) has it. Who has added its
 * one and reads one is alone: the others' ones stay until they are done. give_back comes after it in any case.
 */
static __always_inline bool take(__u32 *busy)
{
	__sync_fetch_and_add(busy, 1);
	return *(volatile __u32 *)busy == 1;
}

static __always_inline void give_back(__u32 *busy)
{
	__sync_fetch_and_add(busy, -1);
}

static __always_inline bool put_in_batch(const struct conn *conn)
{
	__u32 zero = 0, cpu = bpf_get_smp_processor_id();
	struct batch *batch = bpf_map_lookup_elem(&conn_close_batch, &cpu);
	__u32 *busy = bpf_map_lookup_elem(&conn_close_busy, &zero);
	bool put = false;

	if (!batch || !busy)
		return false;
	if (take(busy) && batch->len < CONN_BATCH) {
		__u32 slot = batch->len & (CONN_BATCH - 1);

		batch->conns[slot] = *conn;
		/* User space reads it meanwhile: what len counts is whole. */
		barrier();
		batch->len = slot + 1;
		put = true;
	}
	give_back(busy);
	return put;
}

/* The end of a connection is told once, or counted as lost. */
static __always_inline void tell_closed(void *ctx, struct conn *conn)
{
	log_debug("port %u to %u of process %u closed", conn->tuple.sport, conn->tuple.dport, conn->tuple.pid);
	if (put_in_batch(conn))
		return;
	if (conn->tuple.metadata & CONN_TCP)
		count(unbatched_tcp_close);
	else
		count(unbatched_udp_close);
	if (send_event(ctx, &conn_close_event, conn, sizeof(*conn)))
		count(events_lost);
}

/* On the way out of a function that closes. */
static __always_inline void flush_batch(void *ctx)
{
	__u32 zero = 0, cpu = bpf_get_smp_processor_id();
	struct batch *batch = bpf_map_lookup_elem(&conn_close_batch, &cpu);
	__u32 *busy;

	if (!batch || batch->len != CONN_BATCH)
		return;
	busy = bpf_map_lookup_elem(&conn_close_busy, &zero);
	if (!busy)
		return;
	if (take(busy) && batch->len == CONN_BATCH) {
		if (send_event(ctx, &conn_close_event, batch, sizeof(*batch)))
			count_many(events_lost, CONN_BATCH);
		batch->len = 0;
		barrier();
		batch->id += 1;
	}
	give_back(busy);
}

static __always_inline void set_times(struct conn_stats *stats)
{
	__u64 now = bpf_ktime_get_ns();

	stats->duration = now - stats->duration;
	stats->timestamp = now;
}

#endif
