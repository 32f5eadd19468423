"""Processes as they begin and end: what ``/proc`` says of one, the kernel's events, and the monitor that tells them."""
