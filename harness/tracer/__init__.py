"""The connection tracer: TCP and UDP, by fentry programs or by kprobes."""
