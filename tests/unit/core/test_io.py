"""What stands under a final name is complete, whatever happens to the process or to the disk."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dilm.core import io as io_module
from dilm.core.errors import DiskFullError
from dilm.core.io import TEMPORARY, new_folder, read_json, sha256_file, temporary_name, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# One file


def test_a_file_is_written_whole_and_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "file", b"\x00\xff\n")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"\x00\xff\n"
    assert names(tmp_path) == ["a", "a/b", "a/b/file"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"a long content")
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_reader_that_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    with open(tmp_path / "file", "rb") as stream:
        write_bytes(tmp_path / "file", b"new")
        assert stream.read() == b"old"


@pytest.mark.parametrize("value", [{"b": [1, None], "a": "é😀\n"}, [], "text"])
def test_json_comes_back(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value


def test_json_keeps_order_and_plain_characters_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": "é", "a": 1})
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == '{\n  "b": "é",\n  "a": 1\n}\n'


def test_a_value_that_is_not_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert names(tmp_path) == []


def test_temporary_names_are_beside_the_file_unique_and_tell_whose_they_are(tmp_path: Path) -> None:
    made = {temporary_name(tmp_path / "file") for _ in range(100)}
    assert len(made) == 100
    assert {path.parent for path in made} == {tmp_path}
    assert all(path.name.startswith(f"file{TEMPORARY}") and f"-{os.getpid()}-" in path.name for path in made)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    write_bytes(tmp_path / "file", content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# A folder


def test_a_folder_appears_at_the_end_with_what_was_put_in_it(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("content")
        assert not (tmp_path / "made").exists()
        assert folder.parent == tmp_path
    assert names(tmp_path) == ["made", "made/below", "made/below/file"]
    assert (tmp_path / "made" / "below" / "file").read_text() == "content"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind), new_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("half")
        raise kind
    assert names(tmp_path) == []


def test_an_existing_folder_is_replaced_and_nothing_of_it_stays(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "made") as folder:
            (folder / name).write_text(name)
    assert names(tmp_path) == ["made", "made/new"]


def test_a_failure_inside_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ValueError), new_folder(tmp_path / "made") as folder:
        (folder / "new").write_text("new")
        raise ValueError
    assert names(tmp_path) == ["made", "made/old"]


# Killed writers. A small process forks the writers, kills each at a random moment, and reports what was left.

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from dilm.core.io import new_folder, write_bytes

target, kind, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
SIZE = 500_000


def write(letter):
    if kind == "file":
        write_bytes(target, letter * SIZE)
        return
    with new_folder(target) as folder:
        for name in ("first", "second"):
            (folder / name).write_bytes(letter * (SIZE // 2))


def state():
    if not target.exists():
        return "absent"
    parts = [target] if kind == "file" else [target / "first", target / "second"]
    content = b"".join(path.read_bytes() if path.exists() else b"" for path in parts)
    whole = len(content) == SIZE and len(set(content)) == 1
    return chr(content[0]) if whole else f"half: {len(content)} bytes"


write(b"0")
draw, report = random.Random(0), []
for number in range(rounds):
    before, letter = state(), b"abcdefgh"[number % 8 : number % 8 + 1]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"!")
        write(letter)
        os._exit(0)
    os.read(reader, 1)
    time.sleep(draw.uniform(0, 0.003))
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reader), os.close(writer)
    report.append([before, letter.decode(), state(), killed])
print(json.dumps(report))
"""


def killed_writers(target: Path, kind: str, rounds: int) -> list[tuple[str, str, str, bool]]:
    command = [sys.executable, "-c", KILLER, str(target), kind, str(rounds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    report = killed_writers(tmp_path / "file", "file", 120)
    assert all(after in (before, new) for before, new, after, _ in report), report
    assert any(killed and after == before for before, _, after, killed in report), "no writer was killed early"
    assert any(TEMPORARY in name for name in names(tmp_path)), "no writer was killed in the middle"


def test_a_killed_writer_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    report = killed_writers(tmp_path / "made", "folder", 120)
    assert all(after in (before, new, "absent") for before, new, after, _ in report), report
    assert any(killed and after == before for before, _, after, killed in report), "no writer was killed early"
    assert any(TEMPORARY in name for name in names(tmp_path)), "no writer was killed in the middle"


# Full disks


def test_a_full_disk_is_named_and_keeps_the_old_file(tiny_disk: Path) -> None:
    write_bytes(tiny_disk / "file", b"old")
    with pytest.raises(DiskFullError, match=r"file: no space is left.*Nothing was written"):
        write_bytes(tiny_disk / "file", b"x" * 100_000)
    assert (tiny_disk / "file").read_bytes() == b"old"
    assert names(tiny_disk) == ["file"]


def test_a_full_disk_leaves_no_new_file(tiny_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="other: no space is left"):
        write_bytes(tiny_disk / "other", b"x" * 100_000)
    assert names(tiny_disk) == []
    write_bytes(tiny_disk / "other", b"x" * 30_000)
    assert (tiny_disk / "other").stat().st_size == 30_000


def test_a_full_disk_leaves_no_new_folder(tiny_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="made: no space is left"), new_folder(tiny_disk / "made") as folder:
        for number in range(10):
            (folder / f"{number}").write_bytes(b"x" * 10_000)
    assert names(tiny_disk) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_any_call_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    write_bytes(tmp_path / "file", b"old")

    def full(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(io_module.os, call, full)
    with pytest.raises(DiskFullError, match="file: no space is left") as caught:
        write_bytes(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_at_any_call_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "old").write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError), new_folder(tmp_path / "made") as folder:
        (folder / "new").write_text("new")
        monkeypatch.setattr(io_module.os, call, full)
    monkeypatch.undo()
    assert names(tmp_path) == ["made", "made/old"]


def test_a_folder_that_cannot_take_its_name_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "old").write_text("old")
    rename = os.rename

    def full_for_the_new_one(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with pytest.raises(DiskFullError), new_folder(tmp_path / "made") as folder:
        (folder / "new").write_text("new")
        monkeypatch.setattr(io_module.os, "rename", full_for_the_new_one)
    assert names(tmp_path) == ["made", "made/old"]


def test_a_library_that_tells_of_a_full_disk_in_words_alone_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="made: no space is left"), new_folder(tmp_path / "made"):
        raise RuntimeError("unable to write: error message = 'No space left on device', offset = 2048")
    assert names(tmp_path) == []


def test_the_innermost_name_of_a_full_disk_is_the_one_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"^the inner one$"), new_folder(tmp_path / "made"):
        raise DiskFullError("the inner one")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("out of luck")])
def test_other_errors_inside_a_folder_are_not_renamed(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, new_folder(tmp_path / "made"):
        raise error
    assert caught.value is error
    assert names(tmp_path) == []


def test_other_errors_of_the_system_are_not_renamed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "file" / "below", b"content")
