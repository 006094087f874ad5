"""One host of the test cluster: process 1 of its own namespaces, with one SLURM daemon. Standard library only.

    python host.py FOLDER NAME ADDRESS DAEMON...

Started by cluster.py inside `unshare --uts --mount --pid --net --fork`. SIGUSR1 starts the daemon again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def main(base: Path, name: str, address: str, daemon: list[str]) -> None:
    """Set the host up, start its daemon, and reap what dies."""
    socket.sethostname(name)
    bind(base / "etc" / "hosts", Path("/etc/hosts"))
    bind(base / "etc" / "nsswitch.conf", Path("/etc/nsswitch.conf"))  # there is no name server to ask
    # PATH goes with a job: on the hosts it must find the plain commands, not the wrappers of the login side.
    bind(base / "bin.plain", base / "bin")
    run("ip", "link", "set", "lo", "up")
    if name == "ctl":
        run("ip", "link", "add", "br0", "type", "bridge")
        device = "br0"
    else:
        for target, size in (("/dev/shm", "1g"), (str(base / "scratch"), "1g")):
            run("mount", "-t", "tmpfs", "-o", f"mode=1777,size={size}", "none", target)
        device = "eth0"
        wait_for(
            lambda: subprocess.run(["ip", "link", "show", device], capture_output=True, check=False).returncode == 0
        )
    run("ip", "addr", "add", f"{address}/24", "dev", device)
    run("ip", "link", "set", device, "up")

    def start(*_: object) -> None:
        with (base / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(daemon, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        (base / "run" / f"{name}.daemon").write_text(str(process.pid))

    signal.signal(signal.SIGUSR1, start)
    start()
    (base / "run" / f"{name}.up").touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


def bind(source: Path, target: Path) -> None:
    """Mount over."""
    run("mount", "--bind", str(source), str(target))


def run(*command: str) -> None:
    """Run, or end the host."""
    subprocess.run(command, check=True)


def wait_for(condition: object, seconds: float = 120) -> None:
    """Poll."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("timed out")
        time.sleep(0.02)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
