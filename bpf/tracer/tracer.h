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

/* One end of a connection. Ports are in host order, addresses as they are on the wire; an IPv4 address, mapped ones of
 * IPv6 sockets too, is in the low half (saddr_l, daddr_l) and the high half is zero. pid is the process that the
 * connection belongs to: the one that opened it, or was first seen to use it. */
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
 * Packets are TCP segments as the socket itself counts them (brought up to date when it sends and when it ends), or
 * UDP datagrams. */
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

/* A closed connection. A UDP one without a remote port says that a socket was closed which had more flows than one:
 * those of its pid, netns and sport that are left in conn_stats have ended. */
struct conn {
	struct conn_tuple tuple;
	struct conn_stats stats;
	struct tcp_stats tcp;
	__u32 retransmits;
};

#define CONN_BATCH 4

/* Connections closed on one CPU, len of them; id counts the batches that were sent. */
struct batch {
	struct conn conns[CONN_BATCH];
	__u64 id;
	__u32 cpu;
	__u16 len;
};

/* A port that somebody listens at, or bound a datagram socket to; the value counts who. */
struct port_binding {
	__u32 netns;
	__u16 port;
	__u16 zero;
};

/* What happened and could not be told otherwise. Every loss inside the kernel is counted here. */
struct telemetry {
	__u64 tcp_closed;	   /* connections whose close was seen */
	__u64 udp_closed;	   /* datagram sockets closed that had at least one flow */
	__u64 events_lost;	   /* connections of these that found no room in the event buffer */
	__u64 stats_lost;	   /* connections that found conn_stats or tracked_sockets full, each time they were used */
	__u64 sent_bytes_lost;	   /* what these sent then */
	__u64 recv_bytes_lost;	   /* what these received then */
	__u64 connects_lost;	   /* connects that found tcp_ongoing_connect_pid full: they count from their first use */
	__u64 udp_sends_missed;	   /* sends whose flow is unknown (held back by a cork); their bytes are in sent_bytes_lost */
	__u64 unbatched_tcp_close; /* sent alone: their CPU's batch was full or in use */
	__u64 unbatched_udp_close;
	__u64 udp_dropped_conns;   /* datagram sockets closed that had no flow: nothing to tell */
};

_Static_assert(sizeof(struct conn_tuple) == 48, "conn_tuple");
_Static_assert(sizeof(struct conn_stats) == 56, "conn_stats");
_Static_assert(sizeof(struct tcp_stats) == 12, "tcp_stats");
_Static_assert(sizeof(struct conn) == 120, "conn");
_Static_assert(sizeof(struct batch) == 496, "batch");
_Static_assert(sizeof(struct port_binding) == 8, "port_binding");
_Static_assert(sizeof(struct telemetry) == 11 * 8, "telemetry");
_Static_assert(__builtin_offsetof(struct conn, stats) == 48, "conn.stats");
_Static_assert(__builtin_offsetof(struct conn, tcp) == 104, "conn.tcp");
_Static_assert(__builtin_offsetof(struct conn, retransmits) == 116, "conn.retransmits");
_Static_assert(__builtin_offsetof(struct conn_stats, direction) == 49, "conn_stats.direction");
_Static_assert(__builtin_offsetof(struct batch, len) == 492, "batch.len");

#endif
