"""The systems under test: the eBPF loader and its fallback chain, the tracers, the watcher, remote configuration.

It runs wherever there is a Python and a kernel (a laptop, a guest, a simulation) and never imports ``kmt``.
"""
