"""Files that are whole or not there; what is read from them is what JSON and YAML may hold."""

import json
from pathlib import Path

import pytest

from sscl.core import files
from sscl.core.errors import SHOWN, UserError, refuse
from sscl.core.files import read_json, read_yaml, sha256, write_atomic, write_text
from sscl.core.memory import refuse_beyond_memory


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    digest = write_atomic(tmp_path / "a", lambda file: [file.write(b"one"), file.write(b"two")])
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert digest == sha256(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_disk_that_gives_other_bytes_back_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")
    read = sha256

    def half(path: Path) -> str:
        path.write_bytes(path.read_bytes()[:1])
        return read(path)

    monkeypatch.setattr(files, "sha256", half)
    with pytest.raises(OSError, match="other bytes than were written"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{'a': 1}", "\xff"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")


def test_a_name_that_stands_twice_in_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": [{"test": ["x"], "train": [], "test": ["y"]}]}')
    with pytest.raises(UserError, match=r"a\.json: .*'test' is in it twice"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["[" * 5_000, "a: !!python/object/apply:os.mkdir [canary]", "a: 2020-13-45", "a: [", "\xff", "9" * 5000]
)
def test_yaml_that_is_not_plain_values(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.yaml: "):
        read_yaml(Path("a.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read() -> None:
    refuse_beyond_memory(1, Path("a.nii"))
    with pytest.raises(UserError, match=r"a\.nii: too large.*1000000\.0 GB of memory"):
        refuse_beyond_memory(10**15, Path("a.nii"))


def test_several_mistakes_are_one_error_that_shows_the_first() -> None:
    refuse([])
    with pytest.raises(UserError, match=r"^one$"):
        refuse(["one"])
    with pytest.raises(UserError, match=r"^2 mistakes:\n  one\n  two$"):
        refuse(["one", "two"])
    with pytest.raises(UserError, match=r"and 3 more$") as error:
        refuse(str(number) for number in range(SHOWN + 3))
    assert len(error.value.args) == SHOWN + 3
