"""The command `triglot`."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import SecretStr

from chassis import errors
from chassis.identity.store import IdentityStore
from chassis.migrations import migrate, wait_until_migrated
from chassis.postgres import open_database
from chassis.principals import Principal
from chassis.server import explained
from chassis.settings import Settings
from triglot import audit, doctor, tasks, usage
from triglot.deployment import open_serving, read_endpoints
from triglot.schemas import SCHEMAS
from triglot.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, console, print_json

app = typer.Typer(
    help="Triglot: one feature store that speaks Feast, Hopsworks and PAI FeatureStore.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
keys = typer.Typer(help="Principals and their API keys. Works on the database itself.", no_args_is_help=True)
app.add_typer(keys, name="keys")
serve = typer.Typer(
    help="Run one process of a deployment, set up by environment variables (docs/configuration.md).",
    no_args_is_help=True,
)
app.add_typer(serve, name="serve")
app.add_typer(tasks.app, name="tasks")
app.command()(usage.usage)
app.command()(audit.audit)
app.command()(doctor.doctor)


Certificate = Annotated[str | None, typer.Option("--cert", "-c", help="PEM file of the certificate chain, for TLS.")]
Key = Annotated[str | None, typer.Option("--key", "-k", help="PEM file of the certificate's private key.")]


def _override(**given: object) -> None:
    """An option is the environment variable TRIGLOT_... of its name, for this process and its children."""
    os.environ.update({f"TRIGLOT_{name.upper()}": str(value) for name, value in given.items() if value is not None})


@app.command()
def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    sample: Annotated[bool, typer.Option(help="Load the flights of 2013 on the first start.")] = True,
    auth: Annotated[bool, typer.Option(help="Ask every caller for a key. Without it: loopback only.")] = True,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    http_port: Annotated[
        list[int] | None, typer.Option(help="HTTP port; may be repeated.  [default: 6572 4406 8080]")
    ] = None,
    registry_port: Annotated[int | None, typer.Option(help="gRPC port of the registry.  [default: 6570]")] = None,
    serving_port: Annotated[int | None, typer.Option(help="gRPC port of serving.  [default: 6571]")] = None,
    management_port: Annotated[int | None, typer.Option(help="gRPC port of management.  [default: 6573]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of the metrics; 0: none.  [default: 6574]")] = None,
    cert: Certificate = None,
    key: Key = None,
) -> None:
    """Start everything on this machine and stay until Ctrl-C.

    PostgreSQL and Redis are started too, with their data in `--data-dir`, unless `TRIGLOT_POSTGRES_URL` and
    `TRIGLOT_REDIS_URL` lead to others. Every port 0 means a free one; `endpoints.json` in the data folder says which.

    Examples: `triglot up` - `triglot up --no-sample --data-dir /srv/triglot` - `triglot up --no-auth`
    """
    _override(
        host=host,
        gateway_ports=orjson.dumps(http_port).decode() if http_port else None,
        registry_port=registry_port,
        serving_port=serving_port,
        management_port=management_port,
        metrics_port=metrics_port,
        tls_certificate=cert,
        tls_key=key,
    )
    # Only here: the other commands should not wait for the whole product to be imported.
    from triglot import up as product

    product.run(product.Options(data_dir, sample, auth), console)


@serve.command("registry")
def serve_registry(
    port: Annotated[int | None, typer.Option("--port", "-p", help="gRPC port.  [default: 6570]")] = None,
    rest_api: Annotated[bool, typer.Option("--rest-api", "-r", help="Serve REST too.")] = False,
    rest_port: Annotated[int, typer.Option("--rest-port", help="HTTP port.")] = 6572,
    grpc: Annotated[
        bool, typer.Option(help="Serve gRPC. Without it REST calls the registry inside the process.")
    ] = True,
    cert: Certificate = None,
    key: Key = None,
) -> None:
    """Feast's registry, over gRPC, REST or both.

    Examples: `triglot serve registry` - `triglot serve registry --rest-api` -
    `triglot serve registry --rest-api --no-grpc --rest-port 8080 --cert tls.crt --key tls.key`
    """
    _require_any(grpc, rest_api)
    _override(registry_port=port, tls_certificate=cert, tls_key=key)
    from triglot import registry

    registry.run(with_grpc=grpc, rest_port=rest_port if rest_api else None)


Workers = Annotated[
    int, typer.Option(min=1, max=256, help="Processes that share the ports; the next metrics port for each.")
]
RdrsConfig = Annotated[
    Path | None, typer.Option(help="An `rdrs_config.json` of RonDB's REST server; docs/serving.md says what it means.")
]


@serve.command("serving")
def serve_serving(
    port: Annotated[int | None, typer.Option("--port", "-p", help="gRPC port.  [default: 6571]")] = None,
    rest_api: Annotated[bool, typer.Option("--rest-api", "-r", help="Serve Hopsworks' REST too.")] = False,
    rest_port: Annotated[int | None, typer.Option("--rest-port", help="HTTP port.  [default: 4406]")] = None,
    grpc: Annotated[bool, typer.Option(help="Serve gRPC. Without it REST calls serving inside the process.")] = True,
    workers: Workers = 1,
    rdrs_config: RdrsConfig = None,
    cert: Certificate = None,
    key: Key = None,
) -> None:
    """Feature vectors from Redis, over gRPC, Hopsworks' REST or both.

    Examples: `triglot serve serving` - `triglot serve serving --rest-api --workers 4` -
    `triglot serve serving --rest-api --no-grpc --rdrs-config /etc/rdrs_config.json`
    """
    _require_any(grpc, rest_api)
    _override(
        serving_port=port, serving_rest_port=rest_port, rdrs_config=rdrs_config, tls_certificate=cert, tls_key=key
    )
    if workers > 1:
        from services.serving.settings import ServingSettings
        from triglot.workers import run

        flags = (*(("--rest-api",) if rest_api else ()), *(() if grpc else ("--no-grpc",)))
        ports = {"TRIGLOT_SERVING_PORT": Settings().serving_port} if grpc else {}
        rest = {"TRIGLOT_SERVING_REST_PORT": ServingSettings().rest_port} if rest_api else {}
        run(("serve", "serving", *flags), workers, ports | rest)
    from triglot import serving

    serving.run(with_grpc=grpc, with_rest=rest_api)


@serve.command("gateway")
def serve_gateway(
    workers: Workers = 1, rdrs_config: RdrsConfig = None, cert: Certificate = None, key: Key = None
) -> None:
    """REST of all three dialects, in front of the other processes."""
    _override(rdrs_config=rdrs_config, tls_certificate=cert, tls_key=key)
    if workers > 1:
        from gateway.settings import GatewaySettings
        from triglot.workers import run

        run(("serve", "gateway"), workers, {"TRIGLOT_GATEWAY_PORTS": GatewaySettings().ports})
    importlib.import_module("gateway.__main__").main()


def _require_any(grpc: bool, rest_api: bool) -> None:
    if not (grpc or rest_api):
        raise errors.WrongSetting("--no-grpc leaves nothing to serve: add --rest-api")


def _add_role(name: str, module: str, summary: str) -> None:
    @serve.command(name, help=summary)
    def run(cert: Certificate = None, key: Key = None) -> None:
        _override(tls_certificate=cert, tls_key=key)
        importlib.import_module(module).main()


_add_role("management", "services.management.__main__", "The catalogue, tasks and identity, over gRPC.")
_add_role("worker", "services.management.worker", "Performs the tasks of management.")


@app.command(name="migrate")
def migrate_command(
    wait: Annotated[
        bool, typer.Option("--wait", help="Apply nothing: wait until another process has applied everything.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Bring the database's schemas up to date. Safe to run at any time, by any number of processes."""
    settings = _settings(data_dir)
    url, setting = settings.direct_postgres
    if wait:
        asyncio.run(wait_until_migrated(url, SCHEMAS, setting))
        return
    applied = asyncio.run(migrate(url, SCHEMAS, setting))
    console.print("\n".join(applied) or "nothing to do")


