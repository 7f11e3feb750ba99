"""The settings of every process, from YAML, the environment and the command line.

Loaded once in `main` (`load_settings`) and handed down as typed sections; nothing else reads `os.environ`.
Precedence, low to high: defaults here, the YAML file, `FARM_…` variables, command-line options. A field `port` of the
section `api` is `FARM_API_PORT`; lists and objects are given as JSON.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from gym.agents.settings import AgentSettings
from gym.environments.settings import EnvironmentEntries
from gym.errors import SettingsError
from gym.fields.masked import Address, MaskedModel, Secret
from gym.judges.pool import PoolSettings
from gym.judges.settings import JudgeName, JudgeSettings
from gym.limits import Seconds
from gym.model_client.settings import ModelSettings
from gym.policy import PolicySpec
from gym.results.settings import ResultSettings
from gym.sandbox.settings import SandboxSettings
from gym.section import Section
from gym.state.settings import BreakerSettings, RedisSettings
from gym.task import OWN_AGENTS, AgentName

Port = Annotated[int, Field(ge=0, le=65535, description="0 takes a free one")]
Scope = Literal["submit", "read", "admin"]

STOP_SPARE_S = 15.0  # for a worker to hand back the rollouts that its drain has left; then it ends
KILL_SPARE_S = 5.0  # for a supervisor, before it kills a worker


class ApiKey(Section):
    """A key and its scopes; `admin` covers everything."""

    key: Annotated[Secret, Field(min_length=16, repr=False)]
    scopes: tuple[Scope, ...] = ("submit", "read")
    name: str = ""


class ApiSettings(Section):
    """The REST head."""

    port: Port = 8700
    keys: tuple[ApiKey, ...] = ()
    key: Secret | None = Field(
        default=None, repr=False, description="what clients on this machine send; servers ignore it"
    )
    trusted_hosts: tuple[str, ...] = Field(
        default=(), description="names that api and proxy answer to without API keys, beside those of loopback"
    )
    max_row_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    max_body_bytes: Annotated[int, Field(ge=1024, description="of a request that is not streamed")] = 32 * 2**20
    max_connections: Annotated[
        int, Field(ge=1, le=65536, description="open at a time at one api or proxy process; idle ones make room")
    ] = 4096
    max_backlog: Annotated[int, Field(ge=1, description="rollouts that may be queued in all")] = 10_000_000


class ProxySettings(Section):
    """The model proxy as a process."""

    port: Port = 8701
    url: Address | None = Field(
        default=None, description="where agents reach it; left out, `host` and `proxy.port`, as on one machine"
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="of one call")] = 64 * 2**20


class FlowerSettings(Section):
    """Celery's dashboard."""

    enabled: bool = True
    port: Port = 5555
    url_prefix: str = ""
    max_tasks: Annotated[int, Field(ge=100, le=10_000)] = 5000
    basic_auth: Secret | None = Field(default=None, repr=False, description="user:password")


class WorkerSettings(Section):
    """The Celery workers."""

    processes: Annotated[int, Field(ge=0, le=256, description="that `farm up` starts")] = 2
    concurrency: Annotated[int, Field(ge=1, le=8192, description="rollouts at a time in one process")] = 256
    lease_ttl_s: Seconds = 8.0
    drain_s: Annotated[float, Field(ge=0, le=24 * 3600)] = 30.0
    environment_threads: Annotated[int, Field(ge=1, le=1024, description="for blocking environments")] = 32
    environment_processes: Annotated[
        int, Field(ge=1, le=1024, description="for environments with `isolation: process`, one session in each")
    ] = 16
    max_tool_output_bytes: Annotated[
        int, Field(ge=1024, le=64 * 2**20, description="of a tool's output or an observation; a longer text is cut")
    ] = 4 * 2**20
    max_tool_arguments_chars: Annotated[
        int, Field(ge=1024, le=64 * 2**20, description="of a tool call; longer ones are refused to the model")
    ] = 2**20
    max_hung_threads: Annotated[
        int, Field(ge=1, le=1024, description="environment calls that do not return; then the worker is restarted")
    ] = 32
    hang_s: Annotated[
        Seconds, Field(description="the event loop may stand still for so long, then the worker ends")
    ] = 120.0

    @property
    def stop_s(self) -> float:
        """Most seconds from SIGTERM to the end of a worker."""
        return self.drain_s + STOP_SPARE_S

    @property
    def kill_s(self) -> float:
        """Grace period of a worker under a supervisor, Compose or Kubernetes."""
        return self.stop_s + KILL_SPARE_S


class DispatcherSettings(Section):
    """The dispatcher, which moves rollouts from the backlog to Celery."""

    window: Annotated[
        float, Field(ge=1, le=16, description="rollouts in Celery and running, in multiples of slots")
    ] = 2.0
    slice_size: Annotated[int, Field(ge=1, le=64, description="most rollouts that one job carries")] = 64
    resend_after_s: Seconds = 10.0
    no_progress_s: Annotated[
        Seconds, Field(description="an alarm when work and free slots exist and nothing moves for so long")
    ] = 120.0
    suspect_after: Annotated[
        int, Field(ge=1, le=100, description="deaths of workers after which a rollout that was there is run alone")
    ] = 2
    tick_s: Annotated[float, Field(gt=0, le=10)] = 0.5


