#!/bin/busybox sh
# Enters the host's tree, read-only over 9p, and hands over to the rig's pid 1 there.
/bin/busybox mkdir -p /proc /root
for module in /modules/*; do
    /bin/busybox insmod "$module"
done
/bin/busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /root
exec /bin/busybox switch_root /root "$TCMU_RIG_INIT"
