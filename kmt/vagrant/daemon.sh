#!/bin/sh
# Pid 1 of the namespaces that a session's libvirtd lives in (daemon.py): puts the session's room where libvirt looks,
# starts the daemon and reaps what it leaves. libvirtd itself must not be pid 1: QEMUs that it has not started would
# stay zombies, and libvirt waits 40 s for one to go away.
#   daemon.sh ROOM system|user LIBVIRTD...
set -eu
room=$1
if [ "$2" = system ]; then # these paths are compiled in
	for place in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt run/libvirt; do
		mkdir -p "/$place"
		mount --bind "$room/$place" "/$place"
	done
fi
shift 2
"$@" &
wait $!
