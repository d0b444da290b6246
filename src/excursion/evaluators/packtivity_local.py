"""A plugin of packtivity: runs the steps that name a container image as local processes, without the image.

It is copied into the evaluation's directory and loaded there by whatever yadage runs the workflow, in an environment
that need not have this package: it imports nothing of it. Named by ``{executor: {docker-encapsulated: local}}`` in
the file of PACKTIVITY_SYNCCONFIGFILE.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any

from packtivity.handlers.execution_handlers import executor


@executor("docker-encapsulated", "local")
def run(config: Any, environment: dict[str, Any], state: Any, job: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Run the step's command, or its script, by the shell of this machine, in the step's own directory.

    Raises:
        RuntimeError: files that a container would have at fixed places, which must not be put there on this machine.
        subprocess.CalledProcessError: the command failed.
    """
    if environment["par_mounts"]:
        raise RuntimeError(f"step {metadata['name']}: par_mounts need a container, there is none")
    directory = environment["workdir"] or state.readwrite[0]
    os.makedirs(directory, exist_ok=True)
    command = job["interpreter"] if "script" in job else job["command"]
    if environment["envscript"]:
        # Images have a shell that knows `source`, or their workflows would not name a script.
        words = ["bash", "-c", f"source {shlex.quote(environment['envscript'])} && {command}"]
    else:
        words = ["sh", "-c", command]
    subprocess.run(
        words,
        input=job.get("script"),
        stdin=None if "script" in job else subprocess.DEVNULL,
        text=True,
        cwd=directory,
        env={**os.environ, **{name: str(value) for name, value in (environment.get("env") or {}).items()}},
        check=True,
    )
