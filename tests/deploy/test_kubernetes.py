"""The Kubernetes manifests: built as kustomize does, held against the published schemas."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from smtpproxy import cli
from smtpproxy.admin import health
from smtpproxy.control_socket import locations
from tests.deploy.test_container import INSTRUCTIONS
from tests.support.programs import peers_directory, unavailable

KUBERNETES = Path(__file__).parents[2] / "deploy/kubernetes"
OVERLAYS = {
    "base": ("base",),
    "proxy-protocol": ("proxy-protocol",),
    "prometheus": ("base", "prometheus"),
    "proxy-protocol, prometheus": ("proxy-protocol", "prometheus"),
}
"""What an operator's overlay can be made of: a directory of resources, and a component or none."""
VERSIONS = ("1.31", kubernetes_validate.latest_version())
SCHEMALESS = {"PodMonitor"}
"""Kinds that Kubernetes itself does not have."""

Manifest = dict[str, Any]


def build(resources: str, *components: str) -> list[Manifest]:
    """Return the manifests of an overlay: resources, generated ConfigMaps, JSON patches.

    As kustomize does, but for the digest that it adds to the name of a ConfigMap.
    """
    found: list[Manifest] = []
    for each in (resources, *components):
        _add_directory(KUBERNETES / each, found)
    return found


def _add_directory(directory: Path, found: list[Manifest]) -> None:
    (overlay,) = _documents(directory / "kustomization.yaml")
    assert overlay.keys() <= {"apiVersion", "kind", "resources", "configMapGenerator", "patches"}
    for resource in overlay["resources"]:
        path = directory / resource
        if path.is_dir():
            _add_directory(path, found)
        else:
            found += _documents(path)
    for generator in overlay.get("configMapGenerator", []):
        if generator.get("behavior") == "replace":
            found.remove(_named(found, "ConfigMap", generator["name"]))
        files = {name: (directory / name).read_text() for name in generator["files"]}
        named = {"name": generator["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": files})
    for patch in overlay.get("patches", []):
        target = _named(found, patch["target"]["kind"], patch["target"]["name"])
        for operation in yaml.safe_load(patch["patch"]):
            _apply(operation, target)


def _documents(file: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(file.read_text()))


