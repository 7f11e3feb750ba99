"""Which hosts a policy may be served from."""

from __future__ import annotations

import pytest

from gym.errors import Invalid
from gym.model_client.http.hosts import check_hosts

DEFAULT = ("loopback", "private")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "http://localhost/v1",
        "http://a.localhost",
        "http://[::1]:8000",
        "http://0.0.0.0:8000",
        "http://10.1.2.3:8000",
        "http://172.16.0.9",
        "http://192.168.1.1",
        "http://100.64.3.4",
        "http://[fd12::1]:80",
        "http://[::ffff:10.0.0.1]",
        "http://127.1:8000",
        "http://vllm-0:8000",
        "http://vllm.train.svc:8000",
        "http://vllm.train.svc.cluster.local:8000",
        "http://node7.internal",
        "http://VLLM.Lan.",
    ],
)
def test_loopback_and_private_hosts_are_allowed_by_default(url):
    check_hosts([url], DEFAULT)


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8",
        "https://api.example.com/v1",
        "http://[2606:4700::1]",
        "http://134744072",  # 8.8.8.8
        "http://0x8.0x8.0x8.0x8",
        "http://10.0.0.1.example.com",
        "http://localhost.example.com",
    ],
)
def test_other_hosts_are_refused_by_default(url):
    with pytest.raises(Invalid) as caught:
        check_hosts(["http://127.0.0.1", url], DEFAULT)
    assert caught.value.code == "host_not_allowed"


@pytest.mark.parametrize("patterns", [DEFAULT, ("any",), ("*",), ("169.254.0.0/16", "0.0.0.0/0", "::/0", "*.internal")])
@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://169.254.1.1",
        "http://2852039166",  # 169.254.169.254
        "http://0xa9fea9fe",
        "http://169.254.43518",
        "http://[::ffff:169.254.169.254]",
        "http://[fe80::1]",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://metadata.google.internal",
        "http://Metadata.Google.Internal.",
        "http://metadata/",
    ],
)
def test_link_local_and_metadata_hosts_are_refused_whatever_covers_them(url, patterns):
    with pytest.raises(Invalid):
        check_hosts([url], patterns)


@pytest.mark.parametrize("host", ["169.254.7.7", "metadata.google.internal", "fd00:ec2::254"])
def test_a_host_that_is_listed_itself_is_allowed(host):
    check_hosts([f"http://[{host}]" if ":" in host else f"http://{host}"], ("loopback", host))


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("https://vllm.example.com", "*.example.com"),
        ("https://vllm.example.com", "VLLM.example.com"),
        ("http://8.8.8.8", "8.8.0.0/16"),
        ("http://8.8.8.8", "8.8.8.8"),
        ("http://8.8.8.8", "8.8.*"),
        ("http://[2606:4700::1]", "2606:4700::/32"),
        ("http://8.8.8.8", "any"),
        ("https://anything.example.org", "any"),
    ],
)
def test_networks_patterns_and_any_open_more(url, pattern):
    check_hosts([url], (pattern,))


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("https://example.com.evil.org", "*.example.com"),
        ("http://8.9.8.8", "8.8.0.0/16"),
        ("http://10.0.0.1", "loopback"),
        ("http://127.0.0.1", "private"),
        ("http://ann@evil.org", "ann"),
        ("http://10.0.0.1\\@evil.org", "private"),
    ],
)
def test_what_only_looks_alike_is_refused(url, pattern):
    with pytest.raises(Invalid):
        check_hosts([url], (pattern,))


def test_the_error_names_the_host_the_setting_and_what_to_do():
    with pytest.raises(Invalid) as caught:
        check_hosts(["http://ann:secret@evil.org:80/v1"], DEFAULT)
    for part in ("evil.org", "policy_hosts", "loopback, private", "FARM_POLICY_HOSTS"):
        assert part in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.details["host"] == "evil.org"


def test_a_url_without_a_host_is_refused():
    with pytest.raises(Invalid) as caught:
        check_hosts(["http://ann:secret@"], ("any",))
    assert caught.value.code == "bad_url"
    assert "secret" not in caught.value.message
