"""Agents outside the farm, without one: their settings, their keys, and what their calls came to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from gym.agents.outside.base import Access, AgentReport, cause_of, reason_of, without_key
from gym.agents.outside.command import environment_of, filled, prompt_of
from gym.agents.outside.keys import AgentKeys, Grant
from gym.agents.registry import AGENTS
from gym.agents.settings import AgentSettings, CommandSettings
from gym.config import Settings
from gym.errors import AgentFailed, AgentUnreachable, ModelRejected, ModelUnreachable, SettingsError
from gym.processes import process_tree
from gym.rollout import StopReason
from gym.task import OWN_AGENTS

GRANT = Grant(rollout_id="b-1-0", attempt=2, policy="p", max_calls=16, until=1000.0)
ACCESS = Access(base_url="http://proxy:1/rollouts/b-1-0", key="the-key", model="p", attempt=1)
READ: TypeAdapter[Any] = TypeAdapter(AgentSettings)


def test_a_key_says_what_it_is_for_and_nobody_else_can_make_or_change_one() -> None:
    keys = AgentKeys(b"secret")
    key = keys.issue(GRANT)
    assert keys.read(key, now=999.0) == GRANT
    assert keys.read(key, now=1000.0) is None
    assert AgentKeys(b"another").read(key, now=0.0) is None
    said, _, signature = key.rpartition(".")
    forged = AgentKeys(b"mine").issue(replace(GRANT, attempt=3)).rpartition(".")[0]
    for other in (f"{forged}.{signature}", f"{said}.", said, "", "farm-agent.é.é", f"{key}0"):
        assert keys.read(other, now=0.0) is None


def test_words_are_put_in_once_and_other_braces_stay() -> None:
    words = {"prompt": "say {model}", "model": "m"}
    assert filled("-t {prompt} {model} {other} {} {", words) == "-t say {model} m {other} {} {"


def test_an_answer_that_holds_the_agents_key_is_kept_without_it() -> None:
    said = AgentReport(text=f"env: OPENAI_API_KEY={ACCESS.key}", reason=StopReason.MAX_TURNS)
    assert without_key(said, ACCESS.key) == AgentReport(text="env: OPENAI_API_KEY=…", reason=StopReason.MAX_TURNS)
    assert without_key(AgentReport(), ACCESS.key) == AgentReport()


def test_a_program_gets_nothing_of_the_workers_environment(tmp_path: Path) -> None:
    settings = CommandSettings(kind="command", argv=("x",), environment={"MODEL": "openai/{model}", "HOME": "/home"})
    words = {"base_url": "http://proxy:1/rollouts/b-1-0/v1", "rollout_id": "b-1-0", "model": "p"}
    words |= {"prompt_file": "a", "task_file": "b"}
    given = environment_of(settings, ACCESS, words, tmp_path)
    assert (given["OPENAI_BASE_URL"], given["ANTHROPIC_BASE_URL"]) == (words["base_url"], ACCESS.base_url)
    assert (given["MODEL"], given["HOME"]) == ("openai/p", "/home")
    assert {name for name in given if name in os.environ} <= {"PATH", "LANG", "HOME", "TMPDIR"}


def test_a_prompt_is_the_texts_of_the_input() -> None:
    part = {"type": "input_text", "text": "Second."}
    assert prompt_of({"input": "All."}) == "All."
    assert prompt_of({"input": [{"role": "user", "content": "First."}, {"content": [part]}]}) == "First.\n\nSecond."


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kind": "remote", "url": "example.com"}, "not an http"),
        ({"kind": "remote", "url": "http://user:pass@host"}, "give it as `api_key`"),
        ({"kind": "command", "argv": []}, "at least 1 item"),
        ({"kind": "command", "argv": ["x"], "environment": {"A B": ""}}, "should match pattern"),
        ({"kind": "magic"}, "union_tag_invalid|does not match any of the expected tags"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        READ.validate_python(settings)


def test_the_farms_own_agents_keep_their_names() -> None:
    assert set(AGENTS) == set(OWN_AGENTS)
    with pytest.raises((ValidationError, SettingsError), match="tool_loop is an agent of the farm's own"):
        Settings(agents={"tool_loop": CommandSettings(kind="command", argv=("x",))})
    shown = Settings(
        agents={"a": CommandSettings(kind="command", argv=("x",), environment={"TOKEN": "very-secret"})}
    ).masked()
    assert "very-secret" not in str(shown)


def call(started_s: float, finish: str = "stop") -> dict[str, Any]:
    return {"started_s": started_s, "finish": finish}


def failed(started_s: float, kind: str) -> dict[str, Any]:
    return {"started_s": started_s, "error": {"kind": kind, "message": "it was so", "status": 400}}


def test_the_last_call_says_why_an_agent_ended() -> None:
    assert reason_of([], []) is None
    assert reason_of([call(1, "max_tokens"), call(2)], []) is None
    assert reason_of([call(1), call(2, "context_overflow")], [failed(1.5, "model_unreachable")]) == (
        StopReason.CONTEXT_OVERFLOW
    )
    assert reason_of([call(1)], [failed(2, "max_turns")]) is StopReason.MAX_TURNS


def test_who_is_to_blame_for_an_agent_that_failed_is_who_failed_last() -> None:
    own = AgentFailed("exit code 1")
    assert cause_of("a", own, [call(2)], [failed(1, "model_unreachable")]) is own
    assert cause_of("a", own, [call(1)], [failed(2, "client_left")]) is own
    blamed = cause_of("a", own, [call(1)], [failed(2, "model_unreachable")])
    assert isinstance(blamed, ModelUnreachable)
    assert blamed.message == "it was so; the agent a then failed: exit code 1"
    assert isinstance(cause_of("a", own, [], [failed(2, "model_rejected")]), ModelRejected)
    assert AgentUnreachable("x").retryable
    assert not own.retryable


def keeper(*argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", str(Path(process_tree.__file__)), str(os.getpid()), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)])
def test_a_program_that_is_kept_ends_as_it_would_without(script: str, code: int) -> None:
    with keeper("/bin/sh", "-c", script) as kept:
        assert kept.wait(60) == code


@pytest.mark.parametrize("how", ["ended", "told"])
def test_what_a_program_left_behind_in_a_session_of_its_own_is_killed(how: str) -> None:
    script = "setsid sh -c 'setsid sleep 86395 & echo $!' & wait $!; " + ("sleep 86395" if how == "told" else "true")
    with keeper("/bin/sh", "-c", script) as kept:
        assert kept.stdout is not None
        left = int(kept.stdout.readline())
        if how == "told":
            os.kill(left, 0)
            kept.terminate()
        kept.wait(60)
        with pytest.raises(ProcessLookupError):
            os.kill(left, 0)
    assert kept.returncode == (143 if how == "told" else 0)


def test_a_kept_program_ends_with_a_parent_that_is_killed() -> None:
    program = (
        "import os, subprocess, sys, time\n"
        f"argv = [sys.executable, '-I', '-S', {process_tree.__file__!r}, str(os.getpid()), 'sleep', '86394']\n"
        "print(subprocess.Popen(argv).pid, flush=True)\ntime.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    give_up_at = time.monotonic() + 60
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
