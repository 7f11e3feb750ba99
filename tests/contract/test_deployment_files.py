"""The files under docker/ are held against the schemas of Compose and Kubernetes, and the Dockerfiles linted.

Kubernetes' schemas and the linter are large and come with the extra `deployment`; without it their tests are skipped.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.cli.processes import STOP_S as SERVER_STOP_S
from gym.config import WorkerSettings
from gym.judges.pool import PooledJudge

JUDGE_SPARE_S = 15.0  # for its replicas to end
ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = sorted((DOCKER / "compose").glob("*.yaml"))
IMAGES = sorted(DOCKER.glob("*Dockerfile"))
MANIFESTS = DOCKER / "kubernetes" / "farm.yaml"
INSTALL = "pip install 'rollout-farm[deployment]' brings it"


def test_the_compose_files_fit_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, *map(str, COMPOSE)], capture_output=True, text=True, timeout=60)
    assert len(COMPOSE) == 3
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason=f"no kubernetes-validate: {INSTALL}"
)
def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "--no-warn", str(MANIFESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    known = [each for each in _manifests() if each["apiVersion"] != "keda.sh/v1alpha1"]
    assert (done.stdout + done.stderr).count(" passed for resource ") == len(known)


@pytest.mark.skipif(
    shutil.which("hadolint", path=str(Path(sys.executable).parent)) is None, reason=f"no hadolint: {INSTALL}"
)
def test_the_dockerfiles_pass_the_linter() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", *IMAGES], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_has_a_health_check_and_another_user_than_root(image: Path) -> None:
    lines = image.read_text().splitlines()
    assert any(line.startswith("HEALTHCHECK ") and "/app/health.py" in line for line in lines)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]


def test_every_pod_runs_as_another_user_than_root_and_every_container_is_probed() -> None:
    pods = [each["spec"]["template"]["spec"] for each in _manifests() if each["kind"] == "Deployment"]
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
    containers = [container for pod in pods for container in pod["containers"]]
    assert [one["name"] for one in containers if not {"livenessProbe", "readinessProbe"} & one.keys()] == []


def test_whatever_is_scaled_or_guarded_is_a_deployment_of_the_manifests() -> None:
    manifests = _manifests()
    deployed = {each["metadata"]["name"] for each in manifests if each["kind"] == "Deployment"}
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in manifests if each["kind"] == "ScaledObject"}
    guards = [each for each in manifests if each["kind"] == "PodDisruptionBudget"]
    assert scaled == {"farm-worker"}
    assert {guard["spec"]["selector"]["matchLabels"]["app"] for guard in guards} | scaled <= deployed


WORKER_GRACE_S = WorkerSettings().kill_s
GRACE_S = {
    "api": SERVER_STOP_S,
    "proxy": SERVER_STOP_S,
    "dispatcher": SERVER_STOP_S,
    "worker": WORKER_GRACE_S,
    "judge-worker": WORKER_GRACE_S,
    "judge": PooledJudge.model_fields["drain_s"].default + JUDGE_SPARE_S,
}


@pytest.mark.parametrize("file", COMPOSE, ids=lambda path: path.name)
def test_compose_gives_each_role_the_grace_that_its_code_allows_itself(file: Path) -> None:
    services = yaml.safe_load(file.read_text())["services"]
    given = {
        service["command"][0]: float(service["stop_grace_period"].removesuffix("s"))
        for service in services.values()
        if service["command"][0] in GRACE_S
    }
    assert given == {role: GRACE_S[role] for role in given}
    assert {"api", "dispatcher", "worker"} <= given.keys()


def test_kubernetes_gives_each_pod_the_grace_that_its_code_allows_itself() -> None:
    pods = [each["spec"]["template"]["spec"] for each in _manifests() if each["kind"] == "Deployment"]
    given = {
        tuple(container["args"][0] for container in pod["containers"]): pod["terminationGracePeriodSeconds"]
        for pod in pods
    }
    assert given == {roles: max(GRACE_S[role] for role in roles) for roles in given}


def test_no_liveness_check_asks_redis() -> None:
    pods = [each["spec"]["template"]["spec"] for each in _manifests() if each["kind"] == "Deployment"]
    probes = [
        container["livenessProbe"] for pod in pods for container in pod["containers"] if "livenessProbe" in container
    ]
    assert len(probes) >= 4
    for probe in probes:
        assert probe.get("httpGet", {}).get("path") == "/healthz" or "--live" in probe["exec"]["command"]
    for image in IMAGES:
        [check] = [line for line in image.read_text().splitlines() if line.startswith("HEALTHCHECK ")]
        assert '"--live"' in check


def _manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFESTS.read_text()))
