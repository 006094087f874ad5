"""A rendered set is kept as long as the same one is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import logger


def render_once(root: Path, wanted: Mapping[str, Any], render: Callable[[], object]) -> bool:
    """Render into `root` unless what is there was rendered as `wanted` says; whether it was rendered anew.

    Another rendered set there is removed; a folder that nobody rendered is not.
    """
    stamp = root / "demo.json"
    if stamp.is_file() and read_json_object(stamp) == wanted:
        logger.info("the rendered set in %s is there already", root)
        return False
    if stamp.is_file():
        shutil.rmtree(root)
    logger.info("rendering into %s: %s", root, ", ".join(f"{key} {value}" for key, value in wanted.items()))
    render()
    # Written last: a set that was cut off while rendering has no stamp.
    stamp.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    return True
