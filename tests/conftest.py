from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.postgres import Server, programs, server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A real PostgreSQL server; tests that may restart it make one of their own."""
    if programs() is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    with server() as made:
        yield made


@pytest.fixture
def postgres(postgres_server: Server) -> str:
    """The URL, with its password, of a new and empty database."""
    return postgres_server.new().url
