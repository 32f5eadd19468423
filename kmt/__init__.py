"""The matrix engine: which kernels, where they come from, how a VM boots, how tests get in and results out.

It knows nothing of tracers, watchers or TUF: those live in ``harness`` and are told to it by tests.
Start reading at ``run/`` (kernels through their phases) or ``pytest_plugin.py`` (how people meet it).
"""
