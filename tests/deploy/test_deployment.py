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

import go_template
import grpc
import httpx
import jsonschema
import kubernetes_validate
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from typer.main import get_command

from visard_cli.app import app
from visard_export.repository import ENGINE_CACHE
from visard_server.wheel import find_wheel
from visard_testing.web_server import web_server
from visard_web.keys import Keys
from visard_web.serve import DRAIN_S

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted([*(ROOT / "docker").glob("*.Dockerfile"), ROOT / "docker" / "gateway" / "Dockerfile"])
SERVER = ROOT / "docker" / "server.Dockerfile"
CHART = ROOT / "deploy" / "helm" / "visard"
PROMETHEUS = ROOT / "deploy" / "prometheus"
KUBERNETES = "1.33"
PATH = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"]]
)  # pip's tools, also where nobody activated
CUSTOM = {"PodMonitor"}  # kinds of other projects, whose schemas are not available here


def run(*command, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": PATH, **environment}, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dockerfiles_pass_their_linter(dockerfile):
    run("hadolint", "--failure-threshold", "info", dockerfile)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_images_run_a_program_without_a_shell_as_nobody_special(dockerfile):
    text = dockerfile.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^(ENTRYPOINT|CMD) \[", final, re.MULTILINE)
    assert not re.search(r"^(ENTRYPOINT|CMD|HEALTHCHECK CMD) [^\[]", final, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE) or "nginx-unprivileged" in final
    assert all(":" in image or image == "scratch" for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    context = dockerfile.parent if dockerfile.name == "Dockerfile" else ROOT
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (context / source).exists()


def triton_version(dockerfile):
    (version,) = re.findall(r"^ARG TRITON_VERSION=(\d\d\.\d\d)$", dockerfile.read_text(), re.MULTILINE)
    return version


def test_the_server_is_nvidias_recent_enough_and_has_no_torch():
    text = SERVER.read_text()
    assert triton_version(SERVER) >= "26.05"
    assert re.findall(r"pip install .*", text[text.rindex("\nFROM ") :]) == [
        "pip install --no-cache-dir --break-system-packages 'pillow>=11.3'"  # what --encoded needs
    ]


def test_engines_are_built_by_the_servers_own_tensorrt():
    export = SERVER.with_name("export.Dockerfile")
    assert triton_version(export) == triton_version(SERVER)
    assert re.findall(r"^FROM (\S+)$", export.read_text(), re.MULTILINE) == [
        re.findall(r"^FROM (\S+)", SERVER.read_text(), re.MULTILINE)[-1]
    ]
    (install,) = re.findall(r"pip install (.*)", export.read_text())
    assert "--break-system-packages" in install  # that image's Python is Ubuntu's
    assert '"tensorrt==${TRT_VERSION%%+*}"' in install


def server_options():
    """What docker/server.Dockerfile gives to Triton, without its values → with them."""
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*?\])$", SERVER.read_text(), re.MULTILINE | re.DOTALL)
    program, *options = json.loads(entry.replace("\\\n", ""))
    assert program == "/opt/tritonserver/bin/tritonserver"
    return {option.partition("=")[0]: option for option in options}


def test_triton_knows_the_servers_options_and_has_room_for_what_a_client_may_send():
    options = server_options()
    wheel = find_wheel()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(wheel.libraries)}
    known = subprocess.run([wheel.binary, "--help"], capture_output=True, text=True, env=environment, check=False)
    unknown = options.keys() - set(re.findall(r"^\s*(--[\w-]+)", known.stdout + known.stderr, re.MULTILINE))
    assert unknown == {"--grpc-infer-thread-count"}  # from 2.57 on, which is 25.04; the wheel's Triton is 2.51
    assert options["--grpc-infer-thread-count"] == "--grpc-infer-thread-count=8"
    device, _, pool = options["--cuda-memory-pool-byte-size"].partition("=")[2].partition(":")
    assert device == "0"
    under_way = values()["gateway"]["concurrency"] * values()["gateway"]["replicas"]
    assert int(pool) >= 2 * under_way * 512 * 512 * 3  # each face and its swap; Triton's default is 64 MiB


