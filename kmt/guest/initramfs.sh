#!/bin/sh
# The initramfs's init: loads what reaching the disks takes, puts the root together, hands over to init.sh.
# Disks are found by their serial number, never by letter: probing order differs from kernel to kernel.
export PATH=/bin

fail() {
	echo "kmt: initramfs: $*" >/dev/console
	poweroff -f
	sleep 60
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
read -r release </proc/sys/kernel/osrelease
echo "kmt: kernel $release is up" >/dev/console

while read -r module optional; do
	if [ "$optional" ]; then
		insmod "/modules/$module" 2>/dev/null || true # it drives what this machine has not
	else
		insmod "/modules/$module" || fail "cannot load $module"
	fi
done </modules/order

layers=
for name in kernel root compiler; do
	for serial in /sys/block/*/serial; do
		read -r found <"$serial" || true # there is no line break behind it
		[ "$found" = "kmt-$name" ] || continue
		disk=${serial%/serial}
		mkdir -p "/layers/$name"
		mount -t erofs -o ro "/dev/${disk##*/}" "/layers/$name" || fail "the $name disk is no erofs image"
		layers="$layers:/layers/$name"
	done
done
[ -d /layers/root ] || fail "no disk has the serial number kmt-root"

mount -t tmpfs -o mode=0755,size=75% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o "lowerdir=${layers#:},upperdir=/upper/files,workdir=/upper/work" overlay /root ||
	fail "cannot mount the overlay"
mount -t tmpfs -o mode=0755,size=50% tmpfs /root/run
mkdir /root/run/kmt
cp -r /kmt/* /root/run/kmt/
cp -a /bin /root/run/kmt/bin
mount -o move /dev /root/dev
mount -o move /proc /root/proc
mount -o move /sys /root/sys
exec switch_root /root /run/kmt/bin/sh /run/kmt/init.sh
