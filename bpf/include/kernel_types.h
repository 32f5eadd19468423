/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The kernel's types, as little of them as the programs read.
 *
 * Every field read here is found by name in the running kernel's BTF when the program is loaded (CO-RE), so neither
 * order nor size means anything below, and a struct that the kernel embeds in an anonymous one may stand flat.
 * Sizes and constants that are part of the system call interface come from <linux/...> instead.
 */
#ifndef KERNEL_TYPES_H
#define KERNEL_TYPES_H

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

#define AF_INET 2
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

enum tcp_state {
	TCP_ESTABLISHED_STATE = 1,
	TCP_SYN_SENT_STATE = 2,
	TCP_CLOSE_STATE = 7,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct inet_sock {
	__be16 inet_sport;
};

struct tcp_sock {
	__u32 segs_in;
	__u32 segs_out;
	__u32 srtt_us;
	__u32 mdev_us;
	__u32 total_retrans;
};

#pragma clang attribute pop

/* Only pointers to these are passed on. */
struct msghdr;
struct proto_accept_arg;
struct sk_buff;

#endif