def test_the_weights_named_in_the_images_exist():
    text = "".join(path.read_text() for path in DOCKERFILES)
    for name in set(re.findall(r"/weights/(\S+\.safetensors)", text)):
        assert (ROOT / "export" / "visard_export" / "weights" / name).is_file()


def test_images_are_built_from_the_whole_package_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'^ {4}"([^"/]+)/visard', project, re.MULTILINE)
    assert len(packages) >= 5
    assert {*packages, "model_repository", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} == allowed


def test_the_guides_first_steps_work(tmp_path):
    guide = (ROOT / "docs" / "deploy.md").read_text()
    (block,) = re.findall(
        r"<!-- executed by tests/deploy/test_deployment.py, up to docker -->\n```sh\n(.*?)```", guide, re.DOTALL
    )
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "gateway").symlink_to(ROOT / "docker" / "gateway")
    steps, started, _ = block.partition("VISARD_UID=")
    assert started
    done = subprocess.run(["sh", "-euc", steps], cwd=tmp_path, capture_output=True, text=True, check=True)
    config = tmp_path / "docker" / "config"
    made = {"keys.map", "metrics.key", "tls.crt", "tls.key", "upstreams.conf", "web.env"}
    assert {path.name for path in config.iterdir()} == made
    keys = {
        "alice": done.stdout.strip(),
        "web": (config / "web.env").read_text().strip().removeprefix("VISARD_TOKEN="),
        "prometheus": (config / "metrics.key").read_text().strip(),
    }
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} {name};\n" for name, key in keys.items()]
    assert (config / "keys.map").read_text() == "".join(lines)
    Keys(config / "keys.map")  # web reads it too
    assert config.stat().st_mode & 0o077 == 0
    assert (config / "tls.key").stat().st_mode & 0o077 == 0


# -- compose ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def services(request):
    files = ["-f", "docker/compose.yaml", *(["-f", "docker/compose.gpu.yaml"] if request.param == "gpu" else [])]
    text = run("docker-compose", *files, "--profile", "*", "config", VISARD_ADMIN_KEY="k")
    return dict(yaml.safe_load(text)["services"])


def test_compose_shows_the_world_the_gateway_only(services):
    published = {name: [port.get("host_ip") for port in service.get("ports", [])] for name, service in services.items()}
    assert published.pop("gateway") == [None, None, None]
    assert not published["web"]
    assert list(services["web"]["networks"]) == ["edge"]
    assert all(address == "127.0.0.1" for addresses in published.values() for address in addresses)
    for name in ("triton-1", "triton-2"):
        assert not published[name]
        assert list(services[name]["networks"]) == ["inside"]


def test_compose_hardens_every_lasting_service(services):
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


def test_compose_gives_web_nothing_to_write_to_and_not_the_certificates_key(services):
    web = services["web"]
    assert "tmpfs" not in web
    assert all(volume["type"] == "bind" and volume["read_only"] for volume in web["volumes"])
    assert {volume["target"] for volume in web["volumes"]} == {"/etc/visard/tls.crt", "/etc/visard/keys.map"}
    (server,) = [option for option in web["command"] if option.startswith("--server=")]
    assert server == f"--server={services['gateway']['networks']['edge']['aliases'][0]}:8443"
    assert seconds(web["stop_grace_period"]) > DRAIN_S


def seconds(duration):
    minutes, _, rest = duration.rpartition("m")
    return 60 * int(minutes or 0) + int(rest.removesuffix("s") or 0)


@pytest.mark.parametrize("where", ["compose", "chart"])
def test_the_options_given_to_web_are_its_own(where):
    if where == "compose":
        text = run("docker-compose", "-f", "docker/compose.yaml", "config")
        given = yaml.safe_load(text)["services"]["web"]["command"]
    else:
        given = render(**CASES["web"])["Deployment", "faces-web"]["spec"]["template"]["spec"]["containers"][0]["args"]
    image = (ROOT / "docker" / "web.Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", image, re.MULTILINE)
    program, command, *options = json.loads(entry)
    assert (program, command) == ("visard", "web")
    context = get_command(app).commands["web"].make_context("web", [*options, *given])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["api_keys"] == Path("/etc/visard/keys.map")
    assert context.params["ca"] == Path("/etc/visard/tls.crt")
    assert context.params["server"].endswith("gateway:8443")
    assert "/etc/visard" not in str(context.params["token"])  # from the environment, where a process list shows nothing


