"""Configuration files: three formats, read strictly."""

from __future__ import annotations

import builtins
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from posemesh.golem.errors import HandlerError, SettingsError
from posemesh.golem.settings import read, write


@dataclass
class Inner:
    ratio: float
    words: list[str] = field(default_factory=list)


@dataclass
class Config:
    value: int
    name: str
    inner: Inner
    maybe: str | None = None


CONFIG = Config(7, "żółw", Inner(0.00001, ["a", "b"]))
JSON = """{
  "value": 7,
  "name": "żółw",
  "inner": {
    "ratio": 0.00001,
    "words": [
      "a",
      "b"
    ]
  },
  "maybe": null
}"""


@pytest.mark.parametrize("extension", ["json", "JSON", "JsoN", "yaml", "yml", "toml", "TOML"])
def test_what_was_written_is_read_again(tmp_path: Path, extension: str) -> None:
    path = tmp_path / "not yet" / "there" / f"conf.{extension}"
    write(CONFIG, path)
    assert read(path, Config) == CONFIG
    assert read(str(path), Config(0, "", Inner(0))) == CONFIG


def test_json_is_indented_in_the_order_of_the_fields(tmp_path: Path) -> None:
    write(CONFIG, tmp_path / "conf.json")
    assert (tmp_path / "conf.json").read_text() == JSON


def test_the_other_formats_hold_the_same(tmp_path: Path) -> None:
    plain = {"value": 7, "name": "żółw", "inner": {"ratio": 0.00001, "words": ["a", "b"]}}
    write(CONFIG, tmp_path / "conf.toml")
    assert tomllib.loads((tmp_path / "conf.toml").read_text()) == plain
    write(CONFIG, tmp_path / "conf.yaml")
    assert yaml.safe_load((tmp_path / "conf.yaml").read_text()) == {**plain, "maybe": None}


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("a.json", "", "Input data was truncated"),
        ("a.json", '{"value": 7, "name": "n"}', "missing required field `inner`"),
        ("a.json", '{"value": "7", "name": "n", "inner": {"ratio": 1}}', r"Expected `int`, got `str` - at `\$.value`"),
        ("a.json", '{"value": 7, "name": "n", "inner": {"ratio": NaN}}', "malformed"),
        ("a.json", "[]", "Expected `object`"),
        ("a.json", "\x00", "malformed"),
        ("a.toml", JSON, "Invalid"),
        ("a.toml", "", "missing required field `value`"),
        ("a.yaml", "value: [", "while parsing a flow node"),
        ("a.yaml", "", "Expected `object`, got `null`"),
    ],
)
def test_what_cannot_be_used_names_the_file_and_the_cause(tmp_path: Path, name: str, text: str, cause: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SettingsError, match=f"Unable to read the configuration file: {path}\n\nCaused by:\n.*{cause}"):
        read(path, Config)


def test_text_that_is_not_utf_8_and_a_file_that_is_a_folder_are_such(tmp_path: Path) -> None:
    for extension in ("json", "toml", "yaml"):
        path = tmp_path / f"a.{extension}"
        path.write_bytes(b'"\xff"')
        with pytest.raises(SettingsError):
            read(path, Config)
    with pytest.raises(SettingsError):
        read(tmp_path / "nothing.json", Config)
    (tmp_path / "b.json").mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        read(tmp_path / "b.json", Config)


def test_fields_that_nobody_knows_are_ignored_and_defaults_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"value": 1, "name": "n", "inner": {"ratio": 2}, "other": 3}')
    assert read(path, Config) == Config(1, "n", Inner(2.0))


def test_what_a_dataclass_refuses_is_refused(tmp_path: Path) -> None:
    @dataclass
    class Positive:
        value: int

        def __post_init__(self) -> None:
            if self.value < 0:
                raise ValueError("value is 0 or more")

    path = tmp_path / "a.json"
    path.write_text('{"value": -1}')
    with pytest.raises(SettingsError, match="value is 0 or more"):
        read(path, Positive)


def test_without_a_dataclass_it_is_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = {b = 1}")
    assert read(path, None) == {"a": {"b": 1}}
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(SettingsError, match="expected an object, got list"):
        read(path, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [("conf.txt", "Unsupported extension: txt"), ("conf", "Invalid config path"), ("conf.", "Invalid config path")],
)
def test_the_extension_says_the_format(name: str, message: str) -> None:
    with pytest.raises(HandlerError, match=f"^{message}$"):
        read(name, Config)
    with pytest.raises(HandlerError, match=f"^{message}$"):
        write(CONFIG, name)


def test_without_its_package_yaml_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_yaml(name: str, *args: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    (tmp_path / "a.yaml").write_text("{}")
    with pytest.raises(SettingsError, match=r"posemesh\[golem\]"):
        read(tmp_path / "a.yaml", None)


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("old = 1")
    with pytest.raises(TypeError):
        write({"a": [None]}, path)
    assert path.read_text() == "old = 1"
