#!/bin/busybox sh
# First process of the guest: modules, the host's files read-only as the root, and from there the tests.
b=/bin/busybox
$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module" || echo "insmod $module: failed"; done < /modules/list
share="trans=virtio,version=9p2000.L,msize=512000"
$b mount -t 9p -o "ro,cache=loose,$share" root /root && $b mount -t 9p -o "$share" results /root/mnt || $b poweroff -f
for folder in tmp run var/tmp; do $b mount -t tmpfs tmpfs /root/$folder; done
for folder in proc sys dev; do $b mount --move /$folder /root/$folder; done
$b mkdir -p /root/dev/shm
$b mount -t tmpfs shm /root/dev/shm
$b mount -t bpf bpf /root/sys/fs/bpf
$b chroot /root /bin/sh /mnt/run.sh
$b poweroff -f
