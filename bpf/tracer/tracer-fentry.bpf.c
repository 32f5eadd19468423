/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The fentry tracer: TCP connections over IPv4, with the bytes that went each way.
 *
 * Sees: connects, accepts, sends, receives and closes of AF_INET stream sockets by processes of one pid namespace
 * (the one whose device and inode are in systemprobe_device and systemprobe_ino).
 * Counts: bytes that sendmsg took and recvmsg gave. A peek counts nothing: the bytes count when they are read. Nor does
 * what comes from the error queue: timestamps of what was sent, and errors.
 * Misses: bytes that leave a socket without recvmsg (splice, zero-copy receive, sockmap) or, before 6.5, enter it by
 * sendpage; bytes of kTLS, which takes sendmsg and recvmsg over; MPTCP, whose subflows are closed by the kernel;
 * IPv6 sockets, mapped IPv4 addresses among them; UDP; what a connection did before the programs were in. A socket
 * that one process uses and another closes is ended for the closing one only: the entry of the other stays. So does
 * that of a socket taken apart by connect(AF_UNSPEC).
 * Oldest kernel: 5.8 on x86-64 (BPF trampoline 5.5, bpf_get_ns_current_pid_tgid 5.7), with its own BTF.
 *
 * Several kernel functions changed their arguments over time. A program with one argument too few loads without an
 * error and reads garbage, so there is one program for each signature, and user space loads the one that agrees with
 * the running kernel's BTF (harness/tracer/probes.py).
 */
#include "kernel_types.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "tracer.h"

/* Filled in before loading. The device is in the kernel's own encoding: major << 20 | minor. */
const volatile __u64 systemprobe_device;
const volatile __u64 systemprobe_ino;
const volatile __u64 ringbuffers_enabled;

/* Sizes of 0 are filled in before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct conn_tuple);
	__type(value, struct conn_stats);
	__uint(max_entries, 0);
} conn_stats SEC(".maps");

/* Which thread asked for a connection: the handshake ends in whatever task the last packet interrupts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, __u64);
	__uint(max_entries, 1024);
} tcp_ongoing_connect_pid SEC(".maps");

/* Turned into a ring buffer before loading where the kernel has one. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 0);
} conn_close_event SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct telemetry);
	__uint(max_entries, 1);
} telemetry SEC(".maps");

#define count(field)                                                                     \
	({                                                                               \
		__u32 zero = 0;                                                          \
		struct telemetry *t = bpf_map_lookup_elem(&telemetry, &zero);            \
		if (t)                                                                   \
			__sync_fetch_and_add(&t->field, 1);                              \
	})

/* The current process as its pid namespace knows it, thread in the low half; 0 if it is in another namespace. */
static __always_inline __u64 current_process(void)
{
	struct bpf_pidns_info info = {};

	if (bpf_get_ns_current_pid_tgid(systemprobe_device, systemprobe_ino, &info, sizeof(info)))
		return 0;
	return (__u64)info.tgid << 32 | info.pid;
}

/*
 * False unless the socket is IPv4 and has both ends: a listening or never connected one has not.
 * Reset, or ended from both sides, a socket gives its port back before it is closed (inet_put_port sets skc_num to 0);
 * inet_sport still says which it was.
 */
static __always_inline bool read_tuple(struct conn_tuple *tuple, struct sock *sk, __u32 pid)
{
	struct sock_common *common = &sk->__sk_common;

	__builtin_memset(tuple, 0, sizeof(*tuple));
	if (BPF_CORE_READ(common, skc_family) != AF_INET)
		return false;
	tuple->saddr_l = BPF_CORE_READ(common, skc_rcv_saddr);
	tuple->daddr_l = BPF_CORE_READ(common, skc_daddr);
	tuple->sport = BPF_CORE_READ(common, skc_num);
	if (!tuple->sport)
		tuple->sport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	tuple->dport = bpf_ntohs(BPF_CORE_READ(common, skc_dport));
	tuple->netns = BPF_CORE_READ(common, skc_net.net, ns.inum);
	tuple->pid = pid;
	tuple->metadata = CONN_TCP;
	return tuple->saddr_l && tuple->daddr_l && tuple->sport && tuple->dport;
}

static __always_inline void fill_new(struct conn_stats *stats, __u8 direction)
{
	__builtin_memset(stats, 0, sizeof(*stats));
	stats->timestamp = stats->duration = bpf_ktime_get_ns();
	stats->cookie = bpf_get_prandom_u32();
	stats->direction = direction;
}

static __always_inline struct conn_stats *stats_of(const struct conn_tuple *tuple, __u8 direction)
{
	struct conn_stats *stats = bpf_map_lookup_elem(&conn_stats, tuple);
	struct conn_stats fresh;

	if (stats)
		return stats;
	fill_new(&fresh, direction);
	bpf_map_update_elem(&conn_stats, tuple, &fresh, BPF_NOEXIST);
	stats = bpf_map_lookup_elem(&conn_stats, tuple);
	if (!stats)
		count(stats_lost);
	return stats;
}

static __always_inline void established(struct sock *sk, __u32 pid, __u8 direction)
{
	struct conn_tuple tuple;
	struct conn_stats *stats;

	if (!read_tuple(&tuple, sk, pid))
		return;
	stats = stats_of(&tuple, direction);
	if (stats)
		stats->direction = direction;
}

static __always_inline void count_segments(struct conn_stats *stats, struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	stats->sent_packets = BPF_CORE_READ(tcp, segs_out);
	stats->recv_packets = BPF_CORE_READ(tcp, segs_in);
}

