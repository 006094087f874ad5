"""What the ranks of a job find out together: `doctor --job`. Collective throughout."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from segformer_spark.cluster.checks import EXCLUDE, FAILED, OK, WARNING, Check, passed
from segformer_spark.cluster.node_checks import check_versions, clock_check, fingerprint, thorough_checks
from segformer_spark.config.schema import Config
from segformer_spark.distributed.process_group import Group
from segformer_spark.run.record import host_record
from segformer_spark.training.stop import catch_signals

_REDUCED_BYTES = 64 * 2**20
_ROUNDS = 5
_SIGNAL_SECONDS = 20


def job_checks(config: Config, group: Group, environment: Mapping[str, str]) -> list[Check]:
    """The whole table, the same on every rank."""
    hosts = group.gather(socket.gethostname())
    main_fingerprint = group.broadcast(fingerprint())
    own = [check_versions(main_fingerprint), _check_device(group)]
    if group.launch.local_rank == 0:
        # Once per node. The versions stand above already.
        own += thorough_checks(config, environment)[1:]
    of_all = list(zip(hosts, group.gather(own), strict=True))
    found = [passed("ranks", _describe_hosts(hosts, group))]
    found += merge([(host, check) for host, checks in of_all for check in checks])
    found.append(_check_signals(group, hosts, environment))
    return [*found, _check_drivers(group), _check_clocks(group, hosts), *_check_all_reduce(group, hosts)]


def merge(found: Sequence[tuple[str, Check]]) -> list[Check]:
    """One line per check: what rank 0's node says when all is well, else the hosts that differ."""
    names = list(dict.fromkeys(check.name for _, check in found))
    lines = []
    for name in names:
        every = [(host, check) for host, check in found if check.name == name]
        bad = {(host, check) for host, check in every if check.state != OK}
        if not bad:
            num_hosts = len({host for host, _ in every})
            suffix = f" (and {num_hosts - 1} more node(s) alike)" if num_hosts > 1 else ""
            lines.append(passed(name, every[0][1].found + suffix))
        for host, check in sorted(bad, key=lambda one: one[0]):
            lines.append(Check(name, check.state, f"{host}: {check.found}", check.fix))
    return lines


def _describe_hosts(hosts: Sequence[str], group: Group) -> str:
    counts = Counter(hosts)
    return f"{group.world_size} on {len(counts)} node(s): {', '.join(f'{host} x {n}' for host, n in counts.items())}"


def _check_device(group: Group) -> Check:
    """A product on the device, against the CPU's."""
    name = "arithmetic"
    try:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
        difference = ((left.to(group.device) @ right.to(group.device)).cpu() - left @ right).abs().max().item()
    except RuntimeError as error:
        return Check(name, FAILED, f"{group.device}: {error}", EXCLUDE)
    if not difference < 0.1:  # TF32 is off by about 0.02 here; nan is not smaller
        return Check(
            name,
            FAILED,
            f"{group.device}: a product is off by {difference}",
            EXCLUDE,
        )
    return passed(name, f"{group.device}: a matrix product agrees with the CPU's")


def _check_signals(group: Group, hosts: Sequence[str], environment: Mapping[str, str]) -> Check:
    """Whether a request to stop reaches every rank the way that SLURM sends it before the time limit."""
    step = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    in_step = "SLURM_STEP_ID" in environment
    with catch_signals() as stop:
        group.barrier()
        if not in_step:
            os.kill(os.getpid(), signal.SIGUSR1)
        elif group.is_main:
            subprocess.run(["scancel", "--signal=USR1", step], capture_output=True, check=False)
        deadline = time.monotonic() + _SIGNAL_SECONDS
        while stop.reason is None and time.monotonic() < deadline:
            time.sleep(0.05)
        arrived = group.gather(stop.reason == "SIGUSR1")
    deaf = sorted({host for host, heard in zip(hosts, arrived, strict=True) if not heard})
    if deaf:
        return Check(
            "signals",
            FAILED,
            f"SIGUSR1 did not arrive on {', '.join(deaf)} within {_SIGNAL_SECONDS} s",
            "start Python without a wrapper (container, profiler) that keeps signals to itself",
        )
    script = Path("slurm/segformer_train.sh")
    if script.is_file() and "#SBATCH --signal=" not in script.read_text(encoding="utf-8"):
        return Check("signals", WARNING, f"{script}: no #SBATCH --signal: the limit comes unannounced", "put it back")
    way = "sent by scancel to the step" if in_step else "sent by each process to itself, outside of SLURM"
    return passed("signals", f"SIGUSR1, {way}, reaches every rank")


def _check_drivers(group: Group) -> Check:
    records = group.gather(host_record(group.device))
    kinds = sorted({f"{r.get('gpu', 'CPU')}, driver {r.get('gpu_driver')}" if "gpu" in r else "CPU" for r in records})
    if len(kinds) > 1:
        fix = "ask for one kind: sbatch --constraint=..."
        return Check("devices", WARNING, f"different: {'; '.join(kinds)}", fix)
    return passed("devices", f"all {kinds[0]}")


def _check_clocks(group: Group, hosts: Sequence[str]) -> Check:
    """Clocks read right after a barrier; the median of some rounds, since ranks leave it at different times."""
    rounds = []
    for _ in range(_ROUNDS):
        group.barrier()
        times = group.gather(time.time())
        rounds.append([moment - times[0] for moment in times])
    offsets = [statistics.median(column) for column in zip(*rounds, strict=True)]
    worst = max(range(len(offsets)), key=lambda rank: abs(offsets[rank]))
    return clock_check("clocks", abs(offsets[worst]), f"{hosts[0]}, at worst on {hosts[worst]}")


def _check_all_reduce(group: Group, hosts: Sequence[str]) -> list[Check]:
    """Sum over the ranks: the value, and the bandwidth of gradients."""
    name = "all-reduce"
    if group.world_size == 1:
        return [passed(name, "one rank alone: nothing to sum")]
    seconds = []
    for _ in range(_ROUNDS + 1):
        values = torch.full((_REDUCED_BYTES // 4,), float(group.rank + 1), device=group.device)
        group.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        if group.device.type == "cuda":
            torch.cuda.synchronize(group.device)
        seconds.append(time.perf_counter() - started)
    expected = group.world_size * (group.world_size + 1) / 2
    right = bool((values == expected).all().item())
    slowest = max(group.gather(statistics.median(seconds[1:])))
    # Bus bandwidth, as nccl-tests define it: what each rank's link carries in a ring.
    rate = 2 * (group.world_size - 1) / group.world_size * _REDUCED_BYTES / slowest / 1e9
    backend = dist.get_backend()
    found = f"{backend}, {_REDUCED_BYTES // 2**20} MiB in {1000 * slowest:.0f} ms: bus bandwidth {rate:.2f} GB/s"
    if not group.any(not right):
        state = passed(name, found)
        if backend == "nccl" and len(set(hosts)) > 1 and rate < 1:
            fix = "is InfiniBand used? Set NCCL_SOCKET_IFNAME in the site file, and read NCCL_DEBUG=INFO's lines"
            state = Check(name, WARNING, found, fix)
        return [state]
    return [Check(name, FAILED, f"{found}, and the sum is wrong", "exclude nodes one by one, and tell the site")]
