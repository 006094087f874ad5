"""That all ranks were started with the same configuration, version and run folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from segformer_spark import __version__
from segformer_spark.config.fields import FIELDS, flatten
from segformer_spark.config.load import run_path
from segformer_spark.config.schema import Config
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import ConfigError

_PER_NODE = {"data.root", "data.cache", "data.manifest", "hardware.threads", "data.num_workers", "model.weights_dir"}
"""Settings of places and machines, which nodes may have of their own."""

_SHOWN = 3


def refuse_different_starts(config: Config, group: Group) -> None:
    """Compare what every rank was started with. Collective.

    Raises:
        ConfigError: on all ranks, naming the first rank that differs from rank 0, and in what.
    """
    values = flatten(json.loads(config.model_dump_json()))
    own = {name: values[name] for name in FIELDS if name not in _PER_NODE}
    own |= {"version of segformer_spark": __version__, "run folder": str(Path(run_path(config)).absolute())}
    found = group.gather((own, socket.gethostname()))
    first = found[0][0]
    for rank, (other, host) in enumerate(found):
        differs = [name for name in first.keys() | other.keys() if first.get(name) != other.get(name)]
        if differs:
            shown = sorted(differs)[:_SHOWN]
            each = "; ".join(f"{name} is {other.get(name)!r}, rank 0 has {first.get(name)!r}" for name in shown)
            more = f"; and {len(differs) - len(shown)} more" if len(differs) > len(shown) else ""
            raise ConfigError(
                f"rank {rank} on {host} was started differently: {each}{more}",
                "Give all ranks the same command, environment and code.",
            )
