#!/bin/bash
# two_hosts.sh RUNTIME_TEST: the Gloo tests between two network namespaces joined by a veth pair, as two hosts
# would run them. Exit 77 (skipped) where namespaces cannot be made.
set -eu
program=$1 prefix=fly$$
[ "$(id -u)" = 0 ] && ip netns add $prefix-a 2> /dev/null || { echo "skipped: network namespaces need root"; exit 77; }
trap 'ip netns del $prefix-a; ip netns del $prefix-b 2> /dev/null || true' EXIT
ip -n $prefix-a link > /dev/null 2>&1 || { echo "skipped: namespaces cannot be entered here (a chroot?)"; exit 77; }
ip netns add $prefix-b
ip -n $prefix-a link add v0 type veth peer name v0 netns $prefix-b
for side in a:1 b:2; do
  ip -n $prefix-${side%:*} link set lo up
  ip -n $prefix-${side%:*} addr add 10.77.9.${side#*:}/24 dev v0
  ip -n $prefix-${side%:*} link set v0 up
done
FLYWHEEL_TEST_NETNS="/run/netns/$prefix-a 10.77.9.1 /run/netns/$prefix-b 10.77.9.2" \
  timeout 100 "$program" --gtest_brief=1 --gtest_filter='TwoHosts.*'
