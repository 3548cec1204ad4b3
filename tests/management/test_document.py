"""The document's own examples, run by the real curl against a listening gateway, but for host, key and instance."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx2
import orjson
import pytest

from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from tests.conftest import Servers
from tests.management.conftest import INSTANCE, Pai

EXAMPLES = {
    "CreateDatasource": """
curl -X POST https://api.aliyun.com/api/PaiFeatureStore/2023-06-21/CreateDatasource?InstanceId=featureStore-cn-test1 \
-H "Content-Type: application/json" \
-H "Authorization: Bearer $DASHSCOPE_API_KEY" \
-d '{
  "Name": "datasource1",
  "WorkspaceId": "234",
  "Type": "Hologres",
  "Uri": "igraph_instance1",
  "Config": "{\\"address\\": \\"\\"}"
}'""",
    "CreateFeatureView": """
curl -X POST 'https://api.aliyun.com/api/PaiFeatureStore/2023-06-21/CreateFeatureView' \
-H 'Authorization: Bearer <your-api-key>' \
-H 'Content-Type: application/json' \
-d '{"InstanceId":"fs-cn-********","body":{"ProjectId":"3","Name":"FeatureView1","Type":"Batch",\
"WriteMethod":"Custom","SyncOnlineTable":true,"TTL":90,"Tags":["label1"],\
"Fields":[{"Name":"age","Type":"INT32","Attributes":["Partition"]}]}}'""",
    "ListFeatureViewOnlineFeatures": """
curl -X GET 'https://api.aliyun.com/api/PaiFeatureStore/2023-06-21/ListFeatureViewOnlineFeatures\
?InstanceId=fs-cn-********&FeatureViewId=1' \
-H 'Authorization: Bearer <your-api-key>'""",
    "CreateFeatureEntity": """
curl -X POST https://api.aliyun.com/api/PaiFeatureStore/2023-06-21/CreateFeatureEntity?InstanceId=fs-cn-******** \
-H "Authorization: Bearer <your-api-key>" \
-H "Content-Type: application/json" \
-d '{
  "JoinId": "user_id",
  "Name": "feature_entity_1",
  "ProjectId": "3",
  "ParentFeatureEntityId": "1"
}'""",
    "CreateModelFeature": """
curl -X POST https://api.aliyun.com/api/PaiFeatureStore/2023-06-21/CreateModelFeature?InstanceId=fs-cn-******** \
-H "Authorization: Bearer <your-api-key>" \
-H "Content-Type: application/json" \
-d '{
  "ProjectId": "3",
  "Name": "model_feature_1",
  "LabelTableId": "4",
  "Features": [
    {
      "FeatureViewId": "5",
      "Name": "user_id",
      "AliasName": "userid",
      "Type": "STRING"
    }
  ],
  "SequenceFeatureViewIds": [],
  "LabelPriorityLevel": 0
}'""",
    "CreateProject": """
curl -X POST https://api.aliyun.com/api/PaiFeatureStore/2023-06-21/CreateProject?InstanceId=fs-cn-******** \
-H "Authorization: Bearer $DASHSCOPE_API_KEY" \
-H "Content-Type: application/json" \
-d '{
  "Name": "project1",
  "WorkspaceId": "324",
  "Description": "This is a test.",
  "OfflineDatasourceId": "4",
  "OfflineLifeCycle": 90,
  "OnlineDatasourceId": "3"
}'""",
}