def test_compose_for_gpus_reserves_one_for_each(services):
    if "export" not in services:
        assert "reservations" not in services["triton-1"]["deploy"]["resources"]
        return
    devices = [services[name]["deploy"]["resources"]["reservations"]["devices"] for name in ("triton-1", "triton-2")]
    assert [device["device_ids"] for (device,) in devices] == [["0"], ["1"]]
    assert any("shared-memory:visard-admin=k" in option for option in services["triton-1"]["command"])


def test_compose_for_gpus_wants_a_key_for_the_operator():
    files = ["-f", "docker/compose.yaml", "-f", "docker/compose.gpu.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "VISARD_ADMIN_KEY"} | {"PATH": PATH}
    done = subprocess.run(
        ["docker-compose", *files, "config"], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode != 0
    assert "VISARD_ADMIN_KEY" in done.stderr


# -- observability ----------------------------------------------------------------------------------------------------


@pytest.mark.promtool
def test_alerts_fire_when_they_should_and_only_then():
    run("promtool", "test", "rules", *PROMETHEUS.glob("rules_*test.yml"))


@pytest.mark.promtool
def test_prometheus_takes_its_configuration(services, tmp_path):
    targets = {volume["target"] for volume in services["prometheus"]["volumes"]}
    text = (PROMETHEUS / "prometheus.yml").read_text()
    (key,) = re.findall(r"credentials_file: ([^}]+)", text)
    assert key in targets
    (tmp_path / "key").touch()
    (tmp_path / "prometheus.yml").write_text(text.replace(key, str(tmp_path / "key")))
    (tmp_path / "rules.yml").symlink_to(PROMETHEUS / "rules.yml")
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
    scraped = {job["job_name"]: job["static_configs"][0]["targets"] for job in yaml.safe_load(text)["scrape_configs"]}
    assert scraped["web"] == ["web:8080"]
    assert "--name=web" in services["web"]["command"]  # else it answers 421
    assert {name for job in scraped.values() for name, _, _ in (each.partition(":") for each in job)} <= services.keys()


def alerts():
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def test_every_alert_is_tested_and_explained():
    tested = "".join(path.read_text() for path in PROMETHEUS.glob("rules_*test.yml"))
    explained = (ROOT / "docs" / "incidents.md").read_text()
    assert len(alerts()) >= 12
    for alert in alerts():
        assert f'alertname="{alert}"' in tested
        assert f"`{alert}`" in explained


def dashboard():
    return dict(json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "visard.json").read_text()))


def test_the_dashboard_has_what_grafana_knows_and_nothing_else():
    """Through Grafana's own types, which drop every member that they do not have, and back."""
    register_default_plugins()
    board = dashboard()
    assert lost(board, json.loads(JSONEncoder().encode(Dashboard.from_json(board)))) == []
    board["panels"][0]["targets"][0]["exprr"] = "up"  # a misspelt name, to see that it would be noticed
    assert lost(board, json.loads(JSONEncoder().encode(Dashboard.from_json(board)))) == [".panels.0.targets.0.exprr"]


def lost(before, after, path=""):
    """Where `after` lacks or changes something that `before` has."""
    if not isinstance(before, dict | list):
        return [] if before == after else [path]
    if type(before) is not type(after) or (isinstance(before, list) and len(before) != len(after)):
        return [path]
    members = before.items() if isinstance(before, dict) else enumerate(before)
    places = set(after) if isinstance(after, dict) else set(range(len(after)))
    return [
        where
        for name, value in members
        for where in (lost(value, after[name], f"{path}.{name}") if name in places else [f"{path}.{name}"])
    ]


@pytest.mark.promtool
def test_the_dashboard_asks_what_prometheus_understands(tmp_path):
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


def test_rules_and_dashboard_ask_for_figures_that_exist(tiny_server):
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
    assert "--metrics-config=summary_latencies=true" in SERVER.read_text()


