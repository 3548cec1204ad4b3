"""Python that PAI shows beside a view and a model feature, to run from a scheduler what else is done by hand.

It uses the official SDK, which is on PyPI, and asks for the address and the keys in the environment.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.management import fields
from services.management.rows import Row

_CLIENT = """\
import os

from alibabacloud_paifeaturestore20230621 import models
from alibabacloud_paifeaturestore20230621.client import Client
from alibabacloud_tea_openapi.utils_models import Config

client = Client(
    Config(
        access_key_id=os.environ["ALIBABA_CLOUD_ACCESS_KEY_ID"],
        access_key_secret=os.environ["ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
        endpoint=os.environ["PAI_FEATURE_STORE_ENDPOINT"],
        protocol=os.environ.get("PAI_FEATURE_STORE_PROTOCOL", "http"),
    )
)
instance = client.list_instances(models.ListInstancesRequest(status="Running")).body.instances[0].instance_id
"""
# The scheduler sets it, as DataWorks sets cur_day.
_DAY = 'day = os.environ["DAY"]  # such as 20260131\n'


def publish_table(view: Row) -> str:
    """Publishes a view; empty for one that has nothing to publish."""
    if not view["sync_online_table"] or view["type"] == "Stream" or view["referenced_view_id"] is not None:
        return ""
    partitions = fields.having(fields.loaded(view["fields"]), fields.PARTITION)
    chosen = ", ".join(f'{name!r}: {{"value": day}}' for name in partitions)
    return f"""{_CLIENT}{_DAY if partitions else ""}
request = models.PublishFeatureViewTableRequest(
    mode="Overwrite", offline_to_online=True, event_time="", config="{{}}", partitions={{{chosen}}}
)
print(client.publish_feature_view_table(instance, "{int(view["id"])}", request).body.task_id)
"""


def export_training_set(model: Row, view_names: Sequence[str]) -> str:
    """Makes a training set of a model feature."""
    partitions = fields.having(fields.loaded(model["label_fields"]), fields.PARTITION)
    chosen = ", ".join(f'{name!r}: {{"Value": day}}' for name in partitions)
    views = "".join(f"        {name!r}: models.FeatureViewConfigValue(),\n" for name in dict.fromkeys(view_names))
    return f"""{_CLIENT}{_DAY if partitions else ""}
request = models.ExportModelFeatureTrainingSetTableRequest(
    label_input_config=models.ExportModelFeatureTrainingSetTableRequestLabelInputConfig(partitions={{{chosen}}}),
    feature_view_config={{
{views}    }},
    training_set_config=models.ExportModelFeatureTrainingSetTableRequestTrainingSetConfig(partitions={{{chosen}}}),
)
print(client.export_model_feature_training_set_table(instance, "{int(model["id"])}", request).body.task_id)
"""
