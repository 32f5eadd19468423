/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How much a TCP socket says itself that went through it: for calls whose program the kernel passed by.
 *
 * Both counts are as system calls see it: bytes that it took from its user, acknowledged, in flight or waiting, and
 * bytes that were taken out of it (a peek takes nothing, what is unread at the end was not taken). The end of each
 * half, which takes a sequence number as a byte does, is left out. They are modulo 2^32, so only differences mean
 * anything: of a connection that is followed, what was missed is the socket's count less what was there before less
 * what programs have seen.
 *
 * The socket is not locked here: a segment may come between two reads (tcp_snd_una_update, tcp_rcv_nxt_update). What
 * was missed is then told too small and not too large, so of each count there are two: at the end the total is read
 * before what it has moved on, at the beginning after it. What that cannot help against: a segment that another CPU is
 * accounting for just then, between the kernel's store to the total and the one behind it, counts twice.
 */
#ifndef TRACER_COUNTS_H
#define TRACER_COUNTS_H

#include <bpf/bpf_endian.h>

#include "tracer-maps.h"

/*
 * Whether our half has ended and its end has a number. A socket that is over (CLOSE) does not tell any more; there it is
 * taken for granted, so of what was missed a connection that was reset may lack a byte, and none has one too many.
 * (pushed_seq does not tell either: a send that waits for room while another thread shuts down pushes the end, too.)
 */
static __always_inline bool fin_sent(struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return state == TCP_FIN_WAIT1_STATE || state == TCP_FIN_WAIT2_STATE || state == TCP_CLOSING_STATE ||
	       state == TCP_LAST_ACK_STATE || state == TCP_CLOSE_STATE;
}

/*
 * What was acknowledged, and what was not yet; at the least, if segments come meanwhile. Of who connected its SYN is in
 * it: see SYN_SENT_COUNT.
 */
static __always_inline __u32 sent_count(struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u32 acknowledged = BPF_CORE_READ(tcp, bytes_acked);
	__u32 written = BPF_CORE_READ(tcp, write_seq);
	__u32 unacknowledged = BPF_CORE_READ(tcp, snd_una);

	return acknowledged + written - unacknowledged - fin_sent(sk);
}

/* The same at the most. */
static __always_inline __u32 sent_count_before(struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u32 fin = fin_sent(sk);
	__u32 unacknowledged = BPF_CORE_READ(tcp, snd_una);
	__u32 written = BPF_CORE_READ(tcp, write_seq);
	__u32 acknowledged = BPF_CORE_READ(tcp, bytes_acked);

	return acknowledged + written - unacknowledged - fin;
}

/* tcp_rcv_synsent_state_process lets tcp_ack count the SYN; a socket that was accepted begins behind its own. */
#define SYN_SENT_COUNT 1

/*
 * What has arrived in order, less what is left of it; at the least, if segments come meanwhile. Read up to a received
 * end means read past it.
 */
static __always_inline __u32 received_count(struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u32 arrived = BPF_CORE_READ(tcp, bytes_received);
	__u32 copied = BPF_CORE_READ(tcp, copied_seq);
	__u32 left = BPF_CORE_READ(tcp, rcv_nxt) - copied;
	bool fin = BPF_CORE_READ(sk, __sk_common.skc_flags) & FIN_RECEIVED;

	return arrived - left - (fin && !left);
}

/* The same at the most. */
static __always_inline __u32 received_count_before(struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	bool fin = BPF_CORE_READ(sk, __sk_common.skc_flags) & FIN_RECEIVED;
	__u32 next = BPF_CORE_READ(tcp, rcv_nxt);
	__u32 left = next - BPF_CORE_READ(tcp, copied_seq);
	__u32 arrived = BPF_CORE_READ(tcp, bytes_received);

	return arrived - left - (fin && !left);
}

/* Half the numbers are behind: programs have seen more, as when two threads began it together. */
static __always_inline __u32 missing(__u32 count, __u32 before, __u64 seen)
{
	__u32 number = count - before - (__u32)seen;

	return (__s32)number > 0 ? number : 0;
}

/* The socket is another's by now, if it was taken apart in between (tcp_disconnect sets its counts anew). */
static __always_inline bool is_still(const struct conn_tuple *tuple, struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_dport) == bpf_htons(tuple->dport);
}

/* At the end of a connection, when nobody is in a call on it any more: adds what programs have missed. */
static __always_inline void add_missing(struct conn_stats *stats, const struct tracked_socket *tracked,
					struct sock *sk)
{
	__u32 sent, received;

	if (!is_still(&tracked->tuple, sk))
		return;
	sent = missing(sent_count(sk), tracked->sent_before, stats->sent_bytes);
	received = missing(received_count(sk), tracked->received_before, stats->recv_bytes);
	if (sent)
		stats->sent_bytes += sent;
	if (received)
		stats->recv_bytes += received;
	if (stats->sent_bytes && stats->recv_bytes)
		stats->flags |= CONN_ASSURED;
}

#endif
