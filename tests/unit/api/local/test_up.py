"""Checks of `farm up` before it starts processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from api.local import dashboard
from api.local.supervisor import ChildSpec
from api.local.up import INTAKE, STORAGE, WORK, base_url, children_of, environment_of, run, with_ports
from gym.config import Settings, load_settings
from gym.errors import SettingsError
from gym.policy import PolicySpec


def settings(tmp_path: Path, **overrides: object) -> Settings:
    given: dict[str, object] = {"data_dir": tmp_path, "api": {"port": 0}, "flower": {"port": 0}, "proxy": {"port": 0}}
    return load_settings(None, **(given | overrides))


def test_free_ports_take_the_place_of_zeros(tmp_path: Path) -> None:
    chosen = with_ports(settings(tmp_path))
    assert chosen.api.port
    assert chosen.flower.port
    assert chosen.api.port != chosen.flower.port


def test_a_taken_port_is_named_with_its_option_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port}.*--flower-port"):
            run(settings(tmp_path / "data", flower={"port": port}))
    assert not (tmp_path / "data").exists()


def test_a_redis_that_does_not_answer_is_an_error_without_its_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(SettingsError, match="no Redis answers") as raised:
        run(settings(tmp_path, redis={"url": f"redis://:secret@127.0.0.1:{port}/0"}))
    assert "secret" not in str(raised.value)


def test_flower_is_not_opened_to_others_without_a_login(tmp_path: Path) -> None:
    keys = [{"key": "0123456789abcdef", "scopes": ["admin"]}]
    open_to_all = settings(tmp_path, host="0.0.0.0", api={"port": 0, "keys": keys})
    with pytest.raises(SettingsError, match=r"flower\.basic_auth"):
        dashboard.check(open_to_all)
    dashboard.check(
        open_to_all.model_copy(update={"flower": open_to_all.flower.model_copy(update={"basic_auth": "a:b"})})
    )


def test_a_child_reads_the_settings_that_its_parent_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = settings(
        tmp_path,
        api={"port": 1234, "keys": [{"key": "0123456789abcdef", "scopes": ["admin"]}]},
        redis={"url": "redis://:secret@127.0.0.1:6379/0"},
        flower={"enabled": False, "basic_auth": "user:password"},
        worker={"drain_s": 1.5},
        policies={"policy": PolicySpec(base_urls=["http://127.0.0.1:8000/v1"], model="mock")},
        environments=["package.module:Class"],
        log_level="debug",
    )
    for name, value in environment_of(resolved).items():
        monkeypatch.setenv(name, value)
    assert load_settings().model_dump() == resolved.model_dump()


def test_children_end_in_the_order_in_which_work_flows(tmp_path: Path) -> None:
    stages = {child.name: child.stop_stage for child in children_of(settings(tmp_path, worker={"processes": 3}))}
    stages.pop("proxy", None)
    assert stages == {
        "worker-1": WORK,
        "worker-2": WORK,
        "worker-3": WORK,
        "api": INTAKE,
        "dispatcher": INTAKE,
        "flower": INTAKE,
    }
    assert INTAKE < WORK < STORAGE


def test_a_worker_gets_its_drain_and_some_seconds_to_end(tmp_path: Path) -> None:
    workers = [child for child in children_of(settings(tmp_path, worker={"drain_s": 90})) if child.stop_stage == WORK]
    assert {child.stop_within_s for child in workers} == {110}


def test_no_secret_is_in_a_command_line(tmp_path: Path) -> None:
    def commands(child: ChildSpec) -> str:
        return " ".join(child.command)

    secret = settings(tmp_path, redis={"url": "redis://:secret@h/0"}, flower={"port": 0, "basic_auth": "u:secret"})
    assert not [child.name for child in children_of(secret) if "secret" in commands(child)]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("farm", "http://farm:80"),
    ],
)
def test_the_address_that_is_printed_can_be_called(host: str, url: str) -> None:
    assert base_url(host, 80) == url
