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
 * Misses: TCP bytes that leave a socket by zero-copy receive or a sockmap; bytes of kTLS, which takes sendmsg and recvmsg
 * over, and of MPTCP (its subflows are seen as connections without bytes); UDP that is sent or read by the kernel itself;
 * bytes of a corked datagram until the next send call where setsockopt sends it; what a connection did before the
 * programs were in.
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

SEC("fentry/tcp_connect")
int BPF_PROG(tcp_connect, struct sock *sk)
{
	on_tcp_connect(sk);
	return 0;
}

SEC("fentry/tcp_finish_connect")
int BPF_PROG(tcp_finish_connect, struct sock *sk, struct sk_buff *skb)
{
	on_tcp_finish_connect(sk);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept_exit_2, struct sock *listener, struct proto_accept_arg *arg, struct sock *sk)
{
	on_inet_csk_accept(listener, sk);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept_exit_4, struct sock *listener, int flags, int *error, bool kern, struct sock *sk)
{
	on_inet_csk_accept(listener, sk);
	return 0;
}

SEC("fentry/inet_csk_listen_stop")
int BPF_PROG(inet_csk_listen_stop_enter, struct sock *listener)
{
	on_inet_csk_listen_stop(listener);
	return 0;
}

SEC("fexit/tcp_sendmsg")
int BPF_PROG(tcp_sendmsg_exit, struct sock *sk, struct msghdr *msg, size_t size, int sent)
{
	on_tcp_sent(sk, sent);
	return 0;
}

SEC("fexit/tcp_sendpage")
int BPF_PROG(tcp_sendpage_exit, struct sock *sk, struct page *page, int offset, size_t size, int flags, int sent)
{
	on_tcp_sent(sk, sent);
	return 0;
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(tcp_recvmsg_exit_4, struct sock *sk, struct msghdr *msg, size_t len, int flags, int copied)
{
	on_tcp_received(sk, flags, copied);
	return 0;
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(tcp_recvmsg_exit_5, struct sock *sk, struct msghdr *msg, size_t len, int flags, int *addr_len,
	     int copied)
{
	on_tcp_received(sk, flags, copied);
	return 0;
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(tcp_recvmsg_exit_6, struct sock *sk, struct msghdr *msg, size_t len, int nonblock, int flags,
	     int *addr_len, int copied)
{
	on_tcp_received(sk, flags, copied);
	return 0;
}

SEC("fexit/tcp_splice_read")
int BPF_PROG(tcp_splice_read_exit, struct socket *socket, void *position, struct pipe_inode_info *pipe, size_t len,
	     unsigned int flags, long copied)
{
	on_tcp_received(BPF_CORE_READ(socket, sk), 0, copied);
	return 0;
}

SEC("fexit/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb_exit, struct sock *sk, struct sk_buff *skb, int segments, int failed)
{
	on_tcp_retransmit(sk, failed);
	return 0;
}

SEC("fentry/tcp_close")
int BPF_PROG(tcp_close, struct sock *sk, long timeout)
{
	on_tcp_close(ctx, sk);
	return 0;
}

SEC("fexit/tcp_close")
int BPF_PROG(tcp_close_exit, struct sock *sk, long timeout)
{
	flush_batch(ctx);
	return 0;
}

SEC("fentry/tcp_disconnect")
int BPF_PROG(tcp_disconnect, struct sock *sk, int flags)
{
	on_tcp_abandoned(ctx, sk);
	return 0;
}

SEC("fentry/tcp_v4_destroy_sock")
int BPF_PROG(tcp_v4_destroy_sock, struct sock *sk)
{
	on_tcp_abandoned(ctx, sk);
	return 0;
}

SEC("fentry/udp_send_skb")
int BPF_PROG(udp_send_skb, struct sk_buff *skb, struct flowi4 *flow, struct inet_cork *cork)
{
	on_udp_send_skb4(skb, flow);
	return 0;
}

SEC("fentry/udp_v6_send_skb")
int BPF_PROG(udp_v6_send_skb, struct sk_buff *skb, struct flowi6 *flow, struct inet_cork *cork)
{
	on_udp_send_skb6(skb, flow);
	return 0;
}

SEC("fexit/udp_sendmsg")
int BPF_PROG(udp_sendmsg_exit, struct sock *sk, struct msghdr *msg, size_t len, int sent)
{
	on_udp_sent(sk, sent);
	return 0;
}

SEC("fexit/udpv6_sendmsg")
int BPF_PROG(udpv6_sendmsg_exit, struct sock *sk, struct msghdr *msg, size_t len, int sent)
{
	on_udpv6_sent(sk, sent);
	return 0;
}

SEC("fentry/udp_sendpage")
int BPF_PROG(udp_sendpage, struct sock *sk, struct page *page, int offset, size_t size, int flags)
{
	on_udp_sendpage();
	return 0;
}

SEC("fexit/udp_sendpage")
int BPF_PROG(udp_sendpage_exit, struct sock *sk, struct page *page, int offset, size_t size, int flags, int sent)
{
	on_udp_page_sent(sk, sent);
	return 0;
}

SEC("fentry/skb_consume_udp")
int BPF_PROG(skb_consume_udp, struct sock *sk, struct sk_buff *skb, int copied)
{
	on_skb_consume_udp(sk, skb, copied);
	return 0;
}

/* The address is a struct sockaddr_unsized from 6.19 on; it is read as what it holds. */
static __always_inline int bound(struct socket *socket, void *address, int failed)
{
	if (!failed)
		on_udp_bound(BPF_CORE_READ(socket, sk), BPF_CORE_READ((struct sockaddr_in *)address, sin_port));
	return 0;
}

SEC("fexit/inet_bind")
int BPF_PROG(inet_bind_exit, struct socket *socket, void *address, int size, int failed)
{
	return bound(socket, address, failed);
}

SEC("fexit/inet6_bind")
int BPF_PROG(inet6_bind_exit, struct socket *socket, void *address, int size, int failed)
{
	return bound(socket, address, failed);
}

SEC("fentry/udp_destroy_sock")
int BPF_PROG(udp_destroy_sock, struct sock *sk)
{
	on_udp_destroy_sock(ctx, sk);
	return 0;
}

SEC("fexit/udp_destroy_sock")
int BPF_PROG(udp_destroy_sock_exit, struct sock *sk)
{
	flush_batch(ctx);
	return 0;
}

SEC("fentry/udpv6_destroy_sock")
int BPF_PROG(udpv6_destroy_sock, struct sock *sk)
{
	on_udp_destroy_sock(ctx, sk);
	return 0;
}

SEC("fexit/udpv6_destroy_sock")
int BPF_PROG(udpv6_destroy_sock_exit, struct sock *sk)
{
	flush_batch(ctx);
	return 0;
}

/* Does nothing: whether a program that was taken off can be attached again is tried with this one (from 5.13 it can). */
SEC("fentry/inet_csk_listen_stop")
int BPF_PROG(can_attach_again, struct sock *listener)
{
	return 0;
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
