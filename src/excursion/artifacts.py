"""What evaluations leave behind: their logs and files, kept in a folder or in any place that fsspec reaches."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .errors import InvalidSpec, MissingExtra
from .evaluators import Evaluator
from .secrets import masked_data

__all__ = ["Artifacts", "Attempt", "folder_name", "work_directory"]

#: The log of an evaluation, and the file that tells what it was and is written last.
LOG, ABOUT = "worker.log", "trial.json"
#: Seconds that keeping the files of one evaluation may take; a store that hangs must not keep the value waiting.
PATIENCE = 600.0
_LONGEST = 120


class Artifacts:
    """A place for the files of a campaign: ``<place>/<campaign>/00012-0/`` for the first evaluation of trial 12.

    In a folder the files appear under a temporary name, `.00012-....part`, where the log can be read while it is
    written, and get their name when they are complete. Elsewhere `trial.json` comes last.
    """

    def __init__(self, place: str | os.PathLike[str], campaign: str) -> None:
        """Make sure that the place can be understood; nothing is written.

        Args:
            place: a folder, or a URL of fsspec such as s3://bucket/scan.
            campaign: its name, any text.

        Raises:
            MissingExtra: fsspec, or what it needs for this URL, is not installed.
            InvalidSpec: a URL of an unknown kind.
        """
        text = os.fspath(place)
        kind, colon, rest = text.partition("://")
        self._folder: Path | None = None
        if not colon or kind in ("file", "local"):
            self._folder = Path(os.path.abspath(os.path.expanduser(rest if colon else text))) / folder_name(campaign)
            return
        try:
            import fsspec

            self._remote, root = fsspec.core.url_to_fs(text)
        except ImportError as error:
            raise MissingExtra(
                f"artifacts: a URL needs fsspec and its driver, got {error}. "
                "Run: pip install 'excursion[artifacts]', and the driver's package"
            ) from error
        except ValueError as error:
            raise InvalidSpec(
                f"artifacts: must be a folder or a URL that fsspec knows, got kind {kind!r} ({error}). Correct it"
            ) from error
        self._root = f"{str(root).rstrip('/')}/{folder_name(campaign)}"

    def attempt(self, number: int) -> Attempt:
        """A place for one more evaluation of a trial."""
        return Attempt(self, number)

    def _publish(self, made: Path, number: int) -> str:
        """Give a local folder its final name; returns it."""
        for k in range(100_000):
            name = f"{number:05d}-{k}"
            if self._folder is not None:
                try:
                    os.rename(made, self._folder / name)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        continue
                    raise
                return str(self._folder / name)
            target = f"{self._root}/{name}"
            if self._remote.exists(f"{target}/{ABOUT}"):
                continue
            for path in sorted((p for p in made.rglob("*") if p.is_file()), key=lambda p: p == made / ABOUT):
                remote = f"{target}/{path.relative_to(made).as_posix()}"
                self._remote.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
                self._remote.put_file(str(path), remote)
            return target
        raise OSError(f"more than 100000 evaluations of trial {number}")


class Attempt:
    """The files of one evaluation. No trouble with them is ever raised: `keep` says what went wrong.

    Attributes:
        log: where the log is to be written; None if there is no place for it.
    """

    def __init__(self, artifacts: Artifacts, number: int) -> None:
        self._artifacts, self._number, self._error = artifacts, number, ""
        self._made: Path | None = None
        self.log: Path | None = None
        folder = artifacts._folder
        try:
            if folder is None:
                made = Path(tempfile.mkdtemp(prefix="excursion-"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                made = folder / f".{number:05d}-{uuid.uuid4().hex[:12]}.part"
                made.mkdir()
            self._made, self.log = made, made / LOG
        except OSError as error:
            self._error = str(error)

    def keep(self, about: Mapping[str, Any], directory: Path | None, patience: float = PATIENCE) -> tuple[str, str]:
        """Put the evaluation's files where they belong.

        Args:
            about: for `trial.json`.
            directory: the evaluation's own, whose files are copied; links that lead out of it are not.
            patience: seconds that it may take.

        Returns:
            Where they are, and what went wrong; one of them is empty.
        """
        if self._made is None:
            return "", self._error
        found: list[tuple[str, str]] = []

        def work() -> None:
            try:
                found.append((self._keep(about, directory), ""))
            except Exception as error:  # whatever a file system or a driver raises: the value matters more
                found.append(("", f"{type(error).__name__}: {error}"))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(patience)
        if not found:
            return "", f"it took longer than {patience:g} s"
        if found[0][1]:
            self.discard()
        return found[0]

    def discard(self) -> None:
        """Forget the files: the evaluation was abandoned."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def _keep(self, about: Mapping[str, Any], directory: Path | None) -> str:
        made = self._made
        assert made is not None
        left_out = []
        if directory is not None:
            root = directory.resolve()
            for path in _files(root):
                source = path.resolve()
                inside = path.relative_to(root)
                if not source.is_relative_to(root) or not stat.S_ISREG(source.stat().st_mode) or str(inside) in _OURS:
                    left_out.append(str(inside))
                    continue
                target = made / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        text = json.dumps(masked_data({**about, "left_out": left_out}), indent=1)
        (made / ABOUT).write_text(text, encoding="utf-8")
        place = self._artifacts._publish(made, self._number)
        if self._artifacts._folder is None:
            self.discard()
        return place


_OURS = (LOG, ABOUT)


def _files(root: Path) -> Iterator[Path]:
    """All that is no folder below a folder, links included but not followed, as far as they lead somewhere."""
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder) / name
            if path.exists():
                yield path


def folder_name(text: str) -> str:
    """A name for a folder that says what the text was: no separators, no dots alone, not too long, never two alike."""
    name = quote(text, safe=" ")
    if set(name) <= {"."} or name != name.strip(" ."):
        name = name.replace(".", "%2E").replace(" ", "%20")
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return name


def work_directory(evaluator: Evaluator, info: Mapping[str, Any], number: int, since: float) -> Path | None:
    """The directory in which an evaluation ran, if it had one of its own.

    Args:
        evaluator: one with a `workdir` makes directories called 00012-0 there, see `Command`; others have none.
        info: of the outcome; "workdir" says which, where the evaluation has come so far.
        number: of the trial.
        since: when the evaluation began, seconds since the epoch.
    """
    while hasattr(evaluator, "evaluator"):
        evaluator = evaluator.evaluator
    root = getattr(evaluator, "workdir", None)
    if not isinstance(root, str):
        return None
    told = Path(str(info.get("workdir", root)))
    # What comes from a program's result must not lead anywhere else.
    if told.parent.resolve() == Path(root).resolve() and told.is_dir():
        return told
    # Clocks of file systems are coarse, and those of file servers differ.
    made = [p for p in Path(root).glob(f"{number:05d}-*") if p.is_dir() and p.stat().st_mtime >= since - 2.0]
    return max(made, key=lambda p: p.stat().st_mtime, default=None)