def _named(manifests: list[Manifest], kind: str, name: str = "smtpproxy") -> Manifest:
    (found,) = [
        each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


def _apply(operation: Manifest, target: Any) -> None:
    """Append to a list, or remove a field, as an operation of a JSON patch says (RFC 6902)."""
    *steps, last = operation["path"].strip("/").split("/")
    for step in steps:
        target = target[int(step) if isinstance(target, list) else step]
    if operation["op"] == "remove":
        del target[last]
    else:
        assert (operation["op"], last) == ("add", "-")
        target.append(operation["value"])


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(*OVERLAYS[request.param])


def pod(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the pods."""
    spec: Manifest = _named(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(manifests: list[Manifest]) -> Manifest:
    """Return the only container of a pod."""
    (only,) = pod(manifests)["containers"]
    result: Manifest = only
    return result


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(manifests: list[Manifest], version: str) -> None:
    kinds = set()
    for each in manifests:
        kinds.add(each["kind"])
        if each["kind"] not in SCHEMALESS:
            kubernetes_validate.validate(each, version, strict=True)
    assert {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"} <= kinds


def test_a_wrong_manifest_is_not_valid(manifests: list[Manifest]) -> None:
    container(manifests)["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(_named(manifests, "Deployment"), VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_same(overlay: str, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl") or str(peers_directory() / "kubectl/kubectl")
    if not Path(kubectl).exists():
        unavailable("kubectl is missing (see .ci/install-peers)")
    resources, *components = OVERLAYS[overlay]
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (tmp_path / "kubernetes/overlay").mkdir()
    (tmp_path / "kubernetes/overlay/kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [../{resources}]\ncomponents: {[f'../{each}' for each in components]}\n"
    )
    argv = [kubectl, "kustomize", tmp_path / "kubernetes/overlay"]
    built = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    theirs = yaml.safe_load_all(
        re.sub(r"(name: smtpproxy)-[a-z0-9]{10}$", r"\1", built, flags=re.MULTILINE)
    )
    ours = build(*OVERLAYS[overlay])
    assert sorted(map(_text, theirs)) == sorted(map(_text, ours))


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest, sort_keys=True)


def test_labels_names_and_ports_refer_to_one_another(manifests: list[Manifest]) -> None:
    label = {"app.kubernetes.io/name": "smtpproxy"}
    ports = {each["name"]: each["containerPort"] for each in container(manifests)["ports"]}
    policy = _named(manifests, "NetworkPolicy")["spec"]
    allowed = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert allowed == ports.keys()
    for service in (each["spec"] for each in manifests if each["kind"] == "Service"):
        assert service["selector"] == label
        assert {port["targetPort"] for port in service["ports"]} <= ports.keys()
    for monitor in (each["spec"] for each in manifests if each["kind"] == "PodMonitor"):
        (scraped,) = monitor["podMetricsEndpoints"]
        assert scraped["port"] in ports
        assert monitor["selector"]["matchLabels"] == label
    for probe in ("livenessProbe", "readinessProbe"):
        assert container(manifests)[probe]["httpGet"]["port"] in ports
    assert _named(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"] == label
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert _named(manifests, kind)["spec"]["selector"]["matchLabels"] == label
    assert policy["podSelector"]["matchLabels"] == label


def test_a_pod_has_no_privileges_and_runs_as_the_image_does(manifests: list[Manifest]) -> None:
    of_pod = pod(manifests)["securityContext"]
    (user,) = [words for name, words in INSTRUCTIONS if name == "USER"]
    assert f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}" == user
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(manifests)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(manifests)["automountServiceAccountToken"] is False


def test_the_settings_fit_the_pod(manifests: list[Manifest]) -> None:
    settings = tomllib.loads(_settings(manifests))
    addresses = [each["address"] for each in settings["listeners"].values()]
    addresses.append(settings["admin"]["address"])
    ports = {each["containerPort"] for each in container(manifests)["ports"]}
    assert {int(each.rpartition(":")[2]) for each in addresses} == ports
    mounts = {each["name"]: each["mountPath"] for each in container(manifests)["volumeMounts"]}
    (variable,) = container(manifests)["env"]
    assert variable["name"] in {option.envvar for option in cli.run.params}
    assert variable["value"] == f"{mounts['settings']}/smtpproxy.toml"
    assert settings["admin"]["token_file"] == f"{mounts['admin']}/token"
    assert mounts["run"] == str(locations.SYSTEM)


def test_probes_ask_what_needs_no_token(manifests: list[Manifest]) -> None:
    asked = {
        container(manifests)[probe]["httpGet"]["path"]
        for probe in ("livenessProbe", "readinessProbe")
    }
    assert asked == {"/healthz", "/readyz"}
    assert all(health.is_asked_for(path) for path in asked)


def test_a_pod_has_time_to_drain(manifests: list[Manifest]) -> None:
    drain = tomllib.loads(_settings(manifests))["timeouts"]["drain"]
    _, pause = container(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    assert int(pause) + drain + 10 <= pod(manifests)["terminationGracePeriodSeconds"]


def test_the_settings_have_no_problem(manifests: list[Manifest], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.touch(0o440)
    secret.write_text("0123456789abcdef")
    text = _settings(manifests).replace("/run/secrets/smtpproxy/token", str(secret))
    (tmp_path / "settings").write_text(text)
    result = CliRunner().invoke(cli.main, ["check", "-c", str(tmp_path / "settings")])
    assert result.exit_code == 0, result.output


def test_two_pods_on_two_nodes_of_which_one_may_go_at_a_time(manifests: list[Manifest]) -> None:
    """An update adds a pod first; a node is drained of one, of any if the MTA is down."""
    deployment = _named(manifests, "Deployment")
    scaled = [each for each in manifests if each["kind"] == "HorizontalPodAutoscaler"]
    if scaled:
        assert "replicas" not in deployment["spec"]
        assert scaled[0]["spec"]["minReplicas"] == 2
        assert scaled[0]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    else:
        assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert deployment["spec"]["minReadySeconds"] > 0
    (spread,) = pod(manifests)["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    budget = _named(manifests, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_autoscaler_reads_a_metric_that_exists() -> None:
    (metric,) = _named(build("base", "prometheus"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"].removeprefix("smtpproxy_")
    sources = Path(cli.__file__).parent.rglob("*.py")
    assert any(f'"{name}"' in source.read_text() for source in sources)


def _settings(manifests: list[Manifest]) -> str:
    text: str = _named(manifests, "ConfigMap")["data"]["smtpproxy.toml"]
    return text
