"""What ships for Docker, Kubernetes and Prometheus, checked by the tools that read it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import go_template
import grpc
import jsonschema
import kubernetes_validate
import pytest
import yaml

if TYPE_CHECKING:
    from visard_server.triton import TritonServer

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted([*(ROOT / "docker").glob("*.Dockerfile"), ROOT / "docker" / "gateway" / "Dockerfile"])
CHART = ROOT / "deploy" / "helm" / "visard"
PROMETHEUS = ROOT / "deploy" / "prometheus"
KUBERNETES = "1.33"
PATH = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"]]
)  # pip's tools, also where nobody activated
CUSTOM = {"PodMonitor"}  # kinds of other projects, whose schemas are not at hand


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": PATH, **environment}, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dockerfiles_pass_their_linter(dockerfile: Path) -> None:
    run("hadolint", "--failure-threshold", "info", dockerfile)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_images_run_a_program_without_a_shell_as_nobody_special(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^(ENTRYPOINT|CMD) \[", final, re.MULTILINE)
    assert not re.search(r"^(ENTRYPOINT|CMD|HEALTHCHECK CMD) [^\[]", final, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE) or "nginx-unprivileged" in final
    assert all(":" in image or image == "scratch" for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    context = dockerfile.parent if dockerfile.name == "Dockerfile" else ROOT
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (context / source).exists()


def test_the_server_is_nvidias_recent_enough_and_has_no_torch() -> None:
    text = (ROOT / "docker" / "server.Dockerfile").read_text()
    (version,) = re.findall(r"^ARG TRITON_VERSION=(\d\d\.\d\d)$", text, re.MULTILINE)
    assert version >= "26.05"
    assert "pip" not in text[text.rindex("\nFROM ") :]


def test_the_weights_named_in_the_images_exist() -> None:
    text = "".join(path.read_text() for path in DOCKERFILES)
    for name in set(re.findall(r"/weights/(\S+\.safetensors)", text)):
        assert (ROOT / "export" / "visard_export" / "weights" / name).is_file()


def test_images_are_built_from_the_whole_package_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'^ {4}"([^"/]+)/visard', project, re.MULTILINE)
    assert len(packages) >= 5
    assert {*packages, "model_repository", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} == allowed


def test_the_guides_first_steps_work(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(
        r"<!-- executed by tests/test_deployment.py, up to docker -->\n```sh\n(.*?)```", guide, re.DOTALL
    )
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "gateway").symlink_to(ROOT / "docker" / "gateway")
    steps, started, _ = block.partition("VISARD_UID=")
    assert started
    done = subprocess.run(["sh", "-euc", steps], cwd=tmp_path, capture_output=True, text=True, check=True)
    config = tmp_path / "docker" / "config"
    assert {path.name for path in config.iterdir()} == {"keys.map", "tls.crt", "tls.key", "upstreams.conf"}
    hashed = hashlib.sha256(done.stdout.strip().encode()).hexdigest()
    assert (config / "keys.map").read_text() == f"{hashed} alice;\n"
    assert (config / "tls.key").stat().st_mode & 0o077 == 0


# -- compose ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    files = ["-f", "docker/compose.yaml", *(["-f", "docker/compose.gpu.yaml"] if request.param == "gpu" else [])]
    text = run("docker-compose", *files, "--profile", "*", "config", VISARD_ADMIN_KEY="k")
    return dict(yaml.safe_load(text)["services"])


def test_compose_shows_the_world_the_gateway_only(services: dict[str, Any]) -> None:
    published = {name: [port.get("host_ip") for port in service.get("ports", [])] for name, service in services.items()}
    assert published.pop("gateway") == [None, None]
    assert all(address == "127.0.0.1" for addresses in published.values() for address in addresses)
    for name in ("triton-1", "triton-2"):
        assert not published[name]
        assert list(services[name]["networks"]) == ["inside"]


def test_compose_hardens_every_lasting_service(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name == "export":
            continue
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["ulimits"]["core"] == {"soft": 0, "hard": 0}
        assert service["restart"] == "unless-stopped"
        assert service["deploy"]["resources"]["limits"]["memory"]
    assert services["triton-1"]["shm_size"]


def test_compose_for_gpus_reserves_one_for_each(services: dict[str, Any]) -> None:
    if "export" not in services:
        assert "reservations" not in services["triton-1"]["deploy"]["resources"]
        return
    devices = [services[name]["deploy"]["resources"]["reservations"]["devices"] for name in ("triton-1", "triton-2")]
    assert [device["device_ids"] for (device,) in devices] == [["0"], ["1"]]
    assert any("shared-memory:visard-admin=k" in option for option in services["triton-1"]["command"])


def test_compose_for_gpus_wants_a_key_for_the_operator() -> None:
    files = ["-f", "docker/compose.yaml", "-f", "docker/compose.gpu.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "VISARD_ADMIN_KEY"} | {"PATH": PATH}
    done = subprocess.run(
        ["docker-compose", *files, "config"], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode != 0
    assert "VISARD_ADMIN_KEY" in done.stderr


# -- observability ----------------------------------------------------------------------------------------------------


def test_alerts_fire_when_they_should_and_only_then() -> None:
    run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run("promtool", "test", "rules", PROMETHEUS / "rules_test.yml")


def alerts() -> list[str]:
    rules = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
    return [rule["alert"] for rule in rules if "alert" in rule]


def test_every_alert_is_tested_and_explained() -> None:
    tested = (PROMETHEUS / "rules_test.yml").read_text()
    explained = (ROOT / "docs" / "operations.md").read_text()
    assert len(alerts()) >= 7
    for alert in alerts():
        assert f'alertname="{alert}"' in tested
        assert f"`{alert}`" in explained


def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "visard.json").read_text()))


def test_the_dashboard_asks_what_prometheus_understands(tmp_path: Path) -> None:
    board = dashboard()
    assert {"uid", "title", "schemaVersion", "panels", "time"} <= board.keys()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(expressions)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", tmp_path / "rules.yml")


def test_rules_and_dashboard_ask_for_figures_that_exist(tiny_server: TritonServer) -> None:
    with urllib.request.urlopen(tiny_server.metrics_url) as page:
        offered = set(re.findall(r"^# TYPE (\S+)", page.read().decode(), re.MULTILINE))
    # Of a GPU, and of the summaries that the container switches on (docker/server.Dockerfile).
    offered |= {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
    offered |= {"nv_inference_request_summary_us"}
    rules = (PROMETHEUS / "rules.yml").read_text()
    asked = set(re.findall(r"\bnv_\w+", rules + json.dumps(dashboard())))
    assert asked <= offered
    recorded = set(re.findall(r"record: (visard:\S+)", rules))
    assert set(re.findall(r"visard:[\w:]+", json.dumps(dashboard()))) <= recorded
    assert "--metrics-config=summary_latencies=true" in (ROOT / "docker" / "server.Dockerfile").read_text()


# -- Kubernetes -------------------------------------------------------------------------------------------------------


def values(**changes: dict[str, Any]) -> dict[str, Any]:
    """The chart's defaults with some of them changed, as Helm merges and checks them."""
    merged = yaml.safe_load((CHART / "values.yaml").read_text())
    for section, change in changes.items():
        merged[section] = {**merged.get(section, {}), **change}
    jsonschema.validate(merged, json.loads((CHART / "values.schema.json").read_text()))
    return dict(merged)


