"""The REST API is asked whatever its own OpenAPI description allows, and much that it does not.

Schemathesis makes the requests and holds every answer against the description: statuses, media types, headers, schemas,
and that no answer says this server is broken.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visard import Connection
from visard_testing.web_server import web_server
from visard_web.app import create_app
from visard_web.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports' deprecations
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

PHOTO = (Path(__file__).resolve().parents[2] / "server/visard_server/data/astronaut.jpg").read_bytes()

for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(
        kind, st.sampled_from([PHOTO, PHOTO[:5000], b"GIF89a", b""]) | st.binary(max_size=99)
    )


@pytest.fixture(scope="module")
def url(tiny_server):
    with web_server(tiny_server.grpc_url) as url:
        yield url


DESCRIPTION = create_app(Connection(), Settings()).openapi()
OPERATIONS = {
    operation.ok().label: operation.ok()
    for operation in schemathesis.openapi.from_dict(DESCRIPTION).get_all_operations()
}
EXPECTED = {  # what is asked must not all be refused at the first hurdle
    "POST /v1/anonymize": {200, 415, 422},
    "POST /v1/faces": {200, 415, 422},
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_described(url, label):
    operation, seen = OPERATIONS[label], set()
    cases = st.one_of(operation.as_strategy(mode) for mode in schemathesis.GenerationMode)

    @settings(max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask(case):
        # Whether bytes are a photo is more than a description can say: well-described bytes may still be refused.
        response = case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])
        seen.add(response.status_code)

    ask()
    assert seen >= EXPECTED.get(label, {200}), seen


def test_examples_fit_their_schemas(url):
    description = httpx.get(f"{url}/openapi.json").json()
    assert description == DESCRIPTION
    found = []
    for path, operations in description["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                for content in response.get("content", {}).values():
                    schema = {**content["schema"], "components": description["components"]}
                    examples = [content["example"]] if "example" in content else []
                    name = content["schema"].get("$ref", "").rpartition("/")[2]
                    examples += [description["components"]["schemas"][name]["example"]] if "Found" in name else []
                    for example in examples:
                        jsonschema.validate(example, schema)
                        found.append((path, status))
    assert ("/v1/faces", "200") in found
    assert {("/v1/anonymize", status) for status in ("401", "413", "415", "422", "429", "503")} <= set(found)
    schemas = description["components"]["schemas"]
    jsonschema.validate(
        schemas["Anonymized"]["example"], {**schemas["Anonymized"], "components": description["components"]}
    )
