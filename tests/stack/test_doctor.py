"""`triglot doctor` beside dependencies that are really broken: each fault is named, with what to do, and no secret."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from chassis import server
from chassis.identity.store import IdentityStore
from chassis.principals import Principal
from chassis.secretbox import new_key
from chassis.settings import Settings
from services.serving.process import open_service
from services.serving.settings import ServingSettings
from tests.cluster import RedisCluster
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import reserved_ports
from tests.stack.conftest import FREE_PORTS, ROOT, Up
from triglot import doctor
from triglot.checkup import finding
from triglot.checkup.finding import Finding
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis
from triglot.schemas import SCHEMAS

NOWHERE = Path("/nonexistent")
Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets variables of the deployment that is looked at; all others are unset."""
    for name in [name for name in os.environ if name.startswith("TRIGLOT_")]:
        monkeypatch.delenv(name)

    def set_all(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"TRIGLOT_{name.upper()}", str(value))

    return set_all


async def found(data_dir: Path = NOWHERE) -> dict[str, Finding]:
    """The worst finding of each check. Each that is not `ok` says what to do."""
    told = await doctor.findings(data_dir)
    assert all(bool(each.advice) == (each.status != "ok") for each in told)
    order = ("ok", "warning", "error")
    return {each.check: each for each in sorted(told, key=lambda each: order.index(each.status))}


def statuses(told: dict[str, Finding]) -> dict[str, str]:
    return {check: each.status for check, each in told.items() if each.status != "ok"}


# PostgreSQL


async def test_nothing_to_look_at(environment: Environment) -> None:
    assert statuses(await found()) == {"settings": "error"}


async def test_wrong_settings(environment: Environment) -> None:
    environment(postgres_pool_size=0, secret_key="GEHEIM")
    told = (await found())["settings"]
    assert "TRIGLOT_POSTGRES_POOL_SIZE" in told.text
    assert "TRIGLOT_SECRET_KEY" in told.text
    assert "GEHEIM" not in str(told)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url.replace("://triglot:", "://triglot:GEHEIM"), "refuses the user or password"),
        (lambda url: url + "_absent", "has not the database"),
        (lambda url: "GEHEIM", "is no URL"),
        (lambda url: "postgresql://triglot:GEHEIM@127.0.0.1:{port}/triglot", "does not answer"),
    ],
)
async def test_postgres_that_lets_nobody_in(
    environment: Environment, servers: Servers, change: Callable[[str], str], text: str
) -> None:
    with reserved_ports(1) as [port]:
        environment(postgres_url=change(servers.postgres_url).replace("{port}", str(port)))
        told = await found()
    assert told["PostgreSQL"].status == "error"
    assert text in told["PostgreSQL"].text
    assert "GEHEIM" not in str(told)


async def test_postgres_that_is_well(environment: Environment, settings: Settings) -> None:
    environment(
        postgres_url=settings.postgres_url.get_secret_value(),
        postgres_direct_url=settings.postgres_url.get_secret_value(),
        secret_key=settings.secret_key.get_secret_value(),
    )
    told = await found()
    assert statuses(told) == {}
    assert {"PostgreSQL version", "pg_trgm", "PostgreSQL clock", "migrations of registry", "PostgreSQL, direct"} < set(
        told
    )


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM registry.migration WHERE number >= 11", {"migrations of registry": "error"}),
        ("DROP SCHEMA management CASCADE", {"migrations of management": "error"}),
        ("UPDATE serving.migration SET sha256 = 'x' WHERE number = 2", {"migrations of serving": "error"}),
        ("INSERT INTO serving.migration VALUES (99, 'later', 'x')", {"migrations of serving": "warning"}),
        ("REVOKE UPDATE ON registry.object FROM CURRENT_USER", {"database permissions": "error"}),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", {"PostgreSQL role": "error"}),
        ("ALTER DATABASE {name} CONNECTION LIMIT 0", {"PostgreSQL": "error"}),
    ],
)
async def test_postgres_that_is_not(
    environment: Environment, settings: Settings, statement: str, expected: dict[str, str]
) -> None:
    url = settings.postgres_url.get_secret_value()
    connection = await asyncpg.connect(url)
    await connection.execute(statement.replace("{name}", url.rpartition("/")[2]))
    await connection.close()
    environment(postgres_url=url, secret_key=settings.secret_key.get_secret_value())
    assert statuses(await found()) == expected


