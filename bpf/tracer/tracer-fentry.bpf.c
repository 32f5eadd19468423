/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The fentry tracer: TCP and UDP over IPv4 and IPv6, with the bytes that went each way. Here are the places in the
 * kernel where it listens; what it makes of what it hears is in the headers, which the kprobe tracer shares.
 *
 * Sees: connects, accepts, sends, receives and closes by processes of one pid namespace (the one whose device and inode
 * are in systemprobe_device and systemprobe_ino); ends of what these began, whoever ends it.
 * Counts: bytes that send calls took and receive calls gave; splice and sendfile too, in both directions. A peek counts
 * nothing: the bytes count when they are read. Nor does what comes from the error queue. A UDP datagram counts whole,
 * also if the reader's buffer was smaller. TCP packets are segments, UDP packets datagrams (one a call with UDP_SEGMENT).
 * At the end of a TCP connection the socket's own counts are asked, and what calls moved whose program did not run is
 * added (tracer-counts.h): so these bytes are late, and not missed. For that its beginning and its end must be heard, so two
 * programs listen to each, in any order: the kernel passes one by, but hardly both. The same goes for what no call of these moved: zero-copy
 * receive, a sockmap, the records of kTLS, the bytes of MPTCP's subflows; and an urgent byte that a reader skips.
 * Misses: UDP that is sent or read by the kernel itself; bytes of a corked datagram until the next send call where
 * setsockopt sends it; what a connection did before the programs were in; UDP calls for which the kernel passes a program by,
 * because a task of the same CPU was preempted within it (counted: Tracer.missed).
 * Where kernels preempt themselves (7.3 as Debian configures it, not 6.18) a busy CPU does that often;
 * bpf_preempt_disable is no help, for what it put off happens at its end, still within the program.
 * Oldest kernel: 5.8 on x86-64 (BPF trampoline 5.5, bpf_get_ns_current_pid_tgid 5.7), with its own BTF.
 *
 * Several kernel functions changed their arguments over time. A program with one argument too few loads without an
 * error and reads garbage, so there is one program for each signature, and user space loads the one that agrees with
 * the running kernel's BTF (harness/tracer/probes.py).
 */
#include "kernel_types.h"

#include <bpf/bpf_tracing.h>

#include "tracer-tcp.h"
#include "tracer-udp.h"

/* A program: where it listens, its name, what it does, and the function's arguments (at its exit its result, too). */
#define HOOK(section, program, work, arguments...)                                       \
	SEC(section)                                                                     \
	int BPF_PROG(program, arguments)                                                 \
	{                                                                                \
		if (!is_over())                                                          \
			work;                                                            \
		return 0;                                                                \
	}

HOOK("fentry/tcp_connect", tcp_connect, on_tcp_connect(sk), struct sock *sk)
HOOK("fentry/tcp_connect", tcp_connect_again, on_tcp_connect_again(sk), struct sock *sk)
HOOK("fentry/tcp_finish_connect", tcp_finish_connect, on_tcp_finish_connect(sk), struct sock *sk, struct sk_buff *skb)

HOOK("fexit/inet_csk_accept", inet_csk_accept_exit_2, on_inet_csk_accept(listener, sk),
     struct sock *listener, struct proto_accept_arg *arg, struct sock *sk)
HOOK("fexit/inet_csk_accept", inet_csk_accept_exit_4, on_inet_csk_accept(listener, sk),
     struct sock *listener, int flags, int *error, bool kern, struct sock *sk)
HOOK("fexit/inet_csk_accept", inet_csk_accept_again_exit_2, on_inet_csk_accept_again(listener, sk),
     struct sock *listener, struct proto_accept_arg *arg, struct sock *sk)
HOOK("fexit/inet_csk_accept", inet_csk_accept_again_exit_4, on_inet_csk_accept_again(listener, sk),
     struct sock *listener, int flags, int *error, bool kern, struct sock *sk)
HOOK("fentry/inet_csk_listen_stop", inet_csk_listen_stop_enter, on_inet_csk_listen_stop(listener),
     struct sock *listener)

HOOK("fexit/tcp_sendmsg", tcp_sendmsg_exit, on_tcp_sent(sk, sent),
     struct sock *sk, struct msghdr *msg, size_t size, int sent)
HOOK("fexit/tcp_sendpage", tcp_sendpage_exit, on_tcp_sent(sk, sent),
     struct sock *sk, struct page *page, int offset, size_t size, int flags, int sent)

