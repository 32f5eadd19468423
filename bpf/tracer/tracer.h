/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the tracer's programs and user space say to each other: map keys, map values and events.
 *
 * The layouts are fixed (harness/ebpf/events.py decodes them by offset); the assertions below hold them.
 */
#ifndef TRACER_H
#define TRACER_H

/* vmlinux.h has them too. */
#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

/* conn_tuple.metadata */
#define CONN_TCP (1 << 0)
#define CONN_V6 (1 << 1)

/* conn_stats.flags: who sent the first byte, and whether both have sent. */
#define CONN_L_INIT (1 << 0)
#define CONN_R_INIT (1 << 1)
#define CONN_ASSURED (1 << 2)

enum conn_direction {
	CONN_DIRECTION_UNKNOWN = 0,
	CONN_DIRECTION_INCOMING = 1,
	CONN_DIRECTION_OUTGOING = 2,
};

/* One end of a connection, as one process sees it. Ports are in host order, addresses as they are on the wire;
 * an IPv4 address is in the low half (saddr_l, daddr_l) and the high half is zero. */
struct conn_tuple {
	__u64 saddr_h;
	__u64 saddr_l;
	__u64 daddr_h;
	__u64 daddr_l;
	__u16 sport;
	__u16 dport;
	__u32 netns;
	__u32 pid;
	__u32 metadata;
};

struct protocol_stack {
	__u8 api;
	__u8 application;
	__u8 encryption;
	__u8 flags;
};

/* Times are CLOCK_MONOTONIC in ns. duration holds the time of creation until the close event, and then the span.
 * Packets are TCP segments as the socket itself counts them. */
struct conn_stats {
	__u64 sent_bytes;
	__u64 recv_bytes;
	__u32 sent_packets;
	__u32 recv_packets;
	__u64 timestamp;
	__u64 duration;
	__u32 cookie;
	struct protocol_stack protocol_stack;
	__u8 flags;
	__u8 direction;
};

/* state_transitions is a set of bits, 1 << TCP state. rtt and rtt_var are in us, 0 where nothing was measured. */
struct tcp_stats {
	__u32 rtt;
	__u32 rtt_var;
	__u16 state_transitions;
};

/* The event of a closed connection. */
struct conn {
	struct conn_tuple tuple;
	struct conn_stats stats;
	struct tcp_stats tcp;
	__u32 retransmits;
};

/* What happened and could not be told otherwise. Every loss inside the kernel is counted here. */
struct telemetry {
	__u64 tcp_closed;	/* connections whose close was seen */
	__u64 events_lost;	/* of these: no room for the event */
	__u64 stats_lost;	/* updates of conn_stats that found the map full */
	__u64 connects_lost;	/* connects that found tcp_ongoing_connect_pid full */
};

_Static_assert(sizeof(struct conn_tuple) == 48, "conn_tuple");
_Static_assert(sizeof(struct conn_stats) == 56, "conn_stats");
_Static_assert(sizeof(struct tcp_stats) == 12, "tcp_stats");
_Static_assert(sizeof(struct conn) == 120, "conn");
_Static_assert(__builtin_offsetof(struct conn, stats) == 48, "conn.stats");
_Static_assert(__builtin_offsetof(struct conn, tcp) == 104, "conn.tcp");
_Static_assert(__builtin_offsetof(struct conn, retransmits) == 116, "conn.retransmits");
_Static_assert(__builtin_offsetof(struct conn_stats, direction) == 49, "conn_stats.direction");
_Static_assert(sizeof(struct telemetry) == 32, "telemetry");

#endif