def render(**changes: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, name) → document, through Go's own template engine with Helm's functions."""
    context = {"Values": values(**changes), "Release": {"Name": "faces"}}
    documents: dict[tuple[str, str], dict[str, Any]] = {}
    for template in sorted((CHART / "templates").iterdir()):
        text = go_template.render(template, context).decode()
        assert "template failed" not in text, text
        for document in yaml.safe_load_all(text):
            if document is not None:
                documents[document["kind"], document["metadata"]["name"]] = document
    return documents


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "defaults": {},
    "cpu": {"triton": {"gpus": 0}},
    "export": {
        "triton": {"models": "models", "nodeSelector": {"gpu": "h200"}, "tolerations": [{"operator": "Exists"}]},
        "export": {"image": "visard-export:1", "weights": "weights"},
    },
    "everything": {"autoscaling": {"enabled": True}, "monitoring": {"enabled": True}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_chart_makes_what_kubernetes_accepts(case: str) -> None:
    documents = render(**CASES[case])
    assert len(documents) >= 9
    for (kind, _), document in documents.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(copy.deepcopy(document), KUBERNETES, strict=True)


def test_only_what_is_switched_on_is_made() -> None:
    assert not {"HorizontalPodAutoscaler", "PodMonitor"} & {kind for kind, _ in render()}
    documents = render(**CASES["everything"])
    scaler = documents["HorizontalPodAutoscaler", "faces-triton"]["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] in (PROMETHEUS / "adapter.yaml").read_text()
    assert "replicas" not in documents["Deployment", "faces-triton"]["spec"]  # the autoscaler's
    assert ("PodMonitor", "faces") in documents


def test_selectors_ports_and_volumes_fit_together() -> None:
    documents = render(**CASES["export"])
    for name in ("faces-triton", "faces-gateway"):
        deployment = documents["Deployment", name]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"] == labels
        assert documents["Service", name]["spec"]["selector"] == labels
        assert documents["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"] == labels
        policy = documents["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"]
        assert policy.items() <= labels.items()
        pod = deployment["template"]["spec"]
        ports = {port["name"] for container in pod["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in documents["Service", name]["spec"]["ports"]} <= ports
        drain = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert drain + 10 < pod["terminationGracePeriodSeconds"]


def test_pods_have_no_rights_and_the_volumes_that_they_mount() -> None:
    pods = [
        document["spec"]["template"]["spec"]
        for (kind, _), document in render(**CASES["export"]).items()
        if kind in ("Deployment", "Job")
    ]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_what_is_exported_is_what_is_served() -> None:
    documents = render(**CASES["export"])
    job = documents["Job", "faces-export"]["spec"]["template"]["spec"]
    triton = documents["Deployment", "faces-triton"]["spec"]["template"]["spec"]
    for pod in (job, triton):
        (claim,) = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if volume["name"] == "models"]
        assert claim["claimName"] == "models"
    assert job["containers"][0]["args"][0] == "/models/served"
    (mount,) = [mount for mount in triton["containers"][0]["volumeMounts"] if mount["name"] == "models"]
    assert mount == {"name": "models", "mountPath": "/models", "subPath": "served", "readOnly": True}
    assert '"--model-repository=/models"' in (ROOT / "docker" / "server.Dockerfile").read_text()


def test_the_probes_ask_what_triton_answers(tiny_server: TritonServer) -> None:
    container = render()["Deployment", "faces-triton"]["spec"]["template"]["spec"]["containers"][0]
    assert all(
        container[probe]["grpc"] == {"port": 8001} for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )
    with grpc.insecure_channel(tiny_server.grpc_url) as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
    assert answer == b"\x08\x01"  # HealthCheckResponse with status SERVING


def test_nobody_but_the_gateway_reaches_triton() -> None:
    documents = render()
    policy = documents["NetworkPolicy", "faces-triton"]["spec"]
    gateway = documents["Deployment", "faces-gateway"]["spec"]["template"]["metadata"]["labels"]
    ((rule,), types) = policy["ingress"], policy["policyTypes"]
    ((peer,), ports) = rule["from"], {port["port"] for port in rule["ports"]}
    assert peer["podSelector"]["matchLabels"].items() <= gateway.items()
    assert ports == {8001, 8000}
    assert types == ["Ingress", "Egress"]
    assert "egress" not in policy
    arguments = documents["Deployment", "faces-triton"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert sum("shared-memory:visard-admin=$(ADMIN_KEY)" in argument for argument in arguments) == 2


def test_the_charts_upstreams_are_nginxs(tmp_path: Path) -> None:
    upstreams = render()["ConfigMap", "faces-gateway"]["data"]["upstreams.conf"].replace("faces-triton", "127.0.0.1")
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{upstreams}\n}}\n")
    run("/usr/sbin/nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", "stderr")
    template = (ROOT / "docker" / "gateway" / "nginx.conf.template").read_text()
    assert set(re.findall(r"upstream (\w+)", upstreams)) == set(re.findall(r"_pass \w+://(\w+);", template))


@pytest.mark.parametrize(
    "changes",
    [
        {"triton": {"replicas": 0}},
        {"triton": {"memory": "lots"}},
        {"triton": {"gpu": 1}},  # a misspelt name
        {"gateway": {"image": ""}},
        {"export": {"image": "visard-export:1"}},  # nowhere to export to
        {"surprise": {}},
    ],
)
def test_values_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        values(**changes)


def test_every_value_is_described_and_used() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for section, options in values().items():
        for option in options:
            assert schema["properties"][section]["properties"][option]["description"]
            assert f".Values.{section}.{option}" in templates


def test_kserve_gets_the_same_server() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "kserve" / "inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    text = (ROOT / "docker" / "server.Dockerfile").read_text()
    (version,) = re.findall(r"^ARG TRITON_VERSION=(\S+)$", text, re.MULTILINE)
    assert model["runtimeVersion"] == f"{version}-py3"
    assert "--model-control-mode=none" in model["args"]
