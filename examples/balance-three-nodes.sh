#!/bin/sh
# RustBalance in two minutes: a private Tor network, three nodes, one onion address. Kills the leader twice while visitors
# come all the time, shows how the cluster stands after each, and takes everything down again:
#   examples/balance-three-nodes.sh
# Needs curl, tor, and ronctl and twistd of this project: on PATH, or in .venv. All of it is on loopback.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
PATH=$here/.venv/bin:$PATH:/usr/lib/rustyonions/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/balance.XXXXXX")
running="" # pids of all that was started

say() { printf '\n== %s\n' "$*"; }
die() { printf 'balance-three-nodes: %s\n' "$*" >&2; exit 1; }
node() { as=$1; shift; RON_HOME=$work/$as ronctl balance "$@"; } # as the operator of that node
lines() { grep -c "^$1" "$work/visits" || true; }
visits() { echo "visits: $(lines ok) at the first try, $(lines again) at the second, $(lines failed) failed"; }

tidy() {
    trap '' INT TERM HUP
    say "taking everything down"
    # shellcheck disable=SC2086 # a list of pids
    [ -z "$running" ] || kill $running 2>/dev/null || true
    wait
    # the head of a killed node goes on for a while; here nobody comes any more
    cat "$work"/?/tornet-joined/*/tor.pid 2>/dev/null | xargs -r kill 2>/dev/null || true
    [ ! -d "$work/net" ] || ronctl tornet down --dir "$work/net" >/dev/null || true
    rm -rf "$work"
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP

free_ports() { # COUNT: so many ports of loopback that nobody has
    python3 -c 'import socket, sys
all = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in all))' "$1"
}

until_true() { # SECONDS WHAT COMMAND…: until it succeeds
    end=$(($(date +%s) + $1)) what=$2; shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt $end ] || die "$what took too long; the logs: $(tail -n 3 "$work"/?.log 2>&1)"
        sleep 0.2
    done
}

begin() { # NAME: its daemon, in the background
    RON_HOME=$work/$1 twistd --pidfile= -n ron-balance --config "$work/$1/etc/balance.toml" >"$work/$1.log" 2>&1 </dev/null &
    running="$running $!"
    echo $! >"$work/$1/pid"
}

found() { # NAME MESH-PORT WEB-PORT init|join BUNDLE-OR-NAME: its website and its files, then its daemon
    mkdir -p "$work/$1/site"
    echo "node $1" >"$work/$1/site/index.html"
    python3 -m http.server --bind 127.0.0.1 --directory "$work/$1/site" "$3" >/dev/null 2>&1 &
    running="$running $!"
    # with approval "token" a node that comes back gets the key without an operator: nobody is there in this play
    node "$1" "$4" "$5" --listen "127.0.0.1:$2" --port "80:127.0.0.1:$3" --approval token \
        --torrc "$work/net/snippet.torrc" --admin 127.0.0.1:0 --out "$work/$1/etc" >/dev/null
    begin "$1"
}

leader() { node "$1" status | sed -n 's/^leader *\([abc]\):.*/\1/p'; } # as that node sees it
leads() { now=$(leader "$1"); [ -n "$now" ] && [ "$now" != "$2" ]; }   # SEEN-BY NOT
heads() { node "$1" status | grep -cE "^[ *]  [abc] +alive +serving +yes"; }
all_in() { [ "$(heads "$1")" = 3 ]; }
# a name of its own for each try: tor then uses other circuits, as for a stranger
get() { curl --silent --fail --max-time 20 --proxy "socks5h://$1:x@127.0.0.1:$socks" "http://$address/"; }

visit() { # one visitor after the other, for as long as this lasts
    number=0
    while :; do
        number=$((number + 1))
        if answer=$(get "v$number"); then echo "ok $answer"
        elif answer=$(get "w$number"); then echo "again $answer"
        else echo "failed"
        fi
        sleep 0.2
    done
}

kill_leader() { # SEEN-BY: the leader, the hard way; then who leads instead
    old=$(leader "$1")
    say "kill -9 of $old, the leader"
    kill -KILL "$(cat "$work/$old/pid")"
    survivor=$1
    [ "$old" != "$1" ] || survivor=$(echo abc | tr -d "$old" | cut -c1)
    before=$(wc -l <"$work/visits")
    until_true 30 "another leader" leads "$survivor" "$old"
    say "$(leader "$survivor") leads now; ten more visits"
    until_true 90 "ten more visits" ten_more
    visits
    node "$survivor" status
}
ten_more() { [ "$(wc -l <"$work/visits")" -ge $((before + 10)) ]; }

say "a private Tor network on this host"
# shellcheck disable=SC2046 # six words
set -- $(free_ports 6)
socks=$(ronctl tornet up --dir "$work/net" --json | sed -n 's/.*"socks_port": *\([0-9]*\).*/\1/p')
say "node a founds the cluster and makes an address; b and c are invited"
found a "$1" "$2" init a
until_true 120 "node a" test -e "$work/a/balance.json"
address=$(node a service add main 2>/dev/null | grep -o '[a-z2-7]\{56\}\.onion' | head -n 1)
for name in b c; do
    shift 2
    node a invite $name --out "$work/$name.bundle" >/dev/null
    found "$name" "$1" "$2" join "$work/$name.bundle"
done
until_true 120 "three heads in the descriptor" all_in a
until_true 60 "the first visit" get first
say "one address, three nodes: $address"
node a status

say "visitors come from now on; ten of them"
: >"$work/visits"
visit >>"$work/visits" & running="$running $!"
before=0
until_true 60 "ten visits" ten_more
visits
kill_leader a
say "$old comes back, as a newcomer"
begin "$old"
until_true 120 "three heads in the descriptor" all_in "$survivor"
kill_leader "$survivor"
echo
echo "answered by: $(sed -n 's/.*node //p' "$work/visits" | sort | uniq -c | awk '{printf "%s (%s) ", $2, $1}')"
visits
[ "$(lines failed)" = 0 ] || die "a visitor was turned away twice"
