# The package on a host that systemd booted: the sandbox of the units is in force. scripts/test-deb runs it inside.
set -eu
. /root/common.sh
tries=0
until [ "$(systemctl is-system-running 2>/dev/null)" = running ]; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || { systemctl --failed --no-pager; die "systemd did not come up"; }
    sleep 1
done
touch /tmp/after /tmp/output /tmp/status
files >/tmp/before

main_pid() { systemctl show -P MainPID ron-node; }
fact() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$2/status"; }

step "installing starts the node, and it alone"
expect 0 dpkg -i /root/first.deb
expect 0 systemctl is-active ron-node
expect 0 systemctl is-enabled ron-node
for unit in ron-oniond ron-balance ron-kms; do
    expect 3 systemctl is-active $unit
    expect 1 systemctl is-enabled $unit
done
ready
address=$(onion)
check_account_and_modes
check_ronctl

step "the sandbox holds for the node and each tor"
for pid in $(pgrep -u ron); do
    equal "$(fact NoNewPrivs "$pid")" 1 "NoNewPrivs"
    equal "$(fact Seccomp "$pid")" 2 "Seccomp"
    equal "$(fact CapBnd "$pid")" 0000000000000000 "CapBnd"
    equal "$(fact CapEff "$pid")" 0000000000000000 "CapEff"
done
expect 0 nsenter -t "$(main_pid)" -m -- findmnt -n -o OPTIONS /
says '^ro'
expect 1 nsenter -t "$(main_pid)" -m -- touch /usr/lib/rustyonions/writable
for unit in ron-node ron-oniond ron-balance ron-kms; do
    expect 0 systemd-analyze security --no-pager --threshold=25 $unit
    tail -n 1 /tmp/output
done

step "killed: systemd starts it again, with the same address"
pid=$(main_pid)
kill -KILL "$pid"
sleep 4
[ "$(main_pid)" != "$pid" ] || die "it was not started again"
ready
equal "$(onion)" "$address" "address"

step "reload takes a changed config; a bad one is refused once, not again and again"
sed -i 's/^level = "info"/level = "debug"/' /etc/ron/micronode.toml
expect 0 systemctl reload ron-node
sleep 2
ready
grep -q '"config_version": *2' /tmp/status || die "the config was not read again"
printf '[gateway]\nbnid = "127.0.0.1:9080"\n' >/etc/ron/broken.toml
echo 'CONFIG=/etc/ron/broken.toml' >>/etc/default/ron-node
systemctl restart ron-node || true
sleep 5
equal "$(systemctl show -P ActiveState ron-node)" failed "state"
equal "$(systemctl show -P NRestarts ron-node)" 0 "restarts"
expect 0 journalctl -u ron-node --no-pager -n 20
says gateway.bnid
rm /etc/ron/broken.toml
sed -i '/broken/d' /etc/default/ron-node

step "a Macronode with TLS and gRPC in the same sandbox"
expect 0 ronctl ca init
expect 0 ronctl ca issue node --out $home/tls
cat >/etc/ron/everything.toml <<'TOML'
[node]
profile = "macronode"
[gateway.tls]
bind = "127.0.0.1:9443"
certificate = "tls/node.pem"
key = "tls/node.key"
client_ca = "tls/ca.pem"
[api]
grpc_addr = "127.0.0.1:9095"
TOML
sed -i 's/^CONFIG=.*/CONFIG=\/etc\/ron\/everything.toml/' /etc/default/ron-node
expect 0 systemctl restart ron-node
ready
equal "$(onion)" "$address" "address"
expect 0 ronctl hello
cat >/tmp/tls.py <<'PYTHON'
import socket, ssl
context = ssl.create_default_context(cafile="/var/lib/ron/tls/ca.pem")
context.check_hostname = False
context.load_cert_chain("/var/lib/ron/tls/node.pem", "/var/lib/ron/tls/node.key")
with context.wrap_socket(socket.create_connection(("127.0.0.1", 9443), 10)) as tls:
    tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
    print(tls.version(), tls.recv(100))
PYTHON
expect 0 python3 /tmp/tls.py
says "TLSv1.3 b'HTTP/1.1 200"
sed -i 's/^CONFIG=.*/CONFIG=\/etc\/ron\/micronode-amnesia.toml/' /etc/default/ron-node

