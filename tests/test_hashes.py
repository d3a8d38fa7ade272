"""Hashes that are remembered: right after any change, kept from process to process, and nothing that anything depends on."""

import os
import time
from pathlib import Path

import pytest
from actlake.store.core.files import hash_file
from actlake.store.remote import hashes
from actlake.store.remote.hashes import known_hash, user_cache


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    read: list[Path] = []

    def counting(file: Path) -> str:
        read.append(file)
        return hash_file(file)

    monkeypatch.setattr(hashes, "hash_file", counting)
    return read


def as_another_process() -> None:
    hashes._store.cache_clear()


def old(file: Path) -> None:
    """As if it had been written long ago; its inode changes now."""
    os.utime(file, ns=(10**18, 10**18))


def test_an_untouched_file_is_read_once(tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 0)
    file = tmp_path / "file"
    file.write_bytes(b"one")
    time.sleep(0.01)
    assert [known_hash(file), known_hash(file)] == [hash_file(file)] * 2 and len(counted) == 1
    as_another_process()
    assert known_hash(file) == hash_file(file) and len(counted) == 1


def test_a_change_of_equal_size_and_time_is_seen(
    tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 0)
    file = tmp_path / "file"
    file.write_bytes(b"one")
    old(file)
    time.sleep(0.01)
    assert known_hash(file) == hash_file(file)
    time.sleep(0.01)
    file.write_bytes(b"two")
    old(file)
    assert known_hash(file) == hash_file(file)


def test_what_was_just_written_is_not_remembered(tmp_path: Path, counted: list[Path]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert known_hash(file) == known_hash(file) and len(counted) == 2


def test_without_a_place_for_them_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    monkeypatch.setenv("ACTLAKE_CACHE", str(file))  # no folder can be there
    assert known_hash(file) == hash_file(file)
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (user_cache() / "hashes.sqlite").write_bytes(b"not a database" * 100)
    assert known_hash(file) == hash_file(file)