@app.command()
def endpoints(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print what `triglot up` offers right now, as JSON: addresses, keys, one call that works."""
    sys.stdout.write(orjson.dumps(read_endpoints(data_dir), option=orjson.OPT_INDENT_2).decode() + "\n")


Target = Annotated[
    str | None, typer.Option(help="Where serving is: HOST:PORT.  [default: $TRIGLOT_SERVING_TARGET, or what runs here]")
]
ApiKey = Annotated[
    str | None, typer.Option(help="API key.  [default: $TRIGLOT_API_KEY, or that of what runs here]", metavar="KEY")
]


class Mode(StrEnum):
    """How new rows meet old ones."""

    OVERWRITE = "overwrite"
    MERGE = "merge"


@app.command("load")
def load_command(
    files: Annotated[list[Path], typer.Argument(help="Parquet, Arrow or CSV; several are loaded as one table.")],
    feature_group: Annotated[str, typer.Option(help="STORE/NAME or STORE/NAME/VERSION.", metavar="GROUP")],
    mode: Annotated[
        Mode, typer.Option(help="Replace all rows, at once and at the end; or row by row.")
    ] = Mode.OVERWRITE,
    key: Annotated[list[str] | None, typer.Option(help="Key column of a group that is to be made.")] = None,
    event_time: Annotated[str | None, typer.Option(help="Its event-time column: newer rows win.")] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", help="COLUMN=TYPE of such a group, instead of what the file suggests.", metavar="C=T"),
    ] = None,
    ttl_seconds: Annotated[int | None, typer.Option(min=1, help="How long the rows of the group live.")] = None,
    target: Target = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Load a table into a feature group, over gRPC. With `--key` the group is made if it is not there.

    Ctrl-C, or whatever else ends an overwrite early, leaves the rows as they were.

    Examples: `triglot load riders.parquet --feature-group shop/riders` -
    `triglot load riders.csv --feature-group shop/riders/2 --key rider_id --event-time seen --type score=double` -
    `triglot load today.arrow --feature-group shop/riders --mode merge --json`
    """
    from triglot import load, names

    options = load.Options(
        files=files,
        group=names.parse(feature_group),
        mode=mode.value,
        key=key or (),
        event_time=event_time,
        types=dict(map(_column_type, type_ or ())),
        ttl_seconds=ttl_seconds,
    )
    loaded = asyncio.run(load.load(options, open_serving(data_dir, target, api_key)))
    if as_json:
        print_json(load.described(options, loaded))
    else:
        console.print(load.told(options, loaded), soft_wrap=True)


def _column_type(text: str) -> tuple[str, str]:
    from chassis import datatypes

    column, equals, hive = text.partition("=")
    if not (column and equals):
        raise errors.WrongSetting(f"--type {text}: it must be COLUMN=TYPE, such as score=double")
    return column, datatypes.parse(hive).hive


@app.command("vector")
def vector_command(
    view: Annotated[str, typer.Argument(help="NAME, STORE/NAME or STORE/NAME/VERSION of a feature view.")],
    entry: Annotated[list[str], typer.Option(help="A key as NAME=VALUE; once for each.", metavar="NAME=VALUE")],
    store: Annotated[str | None, typer.Option(help="Feature store of the view.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Version of the view.  [default: 1]")] = None,
    target: Target = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Print one feature vector: names, values and status.

    Examples: `triglot vector shop/riding --entry rider_id=1` -
    `triglot vector riding --store shop --version 2 --entry rider_id=1 --entry city_id=7 --json`
    """
    from triglot import names, vector

    name, keys_given = names.parse(view, store, version), vector.entry_of(entry)
    found = asyncio.run(vector.read(name, keys_given, open_serving(data_dir, target, api_key)))
    if as_json:
        print_json(vector.described(found))
    else:
        vector.show(found)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(package_version("triglot"))


@keys.command("create")
def create_key(
    principal: Annotated[str, typer.Argument(help="Name of the principal; made if it does not exist.")],
    store: Annotated[list[str] | None, typer.Option(help="Feature store it may use; `*` for all.")] = None,
    action: Annotated[
        list[str] | None, typer.Option(help="Action it may perform, such as `featurestore:Get*`.")
    ] = None,
    role: Annotated[list[str] | None, typer.Option(help="Role, for Feast's permissions.")] = None,
    administrator: Annotated[bool, typer.Option("--administrator", help="May do everything.")] = False,
    days: Annotated[int | None, typer.Option(min=1, help="Days until the key expires.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make an API key. It is printed once and cannot be read again.

    Example: `triglot keys create reader --store flights --action 'featurestore:*'`
    """
    wanted = Principal(
        principal,
        administrator,
        frozenset(role or ()),
        frozenset(),
        frozenset(store or ()),
        tuple(action or ()),
    )

    async def make() -> str:
        async with _identity(data_dir) as identity:
            known = {stored.principal.name: stored.principal for stored in await identity.list_principals()}
            if principal not in known:
                await identity.create_principal(wanted)
            elif any((administrator, role, store, action)) and known[principal] != wanted:
                raise errors.AlreadyExists(f"principal {principal} exists with other rights; delete it first")
            expires = datetime.now(UTC) + timedelta(days=days) if days else None
            return (await identity.create_api_key(principal, expires))[0]

    console.print(asyncio.run(make()), soft_wrap=True)


@keys.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List API keys by their prefix, access keys by their id: principal, expiry. Never their secrets."""

    async def listed() -> list[dict[str, str]]:
        async with _identity(data_dir) as identity:
            return [
                {
                    "prefix": key.identifier,
                    "principal": key.principal,
                    "created": key.created_at.isoformat(timespec="seconds"),
                    "expires": key.expires_at.isoformat(timespec="seconds") if key.expires_at else "never",
                }
                for key in (*await identity.list_api_keys(), *await identity.list_access_keys())
            ]

    found = asyncio.run(listed())
    if as_json:
        print_json(found)
        return
    for key in found:
        console.print(
            f"{key['prefix']:<24}  {key['principal']:<24} created {key['created']}  expires {key['expires']}",
            soft_wrap=True,
        )


KeyName = Annotated[
    str, typer.Argument(help="First 16 characters of an API key, or id of an access key.", metavar="KEY")
]
# How ids of access keys begin, and prefixes of API keys never do.
_ACCESS_KEY = "LTAI"


@keys.command("rotate")
def rotate_key(
    key: KeyName,
    grace_hours: Annotated[float, typer.Option(min=0, max=8760, help="How long the old key works still.")] = 24.0,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a key that follows another, which works for a while still. Printed once: the key, or id and secret.

    Example: `triglot keys rotate 0123456789abcdef --grace-hours 48`
    """

    async def rotate() -> str:
        grace = timedelta(hours=grace_hours)
        async with _identity(data_dir) as identity:
            if key.startswith(_ACCESS_KEY):
                return " ".join(await identity.rotate_access_key(key, grace))
            return (await identity.rotate_api_key(key, grace))[0]

    console.print(asyncio.run(rotate()), soft_wrap=True)


@keys.command("revoke")
def revoke_key(key: KeyName, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Make a key useless, in every process within ten seconds."""

    async def revoke() -> None:
        async with _identity(data_dir) as identity:
            await (identity.revoke_access_key if key.startswith(_ACCESS_KEY) else identity.revoke_api_key)(key)

    asyncio.run(revoke())
    console.print("revoked")


@keys.command("reencrypt")
def reencrypt(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Encrypt every stored secret with `TRIGLOT_SECRET_KEY`, where that is still done with one of
    `TRIGLOT_DECRYPTION_KEYS`. May be repeated, and interrupted.
    """
    from services.management import secrets

    async def renew() -> tuple[int, int]:
        settings = _settings(data_dir)
        database = await open_database(settings)
        try:
            box = settings.secret_box
            return await IdentityStore(database, box).renew_secrets(), await secrets.renew(database, box)
        finally:
            await database.close()

    access_keys, datasources = asyncio.run(renew())
    console.print(f"encrypted again: {access_keys} access keys, {datasources} datasources")


@asynccontextmanager
async def _identity(data_dir: Path) -> AsyncIterator[IdentityStore]:
    settings = _settings(data_dir)
    database = await open_database(settings)
    try:
        yield IdentityStore(database, settings.secret_box)
    finally:
        await database.close()


def _settings(data_dir: Path) -> Settings:
    """Settings from the environment, or those of the embedded servers that run on a data folder."""
    settings = Settings()
    if settings.postgres_url.get_secret_value():
        return settings
    url_file = data_dir / "postgres.url"
    if not url_file.exists():
        raise errors.CannotStart(
            f"set TRIGLOT_POSTGRES_URL, or start the embedded servers of {data_dir} with `triglot up`"
        )
    own = {"postgres_url": SecretStr(url_file.read_text().strip())}
    if not settings.secret_key.get_secret_value():
        from triglot import keyring

        own["secret_key"] = SecretStr(keyring.read(data_dir).secret_key)
    return settings.model_copy(update=own)


def main() -> None:
    """Entry point."""
    try:
        with explained():
            app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