step "a node with amnesia in the same sandbox"
expect 0 systemctl restart ron-node
ready
expect 0 ronctl hello
sed -i 's/^CONFIG=.*/CONFIG=\/etc\/ron\/micronode.toml/' /etc/default/ron-node
rm /etc/ron/everything.toml
expect 0 systemctl restart ron-node
ready

step "the onion runtime beside the node, in the same sandbox"
expect 0 systemctl start ron-oniond
tries=0
until [ -e $home/oniond/onions.json ]; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || die "the onion runtime did not come up"
    sleep 1
done
expect 0 systemctl stop ron-oniond
expect 0 systemctl is-active ron-node
[ -e /run/ron ] || die "the one that stopped took /run/ron away from the other"

step "a node of a cluster beside the node, in the same sandbox; before init it is not even tried again"
systemctl start ron-balance || true
sleep 5
equal "$(systemctl show -P ActiveState ron-balance)" failed "state"
equal "$(systemctl show -P NRestarts ron-balance)" 0 "restarts"
begin_cluster
systemctl reset-failed ron-balance
expect 0 systemctl start ron-balance
check_cluster
expect 0 systemctl stop ron-balance
equal "$(systemctl show -P Result ron-balance)" success "result"

step "the key service beside the node, in the same sandbox; a drop-in for a TPM keeps it"
expect 0 systemctl start ron-kms
check_kms
pid=$(systemctl show -P MainPID ron-kms)
equal "$(fact NoNewPrivs "$pid")" 1 "NoNewPrivs"
equal "$(fact Seccomp "$pid")" 2 "Seccomp"
equal "$(fact CapBnd "$pid")" 0000000000000000 "CapBnd"
expect 1 nsenter -t "$pid" -m -- touch /var/lib/writable
kill -KILL "$pid"
sleep 4
[ "$(systemctl show -P MainPID ron-kms)" != "$pid" ] || die "the key service was not started again"
kms_kept_all
mkdir -p /etc/systemd/system/ron-kms.service.d
cp /usr/share/doc/rustyonions/examples/drop-ins/ron-kms-tpm.conf /etc/systemd/system/ron-kms.service.d/tpm.conf
systemctl daemon-reload
expect 0 systemd-analyze security --no-pager --threshold=25 ron-kms
rm -r /etc/systemd/system/ron-kms.service.d
systemctl daemon-reload
expect 0 systemctl stop ron-kms
equal "$(systemctl show -P Result ron-kms)" success "result"
expect 0 systemctl is-active ron-node
printf 'bind_adr = "127.0.0.1:9446"\n' >/etc/ron/broken.toml
echo 'CONFIG=/etc/ron/broken.toml' >>/etc/default/ron-kms
systemctl start ron-kms || true
sleep 5
equal "$(systemctl show -P ActiveState ron-kms)" failed "state"
equal "$(systemctl show -P NRestarts ron-kms)" 0 "restarts"
expect 0 journalctl -u ron-kms --no-pager -n 20
says bind_adr
rm /etc/ron/broken.toml
sed -i '/broken/d' /etc/default/ron-kms
systemctl reset-failed ron-kms
expect 0 systemctl start ron-kms
kms_kept_all

step "upgrading keeps config, state and address, and the keys of the key service"
printf 'before' | ronctl mailbox send keep/me >/tmp/output
expect 0 dpkg -i --force-confdef --force-confold /root/second.deb
expect 0 systemctl is-active ron-node
ready
equal "$(onion)" "$address" "address"
equal "$(ronctl mailbox recv keep/me)" before "the message"
expect 0 systemctl is-active ron-kms
expect 0 systemctl restart ron-kms
kms_kept_all
expect 0 systemctl stop ron-kms

step "stop is an orderly end"
expect 0 systemctl stop ron-node
equal "$(systemctl show -P Result ron-node)" success "result"
equal "$(of_ron)" 0 "processes of ron"

step "purging a running node and a running key service"
expect 0 systemctl start ron-node ron-kms
kms_answers
expect 0 dpkg -P rustyonions
check_purged /tmp/before
expect 4 systemctl status ron-node
expect 4 systemctl status ron-kms
