"""Errors as the Feast SDK reads them: JSON in gRPC's details names the exception that the SDK then raises."""

from __future__ import annotations

import orjson

from chassis.errors import TriglotError

_MODULE = "feast.errors"
# What the SDK raises when nothing here fits. Only this class and those below it show the message that we send.
_ANY = "FeastError"
_CLASSES = {
    "PROJECT_NOT_FOUND": "ProjectObjectNotFoundException",
    "ENTITY_NOT_FOUND": "EntityNotFoundException",
    "DATA_SOURCE_NOT_FOUND": "DataSourceObjectNotFoundException",
    "FEATURE_VIEW_NOT_FOUND": "FeatureViewNotFoundException",
    "FEATURE_NOT_FOUND": "FeastObjectNotFoundException",
    "FEATURE_SERVICE_NOT_FOUND": "FeatureServiceNotFoundException",
    "SAVED_DATASET_NOT_FOUND": "SavedDatasetNotFound",
    "VALIDATION_REFERENCE_NOT_FOUND": "ValidationReferenceNotFound",
    "PERMISSION_NOT_FOUND": "PermissionObjectNotFoundException",
    "FEATURE_VIEW_VERSION_NOT_FOUND": "FeatureViewVersionNotFound",
    "FEATURE_VIEW_PIN_CONFLICT": "FeatureViewPinConflict",
    "FEATURE_VIEW_NAME_CONFLICT": "ConflictingFeatureViewNames",
    "ACTION_NOT_ALLOWED": "FeastPermissionError",
    "CREDENTIAL_MISSING": "FeastPermissionError",
    "CREDENTIAL_INVALID": "FeastPermissionError",
}


def details(error: TriglotError) -> str:
    """The error as the SDK's JSON."""
    shown = {"module": _MODULE, "class": _CLASSES.get(error.reason, _ANY), "message": error.message}
    return orjson.dumps(shown).decode()
