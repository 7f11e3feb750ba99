"""Judges in the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.cli.judges import read_judges
from gym.config import load_settings
from gym.errors import SettingsError


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"kind": "oracle"}, "oracle"),
        ({"kind": "remote", "model": "m"}, "base_urls"),
        ({"kind": "llm"}, "model"),
        ({"kind": "llm", "model": "m", "template": "no field"}, "lacks {answer}"),
        ({"kind": "pairwise", "model": "m", "template": "{answer}"}, "lacks {first} or {second}"),
        ({"kind": "embedding", "base_urls": ["ftp://x"]}, "http"),
        ({"kind": "embedding", "batchsize": 3}, "batchsize"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_by_name(judge: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match="judges") as refused:
        load_settings(judges={"mine": judge})
    assert said in str(refused.value)


def test_the_version_follows_what_decides_a_verdict_and_nothing_else() -> None:
    base = {"kind": "remote", "model": "m", "base_urls": ["http://a"]}
    judges = load_settings(
        judges={
            "one": base,
            "elsewhere": base | {"base_urls": ["http://b"], "api_key": "k", "cache": False},
            "reworded": base | {"template": "Is it {answer}?"},
            "new_weights": base | {"version": "2"},
        }
    ).judges
    digests = {name: judge.digest() for name, judge in judges.items()}
    assert digests["one"] == digests["elsewhere"]
    assert len(set(digests.values())) == 3


def test_judges_come_from_a_file_with_or_without_its_heading(tmp_path: Path) -> None:
    plain, headed = tmp_path / "plain.yaml", tmp_path / "headed.yaml"
    plain.write_text("similarity: {kind: embedding}\n")
    headed.write_text("judges:\n  similarity: {kind: embedding}\n")
    assert read_judges(plain) == read_judges(headed) == {"similarity": {"kind": "embedding"}}


@pytest.mark.parametrize("text", ["", "[]", "a: [", "judges: {}"])
def test_a_file_without_judges_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "judges.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"judges\.yaml"):
        read_judges(file)


def test_a_judges_key_is_not_shown() -> None:
    masked = load_settings(judges={"j": {"kind": "embedding", "api_key": "very secret"}}).masked()
    assert "very secret" not in str(masked)
