# An array as /dev/nbdN: attached, used, refused where it must be, detached.
. /lib/vm.sh
modprobe nbd nbds_max=4
refused() { "$@" >/tmp/said 2>&1 && fail "not refused: $*"; echo "refused: $(cat /tmp/said)"; }

raidd_start
raidctl create vol0 --level 5 /dev/vda /dev/vdb /dev/vdc >/dev/null || fail create
refused raidctl detach vol0
device=$(raidctl attach vol0 /dev/nbd2 --connections 3 --wait 60s) || fail attach
echo "device: $device"
echo "status: $(raidctl status vol0 | grep Device)"
echo "backend: $(cat /sys/block/nbd2/backend)"
echo "size: $(blockdev --getsize64 /dev/nbd2) of $(raidctl --json status vol0 | grep -o '"size_bytes":[0-9]*' | head -n 1)"
echo "queue: $(cat /sys/block/nbd2/queue/logical_block_size) $(cat /sys/block/nbd2/queue/write_cache) $(cat /sys/block/nbd2/queue/fua) $(raidctl --json status vol0 | grep -o '"connections":[0-9]*')"
refused raidctl attach vol0
refused raidctl stop vol0
mkfs.ext4 -q -E nodiscard $device || fail mkfs
mount $device /mnt || fail mount
cp -r /bin /lib /mnt || fail cp
refused raidctl detach vol0
umount /mnt || fail umount
sum=$(content /dev/nbd2)
raidctl detach vol0 || fail detach
echo "after: $(blockdev --getsize64 /dev/nbd2) $(raidctl status vol0 | grep -c Device)"
[ "$(raidctl attach vol0)" = /dev/nbd0 ] || fail "the first free device"
[ "$sum" = "$(content /dev/nbd0)" ] || fail "other content"
# Somebody else takes it away: raidd notices.
nbd-client -d /dev/nbd0 || fail "nbd-client -d"
tries=0
while grep -q attached /var/lib/raidd/arrays.json; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || fail "raidd believes it is attached"; sleep 0.1
done
raidctl attach vol0 >/dev/null || fail "attach again"
raidctl stop vol0 --force || fail stop
echo "at last: $(blockdev --getsize64 /dev/nbd0)"
echo "io errors: $(io_errors | wc -l)"
raidd_stop
