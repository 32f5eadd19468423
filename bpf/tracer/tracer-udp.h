/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What happens to UDP sockets, whichever kind of program hears of it. The names are those of the kernel's functions.
 *
 * A socket may have many flows, each an entry of conn_stats; they belong to the process that was first seen to use the
 * socket, and end with it.
 */
#ifndef TRACER_UDP_H
#define TRACER_UDP_H

#include "tracer-connections.h"
#include "tracer-sockets.h"

static __always_inline struct tracked_socket *udp_tracked(struct sock *sk, __u32 pid)
{
	__u64 key = (__u64)sk;
	struct tracked_socket *tracked = bpf_map_lookup_elem(&tracked_sockets, &key);
	struct tracked_socket fresh = {};

	if (tracked)
		return tracked;
	fresh.tuple.pid = pid;
	fresh.tuple.netns = netns_of(sk);
	fresh.tuple.sport = local_port(sk);
	map_insert(tracked_sockets, &key, &fresh);
	return bpf_map_lookup_elem(&tracked_sockets, &key);
}

static __always_inline void udp_transferred(struct sock *sk, struct conn_tuple *tuple, __u64 sent, __u64 received,
					    __u32 datagrams_sent, __u32 datagrams_received)
{
	struct tracked_socket *tracked;
	struct conn_stats *stats = NULL;
	bool begun = false;

	if (!is_collected(tuple))
		return;
	tracked = udp_tracked(sk, tuple->pid);
	if (tracked) {
		tuple->pid = tracked->tuple.pid;
		stats = stats_of(tuple, &begun);
	} else {
		count(stats_lost);
	}
	if (!stats) {
		lose_bytes(sent, received);
		return;
	}
	if (begun) {
		tracked->tuple = *tuple;
		__sync_fetch_and_add(&tracked->flows, 1);
	}
	add_bytes(stats, sent, received);
	if (datagrams_sent)
		__sync_fetch_and_add(&stats->sent_packets, datagrams_sent);
	if (datagrams_received)
		__sync_fetch_and_add(&stats->recv_packets, datagrams_received);
}

/* A packet is built. Where it goes is known here and nowhere else, unless the socket is connected. */
static __always_inline void on_udp_send_skb4(struct sk_buff *skb, struct flowi4 *flow)
{
	__u64 process = current_process();
	struct sock *sk = BPF_CORE_READ(skb, sk);
	struct udp_send send = { .sock = (__u64)sk };

	if (!process)
		return;
	read_flow4(&send.tuple, flow, sk, process >> 32);
	map_update(udp_send_skb_args, &process, &send);
}

static __always_inline void on_udp_send_skb6(struct sk_buff *skb, struct flowi6 *flow)
{
	__u64 process = current_process();
	struct sock *sk = BPF_CORE_READ(skb, sk);
	struct udp_send send = { .sock = (__u64)sk };

	if (!process)
		return;
	read_flow6(&send.tuple, flow, sk, process >> 32);
	map_update(udp_send_skb_args, &process, &send);
}

/*
 * The end of a send call, which took that many bytes. Without a packet they wait under a cork for more, and count
 * if the socket says where they will go.
 */
static __always_inline void on_udp_sent(struct sock *sk, long sent)
{
	__u64 process = current_process();
	struct udp_send *send;
	struct conn_tuple tuple;
	__u64 *counted;

	if (!process)
		return;
	counted = bpf_map_lookup_elem(&udp_sendpage_args, &process);
	if (counted && sent > 0)
		*counted = 1;
	send = bpf_map_lookup_elem(&udp_send_skb_args, &process);
	if (send && send->sock == (__u64)sk) {
		tuple = send->tuple;
		bpf_map_delete_elem(&udp_send_skb_args, &process);
		if (sent >= 0)
			udp_transferred(sk, &tuple, sent, 0, 1, 0);
	} else if (sent > 0) {
		if (read_socket(&tuple, sk, process >> 32, 0)) {
			udp_transferred(sk, &tuple, sent, 0, 0, 0);
		} else {
			count(udp_sends_missed);
			lose_bytes(sent, 0);
		}
	}
}

