"""Where the configuration of a runtime is looked for."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from posemesh.golem.environment import Env, locate

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="that system has a folder of its own")


def test_the_folder_is_in_small_letters_without_blanks_and_the_file_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert locate(Env(), "My Runtime") == "/data/myruntime/My Runtime.json"


@pytest.mark.parametrize("data", ["", "relative/data"])
def test_a_data_home_that_is_not_absolute_is_ignored(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", data)
    monkeypatch.setenv("HOME", "/home/me")
    assert locate(Env(), "render") == "/home/me/.local/share/render/render.json"


@pytest.mark.parametrize("home", [None, ""])
def test_without_home_the_user_has_one(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    entry = pwd.getpwuid(os.getuid()).pw_dir
    assert locate(Env(), "render") == os.path.join(entry, ".local/share/render/render.json")


def test_toml_comes_before_yaml_and_yml_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "render"
    folder.mkdir()
    (folder / "render.JSON").touch()  # it may be read, and is not looked for
    for extension in ("json", "yml", "yaml", "toml"):
        path = folder / f"render.{extension}"
        path.touch()
        assert locate(Env(), "render") == str(path)


def test_an_environment_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    class Here(Env):
        def data_directory(self, name: str) -> Path:
            return tmp_path

    assert locate(Here(), "render") == str(tmp_path / "render.json")
