"""`farm redis-acl` prints a command for the server, and keeps the secret out of it."""

import hashlib
import re
from typing import Any

import pytest


def test_a_password_that_is_made_is_shown_once_and_not_in_the_line(run: Any) -> None:
    done = run("redis-acl", "trainer")
    assert done.code == 0
    password = re.search(r"redis://trainer:([^@]+)@127\.0\.0\.1:6379/0\"", done.err)
    assert password is not None
    assert done.out == (
        f"ACL SETUSER trainer reset on #{hashlib.sha256(password[1].encode()).hexdigest()} resetkeys resetchannels "
        "&farm:0:relay:ask:submit:trainer:* &farm:0:relay:tell:trainer:* -@all +publish +subscribe\n"
    )
    assert len(password[1]) > 40
    assert run("redis-acl", "trainer").out != done.out


def test_a_password_that_is_given_is_not_shown(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_CLIENT_PASSWORD", "from-the-environment")
    done = run("redis-acl", "trainer")
    assert hashlib.sha256(b"from-the-environment").hexdigest() in done.out
    assert "from-the-environment" not in done.out + done.err


def test_the_line_is_for_the_farm_of_the_settings(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", "rediss://:farms-own-secret@redis.example:6380/3")
    monkeypatch.setenv("FARM_REDIS_PREFIX", "farm-b")
    done = run("redis-acl", "dashboard", "--scope", "read")
    assert " &farm-b:3:relay:ask:read:dashboard:* &farm-b:3:relay:tell:dashboard:* " in done.out
    assert re.search(r'connect\("rediss://dashboard:[^@]+@redis\.example:6380/3\?prefix=farm-b"\)', done.err)
    assert "farms-own-secret" not in done.out + done.err


@pytest.mark.parametrize("name", ["default", "a b", "a:b", "*"])
def test_a_name_that_no_client_can_have_is_refused(run: Any, name: str) -> None:
    done = run("redis-acl", name)
    assert done.code == 2
    assert done.out == ""
    assert "cannot be a client's name" in done.err
