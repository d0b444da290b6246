from __future__ import annotations

from pathlib import Path

import pytest

from excursion.store import MemoryStore, SqlStore
from excursion.testing import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


class TestSqlStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path):
        with SqlStore(tmp_path / "campaign.db") as store:
            yield store
