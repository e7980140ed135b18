# What the steps in both containers need; scripts/test-deb runs them. Each step says what it promises, and the first promise
# that is broken ends it all.
home=/var/lib/ron

step() { printf -- '-- %s\n' "$*"; }
die() {
    printf 'BROKEN: %s\n' "$*"
    tail -n 20 /tmp/output 2>/dev/null
    tail -n 5 $home/log/node.jsonl 2>/dev/null | cut -c1-300
    exit 1
}

expect() { # STATUS COMMAND…: it ends with that status; what it says is in /tmp/output
    wanted=$1; shift
    got=0
    "$@" >/tmp/output 2>&1 </dev/null || got=$?
    [ "$got" = "$wanted" ] || die "$* ended with $got, not $wanted"
}

says() { grep -q -- "$1" /tmp/output || die "no \"$1\" in the output"; } # of what `expect` ran

equal() { [ "$1" = "$2" ] || die "$3: \"$1\" is not \"$2\""; }

as() { who=$1; shift; setpriv --reuid="$who" --regid="$(id -g "$who")" --init-groups -- "$@"; }

ready() { # the node is ready within two minutes
    tries=0
    # node.json is there once it is up; asking before only costs what the node needs itself
    until [ -e $home/node.json ] && ronctl status --json >/tmp/status 2>/dev/null && grep -q '"ready": *true' /tmp/status; do
        tries=$((tries + 1))
        [ $tries -lt 120 ] || { cp /tmp/status /tmp/output; die "the node did not become ready"; }
        sleep 1
    done
}

onion() { grep -o '[a-z2-7]\{56\}\.onion' /tmp/status | head -n 1; } # of the node that was `ready`

of_ron() { ps -u ron -o pid= 2>/dev/null | wc -l; } # how many processes

mode() { stat -c '%a %U %G' "$1"; }

files() { # everything on the disk but what dpkg and accounts leave by their nature
    find / -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /tmp -o -path /root \
        -o -path /var/lib/systemd -o -path /var/tmp \) -prune -o -print | grep -v -E '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$' | sort
}

check_account_and_modes() {
    step "ron: locked, no shell; its files are its own"
    equal "$(getent passwd ron | cut -d: -f6,7)" "$home:/usr/sbin/nologin" "home and shell"
    case $(getent shadow ron | cut -d: -f2) in '!'* | '*') ;; *) die "the account is not locked" ;; esac
    equal "$(mode $home)" "700 ron ron" "$home"
    equal "$(mode /run/ron)" "700 ron ron" "/run/ron"
    equal "$(mode $home/admin.cap)" "600 ron ron" "admin.cap"
    equal "$(mode /etc/ron/micronode.toml)" "644 root root" "micronode.toml"
    equal "$(find $home ! -user ron | wc -l)" 0 "files of others in $home"
    equal "$(find /usr/lib/rustyonions ! -user root | wc -l)" 0 "files of others in /usr/lib/rustyonions"
}

check_ronctl() {
    step "ronctl: root is ron, others need a capability"
    expect 0 ronctl hello
    says "all well"
    expect 0 as ron ronctl status
    equal "$(find $home ! -user ron | wc -l)" 0 "files of others in $home after root's ronctl"
    expect 4 as nobody ronctl status
    expect 0 as nobody ronctl validate --file /etc/ron/oniond.toml
    ronctl cap mint --scope node:read 2>/dev/null | tail -n 1 >/tmp/read.cap
    chmod 600 /tmp/read.cap
    chown nobody /tmp/read.cap
    expect 0 as nobody ronctl status --node http://127.0.0.1:9080 --cap /tmp/read.cap
    rm /tmp/read.cap
    expect 0 ronctl cap mint --scope mailbox:send
    equal "$(find $home ! -user ron | wc -l)" 0 "files of others in $home after a mint"
}

begin_cluster() { # the files of a cluster's first node, on a Tor network of its own
    expect 0 ronctl balance init alpha --listen 127.0.0.1:9470 --port 80:127.0.0.1:9080 --admin 127.0.0.1:9919 \
        --out $home/balance/etc
}

check_cluster() { # it runs, leads, makes an address; ronctl finds it
    tries=0
    until [ -e $home/balance/balance.json ]; do
        tries=$((tries + 1))
        [ $tries -lt 120 ] || die "the node of a cluster did not come up"
        sleep 1
    done
    expect 0 ronctl balance service add main
    says '[a-z2-7]\{56\}\.onion'
    expect 0 ronctl balance status
    says '^leader *alpha'
    equal "$(find $home ! -user ron | wc -l)" 0 "files of others in $home after ronctl balance"
}

kms_answers() { # the key service, within a minute
    tries=0
    until ronctl kms key list >/tmp/output 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || die "the key service does not answer"
        sleep 1
    done
}

kms_signs() { # with the key in /tmp/kid; the signatures hold
    printf 'what is signed' >/tmp/payload
    ronctl kms sign --kid "$(cat /tmp/kid)" --json /tmp/payload >/tmp/sigs || die "the key service does not sign"
    chmod 644 /tmp/payload /tmp/sigs
    expect 0 ronctl kms verify --kid "$(cat /tmp/kid)" --sigs /tmp/sigs --mode and /tmp/payload
    printf 'something else' >/tmp/payload
    expect 1 ronctl kms verify --kid "$(cat /tmp/kid)" --sigs /tmp/sigs --mode and /tmp/payload
}

check_kms() { # it makes a key and signs with both halves; its files are its own; root's ronctl leaves none of root's
    kms_answers
    expect 0 ronctl kms key create --tenant core --purpose audit --alg hybrid --json
    sed -n 's/.*"kid": *"\([^"]*\)".*/\1/p' /tmp/output | head -n 1 >/tmp/kid
    chmod 644 /tmp/kid
    kms_signs
    equal "$(mode $home/kms)" "700 ron ron" "$home/kms"
    equal "$(mode $home/kms/admin.cap)" "600 ron ron" "admin.cap of the key service"
    equal "$(mode /etc/ron/ron-kms.toml)" "644 root root" "ron-kms.toml"
    equal "$(find $home ! -user ron | wc -l)" 0 "files of others in $home after ronctl kms"
    equal "$(find $home/kms -type f -perm /077 ! -name '*.jsonl' | wc -l)" 0 "files of the key service that others may read"
    expect 4 as nobody ronctl kms key list
}

kms_kept_all() { # the key from before signs: nothing is signed where store, keys or log are not what they were
    kms_answers
    says "$(sed 's/#v.*//' /tmp/kid)"
    kms_signs
}

check_purged() { # LIST-BEFORE
    step "purged: no file, no process, nothing in memory"
    equal "$(of_ron)" 0 "processes of ron"
    files >/tmp/after
    diff "$1" /tmp/after >/tmp/output || die "files came or went"
    [ ! -e /run/ron ] || die "/run/ron is there"
    [ -z "$(ls /dev/shm)" ] || die "something is in /dev/shm: $(ls /dev/shm)"
}
