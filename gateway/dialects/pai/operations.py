"""PAI's operations: name, method and path. Each is the RPC of the same name; one table drives both calling styles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """One operation. `path` is below /api/v1/instances, with the path's parameters in PAI's own spelling."""

    name: str
    method: str
    path: str
    # Parameters without which the SDK's route refuses, while the document's route answers with nothing.
    sdk_requires: tuple[str, ...] = ()
    # The SDK reads `requestId` from the answer. Both spellings are sent.
    lower_request_id: bool = False


_DATASOURCE = "/{InstanceId}/datasources/{DatasourceId}"
_PROJECT = "/{InstanceId}/projects/{ProjectId}"
_ENTITY = "/{InstanceId}/featureentities/{FeatureEntityId}"
_VIEW = "/{InstanceId}/featureviews/{FeatureViewId}"
_LABEL = "/{InstanceId}/labeltables/{LabelTableId}"
_MODEL = "/{InstanceId}/modelfeatures/{ModelFeatureId}"
_TASK = "/{InstanceId}/tasks/{TaskId}"

OPERATIONS = (
    Operation("CreateInstance", "POST", ""),
    Operation("ListInstances", "GET", ""),
    Operation("GetInstance", "GET", "/{InstanceId}"),
    Operation("CreateDatasource", "POST", "/{InstanceId}/datasources"),
    Operation("ListDatasources", "GET", "/{InstanceId}/datasources"),
    Operation("GetDatasource", "GET", _DATASOURCE),
    Operation("UpdateDatasource", "PUT", _DATASOURCE),
    Operation("DeleteDatasource", "DELETE", _DATASOURCE),
    Operation("ListDatasourceTables", "GET", _DATASOURCE + "/tables"),
    Operation("GetDatasourceTable", "GET", _DATASOURCE + "/tables/{TableName}"),
    Operation("CheckInstanceDatasource", "POST", "/{InstanceId}/action/checkdatasource"),
    Operation("ListDatasourceFeatureViews", "GET", _DATASOURCE + "/featureviews", lower_request_id=True),
    Operation("CreateProject", "POST", "/{InstanceId}/projects"),
    Operation("ListProjects", "GET", "/{InstanceId}/projects"),
    Operation("GetProject", "GET", _PROJECT),
    Operation("UpdateProject", "PUT", _PROJECT),
    Operation("DeleteProject", "DELETE", _PROJECT),
    Operation("GetProjectFeatureEntity", "GET", _PROJECT + "/featureentities/{FeatureEntityName}"),
    Operation("ListProjectFeatures", "GET", _PROJECT + "/features", lower_request_id=True),
    Operation("ListProjectFeatureViews", "GET", _PROJECT + "/featureviews"),
    Operation("CreateFeatureEntity", "POST", "/{InstanceId}/featureentities"),
    Operation("ListFeatureEntities", "GET", "/{InstanceId}/featureentities"),
    Operation("GetFeatureEntity", "GET", _ENTITY),
    Operation("DeleteFeatureEntity", "DELETE", _ENTITY),
    Operation("CreateFeatureView", "POST", "/{InstanceId}/featureviews"),
    Operation("ListFeatureViews", "GET", "/{InstanceId}/featureviews"),
    Operation("GetFeatureView", "GET", _VIEW),
    Operation("UpdateFeatureView", "PUT", _VIEW, lower_request_id=True),
    Operation("DeleteFeatureView", "DELETE", _VIEW),
    Operation("PublishFeatureViewTable", "POST", _VIEW + "/action/publishtable"),
    Operation("WriteFeatureViewTable", "POST", _VIEW + "/action/writetable"),
    Operation("ListFeatureViewOnlineFeatures", "GET", _VIEW + "/onlinefeatures", sdk_requires=("JoinIds",)),
    Operation("ListFeatureViewRelationships", "GET", _VIEW + "/relationships"),
    Operation("ListFeatureViewFieldRelationships", "GET", _VIEW + "/fields/{FieldName}/relationships"),
    Operation("CreateLabelTable", "POST", "/{InstanceId}/labeltables"),
    Operation("ListLabelTables", "GET", "/{InstanceId}/labeltables"),
    Operation("GetLabelTable", "GET", _LABEL),
    Operation("UpdateLabelTable", "PUT", _LABEL),
    Operation("DeleteLabelTable", "DELETE", _LABEL),
    Operation("CreateModelFeature", "POST", "/{InstanceId}/modelfeatures"),
    Operation("ListModelFeatures", "GET", "/{InstanceId}/modelfeatures"),
    Operation("GetModelFeature", "GET", _MODEL),
    Operation("UpdateModelFeature", "PUT", _MODEL),
    Operation("DeleteModelFeature", "DELETE", _MODEL),
    Operation("GetModelFeatureFGFeature", "GET", _MODEL + "/fgfeature"),
    Operation("UpdateModelFeatureFGFeature", "PUT", _MODEL + "/fgfeature", lower_request_id=True),
    Operation("GetModelFeatureFGInfo", "GET", _MODEL + "/fginfo"),
    Operation("CheckModelFeatureFGFeature", "POST", _MODEL + "/action/checkfgfeature", lower_request_id=True),
    Operation("ListModelFeatureAvailableFeatures", "GET", _MODEL + "/availablefeatures", lower_request_id=True),
    Operation("ExportModelFeatureTrainingSetTable", "POST", _MODEL + "/action/exporttrainingsettable"),
    Operation("ListTasks", "GET", "/{InstanceId}/tasks"),
    Operation("GetTask", "GET", _TASK),
    Operation("ListTaskLogs", "GET", _TASK + "/logs"),
    Operation("StopTask", "POST", _TASK + "/action/stop", lower_request_id=True),
)
