from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConfigStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIG_STATUS_OK: _ClassVar[ConfigStatus]
    CONFIG_STATUS_EXPIRED: _ClassVar[ConfigStatus]
CONFIG_STATUS_OK: ConfigStatus
CONFIG_STATUS_EXPIRED: ConfigStatus

class File(_message.Message):
    __slots__ = ("path", "raw")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    path: str
    raw: bytes
    def __init__(self, path: _Optional[str] = ..., raw: _Optional[bytes] = ...) -> None: ...

class TargetFileHash(_message.Message):
    __slots__ = ("algorithm", "hash")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    hash: str
    def __init__(self, algorithm: _Optional[str] = ..., hash: _Optional[str] = ...) -> None: ...

class TargetFileMeta(_message.Message):
    __slots__ = ("path", "length", "hashes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    path: str
    length: int
    hashes: _containers.RepeatedCompositeFieldContainer[TargetFileHash]
    def __init__(self, path: _Optional[str] = ..., length: _Optional[int] = ..., hashes: _Optional[_Iterable[_Union[TargetFileHash, _Mapping]]] = ...) -> None: ...

class ConfigState(_message.Message):
    __slots__ = ("id", "version", "product", "apply_state", "apply_error")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    APPLY_STATE_FIELD_NUMBER: _ClassVar[int]
    APPLY_ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    product: str
    apply_state: int
    apply_error: str
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., product: _Optional[str] = ..., apply_state: _Optional[int] = ..., apply_error: _Optional[str] = ...) -> None: ...

class ClientState(_message.Message):
    __slots__ = ("root_version", "targets_version", "config_states", "has_error", "error", "backend_client_state")
    ROOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_STATES_FIELD_NUMBER: _ClassVar[int]
    HAS_ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BACKEND_CLIENT_STATE_FIELD_NUMBER: _ClassVar[int]
    root_version: int
    targets_version: int
    config_states: _containers.RepeatedCompositeFieldContainer[ConfigState]
    has_error: bool
    error: str
    backend_client_state: bytes
    def __init__(self, root_version: _Optional[int] = ..., targets_version: _Optional[int] = ..., config_states: _Optional[_Iterable[_Union[ConfigState, _Mapping]]] = ..., has_error: _Optional[bool] = ..., error: _Optional[str] = ..., backend_client_state: _Optional[bytes] = ...) -> None: ...

class ClientTracer(_message.Message):
    __slots__ = ("runtime_id", "language", "tracer_version", "service", "env", "app_version", "tags")
    RUNTIME_ID_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    TRACER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    APP_VERSION_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    runtime_id: str
    language: str
    tracer_version: str
    service: str
    env: str
    app_version: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runtime_id: _Optional[str] = ..., language: _Optional[str] = ..., tracer_version: _Optional[str] = ..., service: _Optional[str] = ..., env: _Optional[str] = ..., app_version: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class ClientAgent(_message.Message):
    __slots__ = ("name", "version", "cluster_name", "cluster_id", "cws_workloads")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_NAME_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CWS_WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    cluster_name: str
    cluster_id: str
    cws_workloads: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., cluster_name: _Optional[str] = ..., cluster_id: _Optional[str] = ..., cws_workloads: _Optional[_Iterable[str]] = ...) -> None: ...

class PackageState(_message.Message):
    __slots__ = ("package", "stable_version", "experiment_version")
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    package: str
    stable_version: str
    experiment_version: str
    def __init__(self, package: _Optional[str] = ..., stable_version: _Optional[str] = ..., experiment_version: _Optional[str] = ...) -> None: ...

class ClientUpdater(_message.Message):
    __slots__ = ("tags", "packages")
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    tags: _containers.RepeatedScalarFieldContainer[str]
    packages: _containers.RepeatedCompositeFieldContainer[PackageState]
    def __init__(self, tags: _Optional[_Iterable[str]] = ..., packages: _Optional[_Iterable[_Union[PackageState, _Mapping]]] = ...) -> None: ...

class Client(_message.Message):
    __slots__ = ("state", "id", "products", "is_tracer", "client_tracer", "is_agent", "client_agent", "last_seen", "capabilities", "is_updater", "client_updater")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    IS_TRACER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TRACER_FIELD_NUMBER: _ClassVar[int]
    IS_AGENT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_AGENT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    IS_UPDATER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_UPDATER_FIELD_NUMBER: _ClassVar[int]
    state: ClientState
    id: str
    products: _containers.RepeatedScalarFieldContainer[str]
    is_tracer: bool
    client_tracer: ClientTracer
    is_agent: bool
    client_agent: ClientAgent
    last_seen: int
    capabilities: bytes
    is_updater: bool
    client_updater: ClientUpdater
    def __init__(self, state: _Optional[_Union[ClientState, _Mapping]] = ..., id: _Optional[str] = ..., products: _Optional[_Iterable[str]] = ..., is_tracer: _Optional[bool] = ..., client_tracer: _Optional[_Union[ClientTracer, _Mapping]] = ..., is_agent: _Optional[bool] = ..., client_agent: _Optional[_Union[ClientAgent, _Mapping]] = ..., last_seen: _Optional[int] = ..., capabilities: _Optional[bytes] = ..., is_updater: _Optional[bool] = ..., client_updater: _Optional[_Union[ClientUpdater, _Mapping]] = ...) -> None: ...

class ClientGetConfigsRequest(_message.Message):
    __slots__ = ("client", "cached_target_files")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    CACHED_TARGET_FILES_FIELD_NUMBER: _ClassVar[int]
    client: Client
    cached_target_files: _containers.RepeatedCompositeFieldContainer[TargetFileMeta]
    def __init__(self, client: _Optional[_Union[Client, _Mapping]] = ..., cached_target_files: _Optional[_Iterable[_Union[TargetFileMeta, _Mapping]]] = ...) -> None: ...

class ClientGetConfigsResponse(_message.Message):
    __slots__ = ("roots", "targets", "target_files", "client_configs", "config_status")
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FILES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CONFIGS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_STATUS_FIELD_NUMBER: _ClassVar[int]
    roots: _containers.RepeatedScalarFieldContainer[bytes]
    targets: bytes
    target_files: _containers.RepeatedCompositeFieldContainer[File]
    client_configs: _containers.RepeatedScalarFieldContainer[str]
    config_status: ConfigStatus
    def __init__(self, roots: _Optional[_Iterable[bytes]] = ..., targets: _Optional[bytes] = ..., target_files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., client_configs: _Optional[_Iterable[str]] = ..., config_status: _Optional[_Union[ConfigStatus, str]] = ...) -> None: ...
