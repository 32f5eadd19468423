/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What happens to TCP sockets, whichever kind of program hears of it. The names are those of the kernel's functions.
 */
#ifndef TRACER_TCP_H
#define TRACER_TCP_H

#include "tracer-connections.h"
#include "tracer-counts.h"
#include "tracer-sockets.h"

/*
 * A connection begins: whatever is still known of its socket or of its addresses is over. Again: a second program at the
 * same place, which leaves counting what has no room, here and in the errors of maps, to the first.
 */
static __always_inline void tcp_begin(struct sock *sk, __u32 pid, __u8 direction, bool again)
{
	__u64 key = (__u64)sk;
	struct tracked_socket fresh = {};
	struct tcp_stats tcp = { .state_transitions = 1 << TCP_ESTABLISHED_STATE };
	struct conn_stats stats;
	bool failed;

	if (!read_socket(&fresh.tuple, sk, pid, CONN_TCP) || !is_collected(&fresh.tuple))
		return;
	fresh.sent_before = direction == CONN_DIRECTION_OUTGOING ? SYN_SENT_COUNT : 0;
	log_debug("port %u to %u of process %u begins", fresh.tuple.sport, fresh.tuple.dport, pid);
	fill_new(&stats, direction);
	if (again)
		failed = bpf_map_update_elem(&tracked_sockets, &key, &fresh, BPF_ANY) ||
			 bpf_map_update_elem(&conn_stats, &fresh.tuple, &stats, BPF_ANY);
	else
		failed = map_update(tracked_sockets, &key, &fresh) || map_update(conn_stats, &fresh.tuple, &stats);
	if (failed) {
		bpf_map_delete_elem(&tracked_sockets, &key);
		if (!again)
			count(stats_lost);
		return;
	}
	map_update(tcp_stats, &fresh.tuple, &tcp);
}

static __always_inline void on_tcp_connect(struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u64 process = current_process();

	if (process && map_update(tcp_ongoing_connect_pid, &key, &process))
		count(connects_lost);
}

/* For a second program at the same place, which runs also where the kernel passed the first by; before it or after. */
static __always_inline void on_tcp_connect_again(struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u64 process = current_process();

	if (process)
		bpf_map_update_elem(&tcp_ongoing_connect_pid, &key, &process, BPF_NOEXIST);
}

/* Runs in any task, so the pid namespace says nothing here: tcp_connect has asked. */
static __always_inline void on_tcp_finish_connect(struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u64 *process = bpf_map_lookup_elem(&tcp_ongoing_connect_pid, &key);
	__u32 pid;

	if (!process)
		return;
	pid = *process >> 32;
	bpf_map_delete_elem(&tcp_ongoing_connect_pid, &key);
	/* Fast open sends before the handshake ends. */
	if (!bpf_map_lookup_elem(&tracked_sockets, &key))
		tcp_begin(sk, pid, CONN_DIRECTION_OUTGOING, false);
}

/* However many it accepts, a listener is one binding of its port. */
static __always_inline void accepted(struct sock *listener, struct sock *sk, bool again)
{
	__u64 process = current_process(), key = (__u64)listener;
	struct port_binding port = {};

	if (!sk || !process)
		return;
	tcp_begin(sk, process >> 32, CONN_DIRECTION_INCOMING, again);
	port.netns = netns_of(listener);
	port.port = local_port(listener);
	if (!bpf_map_lookup_elem(&tcp_listeners, &key) && !map_insert(tcp_listeners, &key, &port))
		bind_port(port_bindings, &port);
}

static __always_inline void on_inet_csk_accept(struct sock *listener, struct sock *sk)
{
	accepted(listener, sk, false);
}

static __always_inline void on_inet_csk_accept_again(struct sock *listener, struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (sk && !bpf_map_lookup_elem(&tracked_sockets, &key))
		accepted(listener, sk, true);
}