@pytest.fixture
async def printed_world(caller: Pai) -> None:
    """What the examples refer to: datasources 3 and 4, project 3, entity 1, label table 4, views 1 and 5."""
    for number in (1, 2):
        await caller.made("Datasource", Name=f"d{number}", WorkspaceId="1", Type="Hologres", Uri="i/db")
    assert await caller.made("Datasource", Name="d3", WorkspaceId="1", Type="FeatureDB", Uri="feature_db") == "3"
    assert await caller.made("Datasource", Name="d4", WorkspaceId="1", Type="MaxCompute", Uri="p") == "4"
    stores = {"WorkspaceId": "1", "OfflineDatasourceId": "4", "OnlineDatasourceId": "3"}
    projects = [await caller.made("Project", Name=f"p{number}", **stores) for number in (1, 2, 3)]
    assert projects[-1] == "3"
    assert await caller.made("FeatureEntity", Name="parent", JoinId="id", ProjectId="3") == "1"
    label = [{"Name": "label", "Type": "INT32", "Attributes": ["LabelField"]}]
    labels = [
        await caller.made("LabelTable", Name=f"l{n}", ProjectId="3", DatasourceId="4", Fields=label) for n in range(4)
    ]
    assert labels[-1] == "4"
    view = {"ProjectId": "3", "Type": "Batch", "WriteMethod": "Custom", "SyncOnlineTable": True}
    fields = [{"Name": "user_id", "Type": "STRING", "Attributes": ["PrimaryKey"]}]
    views = [await caller.made("FeatureView", Name=f"v{n}", Fields=fields, **view) for n in range(5)]
    assert views[-1] == "5"


@pytest.fixture
async def address(app: Any) -> AsyncIterator[str]:
    """A listening gateway: host and port."""
    server = HttpServer(app, GatewaySettings(ports=(0,)), host="127.0.0.1", drain_seconds=1)
    [port] = await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop()


def words_of(example: str, address: str, key: str) -> list[str]:
    """The example's command line for this deployment."""
    text = example.replace("https://api.aliyun.com", f"http://{address}").replace("featureStore-cn-test1", INSTANCE)
    text = text.replace("fs-cn-********", INSTANCE)
    return shlex.split(text.replace("$DASHSCOPE_API_KEY", key).replace("<your-api-key>", key))


async def run(words: list[str]) -> Any:
    """Run it with curl; without curl on this machine, send exactly that request."""
    if shutil.which("curl"):
        process = await asyncio.create_subprocess_exec(*words, "-s", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return orjson.loads(output)
    given = dict(pairwise(words))
    headers = dict(word.split(": ", 1) for flag, word in pairwise(words) if flag == "-H")
    url = next(word for word in words if word.startswith("http://"))
    async with httpx2.AsyncClient() as client:
        response = await client.request(given["-X"], url, headers=headers, content=given.get("-d", ""))
    return response.json()


async def test_curl_examples(caller: Pai, printed_world: None, address: str, servers: Servers) -> None:
    answers = {name: await run(words_of(text, address, servers.admin_key)) for name, text in EXAMPLES.items()}
    for name, answer in answers.items():
        assert "Code" not in answer, (name, answer)
        assert re.fullmatch(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", answer["RequestId"])
    made = {key: value for answer in answers.values() for key, value in answer.items() if key != "RequestId"}
    assert made == {
        "DatasourceId": "5",
        "FeatureViewId": "6",
        "OnlineFeatures": [],
        "FeatureEntityId": "2",
        "ModelFeatureId": "1",
        "ProjectId": "4",
    }


async def test_python_examples(caller: Pai, printed_world: None, address: str, servers: Servers) -> None:
    """As printed, but for the variable in the header, which Python does not expand."""
    await run(words_of(EXAMPLES["CreateDatasource"], address, servers.admin_key))
    headers = {"Authorization": f"Bearer {servers.admin_key}", "Content-Type": "application/json"}
    root = f"http://{address}/api/PaiFeatureStore/2023-06-21"
    async with httpx2.AsyncClient(headers=headers) as client:
        params = {"InstanceId": INSTANCE, "DatasourceId": "datasource1"}
        answer = (await client.get(f"{root}/GetDatasource", params=params)).json()
        assert (answer["DatasourceId"], answer["Type"], answer["Uri"]) == ("5", "Hologres", "igraph_instance1")
        assert orjson.loads(answer["Config"]) == {"address": ""}
        missing = await client.get(f"{root}/GetTask", params={"InstanceId": INSTANCE, "TaskId": "3"})
        assert (missing.status_code, missing.json()["Code"]) == (404, "ResourceNotFound")
