"""Settings of serving."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.settings import SettingsModel


class ServingSettings(SettingsModel):
    """Settings that only serving reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_SERVING_", frozen=True, extra="ignore")

    rest_port: int = Field(
        4406, ge=0, le=65535, description="HTTP port of `triglot serve serving --rest-api`, which has Hopsworks' REST."
    )
    max_entries: int = Field(5_000, ge=1, description="Entries that one request for feature vectors may hold.")
    calls_per_second: float = Field(
        0, ge=0, description="How many calls a second each process takes with one API key. 0: any number."
    )
    shed_milliseconds: int = Field(
        500,
        ge=0,
        description="A call that would wait for longer than this, because of those before it, is refused at once."
        " 0: none is.",
    )
    max_read_keys: int = Field(5_000, ge=1, description="Keys that one Redis command reads at most.")
    key_prefix: str = Field(
        "t",
        pattern="^[A-Za-z0-9_-]{1,16}$",
        description="Begins every key in Redis. Deployments that share a Redis need different ones.",
    )
    write_batch_rows: int = Field(
        10_000, ge=1, le=1_000_000, description="Rows that are converted and written to Redis at a time."
    )
    retired_rows_seconds: float = Field(
        60.0, ge=0, description="How long rows that were replaced or deleted stay in Redis for reads under way."
    )
    abandoned_load_seconds: float = Field(
        900.0, gt=0, description="After this silence of its writer an unfinished overwrite is given up and removed."
    )
    replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="How many replicas of each Redis primary must have the rows of a load before it is shown or"
        " acknowledged (WAIT). 0: none, and a failover may lose what was written just before.",
    )
    replicas_seconds: float = Field(
        30.0, gt=0, description="How long a load waits for those replicas before it fails, and may be started again."
    )
    sweep_seconds: float = Field(15.0, gt=0, description="Time between two looks for rows that can be removed.")
    count_seconds: float = Field(
        60.0, ge=0, description="How long rows that were counted for statistics are not counted again."
    )