static __always_inline void on_inet_csk_listen_stop(struct sock *listener)
{
	__u64 key = (__u64)listener;
	struct port_binding *known = bpf_map_lookup_elem(&tcp_listeners, &key);
	struct port_binding port;

	if (!known)
		return;
	port = *known;
	bpf_map_delete_elem(&tcp_listeners, &key);
	unbind_port(&port_bindings, &port);
}

static __always_inline void measure(struct tcp_stats *tcp, struct sock *sk)
{
	__u32 srtt = BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) >> 3;

	if (srtt) {
		tcp->rtt = srtt;
		tcp->rtt_var = BPF_CORE_READ((struct tcp_sock *)sk, mdev_us) >> 2;
	}
}

static __always_inline void count_segments(struct conn_stats *stats, struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	stats->sent_packets = BPF_CORE_READ(tcp, segs_out);
	stats->recv_packets = BPF_CORE_READ(tcp, segs_in);
}

/*
 * The socket's connection; one that is new to us belongs to this process, and begins with these bytes. Or with its
 * first, where its end of the connect was not seen, or is still to come (fast open). NULL: not to be followed, or no room.
 */
static __always_inline struct tracked_socket *tcp_tracked(struct sock *sk, __u32 pid, __u64 sent, __u64 received,
							  bool *lost)
{
	__u64 key = (__u64)sk;
	struct tracked_socket *tracked = bpf_map_lookup_elem(&tracked_sockets, &key);
	struct tracked_socket fresh = {};
	__u64 *process;

	*lost = false;
	if (tracked)
		return tracked;
	process = bpf_map_lookup_elem(&tcp_ongoing_connect_pid, &key);
	if (process)
		pid = *process >> 32;
	if (!read_socket(&fresh.tuple, sk, pid, CONN_TCP) || !is_collected(&fresh.tuple))
		return NULL;
	fresh.sent_before = process ? SYN_SENT_COUNT : sent_count_before(sk) - sent;
	fresh.received_before = process ? 0 : received_count_before(sk) - received;
	map_insert(tracked_sockets, &key, &fresh);
	tracked = bpf_map_lookup_elem(&tracked_sockets, &key);
	if (!tracked) {
		count(stats_lost);
		*lost = true;
	}
	return tracked;
}

/* Bytes of a followed connection that are not to be told at its end. */
static __always_inline void leave_out(struct tracked_socket *tracked, __u64 sent, __u64 received)
{
	if (sent)
		__sync_fetch_and_add(&tracked->sent_before, (__u32)sent);
	if (received)
		__sync_fetch_and_add(&tracked->received_before, (__u32)received);
}

static __always_inline void tcp_transferred(struct sock *sk, __u64 sent, __u64 received)
{
	__u64 process = current_process(), key = (__u64)sk;
	struct tracked_socket *tracked;
	struct conn_stats *stats;
	struct tcp_stats *tcp;
	bool lost, begun;

	if (!process) {
		/* Of another pid namespace. */
		tracked = bpf_map_lookup_elem(&tracked_sockets, &key);
		if (tracked)
			leave_out(tracked, sent, received);
		return;
	}
	tracked = tcp_tracked(sk, process >> 32, sent, received, &lost);
	if (!tracked) {
		if (lost)
			lose_bytes(sent, received);
		return;
	}
	stats = stats_of(&tracked->tuple, &begun);
	if (!stats) {
		lose_bytes(sent, received);
		leave_out(tracked, sent, received);
		return;
	}
	add_bytes(stats, sent, received);
	if (!sent)
		return;
	count_segments(stats, sk);
	tcp = bpf_map_lookup_elem(&tcp_stats, &tracked->tuple);
	if (tcp)
		measure(tcp, sk);
}

static __always_inline void on_tcp_sent(struct sock *sk, long sent)
{
	if (sent > 0)
		tcp_transferred(sk, sent, 0);
}

