# A mounted array becomes larger, then its filesystem; the kernel takes it over as it is.
. /lib/vm.sh
with_md
modprobe nbd nbds_max=2

raidd_start
raidctl create vol0 --level 5 --size 40M /dev/vda /dev/vdb /dev/vdc >/dev/null || fail create
device=$(raidctl attach vol0) || fail attach
mkfs.ext4 -q -E nodiscard "$device" || fail mkfs
mount "$device" /mnt || fail mount
small=$(df -k /mnt | awk 'END { print $2 }')
raidctl wait vol0 || fail wait
(while :; do cp /bin/busybox /mnt/copy && sync -f /mnt/copy || echo "a write failed"; done) &
writer=$!
sleep 1
raidctl grow vol0 --size max || fail grow
echo "device: $(blockdev --getsize64 "$device") of $(raidctl --json status vol0 | grep -o '"size_bytes":[0-9]*' | head -n 1)"
resize2fs "$device" >/tmp/said 2>&1 || fail "resize2fs: $(cat /tmp/said)"
[ "$(df -k /mnt | awk 'END { print $2 }')" -gt $((small * 3 / 2)) ] || fail "the filesystem is as small as before"
kill $writer; wait $writer 2>/dev/null
raidctl grow vol0 --bitmap none && fail "grown while it is resynced"
raidctl wait vol0 || fail "wait again"
raidctl grow vol0 --bitmap none && raidctl grow vol0 --bitmap internal || fail bitmap
dd if=/dev/urandom of=/mnt/large bs=1M count=110 2>/dev/null || fail "more than fitted before"
umount /mnt || fail umount
e2fsck -fn "$device" >/tmp/said 2>&1 || fail "e2fsck: $(cat /tmp/said)"
echo "io errors: $(io_errors | wc -l)"
sum=$(content "$device")
raidctl detach vol0 && raidctl stop vol0 || fail stop
raidd_stop
mdadm --assemble /dev/md0 /dev/vda /dev/vdb /dev/vdc || fail "mdadm --assemble"
[ "$(content /dev/md0)" = "$sum" ] || fail "other content for the kernel"
echo "resync: $(cat /sys/block/md0/md/sync_action)"
echo "bitmap: $(cat /sys/block/md0/md/bitmap/location)"
echo "mismatches: $(md_mismatches md0)"
# What raidd's mirrors become is the kernel's, too.
mdadm --stop /dev/md0 && mdadm --zero-superblock /dev/vda /dev/vdb /dev/vdc || fail "mdadm --stop"
raidd_start
raidctl create vol1 --level 1 --size 40M /dev/vda /dev/vdb >/dev/null && raidctl wait vol1 || fail "create vol1"
raidctl add vol1 /dev/vdc && raidctl grow vol1 -n 3 && raidctl wait vol1 || fail "a third copy"
raidctl grow vol1 --size max && raidctl wait vol1 || fail "a larger mirror"
raidd_stop
mdadm --assemble /dev/md1 /dev/vda /dev/vdb /dev/vdc || fail "mdadm --assemble the mirror"
echo "copies: $(cat /sys/block/md1/md/raid_disks) $(cat /sys/block/md1/md/degraded)"
echo "mirror's mismatches: $(md_mismatches md1)"
# And the other way: what the kernel has grown.
mdadm --grow /dev/md1 --bitmap=none || fail "mdadm --grow"
mdadm /dev/md1 --fail /dev/vda --remove /dev/vda || fail "mdadm --fail"
mdadm --grow /dev/md1 --raid-devices 2 || fail "mdadm --grow -n 2"
mdadm --stop /dev/md1 || fail "mdadm --stop the mirror"
raidd_start
echo "taken back: $(raidctl status vol1 | grep -o '\[U*\]')"
raidd_stop
