# A filesystem on an attached array: a member fails, or hangs, under load, a spare takes over, everything is still there;
# what is deleted goes back to the members.
#   filesystem ext4|xfs fail|hang LEVEL SPARE MEMBER...
. /lib/vm.sh
kind=$1 trouble=$2 level=$3 spare=$4
shift 4
modprobe nbd nbds_max=1
[ "$kind" != xfs ] || modprobe xfs || fail "no xfs"

raidd_start --enable-fault-injection
raidctl create vol0 --level "$level" --chunk 64K --init zero --spare "$spare" "$@" >/dev/null || fail create
raidctl attach vol0 /dev/nbd0 >/dev/null || fail attach
case $kind in
    ext4) mkfs.ext4 -q /dev/nbd0 ;;
    xfs) mkfs.xfs -q /dev/nbd0 ;;
esac || fail mkfs
mount -t "$kind" /dev/nbd0 /mnt || fail mount

# Workers copy a tree, and meanwhile make, append to, rename, shorten and delete files. They stop when told to.
tree=/lib/modules
worker() {
    round=0
    while [ ! -e /run/enough ]; do
        round=$((round + 1))
        cp -r $tree "/mnt/$1.new" || return 1
        for index in 1 2 3 4 5 6 7 8; do
            head -c $((index * 3000 + round)) /dev/urandom >"/mnt/$1.file" || return 1
            cat "/mnt/$1.file" >>"/mnt/$1.file$index" && mv "/mnt/$1.file" "/mnt/$1.file$index.old" || return 1
            truncate -s $((index * 1000)) "/mnt/$1.file$index" || return 1
        done
        rm -rf "/mnt/$1" "/mnt/$1".file*
        mv "/mnt/$1.new" "/mnt/$1" || return 1
        sync
        echo $round >"/run/round.$1"
    done
}
for name in a b; do
    echo 0 >/run/round.$name
    (worker $name || echo "worker $name failed" >>/run/workers) 2>>/run/workers &
done
rounds() {      # waits until every worker has done so many
    for name in a b; do
        tries=0
        until [ "$(cat /run/round.$name)" -ge "$1" ]; do
            [ ! -s /run/workers ] || fail "$(cat /run/workers)"
            tries=$((tries + 1)); [ $tries -lt 900 ] || fail "worker $name is stuck"
            sleep 0.1
        done
    done
}
rounds 1
case $trouble in
    fail) raidctl fail vol0 "$1" || fail "raidctl fail" ;;
    hang) raidctl tune vol0 member_timeout=1s && raidctl inject vol0 "$1" hang || fail "raidctl inject" ;;
esac
rounds 2
touch /run/enough
wait_for_workers() { while pgrep -f "cp -r" >/dev/null || [ "$(cat /run/round.a)" != "$before" ]; do before=$(cat /run/round.a); sleep 1; done; }
before=
wait_for_workers
[ $trouble = fail ] || raidctl inject vol0 "$1" clear 2>/dev/null   # it may be gone by now
raidctl wait vol0 || fail "no spare took over: $(raidctl status vol0)"
echo "faulty: $(raidctl --json status vol0 | grep -c '"state":"faulty"')"
echo "members: $(raidctl status vol0 | grep -o '\[[U_]*\]' | head -n 1)"

compare() {
    for name in a b; do diff -r $tree "/mnt/$name" >/dev/null || fail "$name differs"; done
}
echo 3 >/proc/sys/vm/drop_caches
compare
umount /mnt || fail umount
case $kind in
    ext4) e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 ;;
    xfs) xfs_repair -n /dev/nbd0 >/tmp/fsck 2>&1 ;;
esac || fail "fsck: $(cat /tmp/fsck)"
mount -t "$kind" /dev/nbd0 /mnt || fail "mount again"
compare
written=$(awk '{ print $7 }' /sys/block/vdb/stat)
rm -rf /mnt/a /mnt/b
sync
echo "trimmed: $(fstrim -v /mnt)" || fail fstrim
umount /mnt
raidctl scrub vol0 && raidctl wait vol0 || fail scrub
echo "mismatches: $(raidctl --json status vol0 | grep -o '"mismatches":[0-9]*')"
echo "written: $((written / 2048)) MiB"
echo "timeouts: $(dmesg | grep -c 'nbd0.*timed out')"
io_errors
echo "io errors: $(io_errors | wc -l)"
raidctl detach vol0 || fail detach
raidd_stop