async def test_a_fresh_database_of_another_encoding(environment: Environment, servers: Servers) -> None:
    name = "doctor_ascii"
    connection = await asyncpg.connect(servers.postgres_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        environment(postgres_url=servers.database_url(name), postgres_direct_url=servers.postgres_url)
        told = statuses(await found())
        pending = {f"migrations of {plan.schema}": "error" for plan in SCHEMAS}
        assert told == {
            **pending,
            "database encoding": "error",
            "pg_trgm": "warning",
            "PostgreSQL, direct": "error",
            "TRIGLOT_SECRET_KEY": "warning",
        }
    finally:
        await connection.execute(f"DROP DATABASE {name}")
        await connection.close()


async def test_another_secret_key(environment: Environment, settings: Settings, identity: IdentityStore) -> None:
    url = settings.postgres_url.get_secret_value()
    connection = await asyncpg.connect(url)
    sealed = settings.secret_box.encrypt("{}", "datasource config")
    await connection.execute(
        "INSERT INTO management.datasource (name, workspace_id, type, uri, config, config_sealed)"
        " VALUES ('d', '1', 'FeatureDB', 'x', '{}', $1)",
        sealed,
    )
    await connection.close()
    environment(postgres_url=url, secret_key=settings.secret_key.get_secret_value())
    assert statuses(await found()) == {}
    environment(secret_key=new_key())
    assert statuses(await found()) == {"secrets of access keys": "error", "secrets of datasources": "error"}


# Redis


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that a test may break."""
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis") / "data")
    yield embedded.start()
    embedded.destroy()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url.replace("://:", "://:GEHEIM"), "refuses the user or password"),
        (lambda url: "GEHEIM", "is no URL"),
        (lambda url: "redis://:GEHEIM@127.0.0.1:{port}/0", "does not answer"),
    ],
)
async def test_redis_that_lets_nobody_in(
    environment: Environment, own_redis: str, change: Callable[[str], str], text: str
) -> None:
    with reserved_ports(1) as [port]:
        environment(redis_url=change(own_redis).replace("{port}", str(port)))
        told = await found()
    assert told["Redis"].status == "error"
    assert text in told["Redis"].text
    assert "GEHEIM" not in str(told)


async def test_redis_that_is_well_and_is_not(environment: Environment, own_redis: str) -> None:
    environment(redis_url=own_redis)
    assert statuses(await found()) == {}
    with redis.Redis.from_url(own_redis) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert statuses(await found()) == {"Redis eviction": "warning"}
        client.config_set("maxmemory", client.info("memory")["used_memory"] * 11 // 10)
        assert statuses(await found()) == {"Redis eviction": "error", "Redis memory": "warning"}
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
        assert statuses(await found()) == {"Redis persistence": "warning"}
        client.config_set("appendonly", "yes")
        with reserved_ports(1) as [port]:
            client.replicaof("127.0.0.1", port)
            assert statuses(await found()) == {"Redis role": "error"}
            client.replicaof("NO", "ONE")
    environment(redis_cluster="true")
    told = await found()
    assert statuses(told) == {"Redis Cluster": "error"}
    assert told["Redis Cluster"].advice == "set TRIGLOT_REDIS_CLUSTER=false"


async def test_a_cluster(environment: Environment, cluster: RedisCluster) -> None:
    environment(redis_url=cluster.url)
    told = await found()
    assert told["Redis Cluster"].advice == "set TRIGLOT_REDIS_CLUSTER=true"
    environment(redis_cluster="true")

    async def well() -> bool:
        """Its nodes keep nothing on disk, which is told of each. A young cluster has yet to hear of its replicas."""
        told = await found()
        return told["Redis Cluster"].status == "ok" and all(each.endswith("persistence") for each in statuses(told))

    await until(well)
    seed, other, *_ = cluster.primaries()
    environment(redis_url=cluster.url.replace(str(cluster.ports[0]), str(seed)))
    slot = next(first for first, _, port in cluster.ranges(seed) if port == seed)
    cluster[seed].execute_command("CLUSTER DELSLOTS", slot)
    told = await found()
    cluster[seed].execute_command("CLUSTER ADDSLOTS", slot)
    assert told["Redis Cluster"].text == "1 slots belong to no node"
    cluster.kill(other)
    assert (await found())[f"Redis 127.0.0.1:{other}"].text.startswith("does not answer")


# Clocks


def test_clocks() -> None:
    now = datetime.now(UTC)
    for seconds, status in ((0, "ok"), (20, "ok"), (60, "warning"), (3600, "error")):
        for sign in (-1, 1):
            told = finding.clock("clock", datetime.now(UTC) + timedelta(seconds=sign * seconds), now)
            assert told.status == status, (seconds, sign)


# Services and certificates


def certificate(folder: Path, days: tuple[float, float] = (-1, 90), host: str = "127.0.0.1") -> tuple[Path, Path]:
    """PEM files of a certificate that vouches for itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    begins, ends = (datetime.now(UTC) + timedelta(days=each) for each in days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(pem)
    return folder / "tls.crt", folder / "tls.key"


@pytest.mark.parametrize(
    ("days", "status"),
    [((-1, 90), "ok"), ((-1, 5), "warning"), ((-30, -1), "error"), ((1, 90), "error")],
)
async def test_a_certificate_of_our_own(
    environment: Environment, tmp_path: Path, days: tuple[float, float], status: str
) -> None:
    made, key = certificate(tmp_path / "own", days)
    with reserved_ports(1) as [port]:
        environment(tls_certificate=made, tls_key=key, serving_target=f"127.0.0.1:{port}")
        told = await found()
    assert told["TRIGLOT_TLS_CERTIFICATE"].status == status
    assert told["TRIGLOT_TLS_KEY"].status == "ok"
    assert told[f"serving at 127.0.0.1:{port}"].text.startswith("does not answer")


async def test_a_key_of_another_certificate(environment: Environment, tmp_path: Path) -> None:
    (made, _), (_, key) = certificate(tmp_path / "one"), certificate(tmp_path / "other")
    environment(tls_certificate=made, tls_key=key)
    assert statuses(await found()) == {"settings": "error"}


@pytest.mark.parametrize(
    "case",
    [
        ("good", "good", "answers and can do its work"),
        ("", "good", "does not speak TLS"),
        ("good", "", "speaks TLS, and is called without"),
        ("good", "stranger", "cannot be believed"),
        ("elsewhere", "elsewhere", "cannot be believed: IP address mismatch"),
        ("expired", "expired", "expired on"),
    ],
)
async def test_what_a_target_shows(
    environment: Environment, settings: Settings, tmp_path: Path, case: tuple[str, str, str]
) -> None:
    shown, believed, text = case
    files = {
        "good": certificate(tmp_path / "good"),
        "stranger": certificate(tmp_path / "stranger"),
        "elsewhere": certificate(tmp_path / "elsewhere", host="192.0.2.1"),
        "expired": certificate(tmp_path / "expired", (-30, -1)),
        "": ("", ""),
    }
    tls = {"tls_certificate": str(files[shown][0]), "tls_key": str(files[shown][1])}
    own = settings.model_copy(update=tls)
    async with open_service(own, ServingSettings()) as services, server.listening(services, own, 0) as port:
        environment(serving_target=f"127.0.0.1:{port}", tls_authority=files[believed][0])
        told = (await found())[f"serving at 127.0.0.1:{port}"]
    assert text in told.text
    assert told.status == ("ok" if shown == believed == "good" else "error")


async def test_services_and_their_keys(
    environment: Environment, settings: Settings, servers: Servers, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    narrow = await make_key(Principal("narrow", feature_stores=frozenset({"one"}), actions=("featurestore:*",)))
    async with open_service(settings, ServingSettings()) as services, server.listening(services, settings, 0) as port:
        environment(serving_target=f"127.0.0.1:{port}", registry_target=f"127.0.0.1:{port}")
        for key, status in ((servers.admin_key, "ok"), (narrow, "error"), ("0123456789abcdef.GEHEIM", "error")):
            environment(service_api_key=key)
            told = await found()
            assert told["TRIGLOT_SERVICE_API_KEY"].status == status
            assert key not in str(told)
            assert told[f"serving at 127.0.0.1:{port}"].status == "ok"
            assert told[f"registry at 127.0.0.1:{port}"].text == "somebody answers who is not registry"


async def test_a_service_without_its_redis(environment: Environment, settings: Settings) -> None:
    with reserved_ports(1) as [away]:
        own = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{away}/0")})
        async with open_service(own, ServingSettings()) as services, server.listening(services, own, 0) as port:
            environment(serving_target=f"127.0.0.1:{port}")
            told = (await found())[f"serving at 127.0.0.1:{port}"]
    assert (told.status, told.text) == ("error", "answers, and cannot do its work")


# The whole, as a user runs it


def run(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "triglot.cli", command, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")},
    )


@pytest.mark.stack
@pytest.mark.timeout(400)
def test_a_stack_that_runs_and_one_that_does_not(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    up = Up(data_dir, *FREE_PORTS, "--no-sample")
    try:
        endpoints = up.ready()
        well = run("doctor", "--data-dir", str(data_dir), "--json")
        told = json.loads(well.stdout)
        # How full this machine's disk is, is its own affair.
        assert {each["status"] for each in told if "data folder" not in each["check"]} == {"ok"}, told
        assert well.returncode == 0
        names = {each["check"].partition(" at ")[0] for each in told}
        assert {"registry", "serving", "management", "TRIGLOT_SERVICE_API_KEY", "Redis", "PostgreSQL"} < names
        secrets = {**json.loads((data_dir / "keys.json").read_text()), "id": ""}
        urls = [(data_dir / f"{name}.url").read_text().strip() for name in ("postgres", "redis")]
        hidden = [value for name, value in secrets.items() if value and name != "access_key_id"] + urls
        assert not any(secret in well.stdout + well.stderr for secret in hidden)
        audit_of(data_dir, endpoints)
        (data_dir / "keys.json").chmod(0o644)
    finally:
        up.stop()
    try:
        ill = run("doctor", "--data-dir", str(data_dir))
        assert ill.returncode == 1
        for line in ("nothing runs on it", "others can read keys.json", "PostgreSQL", "Redis", "does not answer"):
            assert line in ill.stdout, ill.stdout
        assert not any(secret in ill.stdout + ill.stderr for secret in hidden)
    finally:
        EmbeddedPostgres(data_dir).destroy()
        EmbeddedRedis(data_dir).destroy()


def audit_of(data_dir: Path, endpoints: dict[str, Any]) -> None:
    """`triglot audit` beside the same stack: changes through three dialects, merged by time."""
    shown = {"Authorization": f"Bearer {endpoints['api_key']}"}
    with httpx2.Client(base_url=endpoints["rest"], headers=shown) as client:
        entity = {"project": "shop", "name": "user", "join_key": "user_id"}
        client.post("/api/v1/entities", json=entity).raise_for_status()
        source = {"Name": "d", "WorkspaceId": "1", "Type": "FeatureDB", "Uri": "f"}
        path = f"/api/PaiFeatureStore/2023-06-21/CreateDatasource?InstanceId={endpoints['instance_id']}"
        client.post(path, json=source).raise_for_status()
    options = ("--data-dir", str(data_dir))
    lines = run("audit", *options, "--json", "--who", "administrator").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["kind"] for each in told] == ["Datasource", "entity", "project"]
    assert [each["service"] for each in told] == ["management", "registry", "registry"]
    assert told[1]["after"]["spec"]["joinKey"] == "user_id"
    assert told[1]["before"] is None
    assert json.loads(run("audit", *options, "--json", "--limit", "1").stdout) == told[0]
    assert json.loads(run("audit", *options, "--json", "--kind", "entity", "--since", "1h").stdout) == told[1]
    assert run("audit", *options, "--since", "1h", "--until", "1h").stdout.split()[:2] == ["TIME", "WHO"]
    keys = run("audit", *options, "--service", "identity").stdout
    assert "operating system" in keys
    assert "Datasource" not in keys
    for wrong in (("--since", "yesterday"), ("--service", "gateway")):
        refused = run("audit", *options, *wrong)
        assert refused.returncode == 1
        assert wrong[1] in refused.stderr
