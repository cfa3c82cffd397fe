# Arrays and copies of them, which have UUIDs of their own, are the kernel's at the same time.
#
#   NAME UUID     an array each
#
# Every disk is offered for every array: their UUIDs tell whose they are.
. /lib/vm.sh
with_md
export MDADM_NO_UDEV=1
count=0
for array; do
    md=/dev/md$count name=${array% *} uuid=${array#* }
    mdadm --assemble --uuid "$uuid" $md /dev/vd? 2>&1 || fail "$name: mdadm --assemble"
    echo "$name UUID:$(mdadm --detail $md | sed -n 's/^ *UUID ://p')"
    echo "$name State:$(mdadm --detail $md | sed -n 's/^ *State ://p')"
    echo "$name bitmap: $(cat /sys/block/md$count/md/bitmap/location)"
    for member in /sys/block/md$count/slaves/*; do
        bitmap=$(mdadm --examine-bitmap "/dev/${member##*/}" 2>/dev/null | sed -n 's/^ *UUID : //p')
        echo "$name member: ${member##*/} $bitmap"
    done
    count=$((count + 1))
done
for number in $(seq 0 $((count - 1))); do md_settle md$number; done
# Only now, as what is compared is said there, too.
echo "resyncs: $(dmesg | grep -cE 'resync of RAID|recovery of RAID')"
number=0
for array; do
    name=${array% *}
    echo "$name mismatches: $(md_mismatches md$number)"
    echo "$name content: $(content /dev/md$number)"
    number=$((number + 1))
done
for number in $(seq 0 $((count - 1))); do mdadm --stop /dev/md$number 2>&1 || fail "mdadm --stop"; done
