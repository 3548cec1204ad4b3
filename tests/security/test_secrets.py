"""No secret leaves where it is kept: not in logs, errors, metrics, command lines or audit entries. A whole deployment,
at log level debug, with known secrets in every place, made to fail in many ways."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import grpc
import httpx2
import pytest
from google.protobuf import empty_pb2
from pydantic import SecretStr

from chassis import errors
from chassis.redis import open_redis
from chassis.secretbox import new_key
from chassis.settings import Settings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, eventually
from tests.ports import reserved_ports
from tests.signer import Signer
from tests.stack.conftest import Up, start  # noqa: F401 - a fixture
from triglot import cli

PAI = "/api/PaiFeatureStore/2023-06-21"
# What callers show or send, each with a mark that is searched for.
MARK = "hunter2"
WRONG_KEY = f"0123456789abcdef.{MARK}key"
JWT = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (
    b'{"alg":"RS256","kid":"x"}', b'{"sub":"hunter2"}', b"hunter2 signature",
))  # fmt: skip


@pytest.mark.stack
@pytest.mark.timeout(400)
def test_no_secret_leaves_where_it_is_kept(start: Callable[..., Up], metrics_port: int) -> None:  # noqa: F811
    secret_key, other_key = new_key(), new_key()
    up = start(
        f"--metrics-port={metrics_port}",
        env={
            "TRIGLOT_SECRET_KEY": secret_key,
            "TRIGLOT_DECRYPTION_KEYS": json.dumps([other_key]),
            "TRIGLOT_LOG_LEVEL": "debug",
            "TRIGLOT_LOG_FORMAT": "json",
            "TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS": '["127.0.0.1"]',
            "TRIGLOT_OIDC_DISCOVERY_URL": "http://127.0.0.1:9/.well-known/openid-configuration",
            "TRIGLOT_GATEWAY_TIMEOUT_SECONDS": "5",
        },
    )
    endpoints = up.ready()
    keyring = json.loads((up.data_dir / "keys.json").read_text())
    postgres = (up.data_dir / "postgres.url").read_text().strip()
    kept = {
        "secret key": secret_key,
        "key to decrypt with": other_key,
        "API key": endpoints["api_key"].partition(".")[2],
        "service's API key": keyring["service_api_key"].partition(".")[2],
        "access key's secret": endpoints["access_key_secret"],
        "PostgreSQL's password": urlsplit(postgres).password or "",
        "what callers send": MARK,
        "token": JWT.rpartition(".")[2],
    }
    assert all(len(value) >= len(MARK) for value in kept.values())
    answers = list(provoked(endpoints, postgres))
    seen = {
        "answers": "\n".join(answers),
        "command lines": "\n".join(command_lines(up)),
        "audit": json.dumps(asyncio.run(audit_entries(postgres))),
    }
    code, output = up.stop()
    assert code == 0, output
    # The first start shows the new key, to whoever started it.
    seen["output"] = "\n".join(line for line in output.splitlines() if line.startswith("{"))
    seen["logs"] = "\n".join(path.read_text(errors="replace") for path in (up.data_dir / "logs").glob("*"))
    assert '"refused"' in seen["output"]
    assert "services.management.worker" in seen["command lines"]
    for what, value in kept.items():
        for where, text in seen.items():
            assert value not in text, f"{what} in {where}: {around(text, value)}"
            assert quote(value, safe="") not in text, f"{what} in {where}"


@pytest.fixture
def metrics_port() -> Iterator[int]:
    with reserved_ports(1) as [port]:
        yield port


def around(text: str, value: str) -> str:
    place = text.index(value)
    return text[max(0, place - 300) : place + 100]


def provoked(endpoints: Mapping[str, Any], postgres: str) -> Iterator[str]:
    """What is answered to requests that go wrong: credentials, bodies, datasources, lost connections. And metrics."""
    good = {"authorization": f"Bearer {endpoints['api_key']}"}
    signer = Signer(endpoints["access_key_id"], MARK)
    wrong_signature = signer.headers("GET", f"{PAI}/ListInstances", {}, b"")
    with httpx2.Client(base_url=endpoints["rest"], timeout=PATIENCE_SECONDS) as http:

        def ask(method: str, path: str, **request: Any) -> str:
            answer = http.request(method, path, **request)
            return f"{answer.status_code} {dict(answer.headers)} {answer.text}"

        for shown in (
            {"authorization": f"Bearer {WRONG_KEY}"},
            {"authorization": f"Bearer {endpoints['api_key']}x"},
            {"authorization": f"Bearer {JWT}"},
            {"authorization": f"Basic {MARK}"},
            {"x-api-key": WRONG_KEY},
            {"x-api-key": endpoints["api_key"][:-1]},
            wrong_signature,
        ):
            for path in ("/api/v1/projects", f"{PAI}/ListInstances", "/0.1.0/health"):
                yield ask("GET", path, headers=shown)
        for password in (MARK, f"{MARK}\x00", f"{MARK}'\"\\"):
            config = {"host": "127.0.0.1", "port": urlsplit(postgres).port, "user": "nobody", "password": password}
            for uri in ("instance/triglot", f"postgresql://u:{MARK}@127.0.0.1/db", "instance/nothing"):
                body = {"InstanceId": endpoints["instance_id"], "Type": "Hologres", "Uri": uri, "WorkspaceId": "1"}
                body |= {"Name": f"d{len(password)}{len(uri)}", "Config": json.dumps(config)}
                for operation in ("CheckInstanceDatasource", "CreateDatasource", "CreateDatasource"):
                    yield ask("POST", f"{PAI}/{operation}", headers=good, json=body)
        yield ask("POST", f"{PAI}/CreateDatasource", headers=good, content=f'{{"Config": "{MARK}'.encode())
        listed = http.get(f"{PAI}/ListDatasources", headers=good, params={"InstanceId": endpoints["instance_id"]})
        yield listed.text
        for identifier in [each["DatasourceId"] for each in listed.json()["Datasources"]]:
            shown = {"InstanceId": endpoints["instance_id"], "DatasourceId": identifier}
            yield ask("GET", f"{PAI}/ListDatasourceTables", headers=good, params=shown)
            yield ask("GET", f"{PAI}/GetDatasource", headers=good, params=shown)
        for name in ("registry_grpc", "serving_grpc", "management_grpc"):
            yield from over_grpc(endpoints[name], WRONG_KEY)
        # Connections are lost, and whatever was under way finds out.
        asyncio.run(disconnected(postgres))
        assert eventually(lambda: http.get("/api/v1/projects", headers=good).status_code == 200)
    yield httpx2.get(endpoints["metrics"]).text


def over_grpc(target: str, key: str) -> Iterator[str]:
    with grpc.insecure_channel(target) as channel:
        for path in ("/feast.registry.RegistryServer/Proto", "/triglot.serving.v1.ServingService/ReadRows"):
            method = channel.unary_unary(path, lambda _: b"\xff\xff", empty_pb2.Empty.FromString)
            try:
                method(empty_pb2.Empty(), metadata=(("authorization", f"Bearer {key}"),), timeout=PATIENCE_SECONDS)
            except grpc.RpcError as error:
                yield f"{error.details()} {error.trailing_metadata()}"  # type: ignore[attr-defined]


async def disconnected(postgres: str) -> None:
    connection = await asyncpg.connect(postgres)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND usename = current_user"
    )
    await connection.close()


async def audit_entries(postgres: str) -> list[str]:
    """All that the schemas' audit logs hold."""
    connection = await asyncpg.connect(postgres)
    schemas = await connection.fetch("SELECT schemaname FROM pg_tables WHERE tablename = 'audit'")
    found = [str(row) for each in schemas for row in await connection.fetch(f"TABLE {each['schemaname']}.audit")]
    await connection.close()
    return found


