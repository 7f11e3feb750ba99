"""Secrets of the settings are shown nowhere: every place for one is walked."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from gym.config import Settings, load_settings
from gym.errors import SettingsError
from gym.fields.masked import MASK, Masking, mask_address, masking_of

CANARY = "canary-canary-0001"
URL = f"https://user:{CANARY}@host:1/path?password={CANARY}"
SECRETS: dict[str, Any] = {
    "redis": {"url": f"redis://:{CANARY}@h/0?password={CANARY}", "broker_url": f"redis://h/1?password={CANARY}"},
    "api": {"keys": [{"key": CANARY, "scopes": ["admin"], "name": "trainer"}], "key": CANARY},
    "proxy": {"url": URL},
    "sandbox": {"docker_arguments": ["--env", f"TOKEN={CANARY}"]},
    "flower": {"basic_auth": f"admin:{CANARY}"},
    "pool": {
        "judges": {
            "judge": {
                "command": ["serve", "--api-key", CANARY],
                "args": [f"--token={CANARY}", CANARY],
                "environment": {"HF_TOKEN": CANARY},
            }
        }
    },
    "policies": {
        "policy": {"base_urls": [URL], "model": "m", "api_key": CANARY, "sampling_overrides": {"extra": {"k": CANARY}}}
    },
    "agents": {
        "program": {"kind": "command", "argv": ["run", "--key", CANARY], "environment": {"TOKEN": CANARY}},
        "service": {"kind": "remote", "url": "https://host", "api_key": CANARY},
    },
    "judges": {
        "judge": {
            "kind": "llm",
            "model": "m",
            "base_urls": [URL],
            "api_key": CANARY,
            "sampling": {"extra_headers": {"authorization": CANARY}},
        }
    },
    "environments": {
        "one": {"adapter": "nemo_gym", "url": URL, "headers": {"authorization": CANARY}, "words": [CANARY], "count": 3}
    },
}
PUBLIC = {
    "Settings": {"host", "default_policy", "policy_hosts", "judge_hosts"},
    "ApiSettings": {"trusted_hosts"},
    "ApiKey": {"name"},
    "RedisSettings": {"prefix"},
    "FlowerSettings": {"url_prefix"},
    "PolicySpec": {"model", "tool_parser", "reasoning_parser"},
    "CommandSettings": {"readable"},
    "EnvironmentEntry": {"name", "adapter", "use"},
    "PoolSettings": {"ray_head_node_address", "namespace", "host"},
    "SandboxSettings": {"docker_command", "image"},
    "LabelVerdict": {"marker"},
    "NumberVerdict": {"marker"},
    "JsonVerdict": {"field"},
    "LlmJudge": {"model", "version", "system", "template"},
    "RemoteJudge": {"model", "version", "system", "template"},
    "PairwiseJudge": {"model", "version", "system", "template"},
    "RewardModelJudge": {"model", "version"},
    "EmbeddingJudge": {"model", "version"},
}


def models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and every model that its fields are made of."""
    seen: list[type[BaseModel]] = []
    left: list[Any] = [root]
    while left:
        part = left.pop()
        if isinstance(part, type) and not isinstance(part, types.GenericAlias) and issubclass(part, BaseModel):
            if part not in seen:
                seen.append(part)
                left += [field.annotation for field in part.model_fields.values()]
        else:
            left += get_args(part)
    yield from seen


def holds_text(annotation: Any) -> bool:
    """Whether a value of a type is text, or a collection of text."""
    inner = get_args(annotation)
    if annotation is str or annotation is Any:
        return True
    if getattr(annotation, "__origin__", None) is dict:
        return holds_text(inner[1])
    return any(holds_text(part) for part in inner if not isinstance(part, str | Masking))


def test_every_field_that_holds_text_is_masked_or_known_to_be_no_secret() -> None:
    undecided = {
        f"{model.__name__}.{name}"
        for model in models(Settings)
        for name, field in model.model_fields.items()
        if holds_text(field.annotation) and masking_of(field) is None and name not in PUBLIC.get(model.__name__, ())
        if name != "environments"  # those given as text name a class
    }
    assert undecided == set()


def test_the_canaries_are_in_every_field_that_is_masked() -> None:
    """Else the next test would look at less than there is."""
    planted = load_settings(**SECRETS)
    found = {f"{type(model).__name__}.{name}" for model, name in _masked_fields(planted)}
    wanted = {
        f"{model.__name__}.{name}"
        for model in models(Settings)
        for name, field in model.model_fields.items()
        if masking_of(field) is not None and not model.__name__.endswith("Judge")
    }
    assert wanted - found == {"RemoteSettings.url"}, "which takes no credentials"


def _masked_fields(value: Any) -> Iterator[tuple[BaseModel, str]]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            if masking_of(field) is not None and CANARY in str(value.model_dump(mode="json")[name]):
                yield value, name
            yield from _masked_fields(getattr(value, name))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _masked_fields(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _masked_fields(inner)


def test_no_secret_is_shown_by_config_show_or_repr() -> None:
    settings = load_settings(**SECRETS)
    shown = settings.masked()
    for text in (str(shown), yaml.safe_dump(shown), repr(settings), str(settings), f"{settings.policies}"):
        assert CANARY not in text
    assert shown["environments"][0]["count"] == 3
    assert shown["pool"]["judges"]["judge"]["args"] == [f"--token={MASK}", MASK]


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": {"p": {"base_urls": [f"ftp://u:{CANARY}@h/?k={CANARY}"], "model": "m"}}},
        {"agents": {"a": {"kind": "remote", "url": f"ftp://u:{CANARY}@h"}}},
        {"agents": {"a": {"kind": "remote", "url": f"http://h?key={CANARY}"}}},
        {"redis": {"url": [CANARY]}},
        {"api": {"keys": [{"key": CANARY[:10]}]}},
        {"flower": {"basic_auth": {"a": CANARY}}},
        {"environments": {"one": {"token": CANARY}}},
    ],
)
def test_what_is_wrong_is_said_without_the_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**wrong)
    assert CANARY[:10] not in str(caught.value)


def test_a_file_that_is_no_yaml_is_one_line_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "farm.yaml"
    path.write_text(f'redis: {{url: "redis://:{CANARY}@h"\n  {CANARY}')
    with pytest.raises(SettingsError, match="is not YAML at line 2") as caught:
        load_settings(path)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("redis://:pw@h/0", f"redis://{MASK}@h/0"),
        ("redis://h/0?password=p&db=1", f"redis://h/0?password={MASK}&db={MASK}"),
        ("http://a@b@c/", f"http://{MASK}@c/"),
        ("user:pw@host", MASK),
        ("http://[bad", MASK),
        ("http://h/#token", "http://h/"),
        ("http://h/?token", f"http://h/?{MASK}"),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_secret(url: str, shown: str) -> None:
    assert mask_address(url) == shown
