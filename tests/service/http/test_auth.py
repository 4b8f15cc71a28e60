"""API keys: who is let in, who is not, and that nothing gives a key away."""

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from ddaebm.service.app import create_app
from ddaebm.service.http.auth import hash_key, make_key
from ddaebm.service.settings import Settings
from tests.service.conftest import FakeEngine, MakeClient, check_problem, files, metric, png

KEYS = [make_key() for _ in range(2)]
HASHES = tuple(hashed for _, hashed in KEYS)


@pytest.fixture
def guarded(make_client: MakeClient) -> TestClient:
    return make_client(api_keys=HASHES)


@pytest.mark.parametrize("key", [key for key, _ in KEYS], ids=["first", "second"])
@pytest.mark.parametrize("form", ["Bearer", "bearer", "X-API-Key"])
def test_each_key_is_let_in(guarded: TestClient, key: str, form: str) -> None:
    headers = {form: key} if form == "X-API-Key" else {"Authorization": f"{form} {key}"}
    assert guarded.post("/v1/samples", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEYS[0][0]}"},
        {"Authorization": f"Bearer {KEYS[0][0]}x"},
        {"Authorization": f"Bearer {KEYS[0][0][:-1]}"},
        {"Authorization": f"Bearer {HASHES[0]}"},
        {"X-API-Key": HASHES[0]},
        {"X-API-Key": "é".encode().decode("latin-1")},
    ],
    ids=["none", "empty", "no-key", "empty-key", "basic", "longer", "shorter", "hash", "hash-in-x", "not-ascii"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/samples"), ("POST", "/v1/scores"), ("GET", "/v1/models"), ("GET", "/v1/samples/1.png"),
     ("GET", "/nowhere"), ("GET", "/livez/")],
)  # fmt: skip
def test_nobody_else_is(guarded: TestClient, headers: dict[str, str], method: str, path: str) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = guarded.request(method, path, headers=encoded)  # type: ignore[arg-type]
    body = check_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not any(secret in str(body) for secret, _ in KEYS)


def test_a_body_without_a_key_is_not_read(guarded: TestClient, engine: FakeEngine) -> None:
    answer = guarded.post("/v1/scores", files=files(png()))
    check_problem(answer, 401)
    assert answer.headers["connection"] == "close"
    assert engine.calls == []
    assert metric(guarded, "ddaebm_rejected_total", reason="unauthorized") == 1


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/docs", "/openapi.json"])
def test_probes_the_scrape_and_the_documentation_need_none(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_without_keys_anybody_may_ask(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Authorization": "Bearer anything"}).status_code == 200
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_openapi_says_that_a_key_is_needed(guarded: TestClient) -> None:
    document = guarded.get("/openapi.json").json()
    assert document["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/v1/samples"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/livez"]["get"]


def test_a_key_in_place_of_its_hash_is_refused_without_being_shown() -> None:
    with pytest.raises(ValidationError) as error:
        Settings(api_keys=KEYS[0][0])
    assert KEYS[0][0] not in error.value.errors()[0]["msg"]


def test_a_key_is_long_its_own_and_known_by_its_hash() -> None:
    (first, hashed), (second, _) = make_key(), make_key()
    assert first != second
    assert len(first) >= 43
    assert hash_key(first) == hashed


@pytest.mark.parametrize(("origins", "allowed"), [((), None), ("https://a.example", "https://a.example"), ("*", "*")])
def test_pages_of_another_origin_may_ask_only_where_they_are_named(
    engine: FakeEngine, origins: str, allowed: str | None
) -> None:
    with TestClient(create_app(Settings(cors_origins=origins), engine)) as client:
        for answer in (
            client.get("/v1/models", headers={"Origin": "https://a.example"}),
            client.options(
                "/v1/scores", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
            ),
        ):
            assert answer.headers.get("access-control-allow-origin") == allowed
        other = client.get("/v1/models", headers={"Origin": "https://b.example"})
        assert other.headers.get("access-control-allow-origin") == (allowed if allowed == "*" else None)


def test_a_preflight_needs_no_key(make_client: MakeClient) -> None:
    client = make_client(api_keys=HASHES, cors_origins="https://a.example")
    asked = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = client.options("/v1/scores", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-headers"] == "authorization"
    refused = client.post("/v1/scores", headers={"Origin": "https://a.example"})
    assert refused.status_code == 401  # and readable by the page
    assert refused.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize("path", ["/v1/samples/1.png", "/v1/models", "/nowhere", "/livez"])
def test_security_headers_are_on_every_answer(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_the_documentation_may_run_its_scripts(client: TestClient) -> None:
    assert "content-security-policy" not in client.get("/docs").headers
