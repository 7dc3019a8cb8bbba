"""posemesh.config: every variable, every way to get one wrong, and that no message holds a secret."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

import posemesh
from posemesh.config import NodeConfig, normalise_version
from posemesh.errors import ConfigError
from posemesh.secret import Secret

KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
CREDENTIALS = "bm9kZS11dWlkOnNlY3JldA=="
REQUIRED = {"REG_SECRET": CREDENTIALS, "SECP256K1_PRIVHEX": KEY}
ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(**env: str) -> NodeConfig:
    return NodeConfig.from_env({**REQUIRED, **env})


def problems(**env: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        read(**env)
    return raised.value.problems


def make(**fields: object) -> NodeConfig:
    return NodeConfig(reg_secret=Secret(CREDENTIALS), secp256k1_privhex=Secret(KEY), **fields)  # type: ignore[arg-type]


DEFAULTS = {
    "dms_base_url": "https://dms.auki.network/v1",
    "dds_base_url": "https://dds.auki.network",
    "node_url": None,
    "request_timeout_secs": 60,
    "node_version": posemesh.__version__,
    "heartbeat_jitter_ms": 250,
    "heartbeat_min_ratio": 0.25,
    "heartbeat_max_ratio": 0.35,
    "poll_backoff_ms_min": 1000,
    "poll_backoff_ms_max": 30000,
    "token_safety_ratio": 0.75,
    "token_reauth_max_retries": 3,
    "token_reauth_jitter_ms": 500,
    "register_interval_secs": 120,
    "register_max_retry": -1,
    "max_concurrency": 1,
    "log_format": "json",
    "enable_noop": False,
    "noop_sleep_secs": 5,
    "client_id": None,
    "node_host": "127.0.0.1",
    "node_port": None,
    "state_dir": None,
    "drain_timeout_secs": 30,
    "log_level": "info",
    "resources": (),
    "input_bytes_max": 64 * 1024**3,
    "workspace_bytes_max": 256 * 1024**3,
    "part_bytes_max": 1024**3,
    "header_bytes_max": 16 * 1024,
    "stall_timeout_secs": 60,
    "allow_insecure_http": False,
    "expose_status": False,
}

# variable, text, value
RIGHT = [
    ("DMS_BASE_URL", "https://dms.example/v1/", "https://dms.example/v1"),
    ("DMS_BASE_URL", "http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
    ("DMS_BASE_URL", "http://[::1]:8080", "http://[::1]:8080"),
    ("DDS_BASE_URL", "https://dds.example///", "https://dds.example"),
    ("DDS_BASE_URL", "http://localhost:1", "http://localhost:1"),
    ("NODE_URL", "https://node.example", "https://node.example/"),
    ("NODE_URL", "HTTPS://Node.Example:443/a", "https://node.example/a"),
    ("NODE_URL", "https://node.example:8443", "https://node.example:8443/"),
    ("NODE_URL", "http://[::1]:80", "http://[::1]/"),
    ("REG_SECRET", "  padded ", Secret("padded")),
    ("SECP256K1_PRIVHEX", f" 0x{KEY.upper()} ", Secret(KEY)),
    ("REQUEST_TIMEOUT_SECS", "0.5", 0.5),
    ("NODE_VERSION", "v1.2.3", "1.2.3"),
    ("HEARTBEAT_JITTER_MS", "0", 0),
    ("HEARTBEAT_MIN_RATIO", ".1", 0.1),
    ("HEARTBEAT_MAX_RATIO", "9e-1", 0.9),
    ("POLL_BACKOFF_MS_MIN", " 1 ", 1),
    ("POLL_BACKOFF_MS_MAX", "1000", 1000),
    ("TOKEN_SAFETY_RATIO", "0.99", 0.99),
    ("TOKEN_REAUTH_MAX_RETRIES", "0", 0),
    ("TOKEN_REAUTH_JITTER_MS", "0", 0),
    ("REGISTER_INTERVAL_SECS", "1", 1),
    ("REGISTER_MAX_RETRY", "-1", -1),
    ("REGISTER_MAX_RETRY", "0", 0),
    ("MAX_CONCURRENCY", "64", 64),
    ("RESOURCES", "gpu:2, camera:1", (("gpu", 2), ("camera", 1))),
    ("LOG_FORMAT", "Text", "text"),
    ("ENABLE_NOOP", "TRUE", True),
    ("ENABLE_NOOP", "false", False),
    ("NOOP_SLEEP_SECS", "0", 0),
    ("CLIENT_ID", "rig-7", "rig-7"),
    ("NODE_HOST", "::", "::"),
    ("NODE_PORT", "0", 0),
    ("NODE_PORT", "65535", 65535),
    ("STATE_DIR", "/var/lib/x", Path("/var/lib/x")),
    ("DRAIN_TIMEOUT_SECS", "0", 0),
    ("LOG_LEVEL", "DEBUG", "debug"),
    ("INPUT_BYTES_MAX", "1", 1),
    ("WORKSPACE_BYTES_MAX", "1000000000000", 10**12),
    ("PART_BYTES_MAX", "5242880", 5_242_880),
    ("HEADER_BYTES_MAX", "256", 256),
    ("STALL_TIMEOUT_SECS", "0.5", 0.5),
    ("ALLOW_INSECURE_HTTP", "true", True),
    ("EXPOSE_STATUS", "true", True),
]

NUMBERS = [
    "REQUEST_TIMEOUT_SECS",
    "HEARTBEAT_JITTER_MS",
    "HEARTBEAT_MIN_RATIO",
    "HEARTBEAT_MAX_RATIO",
    "POLL_BACKOFF_MS_MIN",
    "POLL_BACKOFF_MS_MAX",
    "TOKEN_SAFETY_RATIO",
    "TOKEN_REAUTH_MAX_RETRIES",
    "TOKEN_REAUTH_JITTER_MS",
    "REGISTER_INTERVAL_SECS",
    "REGISTER_MAX_RETRY",
    "MAX_CONCURRENCY",
    "NOOP_SLEEP_SECS",
    "NODE_PORT",
    "DRAIN_TIMEOUT_SECS",
]

WRONG = [
    *((name, text) for name in NUMBERS for text in ("abc", "nan", "inf", "-2", "1_0", "0x1", "٣", "1e999", "9" * 19)),
    *((name, "1.5") for name in ("HEARTBEAT_JITTER_MS", "POLL_BACKOFF_MS_MIN", "MAX_CONCURRENCY", "NODE_PORT")),
    *((name, text) for name in ("ENABLE_NOOP", "ALLOW_INSECURE_HTTP", "EXPOSE_STATUS") for text in ("1", "yes", "tru")),
    *(
        (name, text)
        for name in ("DMS_BASE_URL", "DDS_BASE_URL", "NODE_URL")
        for text in (
            "dms.example",
            "/v1",
            "ftp://dms.example",
            "https://",
            "https:///v1",
            "https://a b",
            "https://a:port",
            "https://a:99999",
            "https://[::1",
            "https://a/?q=1",
            "https://a/#f",
            "https://a/?",
            "https://user:word@a",
            "http://dms.example",
            "http://10.0.0.1",
            "http://localhost.example",
        )
    ),
    *((name, text) for name in ("HEARTBEAT_MIN_RATIO", "TOKEN_SAFETY_RATIO") for text in ("0", "1", "1.1")),
    ("REQUEST_TIMEOUT_SECS", "0"),
    ("REGISTER_INTERVAL_SECS", "0"),
    ("POLL_BACKOFF_MS_MIN", "0"),
    ("POLL_BACKOFF_MS_MIN", "30001"),
    ("HEARTBEAT_MIN_RATIO", "0.36"),
    ("MAX_CONCURRENCY", "0"),
    ("NODE_PORT", "65536"),
    ("INPUT_BYTES_MAX", "0"),
    ("WORKSPACE_BYTES_MAX", "64GiB"),
    ("PART_BYTES_MAX", "0"),
    ("HEADER_BYTES_MAX", "255"),
    ("STALL_TIMEOUT_SECS", "0"),
    ("RESOURCES", "gpu"),
    ("RESOURCES", "gpu:many"),
    ("RESOURCES", "gpu:-1"),
    ("RESOURCES", "g u:1"),
    ("RESOURCES", "gpu:1,gpu:2"),
    ("LOG_FORMAT", "xml"),
    ("LOG_LEVEL", "loud"),
    ("CLIENT_ID", "a\x07b"),
    ("CLIENT_ID", "a\udcffb"),
    ("REG_SECRET", "a\nb"),
    ("SECP256K1_PRIVHEX", KEY[1:]),
    ("SECP256K1_PRIVHEX", KEY + "0"),
    ("SECP256K1_PRIVHEX", "g" + KEY[1:]),
    ("SECP256K1_PRIVHEX", "0x0x" + KEY),
    ("SECP256K1_PRIVHEX", "0" * 64),
    ("SECP256K1_PRIVHEX", ORDER),
    ("SECP256K1_PRIVHEX", "f" * 64),
]


def test_the_defaults() -> None:
    config = read()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert {field.name for field in dataclasses.fields(config)} - {"defaulted", "warnings"} == {
        *DEFAULTS,
        "reg_secret",
        "secp256k1_privhex",
    }


def test_made_directly_it_has_the_same_defaults() -> None:
    assert make() == read()


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_a_variable_is_read(name: str, text: str, value: object) -> None:
    found = getattr(read(**{name: text}), name.lower())
    assert found == value
    assert type(found) is type(value) or isinstance(found, float)


def test_every_variable_is_tried_right_and_wrong() -> None:
    variables = {field.name.upper() for field in dataclasses.fields(NodeConfig) if field.metadata}
    assert variables == {name for name, _, _ in RIGHT}
    # Of these any one line of text will do.
    assert variables - {name for name, _ in WRONG} == {"NODE_HOST", "NODE_VERSION", "STATE_DIR"}


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_is_told_by_its_variable(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: expected ")
    assert "; " in problem, "it says what to do"


@pytest.mark.parametrize("name", sorted(REQUIRED))
@pytest.mark.parametrize("text", ["", "   "])
def test_what_is_required_is_missed(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: expected a value")


@pytest.mark.parametrize("name", [field.name.upper() for field in dataclasses.fields(NodeConfig) if field.metadata])
def test_a_blank_value_is_the_default(name: str) -> None:
    if name not in REQUIRED:
        assert read(**{name: "  "}) == read()


def test_the_largest_key_of_the_curve_is_taken() -> None:
    assert read(SECP256K1_PRIVHEX=ORDER[:-1] + "0")


def test_the_all_zero_key_is_called_a_placeholder() -> None:
    (problem,) = problems(SECP256K1_PRIVHEX="0x" + "0" * 64)
    assert "placeholder" in problem


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("MAX_CONCURRENCY", "9" * 20, "a number of at least 1 and at most 4000000000000"),
        ("MAX_CONCURRENCY", "9" * 4000, "a number of at least 1 and at most 4000000000000"),
        ("REGISTER_INTERVAL_SECS", "1e300", "a number above 0 and at most 4000000000000"),
        ("DRAIN_TIMEOUT_SECS", "1e999", "a number of at least 0 and at most 4000000000000"),
        ("DRAIN_TIMEOUT_SECS", "-1", "a number of at least 0, got -1.0"),
        ("NODE_PORT", "9" * 20, "a number of at least 0 and at most 65535"),
        ("HEARTBEAT_MIN_RATIO", "1e300", "a ratio between 0 and 1"),
    ],
)
def test_the_bound_that_was_broken_is_told(name: str, text: str, wanted: str) -> None:
    """Of a number too large it said that it is none, or gave the least one."""
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: expected {wanted}")


def test_all_problems_come_at_once_in_the_order_of_the_settings() -> None:
    found = problems(
        DMS_BASE_URL="dms",
        SECP256K1_PRIVHEX="beef" * 15,
        MAX_CONCURRENCY="zero",
        LOG_FORMAT="xml",
        ENABLE_NOOP="maybe",
        NODE_PORT="-1",
    )
    assert [line.partition(":")[0] for line in found] == [
        "DMS_BASE_URL",
        "SECP256K1_PRIVHEX",
        "MAX_CONCURRENCY",
        "LOG_FORMAT",
        "ENABLE_NOOP",
        "NODE_PORT",
    ]


def test_values_that_disagree_are_not_reported_beside_one_that_cannot_be_read() -> None:
    (problem,) = problems(POLL_BACKOFF_MS_MIN="60000", POLL_BACKOFF_MS_MAX="much")
    assert problem.startswith("POLL_BACKOFF_MS_MAX")


@pytest.mark.parametrize("secret", ["hunter2hunter2", KEY[:-2], "0" * 63 + "g", f"{ORDER[:-1]}f"])
def test_no_secret_is_in_any_text_of_the_error(secret: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(SECP256K1_PRIVHEX=secret, REG_SECRET=f"{secret}\x00", MAX_CONCURRENCY=KEY, DMS_BASE_URL=f"https://{KEY}@a")
    text = f"{raised.value} {raised.value!r} {raised.value.problems}"
    assert secret not in text
    assert KEY not in text
    assert len(raised.value.problems) == 4


@pytest.mark.parametrize("url", ["ftp://a:hunter2@b", "a:hunter2@b", "https://a:hunter2@b"])
def test_no_wrong_url_is_shown(url: str) -> None:
    """A short one without http was, with its password."""
    (problem,) = problems(DMS_BASE_URL=url)
    assert "hunter2" not in problem


def test_no_secret_is_in_its_repr() -> None:
    assert KEY not in repr(read())
    assert CREDENTIALS not in repr(read())


def test_made_directly_it_is_checked_in_the_same_way() -> None:
    with pytest.raises(ConfigError) as raised:
        make(request_timeout_secs=float("nan"), heartbeat_min_ratio=0.5, node_port="80", dds_base_url="dds")
    assert [line.partition(":")[0] for line in raised.value.problems] == [
        "DDS_BASE_URL",
        "REQUEST_TIMEOUT_SECS",
        "HEARTBEAT_MIN_RATIO",
        "NODE_PORT",
    ]


def test_plain_http_is_allowed_by_name() -> None:
    config = read(ALLOW_INSECURE_HTTP="true", DMS_BASE_URL="http://10.0.0.1/v1", NODE_URL="http://node.example")
    assert (config.dms_base_url, config.node_url) == ("http://10.0.0.1/v1", "http://node.example/")


def test_with_a_node_url_it_listens_on_all_interfaces_unless_told() -> None:
    assert read(NODE_URL="https://n.example").node_host == "0.0.0.0"
    assert read(NODE_URL="https://n.example", NODE_HOST="127.0.0.1").node_host == "127.0.0.1"


def test_it_tells_what_was_left_to_defaults() -> None:
    config = read(DMS_BASE_URL="https://dms.example", LOG_FORMAT=" ")
    assert {"DDS_BASE_URL", "LOG_FORMAT"} <= config.defaulted
    assert not {"DMS_BASE_URL", "REG_SECRET"} & config.defaulted


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().max_concurrency = 2  # type: ignore[misc]


def test_a_copy_with_a_change_is_checked_too() -> None:
    assert dataclasses.replace(read(), max_concurrency=3).max_concurrency == 3
    with pytest.raises(ConfigError):
        dataclasses.replace(read(), max_concurrency=0)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    Path(".env").write_text(f"REG_SECRET=file\nexport CLIENT_ID='from file'\nSECP256K1_PRIVHEX={KEY}\n# remark\n")
    config = NodeConfig.from_env({"REG_SECRET": "env"})
    assert config.reg_secret == Secret("env")
    assert config.client_id == "from file"


def test_a_variable_set_blank_hides_the_file() -> None:
    Path(".env").write_text("CLIENT_ID=file\n")
    assert read(CLIENT_ID="").client_id is None


def test_the_process_environment_is_read_and_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**REQUIRED, "CLIENT_ID": "mine"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NODE_HOST", raising=False)
    Path(".env").write_text("NODE_HOST=127.0.0.2\n")
    before = dict(os.environ)
    config = NodeConfig.from_env()
    assert (config.client_id, config.node_host) == ("mine", "127.0.0.2")
    assert dict(os.environ) == before


def test_a_file_is_named_in_place_of_the_default_one(tmp_path: Path) -> None:
    Path(".env").write_text("CLIENT_ID=default\n")
    other = tmp_path / "node.env"
    other.write_text("NODE_HOST=127.0.0.3\n")
    config = NodeConfig.from_env(REQUIRED, env_file=other)
    assert (config.client_id, config.node_host) == (None, "127.0.0.3")


def test_nothing_is_interpolated() -> None:
    Path(".env").write_text("CLIENT_ID=${HOME}-$HOME\n")
    assert read().client_id == "${HOME}-$HOME"


@pytest.mark.parametrize("make_file", [lambda path: None, Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe=\xff")])
def test_a_named_file_that_cannot_be_read_is_a_problem(tmp_path: Path, make_file) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "node.env"
    make_file(file)
    with pytest.raises(ConfigError) as raised:
        NodeConfig.from_env(REQUIRED, env_file=file)
    assert str(file) in raised.value.problems[0]


def test_a_line_that_sets_nothing_is_a_problem_and_not_shown() -> None:
    Path(".env").write_text("CLIENT_ID=a\nSECRET VALUE = hunter2\n")
    with pytest.raises(ConfigError) as raised:
        read()
    assert raised.value.problems[0].startswith(".env: expected NAME=value on line 2")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.2.3", "1.2.3"),
        (" 1.2.3-rc.1+build.5 ", "1.2.3-rc.1+build.5"),
        ("0.0.0", "0.0.0"),
    ],
)
def test_a_semantic_version_is_sent_as_it_is(text: str, version: str) -> None:
    assert normalise_version(text) == (version, None)


@pytest.mark.parametrize("text", ["v1.2.3", "V1.2.3"])
def test_a_leading_v_is_taken_off_with_a_word(text: str) -> None:
    version, warning = normalise_version(text)
    assert version == "1.2.3"
    assert warning is not None and text in warning


@pytest.mark.parametrize("text", ["", "dev", "1.2", "1.2.3.4", "01.2.3", "vv1.2.3", "1.2.3-", "1.2.٣", "1.2.3-01", "v"])
def test_what_is_no_version_gives_way_to_ours(text: str) -> None:
    version, warning = normalise_version(text)
    assert version == posemesh.__version__
    assert warning is not None and version in warning


def test_the_warning_about_a_version_is_kept() -> None:
    assert read(NODE_VERSION="dev").warnings == (normalise_version("dev")[1],)
    assert read().warnings == ()
