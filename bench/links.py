"""Links between two network namespaces, shaped by tbf, and what iperf3 gets through them. Needs root, iproute2 and
iperf3."""
import contextlib
import json
import os
import shutil
import subprocess
import time

IPERF_TIMEOUT_S = 60


def missing_for_links():
    """What is missing for them, in words; empty where nothing is."""
    missing = [tool for tool in ("ip", "tc", "iperf3") if not shutil.which(tool)]
    return ", ".join(missing) or ("root" if os.geteuid() != 0 else "")


def inside(name):
    """What a command in the namespace starts with."""
    return ["ip", "netns", "exec", name]


@contextlib.contextmanager
def shaped_links(rates_mbit):
    """Two network namespaces joined by a veth pair of each rate, both ways: their names and lists of addresses."""
    names = [f"tandem-bench-{os.getpid()}-{i}" for i in (0, 1)]
    addresses = [[f"10.231.{7 + link}.{1 + i}" for link in range(len(rates_mbit))] for i in (0, 1)]
    ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for link, rate in enumerate(rates_mbit):
            device = f"veth{link}"
            ip("link", "add", device, "netns", names[0], "type", "veth", "peer", "name", device, "netns", names[1])
            for name, own in zip(names, addresses):
                ip("-n", name, "addr", "add", f"{own[link]}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
                subprocess.run([*inside(name), "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate",
                                f"{rate}mbit", "burst", "256kb", "latency", "50ms"], check=True, capture_output=True)
        yield names, addresses
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def write_ssh(folder, namespace, command="$*"):
    """In the folder an `ssh` to the namespace, whatever the host; path_with(folder) finds it."""
    script = folder / "ssh"
    script.write_text(f"""#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift 2
exec {" ".join(inside(namespace))} {command}
""")
    script.chmod(0o755)


def path_with(folder):
    """The environment, with the folder's programs before all others."""
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def iperf3_ends(names, addresses, *flags):
    """A client in the second namespace for each of the first one's addresses, all at once: the ends of their reports."""
    servers = [subprocess.Popen([*inside(names[0]), "iperf3", "-s", "-1", "-B", address], stdout=subprocess.DEVNULL)
               for address in addresses[0]]
    time.sleep(0.5)
    try:
        clients = [subprocess.Popen([*inside(names[1]), "iperf3", "-c", address, *flags, "-t", "5", "-J"], text=True,
                                    stdout=subprocess.PIPE) for address in addresses[0]]
        return [json.loads(client.communicate(timeout=IPERF_TIMEOUT_S)[0])["end"] for client in clients]
    finally:
        for process in servers + clients:
            process.kill()
            process.wait()


def iperf3_both_ways(names, addresses):
    """Mbit/s one way over all links at once, while as much flows the other way."""
    ends = iperf3_ends(names, addresses, "--bidir")
    return sum(end[way]["bits_per_second"] for end in ends for way in ("sum_received", "sum_received_bidir_reverse")) / 2e6


def iperf3_one_way(names, addresses):
    """Mbit/s from the first namespace to the second over all links at once."""
    return sum(end["sum_received"]["bits_per_second"] for end in iperf3_ends(names, addresses, "-R")) / 1e6