HOOK("fexit/tcp_recvmsg", tcp_recvmsg_exit_4, on_tcp_received(sk, flags, copied),
     struct sock *sk, struct msghdr *msg, size_t len, int flags, int copied)
HOOK("fexit/tcp_recvmsg", tcp_recvmsg_exit_5, on_tcp_received(sk, flags, copied),
     struct sock *sk, struct msghdr *msg, size_t len, int flags, int *addr_len, int copied)
HOOK("fexit/tcp_recvmsg", tcp_recvmsg_exit_6, on_tcp_received(sk, flags, copied),
     struct sock *sk, struct msghdr *msg, size_t len, int nonblock, int flags, int *addr_len, int copied)
HOOK("fexit/tcp_splice_read", tcp_splice_read_exit, on_tcp_received(BPF_CORE_READ(socket, sk), 0, copied),
     struct socket *socket, void *position, struct pipe_inode_info *pipe, size_t len, unsigned int flags, long copied)

HOOK("fexit/tcp_retransmit_skb", tcp_retransmit_skb_exit, on_tcp_retransmit(sk, failed),
     struct sock *sk, struct sk_buff *skb, int segments, int failed)

HOOK("fentry/tcp_close", tcp_close, on_tcp_close(ctx, sk), struct sock *sk, long timeout)
HOOK("fexit/tcp_close", tcp_close_exit, flush_batch(ctx), struct sock *sk, long timeout)
HOOK("fentry/tcp_disconnect", tcp_disconnect, on_tcp_abandoned(ctx, sk), struct sock *sk, int flags)
HOOK("fentry/tcp_v4_destroy_sock", tcp_v4_destroy_sock, on_tcp_abandoned(ctx, sk), struct sock *sk)
HOOK("fentry/tcp_v4_destroy_sock", tcp_v4_destroy_sock_again, on_tcp_abandoned(ctx, sk), struct sock *sk)

HOOK("fentry/udp_send_skb", udp_send_skb, on_udp_send_skb4(skb, flow),
     struct sk_buff *skb, struct flowi4 *flow, struct inet_cork *cork)
HOOK("fentry/udp_v6_send_skb", udp_v6_send_skb, on_udp_send_skb6(skb, flow),
     struct sk_buff *skb, struct flowi6 *flow, struct inet_cork *cork)
HOOK("fexit/udp_sendmsg", udp_sendmsg_exit, on_udp_sent(sk, sent),
     struct sock *sk, struct msghdr *msg, size_t len, int sent)
HOOK("fexit/udpv6_sendmsg", udpv6_sendmsg_exit, on_udpv6_sent(sk, sent),
     struct sock *sk, struct msghdr *msg, size_t len, int sent)
HOOK("fentry/udp_sendpage", udp_sendpage, on_udp_sendpage(),
     struct sock *sk, struct page *page, int offset, size_t size, int flags)
HOOK("fexit/udp_sendpage", udp_sendpage_exit, on_udp_page_sent(sk, sent),
     struct sock *sk, struct page *page, int offset, size_t size, int flags, int sent)

HOOK("fentry/skb_consume_udp", skb_consume_udp, on_skb_consume_udp(sk, skb, copied),
     struct sock *sk, struct sk_buff *skb, int copied)

/* The address is a struct sockaddr_unsized from 6.19 on; it is read as what it holds. */
static __always_inline void bound(struct socket *socket, void *address, int failed)
{
	if (!failed)
		on_udp_bound(BPF_CORE_READ(socket, sk), BPF_CORE_READ((struct sockaddr_in *)address, sin_port));
}

HOOK("fexit/inet_bind", inet_bind_exit, bound(socket, address, failed),
     struct socket *socket, void *address, int size, int failed)
HOOK("fexit/inet6_bind", inet6_bind_exit, bound(socket, address, failed),
     struct socket *socket, void *address, int size, int failed)

HOOK("fentry/udp_destroy_sock", udp_destroy_sock, on_udp_destroy_sock(ctx, sk), struct sock *sk)
HOOK("fexit/udp_destroy_sock", udp_destroy_sock_exit, flush_batch(ctx), struct sock *sk)
HOOK("fentry/udpv6_destroy_sock", udpv6_destroy_sock, on_udp_destroy_sock(ctx, sk), struct sock *sk)
HOOK("fexit/udpv6_destroy_sock", udpv6_destroy_sock_exit, flush_batch(ctx), struct sock *sk)

/* Does nothing: whether a program that was taken off can be attached again is tried with this one (from 5.13 it can). */
SEC("fentry/inet_csk_listen_stop")
int BPF_PROG(can_attach_again, struct sock *listener)
{
	return 0;
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
