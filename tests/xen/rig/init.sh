#!/bin/busybox sh
# Process 1 of dom0. It loads the drivers behind /dev/xen, runs /opt/run, prints what is in /results
# on the console, packed, between two marks, and switches the machine off.
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /dev/shm /results
mount -t tmpfs tmpfs /dev/shm
exec </dev/console >/dev/console 2>&1
while read -r module parameters; do
    # shellcheck disable=SC2086
    insmod "/modules/$module.ko" $parameters
done </etc/modules
ip link set lo up 2>/dev/null

export HOME=/tmp TERM=dumb PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/site:/opt/tests
cd /tmp
sh /opt/run
status=$?
echo "XEN-RIG-RESULTS"
tar -C /results -c . | gzip | base64
echo "XEN-RIG-STATUS $status"
poweroff -f
