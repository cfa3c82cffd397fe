# mdadm does what udev would have it do with every member: it takes what is not raidd's, and what raidd has released.
. /lib/vm.sh
with_md
rules=/etc/mdadm/mdadm.conf.d/raidd.conf

taken() {           # taken DISK: whether the kernel's md holds it
    [ -n "$(ls "/sys/block/$1/holders")" ]
}

refuses() {         # refuses DISK...: mdadm -I does not take them, and says why
    for disk in "$@"; do
        said=$(mdadm -I "/dev/$disk" 2>&1) && fail "mdadm -I has taken $disk: $said"
        echo "$said" | grep -q "explicitly ignored" || fail "mdadm -I on $disk says: $said"
        ! taken "$disk" || fail "$disk is held"
    done
}

takes() {           # takes DISK...: mdadm -I does
    for disk in "$@"; do
        mdadm -I "/dev/$disk" || fail "mdadm -I does not take $disk"
        taken "$disk" || fail "$disk is not held"
    done
}

mdadm --create /dev/md9 --level 1 --raid-devices 2 --run --assume-clean /dev/vdd /dev/vde || fail "mdadm --create"
mdadm --stop /dev/md9 || fail "mdadm --stop"

raidd_start
[ ! -e $rules ] || fail "$rules is there before there is an array"
raidctl create vol0 --level 5 --init zero /dev/vda /dev/vdb /dev/vdc || fail "raidctl create"
uuid=$(raidctl status --json vol0 | sed 's/.*"uuid":"\([^"]*\)".*/\1/')
grep -qx "ARRAY <ignore> UUID=$uuid" $rules || fail "no line for $uuid"
said=$(mdadm -I /dev/vda 2>&1) && fail "mdadm -I has taken a member that is served: $said"

# A daemon that is gone, in whatever way, leaves its members to nobody.
kill -KILL $raidd
wait $raidd
refuses vda vdb vdc
mdadm --assemble --scan
! taken vda || fail "mdadm --assemble --scan has taken raidd's array"
taken vdd && taken vde || fail "mdadm --assemble --scan has not taken the other array"
mdadm --stop --scan || fail "mdadm --stop"
takes vdd vde
mdadm --stop --scan || fail "mdadm --stop"
# It is the file that does it.
mv $rules /tmp/raidd.conf
takes vda
mdadm --stop --scan || fail "mdadm --stop"
mv /tmp/raidd.conf $rules
# mdadm's own file may name the array, from the time when it was the kernel's. --scan goes by that.
echo "ARRAY /dev/md/vol0 UUID=$uuid" >/etc/mdadm/mdadm.conf
said=$(mdadm -I /dev/vda 2>&1) && fail "mdadm -I has taken what two lines are about: $said"
echo "two lines: $said" | head -n 1
! taken vda || fail "vda is held"
mdadm --assemble --scan
if taken vda; then echo "named to scan: taken"; else echo "named to scan: left"; fi
mdadm --stop --scan
rm /etc/mdadm/mdadm.conf

# Stopped, it is remembered, and kept.
raidd_start
raidctl stop vol0 || fail "raidctl stop"
refuses vda vdb vdc
# Released, it is the kernel's.
raidctl stop vol0 --release || fail "raidctl stop --release"
! grep ARRAY $rules || fail "there is a line yet"
takes vda vdb vdc
md=$(ls /sys/block/vda/holders)
echo "mismatches: $(md_mismatches "$md")"
mdadm --stop "/dev/$md" || fail "mdadm --stop"
# Taken back, it is raidd's; and released while it runs.
raidctl assemble vol0 /dev/vda /dev/vdb /dev/vdc || fail "raidctl assemble"
grep -qx "ARRAY <ignore> UUID=$uuid" $rules || fail "no line for $uuid"
modprobe nbd && raidctl attach vol0 || fail "raidctl attach"
raidctl stop vol0 --release && fail "it is released although it is attached"
grep -qx "ARRAY <ignore> UUID=$uuid" $rules || fail "no line for $uuid, which was not released"
raidctl stop vol0 --release --force || fail "raidctl stop --release --force"
raidctl status vol0 && fail "it is remembered"
mdadm --assemble --scan
taken vda && taken vdb && taken vdc || fail "mdadm --assemble --scan has not taken what was released"
mdadm --stop --scan || fail "mdadm --stop"
raidd_stop