static __always_inline void on_tcp_received(struct sock *sk, int flags, long copied)
{
	if (copied > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)))
		tcp_transferred(sk, 0, copied);
}

/* Softirq, mostly: only connections that are followed already. The number is the socket's own, so no segment of it
 * is missed (loss probes do not come by here). */
static __always_inline void on_tcp_retransmit(struct sock *sk, int failed)
{
	__u64 key = (__u64)sk;
	struct tracked_socket *tracked = bpf_map_lookup_elem(&tracked_sockets, &key);
	struct conn_tuple tuple;
	__u32 number;

	if (failed || !tracked)
		return;
	tuple = tracked->tuple;
	tuple.pid = 0;
	number = BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	map_update(tcp_retransmits, &tuple, &number);
}

/* Whether it ever was a connection, by what the socket has kept of it: a refused one has measured no round trip. */
static __always_inline bool was_connected(struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state != TCP_CLOSE_STATE && state != TCP_SYN_SENT_STATE)
		return true;
	return BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) != 0;
}

/* Takes what the maps know of the connection out of them. */
static __always_inline void tcp_collect(struct conn *conn, struct sock *sk)
{
	struct conn_stats *stats = bpf_map_lookup_elem(&conn_stats, &conn->tuple);
	struct tcp_stats *tcp = bpf_map_lookup_elem(&tcp_stats, &conn->tuple);
	__u32 pid = conn->tuple.pid;

	if (stats) {
		conn->stats = *stats;
		bpf_map_delete_elem(&conn_stats, &conn->tuple);
	} else {
		fill_new(&conn->stats, guess_direction(&conn->tuple));
	}
	if (tcp) {
		conn->tcp = *tcp;
		bpf_map_delete_elem(&tcp_stats, &conn->tuple);
	}
	measure(&conn->tcp, sk);
	conn->tcp.state_transitions |= 1 << TCP_CLOSE_STATE;
	conn->retransmits = BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	if (conn->retransmits) {
		conn->tuple.pid = 0;
		bpf_map_delete_elem(&tcp_retransmits, &conn->tuple);
		conn->tuple.pid = pid;
	}
	count_segments(&conn->stats, sk);
	set_times(&conn->stats);
}

/* The end of a followed connection, in whatever task: false if it is none. */
static __always_inline bool tcp_end(void *ctx, struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct tracked_socket *known = bpf_map_lookup_elem(&tracked_sockets, &key);
	struct tracked_socket tracked;
	struct conn conn = {};

	if (!known)
		return false;
	tracked = *known;
	conn.tuple = tracked.tuple;
	/* Of two who end it the one that takes it out tells. */
	if (bpf_map_delete_elem(&tracked_sockets, &key))
		return true;
	tcp_collect(&conn, sk);
	add_missing(&conn.stats, &tracked, sk);
	count(tcp_closed);
	tell_closed(ctx, &conn);
	return true;
}

static __always_inline void on_tcp_close(void *ctx, struct sock *sk)
{
	__u64 key = (__u64)sk, process;
	struct conn conn = {};

	bpf_map_delete_elem(&tcp_ongoing_connect_pid, &key);
	if (tcp_end(ctx, sk))
		return;
	/* It was open when we came and was not used since, or there was no room for it. */
	process = current_process();
	if (!process || !read_socket(&conn.tuple, sk, process >> 32, CONN_TCP) || !is_collected(&conn.tuple))
		return;
	if (!was_connected(sk))
		return;
	tcp_collect(&conn, sk);
	count(tcp_closed);
	tell_closed(ctx, &conn);
}

/* connect() to AF_UNSPEC, a failed connect, and every end without a close: of MPTCP's subflows, for one. What has been
 * told is not told again. */
static __always_inline void on_tcp_abandoned(void *ctx, struct sock *sk)
{
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&tcp_ongoing_connect_pid, &key);
	tcp_end(ctx, sk);
}

#endif
