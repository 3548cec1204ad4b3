"""Feature generation (FG): how a model's inputs are made of the features it takes. Kept and checked, not performed.

Knows the configuration, its rules and the fg.json it becomes; nothing of where it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf import json_format

from protos.gen.triglot.management.v1 import fg_feature_pb2 as pb
from services.management.inputs import distinct, invalid, name, one_of

DOMAINS = ("User", "Item", "Context")
FEATURE_TYPES = {"IdFeature": "id_feature", "RawFeature": "raw_feature"}
VALUE_TYPES = {"INTEGER": "Integer", "DOUBLE": "Double", "STRING": "String"}
_OF_PAI_TYPE = {
    "INT32": "INTEGER",
    "INT64": "INTEGER",
    "TIMESTAMP": "INTEGER",
    "BOOLEAN": "INTEGER",
    "FLOAT": "DOUBLE",
    "DOUBLE": "DOUBLE",
}
_MAX_OF_A_KIND = 5_000
_MAX_TEXT = 1_024


@dataclass(frozen=True)
class Available:
    """A feature that a configuration can use."""

    name: str
    source_type: str
    source_name: str
    pai_type: str

    @property
    def value_type(self) -> str:
        """INTEGER, DOUBLE or STRING, which is what anything else is written as."""
        return _OF_PAI_TYPE.get(self.pai_type, "STRING")


def checked(request: pb.UpdateModelFeatureFGFeatureRequest) -> pb.FGFeature:
    """The configuration of a request, in its own spelling. Raises InvalidArgument."""
    config = pb.FGFeature(
        raw_features=[_raw("RawFeatures[]", each) for each in _bounded("RawFeatures", request.raw_features)],
        lookup_features=[_lookup(each) for each in _bounded("LookupFeatures", request.lookup_features)],
        sequence_features=[_sequence(each) for each in _bounded("SequenceFeatures", request.sequence_features)],
        reserves=[name("Reserves[]", each) for each in _bounded("Reserves", request.reserves)],
    )
    made: tuple[Any, ...] = (*config.raw_features, *config.lookup_features, *config.sequence_features)
    distinct("FeatureName", (each.feature_name for each in made))
    distinct("Reserves", config.reserves)
    return config


def dumped(config: pb.FGFeature) -> str:
    """A configuration as the text of a jsonb column."""
    return json_format.MessageToJson(config, indent=None)


def loaded(text: str) -> pb.FGFeature:
    """What `dumped` made."""
    return json_format.Parse(text, pb.FGFeature())


def content(config: pb.FGFeature) -> str:
    """The fg.json of a configuration."""
    features = [_raw_json(each) for each in config.raw_features]
    features += [_lookup_json(each) for each in config.lookup_features]
    features += [_sequence_json(each) for each in config.sequence_features]
    return orjson.dumps({"features": features, "reserves": list(config.reserves)}).decode()


def results(config: pb.FGFeature, model: Iterable[str], sequence_parts: Iterable[str]) -> Iterator[pb.FGCheckResult]:
    """PAI's four rules. `model`: the names of the model's features; `sequence_parts`: what its Sequence views add to
    them for sub-features."""
    known = set(model)
    subs = {sub.input_feature_name for each in config.sequence_features for sub in each.sub_features}
    keys = {each.key_feature_name for each in config.lookup_features}
    inputs = {each.input_feature_name for each in config.raw_features}
    inputs |= {each.map_feature_name for each in config.lookup_features}
    used = subs | keys | inputs | set(config.reserves)
    yield _result("SeqSubEx", subs - known - set(sequence_parts), "sub-features are made of what the model lacks")
    yield _result("LookupKeyEx", keys - known, "keys of lookups are no features of the model")
    yield _result("FGSetEx", inputs - known, "features are made of what the model lacks")
    yield _result("ModelSetEx", known - used, "features of the model are neither used nor reserved")


def _result(code: str, offending: set[str], why: str) -> pb.FGCheckResult:
    message = f"{why}: {', '.join(sorted(offending))}" if offending else ""
    return pb.FGCheckResult(rule_code=code, status=not offending, message=message)


def _bounded(field: str, given: Sequence[Any]) -> Sequence[Any]:
    if len(given) > _MAX_OF_A_KIND:
        raise invalid(field, f"takes at most {_MAX_OF_A_KIND}")
    return given


def _default(place: str, feature: Any) -> str:
    if not feature.HasField("default_value"):
        raise invalid(f"{place}.DefaultValue", "is required")
    if len(feature.default_value) > _MAX_TEXT:
        raise invalid(f"{place}.DefaultValue", f"takes at most {_MAX_TEXT} characters")
    return str(feature.default_value)


def _raw(place: str, feature: pb.FGRawFeature) -> pb.FGRawFeature:
    return pb.FGRawFeature(
        input_feature_name=name(f"{place}.InputFeatureName", feature.input_feature_name),
        feature_domain=one_of(f"{place}.FeatureDomain", feature.feature_domain, DOMAINS),
        feature_name=name(f"{place}.FeatureName", feature.feature_name),
        feature_type=one_of(f"{place}.FeatureType", feature.feature_type, FEATURE_TYPES),
        value_type=one_of(f"{place}.ValueType", feature.value_type, VALUE_TYPES),
        default_value=_default(place, feature),
    )


def _lookup(feature: pb.FGLookupFeature) -> pb.FGLookupFeature:
    place = "LookupFeatures[]"
    return pb.FGLookupFeature(
        map_feature_name=name(f"{place}.MapFeatureName", feature.map_feature_name),
        map_feature_domain=one_of(f"{place}.MapFeatureDomain", feature.map_feature_domain, DOMAINS),
        key_feature_name=name(f"{place}.KeyFeatureName", feature.key_feature_name),
        key_feature_domain=one_of(f"{place}.KeyFeatureDomain", feature.key_feature_domain, DOMAINS),
        feature_name=name(f"{place}.FeatureName", feature.feature_name),
        value_type=one_of(f"{place}.ValueType", feature.value_type, VALUE_TYPES),
        default_value=_default(place, feature),
    )


def _sequence(feature: pb.FGSequenceFeature) -> pb.FGSequenceFeature:
    place = "SequenceFeatures[]"
    title = name(f"{place}.FeatureName", feature.feature_name)
    if feature.sequence_length < 1:
        raise invalid(f"{place}.SequenceLength", "must be 1 or more")
    for field, delimiter in (("SequenceDelim", feature.sequence_delim), ("AttributeDelim", feature.attribute_delim)):
        if not 1 <= len(delimiter) <= _MAX_TEXT:
            raise invalid(f"{place}.{field}", f"must be 1 to {_MAX_TEXT} characters")
    if feature.sequence_delim == feature.attribute_delim:
        raise invalid(f"{place}.AttributeDelim", "must not be SequenceDelim")
    subs = _bounded(f"{place}.SubFeatures", feature.sub_features)
    if not subs:
        raise invalid(f"{place}.SubFeatures", "is required")
    distinct(f"{place}.SubFeatures", (sub.feature_name for sub in subs))
    return pb.FGSequenceFeature(
        feature_name=title,
        sequence_length=feature.sequence_length,
        sequence_delim=feature.sequence_delim,
        attribute_delim=feature.attribute_delim,
        sub_features=[_raw(f"{place}.SubFeatures[]", sub) for sub in subs],
    )


def _place(domain: str, title: str) -> str:
    return f"{domain.lower()}:{title}"


def _raw_json(feature: pb.FGRawFeature) -> dict[str, Any]:
    return {
        "feature_name": feature.feature_name,
        "feature_type": FEATURE_TYPES[feature.feature_type],
        "value_type": VALUE_TYPES[feature.value_type],
        "expression": _place(feature.feature_domain, feature.input_feature_name),
        "default_value": feature.default_value,
        "combiner": "mean",
        "need_prefix": False,
    }


def _lookup_json(feature: pb.FGLookupFeature) -> dict[str, Any]:
    return {
        "feature_name": feature.feature_name,
        "feature_type": "lookup_feature",
        "value_type": VALUE_TYPES[feature.value_type],
        "map": _place(feature.map_feature_domain, feature.map_feature_name),
        "key": _place(feature.key_feature_domain, feature.key_feature_name),
        "default_value": feature.default_value,
        "combiner": "mean",
        "need_prefix": False,
        "needDiscrete": False,
        "needWeighting": False,
        "needKey": False,
    }


def _sequence_json(feature: pb.FGSequenceFeature) -> dict[str, Any]:
    return {
        "sequence_name": feature.feature_name,
        "sequence_length": feature.sequence_length,
        "sequence_delim": feature.sequence_delim,
        "attribute_delim": feature.attribute_delim,
        "sequence_table": "item",
        "sequence_pk": f"user:{feature.feature_name}",
        "features": [_raw_json(sub) for sub in feature.sub_features],
    }
