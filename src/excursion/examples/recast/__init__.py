"""A preserved analysis as RECAST has them: a workflow of two steps, its entry in a catalogue, and a campaign over it.

The steps are those of `excursion.examples.sleptons`, taken apart: one generates events and fills the bins of the
search, the other fits the limits. Nothing but files goes from one to the other. In a real entry each step names a
container image; here both run in the environment in which they are called.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InvalidSpec

__all__ = ["FILES", "write"]

_DATA = Path(__file__).with_name("data")

#: What the example consists of, relative to its folder.
FILES = ("campaign.yaml", "catalogue/sleptons.yml", "workflow/workflow.yml", "workflow/steps.yml")


def write(folder: str | Path) -> Path:
    """Write the example's files; those that are there already are left as they are.

    Args:
        folder: where to.

    Returns:
        The campaign's file.

    Raises:
        InvalidSpec: they cannot be written.
    """
    try:
        for name in FILES:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.write_text((_DATA / name).read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(f"{folder}: must be a folder to write in, got {error}. Choose another") from error
    return Path(folder) / FILES[0]
