"""A PostgreSQL server of one's own, from the programs that Debian's package `postgresql` installs."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

USER = "excursion"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; None where PostgreSQL's server is not installed."""
    found = shutil.which("initdb")
    folders = [os.path.dirname(os.path.realpath(found))] if found else sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    return Path(folders[-1]) if folders else None


@dataclass(frozen=True)
class Server:
    """A running server that listens on a port of the loopback interface and asks for a password.

    Attributes:
        bin: where its programs are.
        folder: where its data and its log are.
        port: where it listens.
        password: of the user `USER`, who may do everything.
        database: which one `url` leads to.
    """

    bin: Path
    folder: Path
    port: int
    password: str
    database: str = "postgres"

    @property
    def url(self) -> str:
        """Where the database is."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{self.database}"

    def new(self) -> Server:
        """The same server with a new, empty database."""
        name = f"d{uuid.uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        return replace(self, database=name)

    def sql(self, statement: str) -> None:
        """Run a statement outside any transaction."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def dump(self) -> str:
        """All of the database as text."""
        self_env = {**os.environ, "PGPASSWORD": self.password}
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, self.database]
        done = subprocess.run([self.bin / "pg_dump", *where], env=self_env, capture_output=True, text=True, check=True)
        return done.stdout

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._control("start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop it: "fast" ends transactions, "immediate" is a crash."""
        self._control("stop", "-w", "-m", mode)

    def restart(self, mode: str = "immediate") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def _control(self, *words: str) -> None:
        _run([str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), *words], self.folder)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A new server, stopped and removed at the end.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    found = programs()
    if found is None:
        raise FileNotFoundError("PostgreSQL's initdb: must be installed (apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="excursion-postgres-", ignore_cleanup_errors=True) as name:
        folder, password = Path(name), secrets.token_urlsafe(12)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:  # the server refuses to run as root
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres")
        words = ["-D", str(folder / "data"), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(folder / "password")]
        _run([str(found / "initdb"), *words, "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"], folder)
        for attempt in range(5):
            made = Server(found, folder, _free_port(), password)
            try:
                made.start()
                break
            except RuntimeError:
                if attempt == 4:  # somebody was faster at each port
                    raise
        try:
            yield made
        finally:
            made.stop("immediate")


def _run(words: list[str], folder: Path) -> None:
    as_root = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    log = folder / "control.log"
    with open(log, "ab") as out:
        code = subprocess.call(words, stdout=out, stderr=out, cwd="/", **as_root)  # type: ignore[arg-type]
    if code:
        raise RuntimeError(f"{words[0]} ended with {code}:\n{log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
