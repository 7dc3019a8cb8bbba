"""README.md says what is so: its runner, its table of settings, its picture of the machines, its links."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from posemesh.config import NodeConfig
from posemesh.coupling import LAST_RULES, LEASE_RULES, NODE_RULES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

SETTINGS = {field.name.upper(): field for field in dataclasses.fields(NodeConfig) if field.metadata}
ROWS = re.findall(r"^\| `([A-Z0-9_]+)`( †)? \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
# Defaults that are no plain value.
WORDS = {
    "NODE_URL": "none",
    "NODE_VERSION": "posemesh's own",
    "CLIENT_ID": "kept in `STATE_DIR`",
    "NODE_HOST": "127.0.0.1, or 0.0.0.0 with `NODE_URL`",
    "NODE_PORT": "8080; see below",
    "RESOURCES": "none",
    "STATE_DIR": "`${XDG_STATE_HOME:-~/.local/state}/posemesh/<address>`",
}
REQUIRED_ELSEWHERE = {"DMS_BASE_URL", "REQUEST_TIMEOUT_SECS", "NODE_VERSION", "DDS_BASE_URL", "NODE_URL"}
ARROW = re.compile(r'^ +(\w+) -- "(.+)" --> (\w+)$', re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def default(name: str) -> str:
    value = SETTINGS[name].default
    if name in WORDS:
        return WORDS[name]
    if value is dataclasses.MISSING:
        return "required"
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def test_the_commands_for_a_fresh_machine_are_two_in_a_block_of_their_own() -> None:
    assert blocks("sh")[0].splitlines() == ["make demo", "make test"]
    assert README.count("make demo\n") == 1


def test_every_setting_has_its_row_once() -> None:
    names = [name for name, *_ in ROWS]
    assert sorted(names) == sorted(SETTINGS)


@pytest.mark.parametrize(("name", "shown"), [(name, shown) for name, _, shown, _ in ROWS])
def test_the_default_of_a_setting_is_the_one_it_has(name: str, shown: str) -> None:
    assert shown == default(name)


def test_what_is_required_elsewhere_is_marked() -> None:
    assert {name for name, mark, *_ in ROWS if mark} == REQUIRED_ELSEWHERE
    assert {name for name, _, shown, _ in ROWS if shown == "required"} == {"REG_SECRET", "SECP256K1_PRIVHEX"}


@pytest.mark.parametrize("code", blocks("python"))
def test_code_compiles(code: str) -> None:
    compile(code, "README.md", "exec", dont_inherit=True)


def test_the_runner_is_the_example() -> None:
    assert blocks("python")[0] == (ROOT / "examples" / "hello.py").read_text(encoding="utf-8")


def test_every_link_leads_to_something() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", README)
    assert len(links) >= 4
    for path, heading in links:
        text = (ROOT / path).read_text(encoding="utf-8")
        headings = [line.strip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")]
        assert not heading or heading in headings, (path, heading)


def test_the_arrows_between_the_machines_are_rules_of_the_coupling() -> None:
    rules = (*NODE_RULES, *LEASE_RULES, *LAST_RULES)
    (picture,) = blocks("mermaid")
    arrows = ARROW.findall(picture)
    for source, why, target in arrows:
        (rule,) = [rule for rule in rules if rule.why == why]
        assert target in [machine for machine, _ in rule.tell]
        assert source in rule.where or not rule.where
    drawn = {(source, target) for source, _, target in arrows}
    told = {(s, target) for rule in rules for target, _ in rule.tell for s in rule.where if s != target}
    assert told <= drawn


def test_the_test_of_a_runner_passes() -> None:
    names: dict[str, object] = {}
    exec(compile(blocks("python")[0], "README.md", "exec", dont_inherit=True), names)
    (test,) = (block for block in blocks("python") if "run_runner" in block)
    exec(compile(test, "README.md", "exec", dont_inherit=True), names)
