/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * log_debug(format, up to three numbers): a line in trace_pipe of tracefs, in the objects NAME-debug.o and nowhere else.
 */
#ifndef LOG_DEBUG_H
#define LOG_DEBUG_H

#ifdef DEBUG
#define log_debug(format, numbers...) bpf_printk(format, ##numbers)
#else
#define log_debug(format, numbers...)
#endif

#endif
