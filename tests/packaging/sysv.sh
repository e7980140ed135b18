# The package on a host that SysV init booted. scripts/test-deb runs it inside.
set -eu
. /root/common.sh
script=/etc/init.d/ron-node
touch /tmp/after /tmp/output /tmp/status
files >/tmp/before

step "installing starts the node, and it alone"
expect 0 dpkg -i /root/first.deb
expect 0 $script status
expect 3 /etc/init.d/ron-oniond status
expect 3 /etc/init.d/ron-balance status
expect 3 /etc/init.d/ron-kms status
ready
address=$(onion)
check_account_and_modes
ls /etc/rc2.d/S*ron-node >/tmp/output || die "ron-node does not start at boot"
! ls /etc/rc2.d/S*ron-oniond >/tmp/output 2>&1 || die "ron-oniond starts at boot"
! ls /etc/rc2.d/S*ron-balance >/tmp/output 2>&1 || die "ron-balance starts at boot"
! ls /etc/rc2.d/S*ron-kms >/tmp/output 2>&1 || die "ron-kms starts at boot"
equal "$(ps -o user= -p "$(cat /run/ron/ron-node.pid)")" ron "who it runs as"
check_ronctl

step "start again changes nothing; reload takes a changed config"
pid=$(cat /run/ron/ron-node.pid)
expect 0 $script start
sed -i 's/^level = "info"/level = "debug"/' /etc/ron/micronode.toml
expect 0 $script reload
sleep 2
ready
grep -q '"config_version": *2' /tmp/status || die "the config was not read again"
equal "$(cat /run/ron/ron-node.pid)" "$pid" "pid"

step "killed: status tells, tors went with it, start mends it with the same address"
kill -KILL "$pid"
sleep 1
equal "$(of_ron)" 0 "processes of ron"
expect 1 $script status
expect 0 $script start
ready
equal "$(onion)" "$address" "address"

step "a pid file that names another's process harms nobody"
expect 0 $script stop
equal "$(of_ron)" 0 "processes of ron"
sleep 600 & bystander=$!
echo $bystander >/run/ron/ron-node.pid
expect 0 $script stop
kill -0 $bystander || die "it killed a process that is not ours"
kill $bystander

step "a bad config is refused at once, with the key, and leaves nothing running"
echo 'CONFIG=/etc/ron/broken.toml' >>/etc/default/ron-node
printf '[gateway]\nbnid = "127.0.0.1:9080"\n' >/etc/ron/broken.toml
expect 1 $script start
says gateway.bnid
equal "$(of_ron)" 0 "processes of ron"
rm /etc/ron/broken.toml
sed -i '/broken/d' /etc/default/ron-node
expect 3 $script status
expect 0 $script stop

step "a Macronode, the same way"
sed -i 's/^CONFIG=.*/CONFIG=\/etc\/ron\/macronode.toml/' /etc/default/ron-node
expect 0 $script restart
ready
equal "$(onion)" "$address" "address"
sed -i 's/^CONFIG=.*/CONFIG=\/etc\/ron\/micronode.toml/' /etc/default/ron-node
expect 0 $script restart
ready

step "the onion runtime beside the node, in a home of its own"
expect 0 /etc/init.d/ron-oniond start
tries=0
until [ -e $home/oniond/onions.json ]; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || die "the onion runtime did not come up"
    sleep 1
done
grep -q '"app": *"wiki"' $home/oniond/onions.json || die "no onion for wiki"
expect 0 /etc/init.d/ron-oniond stop
expect 3 /etc/init.d/ron-oniond status
expect 0 $script status

step "a node of a cluster beside the node"
expect 1 /etc/init.d/ron-balance start
begin_cluster
expect 0 /etc/init.d/ron-balance start
check_cluster
expect 0 /etc/init.d/ron-balance stop
expect 3 /etc/init.d/ron-balance status

step "the key service beside the node: its keys outlive a kill, a bad config is refused with the key"
kms=/etc/init.d/ron-kms
expect 0 $kms start
check_kms
equal "$(ps -o user= -p "$(cat /run/ron/ron-kms.pid)")" ron "who the key service runs as"
expect 0 $kms start
expect 0 $kms reload
kill -KILL "$(cat /run/ron/ron-kms.pid)"
sleep 1
expect 1 $kms status
expect 0 $kms start
expect 0 $kms status
kms_kept_all
expect 0 $kms stop
expect 3 $kms status
expect 0 $script status
echo 'CONFIG=/etc/ron/broken.toml' >>/etc/default/ron-kms
printf 'bind_adr = "127.0.0.1:9446"\n' >/etc/ron/broken.toml
expect 1 $kms start
says bind_adr
rm /etc/ron/broken.toml
sed -i '/broken/d' /etc/default/ron-kms
expect 0 $kms start
kms_kept_all

step "upgrading keeps config, state and address, and the keys of the key service"
printf 'before' | ronctl mailbox send keep/me >/tmp/output
expect 0 dpkg -i --force-confdef --force-confold /root/second.deb
expect 0 $script status
ready
equal "$(onion)" "$address" "address"
equal "$(ronctl mailbox recv keep/me)" before "the message"
expect 0 $kms restart
kms_kept_all
grep -q '^level = "debug"' /etc/ron/micronode.toml || die "our change of the config is gone"
grep -q '^# upgraded' /etc/ron/macronode.toml || die "a config nobody changed was not upgraded"

step "removing stops it and keeps what is ours; installing again brings the address back"
expect 0 dpkg -r rustyonions
equal "$(of_ron)" 0 "processes of ron"
[ ! -e /usr/lib/rustyonions ] || die "/usr/lib/rustyonions is still there: $(find /usr/lib/rustyonions | head -n 3)"
[ -e $home/mailbox ] && [ -e /etc/ron/micronode.toml ] || die "state or config went"
[ -e $home/kms ] && [ -e /etc/ron/ron-kms.toml ] || die "state or config of the key service went"
expect 0 sh $script start
expect 0 sh $kms start
expect 0 dpkg -i --force-confold /root/second.deb
ready
equal "$(onion)" "$address" "address"
expect 0 $kms start
kms_kept_all

step "purging a node with amnesia, and a running key service"
sed -i 's/^CONFIG=.*/CONFIG=\/etc\/ron\/micronode-amnesia.toml/' /etc/default/ron-node
expect 0 $script restart
ready
kill -KILL "$(cat /run/ron/ron-node.pid)"
[ -n "$(ls /dev/shm)" ] || die "amnesia without a folder in memory"
expect 0 $kms status
expect 0 dpkg -P rustyonions
check_purged /tmp/before
