# An array made by raidd is the kernel's a moment later, and raidd's again.
. /lib/vm.sh
with_md
raidd_start
raidctl create vol0 --level 5 /dev/vda /dev/vdb /dev/vdc || fail "raidctl create"
raidctl wait vol0 || fail "raidctl wait"
raidctl stop vol0 || fail "raidctl stop"
mdadm --assemble /dev/md0 /dev/vda /dev/vdb /dev/vdc || fail "mdadm --assemble"
echo "mismatches: $(md_mismatches md0)"
mdadm --stop /dev/md0 || fail "mdadm --stop"
raidctl assemble vol0 || fail "raidctl assemble"
raidctl wait vol0 || fail "raidctl wait"
raidd_stop
