/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The tracer's maps and constants, the same for both tracers. Sizes of 0 are filled in before loading.
 */
#ifndef TRACER_MAPS_H
#define TRACER_MAPS_H

#include "kernel_types.h"

#include "event_output.h"
#include "tracer.h"

/* Filled in before loading. The device is in the kernel's own encoding: major << 20 | minor. */
const volatile __u64 systemprobe_device;
const volatile __u64 systemprobe_ino;

/* A socket from its first use to its end. tuple: TCP, its connection; UDP, the flow it used last. */
struct tracked_socket {
	struct conn_tuple tuple;
	__u32 flows;	       /* UDP: entries of conn_stats that it began */
	__u16 bound_port;      /* UDP: the port that it is counted for in udp_port_bindings, or 0 */
	__u32 sent_before;     /* TCP: what the socket's own counts (tracer-counts.h) say of bytes that are none of this */
	__u32 received_before; /* connection's: moved before it was followed, by another pid namespace, or called lost */
};

/* The flow that a thread is sending on, between building the packet and the end of the call. */
struct udp_send {
	__u64 sock;
	struct conn_tuple tuple;
};

#define HASH(name, key_type, value_type, size)                                           \
	struct {                                                                         \
		__uint(type, BPF_MAP_TYPE_HASH);                                         \
		__type(key, key_type);                                                   \
		__type(value, value_type);                                               \
		__uint(max_entries, size);                                               \
	} name SEC(".maps");                                                             \
	TELEMETRY(name)

HASH(conn_stats, struct conn_tuple, struct conn_stats, 0);
HASH(tcp_stats, struct conn_tuple, struct tcp_stats, 0);
/* The key's pid is 0; only connections that have retransmitted are in it. */
HASH(tcp_retransmits, struct conn_tuple, __u32, 0);
HASH(tracked_sockets, __u64, struct tracked_socket, 0);
HASH(port_bindings, struct port_binding, __u32, 0);
HASH(udp_port_bindings, struct port_binding, __u32, 0);
/* Listening sockets that have accepted, with the binding they are counted in. */
HASH(tcp_listeners, __u64, struct port_binding, 0);
/* Which thread asked for a connection: the handshake ends in whatever task the last packet interrupts. */
HASH(tcp_ongoing_connect_pid, __u64, __u64, 1024);
/* By thread. */
HASH(udp_send_skb_args, __u64, struct udp_send, 1024);
/* Who is in udp_sendpage, and whether what it sends was counted on the way. */
HASH(udp_sendpage_args, __u64, __u64, 1024);
HASH(conn_close_batch, __u32, struct batch, 1024);

/* Who is at work on this CPU's batch: a program may be interrupted, or preempted, by another. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} conn_close_busy SEC(".maps");

EVENTS(conn_close_event);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct telemetry);
	__uint(max_entries, 1);
} telemetry SEC(".maps");

/* Which families new connections are followed of, 1 << (2 * UDP + IPv6), or OVER; user space may change it at any time. */
#define OVER (1U << 31)
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} collected SEC(".maps");

#define count_many(field, number)                                                        \
	({                                                                               \
		__u32 count_zero = 0;                                                    \
		struct telemetry *t = bpf_map_lookup_elem(&telemetry, &count_zero);      \
		if (t)                                                                   \
			__sync_fetch_and_add(&t->field, number);                         \
	})
#define count(field) count_many(field, 1)

static __always_inline bool is_collected(const struct conn_tuple *tuple)
{
	__u32 zero = 0, *families = bpf_map_lookup_elem(&collected, &zero);
	__u32 udp = !(tuple->metadata & CONN_TCP), v6 = !!(tuple->metadata & CONN_V6);

	return families && (*families >> (2 * udp + v6) & 1);
}

/* The tracer has ended: its programs do nothing any more, for as long as the kernel still calls them. */
static __always_inline bool is_over(void)
{
	__u32 zero = 0, *families = bpf_map_lookup_elem(&collected, &zero);

	return families && *families & OVER;
}

/* The current process as its pid namespace knows it, thread in the low half; 0 if it is in another namespace. */
static __always_inline __u64 current_process(void)
{
	struct bpf_pidns_info info = {};

	if (bpf_get_ns_current_pid_tgid(systemprobe_device, systemprobe_ino, &info, sizeof(info)))
		return 0;
	return (__u64)info.tgid << 32 | info.pid;
}

#endif
