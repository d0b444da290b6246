"""Runs one yadage workflow in a process of its own: ``python -P yadage_driver.py request.json``.

A program for itself that imports nothing of this package, so that it starts fast. The request is a JSON object:
"workflow", "toplevel", "workdir", "initdata", "dataopts", "backend", "log" (file for yadage's own messages, so that the
standard output and error are those of the steps), "schemas" (a folder that it makes and removes).
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any


def schemas_without_dialect(target: Path) -> None:
    """Copy yadage's schemas and drop their "$schema" keys.

    Where a schema says which dialect it is in, jsonschema >= 4.10 walks on with that dialect's own validator instead of
    the one that yadage has extended, and the defaults that yadage counts on are never filled in.
    """
    import yadageschemas

    source = Path(yadageschemas.__file__).parent
    for file in source.rglob("*.json"):
        schema = json.loads(file.read_text(encoding="utf-8"))
        schema.pop("$schema", None)
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(schema), encoding="utf-8")


def run(request: dict[str, Any]) -> None:
    """Run the workflow to its end; raises whatever yadage raises."""
    logging.basicConfig(filename=request["log"], level=logging.INFO)
    # Of the many libraries below, which are not ours.
    warnings.simplefilter("ignore")
    from packtivity.plugins import enable_plugins
    from yadage.steering_api import run_workflow
    from yadage.utils import setupbackend_fromstring

    enable_plugins()
    schemas_without_dialect(Path(request["schemas"]))
    run_workflow(
        dataarg=f"local:{request['workdir']}",
        workflow=request["workflow"],
        toplevel=request["toplevel"],
        schemadir=request["schemas"],
        initdata=request["initdata"],
        dataopts=request["dataopts"],
        backend=setupbackend_fromstring(request["backend"]),
        visualize=False,
    )


def main() -> None:
    """Exit code 1 and one line on the standard error where the workflow fails."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        run(request)
    except Exception as error:
        logging.getLogger("excursion").exception("the workflow failed")
        message = " ".join(str(error).split())[:500]
        sys.exit(f"yadage: {type(error).__name__}: {message}")
    finally:
        shutil.rmtree(request["schemas"], ignore_errors=True)


if __name__ == "__main__":
    main()
