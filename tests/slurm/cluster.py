"""A real SLURM cluster of several nodes on one machine: Debian's slurmctld, slurmd and munge in Linux namespaces.

Each node has its own network, host name, processes and mounts; the bridge between them lives in the controller's
network namespace, so the machine's own network gets no interface, address or route, and nodes have no way out.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import wait_for

_NETWORK = "10.77.0"
_DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare", "nsenter", "ip")
_COMMANDS = ("sbatch", "srun", "salloc", "squeue", "scancel", "scontrol", "sinfo")
_HOST = Path(__file__).with_name("host.py")
_ASK = 0.3  # s between questions to SLURM, each of which is three processes
_SEARCH = os.environ["PATH"] + ":/usr/sbin:/sbin"

_CONF = """ClusterName=test
SlurmctldHost=ctl({network}.1)
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# 5 is the least that counts: a requeued job starts again only when its old credential has run out (default 120 s).
AuthInfo=socket={base}/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
# No cgroups and no affinity, so that nodes may have more CPUs than the machine.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
RebootProgram=/bin/false
GresTypes=gpu
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdTimeout=6
KillWait=30
MessageTimeout=5
BatchStartTimeout=10
UnkillableStepTimeout=30
InactiveLimit=0
MinJobAge=900
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmctldDebug=info
SlurmdDebug=info
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can run here; None when one can."""
    if os.geteuid() != 0:
        return "the test cluster needs root, for namespaces"
    absent = [name for name in _DAEMONS if shutil.which(name, path=_SEARCH) is None]
    if absent:
        return (
            f"the test cluster needs {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge iproute2"
        )
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else "the test cluster needs namespaces, and unshare is not permitted"


class Cluster:
    """Started and stopped by process id; everything it writes lies in `base`, whose path must be short."""

    def __init__(self, base: Path, num_nodes: int, gpus: int = 4) -> None:
        self.base, self.gpus = base, gpus
        self.names = [f"node{i}" for i in range(1, num_nodes + 1)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # Start and stop.

    def start(self) -> None:
        """Bring everything up; returns when all nodes are idle."""
        for name in ("etc", "run", "log", "state", "munge", "dev", "bin", "bin.plain", "scratch"):
            (self.base / name).mkdir(parents=True)
        for name in self.names:
            (self.base / "spool" / name).mkdir(parents=True)
        self.base.chmod(0o755)
        (self.base / "munge").chmod(0o711)
        self._write_files()
        munge = self.base / "munge"
        self._processes["munged"] = self._spawn(
            "munged", "-F", f"--socket={munge}/sock", f"--key-file={munge}/key", f"--pid-file={munge}/pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_for(lambda: (munge / "sock").exists(), "munged")
        self._boot("ctl")
        wait_for(lambda: "is UP" in self.login("scontrol", "ping", check=False).stdout, "slurmctld")
        for name in self.names:
            self._boot(name)
        wait_for(lambda: self.states().count("idle") == len(self.names), "idle nodes", _ASK)

    def stop(self) -> None:
        """End every process that was started."""
        for name in [*self.names, "ctl"]:
            self._power_off(name)
        munged = self._processes.pop("munged", None)
        if munged is not None:
            munged.terminate()
            munged.wait(10)

    # What a user does.

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """A login shell's: SLURM's commands act on this cluster."""
        own = {"PATH": f"{self.base / 'bin'}:{_SEARCH}", "SLURM_CONF": str(self.base / "etc" / "slurm.conf")}
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        return {**kept, **own, **(extra or {})}

    def login(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as on the login node."""
        done = subprocess.run(
            command, env=self.environment(env), cwd=cwd, capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def submit(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> int:
        """Sbatch; returns the job id."""
        return int(self.login("sbatch", "--parsable", *arguments, cwd=cwd, env=env).stdout.split(";")[0])

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` says."""
        text = self.login("scontrol", "-o", "show", "job", str(number)).stdout.splitlines()[-1]
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def wait(self, number: int | str, *states: str, restarts: int = 0) -> dict[str, str]:
        """Poll until the job is in one of the states, with at least so many restarts."""
        found: dict[str, str] = {}

        def reached() -> bool:
            nonlocal found
            found = self.job(number)
            return found["JobState"] in states and int(found["Restarts"]) >= restarts

        try:
            wait_for(reached, f"job {number} in {states}", _ASK)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {found}") from None
        return found

    def states(self) -> list[str]:
        """Of the nodes."""
        return self.login("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()

    # What can go wrong.

    def kill_node(self, name: str) -> None:
        """SIGKILL to every process of the node; peers see their connections close."""
        self._power_off(name)

    def boot_node(self, name: str) -> None:
        """Start a killed node again."""
        self._boot(name)
        wait_for(lambda: self.states().count("idle") >= 1, "the node", _ASK)

    def kill_daemon(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal slurmd (or slurmctld on `ctl`) alone; what it started lives on."""
        daemon = (self.base / "run" / f"{name}.daemon").read_text()
        self.on(name, "kill", f"-{number.value}", daemon)

    def start_daemon(self, name: str) -> None:
        """Start slurmd (slurmctld) again on a host that lives."""
        os.kill(self._init(name), signal.SIGUSR1)

    def cut(self, name: str) -> None:
        """Unplug the network cable; no connection closes."""
        self._in_network("ip", "link", "set", f"v-{name}", "down")

    def join(self, name: str) -> None:
        """Plug it in again."""
        self._in_network("ip", "link", "set", f"v-{name}", "up")

    def on(self, name: str, *command: str, check: bool = True) -> str:
        """Run a command on a host."""
        enter = ["nsenter", "-t", str(self._init(name)), "-m", "-u", "-p", "-n", "--"]
        return subprocess.run(
            [*enter, *command], env=self.environment(), capture_output=True, text=True, check=check, timeout=60
        ).stdout

    def repair(self) -> None:
        """Whatever a test broke: all nodes idle again."""
        jobs = self.login("squeue", "-h", "-o", "%A", check=False).stdout.split()
        if jobs:
            self.login("scancel", *jobs, check=False)
        for name in self.names:
            if not self._is_up(name):
                self._boot(name)
            elif not self._daemon_lives(name):
                self.start_daemon(name)
            self.join(name)
        self.login("scontrol", "update", f"nodename=node[1-{len(self.names)}]", "state=resume", check=False)
        wait_for(lambda: self.states() == ["idle"] * len(self.names), "idle nodes", _ASK)

    # Inside.

    def _boot(self, name: str) -> None:
        number = 0 if name == "ctl" else self.names.index(name) + 1
        address = f"{_NETWORK}.{1 if name == 'ctl' else 10 + number}"
        conf = str(self.base / "etc" / "slurm.conf")
        daemon = ["slurmctld" if name == "ctl" else "slurmd", "-D", "-f", conf]
        up = self.base / "run" / f"{name}.up"
        up.unlink(missing_ok=True)
        self._processes[name] = self._spawn(
            "unshare", "--uts", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc",
            sys.executable, "-I", str(_HOST), str(self.base), name, address, *daemon,
        )  # fmt: skip
        wait_for(lambda: bool(self._children(name)), f"{name} to start")
        (self.base / "run" / f"{name}.init").write_text(f"{self._init(name)}\n")
        if number:
            self._in_network("ip", "link", "del", f"v-{name}", check=False)
            # The same address of the card after a boot, else the neighbours look for the old one for seconds.
            mac = f"02:77:00:00:00:{10 + number:02x}"
            self._in_network(
                "ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "address", mac,
                "netns", str(self._init(name)),
            )  # fmt: skip
            self._in_network("ip", "link", "set", f"v-{name}", "master", "br0", "up")
        wait_for(up.exists, f"{name} to be up")

    def _power_off(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        for child in self._children_of(process.pid):
            os.kill(child, signal.SIGKILL)  # process 1 of a namespace takes all others with it
        process.wait(20)

    def _is_up(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def _daemon_lives(self, name: str) -> bool:
        daemon = (self.base / "run" / f"{name}.daemon").read_text()
        state = self.on(name, "ps", "-o", "stat=", "-p", daemon, check=False).strip()
        return state != "" and not state.startswith("Z")

    def _init(self, name: str) -> int:
        return self._children(name)[0]

    def _children(self, name: str) -> list[int]:
        return self._children_of(self._processes[name].pid)

    @staticmethod
    def _children_of(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _in_network(self, *command: str, check: bool = True) -> None:
        subprocess.run(["nsenter", "-t", str(self._init("ctl")), "-n", *command], capture_output=True, check=check)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.base / "log" / "spawn.out").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PATH": _SEARCH}, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _write_files(self) -> None:
        etc, base = self.base / "etc", self.base
        (base / "munge" / "key").write_bytes(os.urandom(1024))
        (base / "munge" / "key").chmod(0o600)
        for number in range(self.gpus):
            # A gres device has to exist and to be one; a link to /dev/null passes.
            (base / "dev" / f"gpu{number}").symlink_to("/dev/null")
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={_NETWORK}.{11 + i} Port=6818 CPUs=64 RealMemory=500000 Gres=gpu:{self.gpus}"
            for i, name in enumerate(self.names)
        )
        (etc / "slurm.conf").write_text(_CONF.format(network=_NETWORK, base=base, nodes=nodes))
        # v1 by name loads where there are no cgroups at all; left out, slurmd may choose v2, which asks systemd.
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (etc / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=node[1-{len(self.names)}] Name=gpu File={base}/dev/gpu[0-{self.gpus - 1}]\n"
        )
        hosts = ["127.0.0.1 localhost", f"{_NETWORK}.1 ctl"]
        hosts += [f"{_NETWORK}.{11 + i} {name}" for i, name in enumerate(self.names)]
        (etc / "hosts").write_text("\n".join(hosts) + "\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        for command in _COMMANDS:
            plain = shutil.which(command, path=_SEARCH)
            assert plain is not None
            (base / "bin.plain" / command).symlink_to(plain)
            wrapper = base / "bin" / command
            wrapper.write_text(
                f'#!/bin/sh\nread -r p < "{base}/run/ctl.init"\n'
                f'SLURM_CONF="{etc}/slurm.conf" exec nsenter -t "$p" -n -u -- {plain} "$@"\n'
            )
            wrapper.chmod(0o755)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves nothing behind