def command_lines(up: Up) -> Iterator[str]:
    for pid in up.processes():
        yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize(
    "given",
    [
        {"TRIGLOT_POSTGRES_URL": "WRONG_PASSWORD"},
        {"TRIGLOT_POSTGRES_URL": f"postgresql://u:{MARK}@[::1/db"},
        {"TRIGLOT_POSTGRES_URL": f"postgresql://u:{MARK}@127.0.0.1:{MARK}/db"},
        {"TRIGLOT_SECRET_KEY": MARK},
        {"TRIGLOT_DECRYPTION_KEYS": f'["{MARK}"]'},
        {"TRIGLOT_DECRYPTION_KEYS": MARK},
    ],
    ids=range(6),
)
def test_what_ends_a_command_names_no_secret(
    given: dict[str, str], servers: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = servers.postgres_url.replace(urlsplit(servers.postgres_url).password or "", MARK)
    monkeypatch.setenv("TRIGLOT_POSTGRES_URL", servers.postgres_url)
    for name, value in given.items():
        monkeypatch.setenv(name, value.replace("WRONG_PASSWORD", wrong))
    monkeypatch.setattr(sys, "argv", ["triglot", "migrate"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (1, 2)
    printed = capsys.readouterr()
    assert "triglot: " in printed.err
    assert MARK not in printed.out + printed.err


async def test_a_url_of_redis_that_is_none_is_not_repeated() -> None:
    given = Settings(redis_url=SecretStr(f"redis://:{MARK}@127.0.0.1:{MARK}"))
    with pytest.raises(errors.CannotStart) as raised:
        async with open_redis(given):
            pass
    assert MARK not in "".join(traceback.format_exception(raised.value))
