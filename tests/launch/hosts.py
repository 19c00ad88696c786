"""Hosts for tests: network namespaces with an address each, joined by a bridge that leads nowhere else.

    hosts = Hosts(["ctl", "n1", "n2"])          # skips the test where there can be none
    hosts.inside("n1")                          # words in front of a command there
    hosts.kill("n2")                            # SIGKILL to all its processes
"""
import atexit
import os
import signal
import subprocess

from lab import need, skip


class Hosts:
    def __init__(self, names):
        need("ip", "nsenter", "unshare", packages="iproute2 util-linux")
        if os.geteuid() != 0:
            skip("network namespaces need root")
        self.names = names
        self.prefix = f"fwl{os.getpid()}-"
        atexit.register(self.down)
        first = self.space(names[0])
        if self.ip("netns", "add", first) or self.ip("-n", first, "link"):
            skip("network namespaces cannot be made")
        steps = [("-n", first, "link", "add", "br0", "type", "bridge"),
                 ("-n", first, "addr", "add", f"{self.address(names[0])}/24", "dev", "br0"),
                 ("-n", first, "link", "set", "br0", "up"), ("-n", first, "link", "set", "lo", "up")]
        for number, name in enumerate(names[1:], 1):
            space = self.space(name)
            steps += [("netns", "add", space), ("-n", space, "link", "set", "lo", "up"),
                      ("-n", first, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", space),
                      ("-n", first, "link", "set", f"v{number}", "master", "br0", "up"),
                      ("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0"),
                      ("-n", space, "link", "set", "eth0", "up")]
        for step in steps:
            if error := self.ip(*step):
                skip(f"hosts cannot be joined: ip {' '.join(step)}: {error}")

    @staticmethod
    def ip(*words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
        return (done.stderr or " ") if done.returncode else ""

    def space(self, name):
        return self.prefix + name

    def address(self, name):
        return f"10.77.9.{1 + self.names.index(name)}"

    def inside(self, name):
        """Its network and its name. Not `ip netns exec`, which hides cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.space(name)}", "unshare", "--uts", "sh", "-c",
                'hostname "$0"; exec "$@"', name]

    def processes(self, name):
        listed = subprocess.run(["ip", "netns", "pids", self.space(name)], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self, name):
        for pid in self.processes(name):
            os.kill(pid, signal.SIGKILL)

    def down(self):
        for name in self.names:
            self.kill(name)
        for name in reversed(self.names):
            self.ip("netns", "del", self.space(name))