/* The same of udpv6_sendmsg, which leaves mapped addresses to udp_sendmsg: that has counted, unless we have a cork. */
static __always_inline void on_udpv6_sent(struct sock *sk, long sent)
{
	__u64 process = current_process();

	if (process && (bpf_map_lookup_elem(&udp_send_skb_args, &process) ||
			BPF_CORE_READ((struct udp_sock *)sk, pending) == AF_INET6))
		on_udp_sent(sk, sent);
}

static __always_inline void on_udp_sendpage(void)
{
	__u64 process = current_process(), counted = 0;

	if (process)
		map_update(udp_sendpage_args, &process, &counted);
}

/* From 6.5 on, and in older kernels that took over its changes (6.1.y), it is done by udp_sendmsg, which has counted. */
static __always_inline void on_udp_page_sent(struct sock *sk, long sent)
{
	__u64 process = current_process();
	__u64 *found = bpf_map_lookup_elem(&udp_sendpage_args, &process);
	__u64 counted = found ? *found : 0;

	bpf_map_delete_elem(&udp_sendpage_args, &process);
	if (!counted)
		on_udp_sent(sk, sent);
}

/*
 * A datagram has been read; of one that was only looked at, what was copied is negative, or the packet has another
 * holder where that is 0. It counts whole, however small the buffer was.
 */
static __always_inline void on_skb_consume_udp(struct sock *sk, struct sk_buff *skb, int copied)
{
	__u64 process = current_process();
	struct conn_tuple tuple;

	if (!process || copied < 0 || (!copied && BPF_CORE_READ(skb, users.refs.counter) > 1))
		return;
	if (read_packet(&tuple, skb, sk, process >> 32))
		udp_transferred(sk, &tuple, 0, BPF_CORE_READ(skb, len), 0, 1);
}

/* A bind that went well; port as it was asked for, in network order. */
static __always_inline void on_udp_bound(struct sock *sk, __be16 asked)
{
	__u64 process = current_process();
	struct port_binding port = {};
	struct tracked_socket *tracked;

	if (!asked || !process || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP)
		return;
	tracked = udp_tracked(sk, process >> 32);
	if (!tracked)
		return;
	port.netns = netns_of(sk);
	port.port = tracked->bound_port = bpf_ntohs(asked);
	bind_port(udp_port_bindings, &port);
}

static __always_inline void on_udp_destroy_sock(void *ctx, struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct tracked_socket *known = bpf_map_lookup_elem(&tracked_sockets, &key);
	struct tracked_socket tracked = {};
	struct conn_stats *stats;
	struct conn conn = {};

	if (known) {
		tracked = *known;
		bpf_map_delete_elem(&tracked_sockets, &key);
		if (tracked.bound_port) {
			struct port_binding port = { .netns = tracked.tuple.netns, .port = tracked.bound_port };

			unbind_port(&udp_port_bindings, &port);
		}
	}
	if (!tracked.flows) {
		if (known || current_process())
			count(udp_dropped_conns);
		return;
	}
	conn.tuple = tracked.tuple;
	stats = bpf_map_lookup_elem(&conn_stats, &conn.tuple);
	if (tracked.flows == 1 && stats) {
		conn.stats = *stats;
		bpf_map_delete_elem(&conn_stats, &conn.tuple);
		set_times(&conn.stats);
	} else {
		conn.tuple.saddr_h = conn.tuple.saddr_l = conn.tuple.daddr_h = conn.tuple.daddr_l = 0;
		conn.tuple.dport = 0;
		conn.tuple.metadata = 0;
	}
	count(udp_closed);
	tell_closed(ctx, &conn);
}

#endif
