"""How features are generated: what is refused, which of two features of one name counts, what sequences may use."""

from __future__ import annotations

from typing import Any

from tests.management.conftest import Pai, catalogue

RAW: dict[str, Any] = {
    "InputFeatureName": "age",
    "FeatureDomain": "user",
    "FeatureName": "f_age",
    "FeatureType": "idfeature",
    "ValueType": "integer",
    "DefaultValue": "-1",
}
LOOKUP = {
    "MapFeatureName": "prices",
    "MapFeatureDomain": "Item",
    "KeyFeatureName": "age",
    "KeyFeatureDomain": "User",
    "FeatureName": "f_price",
    "ValueType": "DOUBLE",
    "DefaultValue": "0",
}
SEQUENCE = {
    "FeatureName": "clicks",
    "SequenceLength": 50,
    "SequenceDelim": ";",
    "AttributeDelim": "#",
    "SubFeatures": [{**RAW, "InputFeatureName": "item_id"}],
}


async def model(caller: Pai, level: int) -> str:
    """A model feature that takes `age` of a view and a Sequence view; its label table has `age` and `price`."""
    ids = await catalogue(caller)
    view = {"ProjectId": ids["project"], "WriteMethod": "Custom", "SyncOnlineTable": True}
    age = {"Name": "age", "Type": "INT32", "Attributes": []}
    batch = await caller.made("FeatureView", Name="profile", Type="Batch", Fields=[age], **view)
    item = {"Name": "item_id", "Type": "STRING", "Attributes": []}
    sequence = await caller.made("FeatureView", Name="behaviour", Type="Sequence", Fields=[item], **view)
    labels = [{"Name": name, "Type": "FLOAT", "Attributes": ["FeatureField"]} for name in ("age", "price")]
    label = await caller.made(
        "LabelTable", Name="clicks", ProjectId=ids["project"], DatasourceId=ids["offline"], Fields=labels
    )
    return await caller.made(
        "ModelFeature", Name="m", ProjectId=ids["project"], LabelTableId=label, LabelPriorityLevel=level,
        Features=[{"FeatureViewId": batch, "Name": "age", "Type": "INT32"}], SequenceFeatureViewIds=[sequence],
    )  # fmt: skip


async def test_priority_decides_between_two_features_of_one_name(caller: Pai) -> None:
    made = await model(caller, 1)

    async def sources() -> list[tuple[str, str]]:
        answer = await caller.answer("ListModelFeatureAvailableFeatures", ModelFeatureId=made)
        return [(each["Name"], each["SourceType"]) for each in answer["AvaliableFeatures"]]

    assert await sources() == [("age", "LabelTable"), ("price", "LabelTable")]
    await caller.answer("UpdateModelFeature", ModelFeatureId=made, LabelPriorityLevel=2)
    assert await sources() == [("age", "FeatureView"), ("price", "LabelTable")]


async def test_the_four_rules(caller: Pai) -> None:
    made = await model(caller, 1)

    async def broken() -> dict[str, str]:
        answer = await caller.answer("CheckModelFeatureFGFeature", ModelFeatureId=made)
        assert answer["requestId"] == answer["RequestId"]
        return {each["RuleCode"]: each["Message"] for each in answer["FGCheckResults"] if not each["Status"]}

    assert set(await broken()) == {"ModelSetEx"}
    good = {"RawFeatures": [RAW], "SequenceFeatures": [SEQUENCE], "Reserves": ["price"]}
    await caller.answer("UpdateModelFeatureFGFeature", ModelFeatureId=made, **good)
    assert await broken() == {}
    other = {**SEQUENCE, "SubFeatures": [{**RAW, "InputFeatureName": "colour"}]}
    lookup = {**LOOKUP, "KeyFeatureName": "nobody"}
    await caller.answer(
        "UpdateModelFeatureFGFeature", ModelFeatureId=made, LookupFeatures=[lookup], SequenceFeatures=[other]
    )
    found = await broken()
    assert {rule: message.rpartition(": ")[2] for rule, message in found.items()} == {
        "SeqSubEx": "colour",
        "LookupKeyEx": "nobody",
        "FGSetEx": "prices",
        "ModelSetEx": "age, price",
    }


async def test_an_update_replaces_all_and_keeps_the_spelling_of_pai(caller: Pai) -> None:
    made = await model(caller, 1)
    await caller.answer("UpdateModelFeatureFGFeature", ModelFeatureId=made, RawFeatures=[RAW], Reserves=["price"])
    await caller.answer("UpdateModelFeatureFGFeature", ModelFeatureId=made, RawFeatures=[RAW])
    got = await caller.answer("GetModelFeatureFGFeature", ModelFeatureId=made)
    spelled = {**RAW, "FeatureDomain": "User", "FeatureType": "IdFeature", "ValueType": "INTEGER"}
    assert (got["RawFeatures"], got["Reserves"]) == ([spelled], [])


async def test_what_is_refused(caller: Pai) -> None:
    made = await model(caller, 1)
    await caller.answer("UpdateModelFeatureFGFeature", ModelFeatureId=made, RawFeatures=[RAW])
    for kind, good in (("RawFeatures", RAW), ("LookupFeatures", LOOKUP), ("SequenceFeatures", SEQUENCE)):
        for field in good:
            lacking = {key: value for key, value in good.items() if key != field}
            message = await caller.refused(
                "UpdateModelFeatureFGFeature", 400, "InvalidParameter", ModelFeatureId=made, **{kind: [lacking]}
            )
            assert field in message
    wrong: list[dict[str, Any]] = [
        {"RawFeatures": [{**RAW, "FeatureDomain": "Planet"}]},
        {"RawFeatures": [{**RAW, "FeatureType": "Other"}]},
        {"RawFeatures": [{**RAW, "ValueType": "INT32"}]},
        {"RawFeatures": [{**RAW, "DefaultValue": "x" * 1025}]},
        {"RawFeatures": [RAW, RAW]},
        {"RawFeatures": [RAW], "LookupFeatures": [{**LOOKUP, "FeatureName": "f_age"}]},
        {"SequenceFeatures": [{**SEQUENCE, "SequenceLength": 0}]},
        {"SequenceFeatures": [{**SEQUENCE, "AttributeDelim": ";"}]},
        {"SequenceFeatures": [{**SEQUENCE, "SubFeatures": [RAW, RAW]}]},
        {"Reserves": [""]},
        {"RawFeatures": "x"},
    ]
    for change in wrong:
        await caller.refused("UpdateModelFeatureFGFeature", 400, "InvalidParameter", ModelFeatureId=made, **change)
    kept = await caller.answer("GetModelFeatureFGFeature", ModelFeatureId=made)
    assert [each["FeatureName"] for each in kept["RawFeatures"]] == ["f_age"]
    for operation in ("GetModelFeatureFGFeature", "GetModelFeatureFGInfo", "UpdateModelFeatureFGFeature"):
        await caller.refused(operation, 404, "ResourceNotFound", ModelFeatureId="99")