def test_rules_and_dashboard_ask_for_figures_that_web_and_gateway_have(tiny_server, astronaut):
    with web_server(tiny_server.grpc_url) as url:
        headers = {"Content-Type": "image/jpeg"}
        httpx.post(f"{url}/v1/anonymize?identity=true", content=astronaut.read_bytes(), headers=headers, timeout=60)
        text = httpx.get(f"{url}/metrics").text
    offered = set(re.findall(r"^(visard_\w+)(?=[ {])", text, re.MULTILINE))
    offered |= set(re.findall(r"# TYPE (\S+)", (ROOT / "docker" / "gateway" / "gateway.js").read_text()))
    rules = (PROMETHEUS / "rules.yml").read_text()
    assert set(re.findall(r"\bvisard_\w+", rules + json.dumps(dashboard()))) <= offered
    # The labels that they choose by.
    labelled = set(re.findall(r'(\w+)="([^"]*)"', text))
    assert {("outcome", "swapped"), ("route", "/v1/anonymize"), ("error", "")} <= labelled
    counted = dict(re.findall(r"^(visard_\S+) (\S+)$", text, re.MULTILINE))
    assert counted['visard_faces_total{outcome="swapped",reason=""}'] == "1.0"
    assert counted["visard_face_identity_distance_count"] == "1.0"


# -- Kubernetes -------------------------------------------------------------------------------------------------------


def values(**changes):
    """The chart's defaults with some of them changed, as Helm merges and checks them."""
    merged = yaml.safe_load((CHART / "values.yaml").read_text())
    for section, change in changes.items():
        merged[section] = {**merged.get(section, {}), **change}
    jsonschema.validate(merged, json.loads((CHART / "values.schema.json").read_text()))
    return dict(merged)


def render(**changes):
    """(kind, name) → document, through Go's own template engine with Helm's functions."""
    context = {"Values": values(**changes), "Release": {"Name": "faces", "Namespace": "hidden"}}
    documents = {}
    for template in sorted((CHART / "templates").iterdir()):
        text = go_template.render(template, context).decode()
        assert "template failed" not in text, text
        for document in yaml.safe_load_all(text):
            if document is not None:
                documents[document["kind"], document["metadata"]["name"]] = document
    return documents