class JudgingSettings(Section):
    """The judge workers, which take finished conversations to judges."""

    processes: Annotated[int, Field(ge=0, le=64, description="that `farm up` starts where there are judges")] = 1
    concurrency: Annotated[int, Field(ge=1, le=8192, description="rollouts of a judge at a time in one process")] = 256
    keep_verdicts_s: Annotated[Seconds, Field(description="how long cached verdicts are kept")] = 7 * 24 * 3600.0


class SessionSettings(Section):
    """Environment sessions over REST, which workers hold for trainers that keep their own loop."""

    idle_s: Seconds = 600.0
    call_timeout_s: Seconds = 60.0
    max_per_key: Annotated[int, Field(ge=1, description="open at a time with one API key, or without keys in all")] = (
        4096
    )
    max_per_worker: Annotated[int, Field(ge=0, le=65536)] = 4096


class Settings(MaskedModel, BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="FARM_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Path("farm-data")
    host: str = "127.0.0.1"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    redis: RedisSettings = RedisSettings()
    api: ApiSettings = ApiSettings()
    proxy: ProxySettings = ProxySettings()
    flower: FlowerSettings = FlowerSettings()
    worker: WorkerSettings = WorkerSettings()
    dispatcher: DispatcherSettings = DispatcherSettings()
    breakers: BreakerSettings = BreakerSettings()
    judging: JudgingSettings = JudgingSettings()
    pool: PoolSettings = PoolSettings()
    model: ModelSettings = ModelSettings()
    results: ResultSettings = ResultSettings()
    sessions: SessionSettings = SessionSettings()
    sandbox: SandboxSettings = SandboxSettings()
    default_policy: str = "policy"
    policies: dict[str, PolicySpec] = Field(default_factory=dict, description="registered when the farm starts")
    policy_hosts: tuple[str, ...] | None = Field(
        default=None,
        description="hosts that a policy may be served from, beside those of `policies`: `loopback`, `private` "
        "(private networks and names without a public suffix), `any`, networks such as 10.0.0.0/8, or patterns such as "
        "*.example.com; left out, loopback and private, or nothing where `host` is not loopback",
    )
    judge_hosts: tuple[str, ...] = Field(
        default=("loopback", "private"),
        description="hosts that a published replica of a judge may be at, likewise; those of `judges` are allowed",
    )
    agents: dict[AgentName, AgentSettings] = Field(
        default_factory=dict, description="agents outside the farm, by the name that rows give as `agent`"
    )
    judges: dict[JudgeName, JudgeSettings] = Field(
        default_factory=dict, description="models that verifiers ask, by name"
    )
    environments: EnvironmentEntries = Field(
        default=(),
        description="more environments: a list of `package.module:Class` or `path/to/file.py:Class`, or a mapping from "
        "names to these or to `{adapter: …}` and `{use: …}` with options",
    )

    @field_validator("agents")
    @classmethod
    def _names_of_their_own(cls, agents: dict[str, AgentSettings]) -> dict[str, AgentSettings]:
        if taken := sorted(set(OWN_AGENTS) & set(agents)):
            raise ValueError(f"{', '.join(taken)} is an agent of the farm's own; give yours another name")
        return agents

    @model_validator(mode="after")
    def _keys_where_open(self) -> Settings:
        if not is_loopback(self.host) and not self.api.keys:
            raise ValueError(
                f"host is {self.host}, which others can reach, and there are no API keys: give api.keys "
                '(FARM_API_KEYS=\'[{"key": "…", "scopes": ["admin"]}]\') or listen on 127.0.0.1'
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_url(settings: Settings) -> str:
    """Return the address of the model proxy for agents, without a path."""
    if settings.proxy.url is not None:
        return settings.proxy.url.rstrip("/")
    return base_url(settings.host, settings.proxy.port)


def base_url(host: str, port: int) -> str:
    """Return the address of a service that listens on `host`; a wildcard address becomes this machine's own."""
    called = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    return f"http://[{called}]:{port}" if ":" in called else f"http://{called}:{port}"


def broker_url(redis: RedisSettings) -> str:
    """Return the URL of Celery's Redis: the configured one, else the next database of the farm's own.

    Raises SettingsError if no Redis is known yet.
    """
    if redis.broker_url is not None:
        return redis.broker_url
    if redis.url is None:
        raise SettingsError("no Redis is known: give --redis-url or FARM_REDIS_URL, or start one with `farm redis`")
    parts = urlsplit(redis.url)
    if parts.scheme == "unix":
        raise SettingsError("Celery spells the URL of a Unix socket in its own way: give redis.broker_url too")
    query = dict(parse_qsl(parts.query))
    database = query.get("db") or parts.path.strip("/") or "0"
    if not database.isdecimal():
        raise SettingsError(f"the Redis URL names database {database!r}; expected a number, as in redis://host:6379/0")
    following = str(int(database) + 1)
    if "db" in query:
        return urlunsplit(parts._replace(query=urlencode(query | {"db": following})))
    return urlunsplit(parts._replace(path=f"/{following}"))


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings. `overrides` are nested dictionaries, as the command line gives them.

    Raises SettingsError with a line for each problem.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"there is no configuration file {config}")

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic-settings'
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=config))

    try:
        return Loaded(**overrides)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise SettingsError(f"{config} is not YAML{where}") from None  # the parser's own text may repeat a secret
    except SourceError as error:
        raise SettingsError(f"the settings cannot be read: {error}; lists and objects are given as JSON") from None
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}" for item in error.errors()
        ]
        raise SettingsError("the settings cannot be used:\n" + "\n".join(lines)) from None
