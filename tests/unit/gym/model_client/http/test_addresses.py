"""Addresses that a process connects to for users who register policies, also behind names."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from gym.config import load_settings
from gym.errors import Invalid, ModelRejected, ModelUnreachable
from gym.host_rules import check_not_own_proxy, judge_rules, policy_rules
from gym.model_client.client import PolicyClient
from gym.model_client.http.addresses import AddressKind, kind_of, leads_to, read_address
from gym.model_client.http.guarded import connector_to
from gym.model_client.http.hosts import HostRules, check_hosts
from gym.model_client.settings import ModelSettings

pytestmark = pytest.mark.anyio

KEYS = [{"key": "k" * 20}]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd12:3456::1", "private"),
        ("2002:a00:1::", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("8.8.8.8", "public"),
        ("172.32.0.1", "public"),
        ("2606:4700::1", "public"),
        ("64:ff9b::808:808", "public"),
        ("169.254.169.254", "forbidden"),
        ("169.254.170.2", "forbidden"),
        ("fe80::1", "forbidden"),
        ("100.100.100.200", "forbidden"),
        ("192.0.0.192", "forbidden"),
        ("168.63.129.16", "forbidden"),
        ("fd00:ec2::254", "forbidden"),
        ("fd00:ec2::23", "forbidden"),
        ("fd20:ce::254", "forbidden"),
        ("::ffff:169.254.169.254", "forbidden"),
        ("::169.254.169.254", "forbidden"),
        ("64:ff9b::a9fe:a9fe", "forbidden"),
        ("2002:a9fe:a9fe::", "forbidden"),
        ("2002:a9fe:a9fe::1", "forbidden"),
        ("2001:0:1234:5678:0:0:5601:5601", "forbidden"),  # Teredo, whose client is 169.254.169.254
        ("2606:4700::5efe:a9fe:a9fe", "forbidden"),  # ISATAP
        ("::ffff:100.100.100.200", "forbidden"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("224.0.0.1", "reserved"),
        ("ff02::1", "reserved"),
        ("0.1.2.3", "reserved"),
        ("192.0.2.1", "reserved"),
        ("198.51.100.1", "reserved"),
        ("203.0.113.9", "reserved"),
        ("198.18.0.1", "reserved"),
        ("2001:db8::1", "reserved"),
        ("fec0::1", "reserved"),
    ],
)
def test_the_kind_of_an_address_is_that_of_the_one_it_leads_to(text, kind):
    address = read_address(text)
    assert address is not None
    assert kind_of(address) == AddressKind(kind)
    assert kind_of(leads_to(address)) == AddressKind(kind)


@pytest.mark.parametrize("patterns", [("loopback", "private"), ("any",), ("*",), ("0.0.0.0/0", "::/0")])
@pytest.mark.parametrize(
    "host",
    [
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
        "[::a9fe:a9fe]",
        "[fd00:ec2::23]",
        "[fd20:ce::254]",
        "240.0.0.1",
        "203.0.113.7",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        "[2001:db8::1]",
    ],
)
def test_addresses_that_no_server_should_have_are_refused_whatever_covers_them(host, patterns):
    with pytest.raises(Invalid):
        check_hosts([f"http://{host}:8000"], patterns)


def test_a_reserved_network_may_be_listed_on_purpose():
    check_hosts(["http://240.1.2.3"], ("240.0.0.0/8",))
    assert HostRules(patterns=("240.0.0.0/8",)).allows("model.example", "240.1.2.3")


@pytest.mark.parametrize(
    ("patterns", "host", "found"),
    [
        (("private",), "vllm-0", "10.0.0.5"),
        (("private",), "vllm.train.svc", "fd12::5"),
        (("loopback", "private"), "this-machine", "127.0.1.1"),
        (("*.example.com",), "vllm.example.com", "10.0.0.5"),
        (("*.example.com",), "vllm.example.com", "8.8.8.8"),
        (("vllm.example.com",), "VLLM.example.com.", "127.0.0.1"),
        (("any",), "vllm.example.com", "127.0.0.1"),
        (("10.0.0.0/8",), "vllm.example.com", "10.0.0.5"),
        (("metadata.google.internal",), "metadata.google.internal", "169.254.169.254"),
        (("169.254.7.7",), "169.254.7.7", "169.254.7.7"),
        (("loopback",), "localhost", "::1"),
    ],
)
def test_a_name_may_stand_for_these(patterns, host, found):
    assert HostRules(patterns=patterns).allows(host, found)


@pytest.mark.parametrize(
    ("patterns", "host", "found"),
    [
        (("private",), "vllm-0", "169.254.169.254"),
        (("private",), "vllm-0", "8.8.8.8"),
        (("private",), "vllm-0", "127.0.0.1"),
        (("*.example.com",), "a.example.com", "127.0.0.1"),
        (("*.example.com",), "a.example.com", "::1"),
        (("*.example.com",), "a.example.com", "169.254.169.254"),
        (("*.example.com",), "a.example.com", "64:ff9b::a9fe:a9fe"),
        (("vllm.example.com",), "vllm.example.com", "169.254.169.254"),
        (("vllm.example.com",), "vllm.example.com", "fe80::1%eth0"),
        (("any",), "vllm.example.com", "100.100.100.200"),
        (("any",), "vllm.example.com", "240.0.0.1"),
        (("loopback",), "localhost", "10.0.0.1"),
        ((), "vllm.example.com", "8.8.8.8"),
    ],
)
def test_a_name_may_not_stand_for_these(patterns, host, found):
    assert not HostRules(patterns=patterns).allows(host, found)


async def test_a_name_is_looked_at_when_it_is_connected_to(server, policies, ask):
    named = policies.put("p", [server.url.replace("127.0.0.1", "localhost")])
    async with PolicyClient(ModelSettings(), policies, hosts=HostRules(patterns=("localh*",))) as client:
        with pytest.raises(ModelRejected, match="no address that may be called"):
            await client.respond(ask(named))
    async with PolicyClient(ModelSettings(), policies, hosts=HostRules(patterns=("localhost",))) as client:
        assert (await client.respond(ask(named))).facts.attempts == 1
    assert len(server.requests) == 1


async def test_a_record_of_another_farms_rules_is_not_called(server, policies, ask):
    rules = HostRules(patterns=("10.0.0.0/8",))
    async with PolicyClient(ModelSettings(health_check_s=0.05), policies, hosts=rules) as client:
        with pytest.raises(ModelRejected, match="no address that may be called"):
            await client.respond(ask(policies.put("p", [server.url])))
        await asyncio.sleep(0.5)
    assert server.requests == server.checks == []


async def test_health_checks_look_at_the_address_of_a_name(servers, policies, ask, eventually, shapes):
    allowed, refused = await servers(), await servers()
    settings = ModelSettings(health_check_s=0.05, max_retries=0)
    for server, pattern in ((refused, "localh*"), (allowed, "localhost")):
        server.default = shapes.error(500)  # so that the endpoint is looked at
        named = policies.put(pattern, [server.url.replace("127.0.0.1", "localhost")])
        async with PolicyClient(settings, policies, hosts=HostRules(patterns=(pattern,))) as client:
            with pytest.raises((ModelRejected, ModelUnreachable)):
                await client.respond(ask(named))
            if server is allowed:
                await eventually(lambda: allowed.checks)
            else:
                await asyncio.sleep(0.5)
    assert refused.checks == []


async def test_a_server_of_the_settings_may_be_anywhere_but_at_a_metadata_service(server):
    async with aiohttp.ClientSession(connector=connector_to([server.url])) as session:
        assert (await session.get(f"{server.url}/health")).status == 200
        assert (await session.get(f"{server.url.replace('127.0.0.1', 'localhost')}/health")).status == 200


async def test_what_a_host_says_is_shown_where_the_settings_name_it(server, policies, ask, shapes):
    secret = "the-body-of-an-inner-service"
    for status in (400, 404, 500):
        for rules, shown in ((HostRules(patterns=("127.0.0.1",), shows_texts=False), True), (_class_only(), False)):
            server.default = shapes.error(status, secret)
            async with PolicyClient(ModelSettings(max_retries=0), policies, hosts=rules) as client:
                with pytest.raises(Exception, match=str(status)) as caught:
                    await client.respond(ask(policies.put(f"p{status}{shown}", [server.url])))
            assert (secret in str(caught.value)) is shown


def _class_only() -> HostRules:
    return HostRules(patterns=("loopback",), shows_texts=False)


def test_a_farm_that_others_reach_allows_by_default_only_what_its_settings_name():
    policy = {"base_urls": ["http://vllm.example.com:8000"], "model": "m"}
    settings = load_settings(host="0.0.0.0", api={"keys": KEYS}, policies={"own": policy})
    rules = policy_rules(settings)
    check_hosts(["http://vllm.example.com:9000"], rules.all_patterns)
    assert rules.names("vllm.example.com")
    assert not rules.names("127.0.0.1")
    for url in ("http://127.0.0.1", "http://10.0.0.1", "http://vault", "http://kubernetes.default.svc"):
        with pytest.raises(Invalid, match="policy_hosts"):
            check_hosts([url], rules.all_patterns)


def test_a_farm_of_one_machine_allows_loopback_and_private_hosts():
    rules = policy_rules(load_settings())
    check_hosts(["http://127.0.0.1:8000", "http://vllm-0", "http://10.0.0.1"], rules.all_patterns)
    assert rules.shows_texts


def test_hosts_of_judges_are_those_of_the_settings_and_of_judge_hosts():
    judge = {"kind": "remote", "base_urls": ["https://judge.example.com/v1"], "model": "m"}
    rules = judge_rules(load_settings(judges={"equality": judge}))
    check_hosts(["https://judge.example.com", "http://10.0.0.1:8000"], rules.all_patterns)
    with pytest.raises(Invalid):
        check_hosts(["https://elsewhere.example.com"], rules.all_patterns)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8701", "http://localhost:8701/v1", "http://[::1]:8701/rollouts/x/v1", "http://127.1:8701"]
)
def test_the_farms_own_proxy_is_refused_where_it_is_recognised(url):
    with pytest.raises(Invalid, match="own proxy"):
        check_not_own_proxy([url], load_settings())


def test_the_proxys_address_for_agents_is_recognised_too():
    settings = load_settings(proxy={"url": "https://farm.example.com/proxy"})
    with pytest.raises(Invalid, match="own proxy"):
        check_not_own_proxy(["https://farm.example.com/v1"], settings)
    check_not_own_proxy(["https://farm.example.com:8000/v1", "http://127.0.0.1:8000"], settings)
