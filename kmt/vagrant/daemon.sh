#!/bin/sh
# Pid 1 of the namespaces that a session's libvirtd lives in (daemon.py): puts the session's room where libvirt looks,
# starts the daemon and reaps what it leaves. libvirtd itself must not be pid 1: QEMUs that it has not started would
# stay zombies, and libvirt waits 40 s for one to go away. Nothing is made outside of the room, nor spoken to on D-Bus:
# systemd-machined would take process numbers of this namespace for its own.
#   daemon.sh ROOM system|user LIBVIRTD...
set -eu
room=$1

# Have a directory, in this mount namespace only: its parent becomes a tmpfs into which what was there is bound again.
have() (
	parent=${1%/*}
	[ ! -d "$1" ] || exit 0
	have "$parent"
	cd "$parent" # stays below the tmpfs; -c: or mount would look for its names above; -n: or it would make /run/mount
	mount -n -t tmpfs -o mode=755 tmpfs "$parent"
	for entry in * .[!.]*; do
		if [ -L "$entry" ]; then
			cp -P "$entry" "$parent/$entry"
			continue
		elif [ -d "$entry" ]; then
			mkdir -p "$parent/$entry"
		elif [ -e "$entry" ]; then
			: >"$parent/$entry"
		else
			continue # a pattern that nothing matches
		fi
		mount -n -c --rbind "./$entry" "$parent/$entry"
	done
	mkdir "$1"
)

if [ "$2" = system ]; then # these paths are compiled in
	for place in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt run/libvirt; do
		have "/$place"
		mount -n --bind "$room/$place" "/$place"
	done
	[ ! -d /run/dbus ] || mount -n -t tmpfs tmpfs /run/dbus
fi
shift 2
"$@" &
wait $!