CASES = {
    "defaults": {},
    "cpu": {"triton": {"gpus": 0}},
    "export": {
        "triton": {"models": "models", "nodeSelector": {"gpu": "h200"}, "tolerations": [{"operator": "Exists"}]},
        "export": {"image": "visard-export:1", "weights": "weights"},
    },
    "web": {"web": {"enabled": True, "names": ["faces.example"], "keepMinutes": 2.5}},
    "everything": {
        "triton": {"engines": "engines"},
        "autoscaling": {"enabled": True},
        "monitoring": {"enabled": True},
        "web": {"enabled": True, "names": ["faces.example"]},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_chart_makes_what_kubernetes_accepts(case):
    documents = render(**CASES[case])
    assert len(documents) >= 9
    for (kind, _), document in documents.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(copy.deepcopy(document), KUBERNETES, strict=True)


def test_only_what_is_switched_on_is_made():
    assert not {"HorizontalPodAutoscaler", "PodMonitor"} & {kind for kind, _ in render()}
    assert not any("web" in name for _, name in render())
    assert "8445" not in str(render()["Service", "faces-gateway"]) + str(render()["NetworkPolicy", "faces-gateway"])
    documents = render(**CASES["everything"])
    scaler = documents["HorizontalPodAutoscaler", "faces-triton"]["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] in (PROMETHEUS / "adapter.yaml").read_text()
    assert "replicas" not in documents["Deployment", "faces-triton"]["spec"]  # the autoscaler's
    assert ("PodMonitor", "faces") in documents


def test_selectors_ports_and_volumes_fit_together():
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


def test_web_is_reached_through_the_gateway_and_reaches_nothing_else():
    documents = render(**CASES["everything"])
    web, gateway = (documents["Deployment", f"faces-{name}"]["spec"]["template"] for name in ("web", "gateway"))
    labels = web["metadata"]["labels"]
    assert documents["Deployment", "faces-web"]["spec"]["selector"]["matchLabels"] == labels
    assert documents["Service", "faces-web"]["spec"]["selector"] == labels
    policy = documents["NetworkPolicy", "faces-web"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ((entrance,), (models, names)) = policy["ingress"], policy["egress"]
    (visitor, prometheus) = entrance["from"]
    for peer in (visitor, models["to"][0]):
        assert peer["podSelector"]["matchLabels"].items() <= gateway["metadata"]["labels"].items()
    assert prometheus == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert ([port["port"] for port in entrance["ports"]], [port["port"] for port in models["ports"]]) == (
        [8080],
        [8443],
    )
    assert {port["port"] for port in names["ports"]} == {53}
    upstreams = documents["ConfigMap", "faces-gateway"]["data"]["upstreams.conf"]
    assert "server faces-web:8080 max_fails=0;" in upstreams
    assert "faces-web" not in str(render()["ConfigMap", "faces-gateway"])
    let_out = [rule["to"][0] for rule in documents["NetworkPolicy", "faces-gateway"]["spec"]["egress"]]
    assert any(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in let_out)


def test_webs_uploads_fit_through_the_gateway_and_its_end_is_waited_for():
    documents = render(**CASES["web"])
    pod = documents["Deployment", "faces-web"]["spec"]["template"]["spec"]
    (body,) = [
        variable["value"]
        for variable in documents["Deployment", "faces-gateway"]["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == "VISARD_WEB_BODY"
    ]
    (largest,) = [a.partition("=")[2] for a in pod["containers"][0]["args"] if a.startswith("--max-mb=")]
    assert int(body.removesuffix("m")) == int(largest) + 1
    assert f"VISARD_WEB_BODY={body}" in (ROOT / "docker" / "gateway" / "Dockerfile").read_text()
    drain = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain + DRAIN_S < pod["terminationGracePeriodSeconds"]
    assert not [volume for volume in pod["volumes"] if "projected" not in volume]  # nothing that it could write to
    assert "tls.key" not in str(pod)


def test_prometheus_has_a_key_for_web():
    documents = render(**CASES["everything"])
    (endpoint,) = documents["PodMonitor", "faces-web"]["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "visard-web", "key": "metrics"}
    pod = documents["Deployment", "faces-web"]["spec"]["template"]["spec"]["containers"][0]
    assert endpoint["port"] in {port["name"] for port in pod["ports"]}
    (token,) = pod["env"]
    assert token["name"] == "VISARD_TOKEN"
    assert token["valueFrom"]["secretKeyRef"] == {"name": "visard-web", "key": "key"}


def test_webs_probes_ask_what_it_answers_without_a_key(tiny_server, tmp_path):
    container = render(**CASES["web"])["Deployment", "faces-web"]["spec"]["template"]["spec"]["containers"][0]
    probes = {name: probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",  # it must not be restarted because the models are away
        "readinessProbe": "/readyz",
    }
    (port,) = container["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    (tmp_path / "keys").write_text(f"{'0' * 64} alice;\n")
    with web_server(tiny_server.grpc_url, keys=tmp_path / "keys") as url:
        assert {httpx.get(f"{url}{probe['path']}").status_code for probe in probes.values()} == {200}
        assert httpx.get(f"{url}/metrics").status_code == 401


def test_pods_have_no_rights_and_the_volumes_that_they_mount():
    pods = [
        document["spec"]["template"]["spec"]
        for (kind, _), document in render(**CASES["export"], **CASES["web"]).items()
        if kind in ("Deployment", "Job")
    ]
    assert len(pods) == 4
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_what_is_exported_is_what_is_served():
    documents = render(**CASES["export"])
    job = documents["Job", "faces-export"]["spec"]["template"]["spec"]
    triton = documents["Deployment", "faces-triton"]["spec"]["template"]["spec"]
    for pod in (job, triton):
        (claim,) = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if volume["name"] == "models"]
        assert claim["claimName"] == "models"
    assert job["containers"][0]["args"][0] == "/models/served"
    (mount,) = [mount for mount in triton["containers"][0]["volumeMounts"] if mount["name"] == "models"]
    assert mount == {"name": "models", "mountPath": "/models", "subPath": "served", "readOnly": True}
    assert '"--model-repository=/models"' in SERVER.read_text()


def test_the_probes_ask_what_triton_answers(tiny_server):
    container = render()["Deployment", "faces-triton"]["spec"]["template"]["spec"]["containers"][0]
    assert all(
        container[probe]["grpc"] == {"port": 8001} for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )
    with grpc.insecure_channel(tiny_server.grpc_url) as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
    assert answer == b"\x08\x01"  # HealthCheckResponse with status SERVING


def test_nobody_but_the_gateway_reaches_triton():
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


@pytest.mark.nginx
def test_the_charts_upstreams_are_nginxs(tmp_path):
    upstreams = render(**CASES["web"])["ConfigMap", "faces-gateway"]["data"]["upstreams.conf"]
    upstreams = re.sub(r"faces-(triton|web)[a-z.]*", "127.0.0.1", upstreams).replace(" resolve ", " ")  # from 1.27.3 on
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{upstreams}\n}}\n")
    run("/usr/sbin/nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", "stderr")
    template = (ROOT / "docker" / "gateway" / "nginx.conf.template").read_text()
    assert set(re.findall(r"upstream (\w+)", upstreams)) == set(re.findall(r"_pass \w+://(\w+);", template))


def test_each_request_goes_to_the_triton_with_the_fewest():
    documents = render()
    service = documents["Service", "faces-triton"]["spec"]
    assert service["clusterIP"] == "None"  # its name has all their addresses; a cluster's own balances connections
    listened = {port["name"]: port["containerPort"] for port in pod("faces-triton")["containers"][0]["ports"]}
    assert all(listened[port["targetPort"]] == port["port"] for port in service["ports"])
    upstreams = documents["ConfigMap", "faces-gateway"]["data"]["upstreams.conf"]
    shipped = (ROOT / "docker" / "gateway" / "upstreams.conf").read_text()
    for name, port in (("triton_grpc", 8001), ("triton_http", 8000)):
        (chart,) = re.findall(rf"upstream {name} {{(.*?)}}", upstreams, re.DOTALL)
        (compose,) = re.findall(rf"upstream {name} {{(.*?)}}", shipped, re.DOTALL)
        address = f"faces-triton.hidden.svc.cluster.local:{port} resolve"
        # The same as compose's, with the one name in the place of its two Tritons.
        assert chart.split() == re.sub(rf"triton-1:{port}", address, re.sub(r"server triton-2.*;", "", compose)).split()
    # Names are asked of the pod's own name server, often enough that a Triton that goes is known to be gone in time.
    gateway = ROOT / "docker" / "gateway"
    (valid,) = re.findall(
        r"resolver \$\{NGINX_LOCAL_RESOLVERS\} valid=(\d+)s;", (gateway / "nginx.conf.template").read_text()
    )
    drain = pod("faces-triton")["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain > int(valid) + 30  # what CoreDNS may keep
    image = (gateway / "Dockerfile").read_text()
    assert "NGINX_ENTRYPOINT_LOCAL_RESOLVERS=1" in image
    (pattern,) = re.findall(r"NGINX_ENVSUBST_FILTER=(\S+)", image)
    for variable in re.findall(r"\$\{(\w+)\}", (gateway / "nginx.conf.template").read_text()):
        assert re.search(pattern, variable)
    (version,) = re.findall(r"^FROM \S+:(\d+)\.(\d+)", image, re.MULTILINE)
    assert tuple(map(int, version)) >= (1, 28)  # `resolve` is in 1.27.3 and newer


def pod(name, kind="Deployment", **changes):
    return render(**changes)[kind, name]["spec"]["template"]["spec"]


def test_one_client_can_keep_a_gpu_busy():
    limits = values()["gateway"]
    image = (ROOT / "docker" / "gateway" / "Dockerfile").read_text()
    shipped = {name: int(value) for name, value in re.findall(r"VISARD_(RATE|BURST|CONCURRENCY)=(\d+)", image)}
    assert shipped == {
        "RATE": limits["requestsPerSecond"],
        "BURST": limits["burst"],
        "CONCURRENCY": limits["concurrency"],
    }
    assert shipped["RATE"] >= 950  # faces/s of an H200 at most: docs/sizing.md
    assert shipped["BURST"] >= shipped["CONCURRENCY"]  # a client that begins sends all of these at once
    # nginx holds 2 MiB for each request under way; four clients may use all that they may.
    needed = 4 * shipped["CONCURRENCY"] * 2 * 2**20
    assert size(pod("faces-gateway")["containers"][0]["resources"]["limits"]["memory"]) >= needed
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["gateway"]
    assert size(compose["deploy"]["resources"]["limits"]["memory"]) >= needed


def size(text):
    number, unit = re.fullmatch(r"(\d+)([MmGg])i?", text).groups()
    return int(number) * {"m": 2**20, "g": 2**30}[unit.lower()]


def test_a_rollout_needs_no_gpu_to_spare():
    def strategy(**triton):
        return render(triton=triton)["Deployment", "faces-triton"]["spec"]["strategy"]["rollingUpdate"]

    one_less, one_more = {"maxSurge": 0, "maxUnavailable": 1}, {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy() == one_less
    assert strategy(spareGpu=True) == strategy(gpus=0) == one_more
    # Nor does the export: it may take a server's.
    job = {**CASES["export"], "export": {**CASES["export"]["export"], "priorityClass": "above-all"}}
    assert pod("faces-export", "Job", **job)["priorityClassName"] == "above-all"
    assert "priorityClassName" not in pod("faces-export", "Job", **CASES["export"])


def test_engines_outlive_the_server_that_built_them():
    def engines(**triton):
        (volume,) = [each for each in pod("faces-triton", triton=triton)["volumes"] if each["name"] == "engines"]
        return volume

    assert engines(engines="built")["persistentVolumeClaim"] == {"claimName": "built"}
    assert "emptyDir" in engines()
    (mount,) = [each for each in pod("faces-triton")["containers"][0]["volumeMounts"] if each["name"] == "engines"]
    assert mount == {"name": "engines", "mountPath": ENGINE_CACHE}
    for works in ({"engines": "built"}, {"models": "models"}, {"gpus": 0}):
        values(triton=works, autoscaling={"enabled": True})


def test_every_gpu_of_a_server_has_memory_for_tensors():
    pool = server_options()["--cuda-memory-pool-byte-size"]
    arguments = pod("faces-triton", triton={"gpus": 3})["containers"][0]["args"]
    given = [argument for argument in arguments if argument.startswith("--cuda-memory-pool-byte-size")]
    assert given == [pool.replace("=0:", f"={gpu}:") for gpu in (1, 2)]
    assert "--cuda-memory-pool-byte-size" not in str(pod("faces-triton"))  # GPU 0's is the image's


@pytest.mark.parametrize(
    "changes",
    [
        {"triton": {"replicas": 0}},
        {"triton": {"memory": "lots"}},
        {"triton": {"gpu": 1}},  # a misspelt name
        {"gateway": {"image": ""}},
        {"export": {"image": "visard-export:1"}},  # nowhere to export to
        {"autoscaling": {"enabled": True}},  # each new server would build its engines anew
        {"web": {"enabled": True}},  # it would refuse every browser
        {"web": {"rate": "often"}},
        {"surprise": {}},
    ],
)
def test_values_that_cannot_work_are_refused(changes):
    with pytest.raises(jsonschema.ValidationError):
        values(**changes)


def test_every_value_is_described_and_used():
    schema = json.loads((CHART / "values.schema.json").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for section, options in values().items():
        for option in options:
            assert schema["properties"][section]["properties"][option]["description"]
            assert f".Values.{section}.{option}" in templates


def test_kserve_gets_the_same_server():
    service = yaml.safe_load((ROOT / "deploy" / "kserve" / "inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    assert model["runtimeVersion"] == f"{triton_version(SERVER)}-py3"
    options = server_options()
    del options["--model-repository"]  # the runtime's
    assert set(model["args"]) == set(options.values())
    # What the chart and compose give it too: memory for the Python models' tensors, and a place for engines that stays.
    volumes = {volume["name"]: volume for volume in predictor["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in model["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts[ENGINE_CACHE]["persistentVolumeClaim"]["claimName"]
    assert predictor["securityContext"]["fsGroup"] == predictor["securityContext"]["runAsUser"] == 1000
    assert re.search(r"^USER 1000:1000$", SERVER.read_text(), re.MULTILINE)