static __always_inline void transferred(struct sock *sk, __u64 sent, __u64 received)
{
	__u64 process = current_process();
	struct conn_tuple tuple;
	struct conn_stats *stats;

	if (!process || !read_tuple(&tuple, sk, process >> 32))
		return;
	stats = stats_of(&tuple, CONN_DIRECTION_UNKNOWN);
	if (!stats)
		return;
	if (!(stats->flags & (CONN_L_INIT | CONN_R_INIT)))
		stats->flags |= sent ? CONN_L_INIT : CONN_R_INIT;
	if (sent)
		__sync_fetch_and_add(&stats->sent_bytes, sent);
	if (received)
		__sync_fetch_and_add(&stats->recv_bytes, received);
	if (stats->sent_bytes && stats->recv_bytes)
		stats->flags |= CONN_ASSURED;
	stats->timestamp = bpf_ktime_get_ns();
	count_segments(stats, sk);
}

SEC("fentry/tcp_connect")
int BPF_PROG(tcp_connect, struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u64 process = current_process();

	if (process && bpf_map_update_elem(&tcp_ongoing_connect_pid, &key, &process, BPF_ANY))
		count(connects_lost);
	return 0;
}

/* Runs in any task, so the pid namespace says nothing here: tcp_connect has asked. */
SEC("fentry/tcp_finish_connect")
int BPF_PROG(tcp_finish_connect, struct sock *sk, struct sk_buff *skb)
{
	__u64 key = (__u64)sk;
	__u64 *process = bpf_map_lookup_elem(&tcp_ongoing_connect_pid, &key);
	__u32 pid;

	if (!process)
		return 0;
	pid = *process >> 32;
	bpf_map_delete_elem(&tcp_ongoing_connect_pid, &key);
	established(sk, pid, CONN_DIRECTION_OUTGOING);
	return 0;
}

static __always_inline int accepted(struct sock *sk)
{
	__u64 process = current_process();

	if (sk && process)
		established(sk, process >> 32, CONN_DIRECTION_INCOMING);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept_exit_2, struct sock *listener, struct proto_accept_arg *arg, struct sock *sk)
{
	return accepted(sk);
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept_exit_4, struct sock *listener, int flags, int *error, bool kern, struct sock *sk)
{
	return accepted(sk);
}

SEC("fexit/tcp_sendmsg")
int BPF_PROG(tcp_sendmsg_exit, struct sock *sk, struct msghdr *msg, size_t size, int sent)
{
	if (sent > 0)
		transferred(sk, sent, 0);
	return 0;
}

static __always_inline int received(struct sock *sk, int flags, int copied)
{
	if (copied > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)))
		transferred(sk, 0, copied);
	return 0;
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(tcp_recvmsg_exit_4, struct sock *sk, struct msghdr *msg, size_t len, int flags, int copied)
{
	return received(sk, flags, copied);
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(tcp_recvmsg_exit_5, struct sock *sk, struct msghdr *msg, size_t len, int flags, int *addr_len,
	     int copied)
{
	return received(sk, flags, copied);
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(tcp_recvmsg_exit_6, struct sock *sk, struct msghdr *msg, size_t len, int nonblock, int flags,
	     int *addr_len, int copied)
{
	return received(sk, flags, copied);
}

/* Whether it ever was a connection, by what the socket has kept of it: a refused one has measured no round trip. */
static __always_inline bool was_connected(struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state != TCP_CLOSE_STATE && state != TCP_SYN_SENT_STATE)
		return true;
	return BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) != 0;
}

static __always_inline void finish(struct conn *conn, struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u64 now = bpf_ktime_get_ns();
	__u32 srtt = BPF_CORE_READ(tcp, srtt_us) >> 3;

	if (srtt) {
		conn->tcp.rtt = srtt;
		conn->tcp.rtt_var = BPF_CORE_READ(tcp, mdev_us) >> 2;
	}
	conn->tcp.state_transitions = 1 << TCP_CLOSE_STATE;
	if (conn->stats.direction != CONN_DIRECTION_UNKNOWN)
		conn->tcp.state_transitions |= 1 << TCP_ESTABLISHED_STATE;
	conn->retransmits = BPF_CORE_READ(tcp, total_retrans);
	count_segments(&conn->stats, sk);
	conn->stats.duration = now - conn->stats.duration;
	conn->stats.timestamp = now;
}

SEC("fentry/tcp_close")
int BPF_PROG(tcp_close, struct sock *sk, long timeout)
{
	__u64 key = (__u64)sk;
	__u64 process = current_process();
	struct conn_stats *stats;
	struct conn conn = {};
	long failed;

	bpf_map_delete_elem(&tcp_ongoing_connect_pid, &key);
	if (!process || !read_tuple(&conn.tuple, sk, process >> 32))
		return 0;
	stats = bpf_map_lookup_elem(&conn_stats, &conn.tuple);
	if (stats) {
		conn.stats = *stats;
		bpf_map_delete_elem(&conn_stats, &conn.tuple);
	} else if (was_connected(sk)) {
		fill_new(&conn.stats, CONN_DIRECTION_UNKNOWN);
	} else {
		return 0;
	}
	finish(&conn, sk);
	count(tcp_closed);
	if (ringbuffers_enabled)
		failed = bpf_ringbuf_output(&conn_close_event, &conn, sizeof(conn), 0);
	else
		failed = bpf_perf_event_output(ctx, &conn_close_event, BPF_F_CURRENT_CPU, &conn, sizeof(conn));
	if (failed)
		count(events_lost);
	return 0;
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
