"""The lease of a folder of results, held by all ranks that write into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from segformer_spark.distributed.process_group import Group
from segformer_spark.files.atomic import remove_leftovers
from segformer_spark.run.lease import Owner, follow_results, lease_results


@contextmanager
def hold_results(folder: Path, group: Group) -> Iterator[None]:
    """Hold `folder` for the duration of the block. Collective.

    Raises:
        UserError: another job or process writes into it at this moment.
        RunTakenOver: by a later attempt of this job, at the next write.
    """
    with ExitStack() as stack:
        number = group.on_main(lambda: stack.enter_context(lease_results(folder, Owner.here(os.environ))).number)
        group.on_main(lambda: remove_leftovers(folder, also_below=True))
        if not group.is_main:
            stack.enter_context(follow_results(folder, number))
        yield
    group.barrier()
