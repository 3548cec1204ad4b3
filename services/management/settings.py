"""Settings of management and of its worker."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.settings import SettingsModel
from protos.gen.triglot.management.v1 import management_service_pb2

# In a table of the settings: every operation that is not named.
EVERY_OPERATION = "*"
_OPERATIONS = management_service_pb2.DESCRIPTOR.services_by_name["ManagementService"].methods_by_name
Calls = Annotated[int, Field(ge=0)]
Price = Annotated[Decimal, Field(ge=0)]


class ManagementSettings(SettingsModel):
    """Settings that only management and its worker read."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_MANAGEMENT_", frozen=True, extra="ignore")

    instance_id: str = Field("fs-cn-triglot", min_length=1, description="The instance id that PAI's clients name.")
    region: str = Field("local", description="The region that PAI's clients are shown.")
    offline_roots: tuple[Path, ...] = Field(
        (), description="Folders, a JSON list, below which a datasource's Parquet files may be. Empty: none may."
    )
    datasource_hosts: tuple[str, ...] = Field(
        (), description="Hosts, a JSON list of `host` or `host:port`, that a datasource may lead to. Empty: none may."
    )
    url_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts, a JSON list of `host`, `host:port`, addresses and networks, that WriteFeatureViewTable may "
        "fetch from; `*` is every public host. An internal address must be in the list itself. Empty: none may.",
    )
    url_max_bytes: int = Field(
        10 * 1024**3, ge=1, description="How large a file may be that WriteFeatureViewTable fetches."
    )
    url_timeout_seconds: float = Field(3600.0, gt=0, description="How long it may take to fetch it.")
    training_memory_mb: int = Field(
        1024, ge=128, description="Memory, in MB, for one training set in the making; more is spilled to disk."
    )
    training_threads: int = Field(2, ge=1, le=64, description="Threads that one training set is made with.")
    scratch_dir: Path | None = Field(
        None, description="Where the worker puts what it needs while a task runs. Unset: the system's temporary folder."
    )
    check_timeout_seconds: float = Field(
        5.0, gt=0, le=60, description="How long CheckInstanceDatasource waits for what it tries to reach."
    )
    ttl_unit: Literal["days", "seconds"] = Field("days", description="What the TTL of a PAI feature view counts.")
    publish_timeout_seconds: float = Field(6 * 3600.0, gt=0, description="How long the publish of one table may take.")
    publish_batch_rows: int = Field(
        20_000, ge=1, le=1_000_000, description="Rows that the worker reads and sends at a time."
    )
    publish_batch_bytes: int = Field(
        8 * 1024 * 1024, ge=1024, description="A batch is split so that no message to serving is much larger than this."
    )
    worker_tasks: int = Field(2, ge=2, le=64, description="Tasks that one worker works on at the same time.")
    lease_seconds: float = Field(
        6.0, ge=1, le=600, description="A task whose worker has been silent for so long is given to another."
    )
    task_attempts: int = Field(
        5, ge=1, le=100, description="How often a task is tried when something else fails, such as a lost connection."
    )
    retry_seconds: float = Field(1.0, gt=0, description="Wait before the second attempt; it doubles with each one.")
    task_log_days: int = Field(
        90, ge=0, le=36_500, description="How long the log of a task is kept after the task has ended. 0: for ever."
    )
    calls_per_second: float = Field(
        0, ge=0, description="How many calls a second each process takes from one account. 0: any number."
    )
    prices: dict[str, Price] = Field(
        {EVERY_OPERATION: Decimal("0.001")},
        description="What a call costs, by operation, as JSON; `*`: every operation that is not named.",
    )
    free_calls: dict[str, Calls] = Field(
        {EVERY_OPERATION: 100},
        description="How many calls of an operation an account has free each month, likewise.",
    )
    quota_calls: dict[str, Calls] = Field(
        {}, description="How many calls of an operation are taken from an account in a month, likewise. 0: any number."
    )
    usage_months: int = Field(36, ge=0, description="For how many months usage is kept. 0: for ever.")

    @field_validator("prices", "free_calls", "quota_calls")
    @classmethod
    def _known_operations(cls, table: dict[str, object]) -> dict[str, object]:
        unknown = [name for name in table if name != EVERY_OPERATION and name not in _OPERATIONS]
        if unknown:
            raise ValueError(f"there is no operation {', '.join(unknown)}")
        return table
