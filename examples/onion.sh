#!/bin/sh
# An onion for a local port, for as long as this runs:   examples/onion.sh 8080
# Needs curl, and an onion runtime (make run, or twistd -n ron-oniond --config etc/oniond.toml) whose home is RON_HOME.
set -eu
port=${1:?usage: onion.sh PORT [APP]}
app=${2:-port-$port}
home=${RON_HOME:-var}
api=http://oniond/v1/onions

uuid() { cat /proc/sys/kernel/random/uuid; }
part() { echo "$(sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p")"; } # a line of its own, though an answer has no line end
curl() { # shows the capability, through a pipe: everybody on this host can see a program's arguments
    printf 'header = "Authorization: Bearer %s"\n' "$(cat "$home/admin.cap")" |
        command curl --config - --silent --show-error --fail-with-body --unix-socket "$home/run/oniond.sock" \
            --header "Content-Type: application/json" "$@"
}

ask="{\"op_id\": \"$(uuid)\", \"app\": \"$app\", \"persistence\": \"ephemeral\",
      \"ports\": [{\"onion_port\": 80, \"local\": \"127.0.0.1:$port\"}]}"
made=$(curl -d "$ask" $api) || { echo "onion.sh: $made" >&2; exit 1; }
id=$(echo "$made" | part id)
trap 'curl -X DELETE -d "{\"op_id\": \"$(uuid)\"}" "$api/$id" >/dev/null' EXIT
trap 'exit 0' INT TERM HUP
until curl "$api/$id" | grep -q '"ready":true'; do sleep 1; done
curl "$api/$id" | part onion

echo "it leads to 127.0.0.1:$port; Ctrl-C ends it" >&2
while :; do sleep 1; done
