"""(pure) Between a state and its messages: the request that mirrors it, the update in an answer, the server's checks.

Laws: a request made from any state passes ``check``; it has as many cached files and config states as the state has
configurations; hashes are lower-case hex; exactly one of ``is_agent``, ``is_updater`` is set; of several files under
one path in an answer the last counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from harness.errors import SettingsError
from harness.remote.errors import MetadataError
from harness.remote.fetch import AnswerError
from harness.remote.state import State, Update, files_by_path
from harness.remote.wire import config_pb2 as pb
from harness.remote.wire import service_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["AgentSecure"].full_name
METHOD = f"/{SERVICE}/ClientGetConfigs"
HTTP_PATH = "/v0.7/config"
ID_ALPHABET = "_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ID_LENGTH = 21
_LONGEST_ERROR = 4096


@dataclass(frozen=True, slots=True)
class Agent:
    """Who polls, if it is an agent."""

    name: str = "unknown"
    version: str = ""
    cluster_name: str = ""
    cluster_id: str = ""
    cws_workloads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_words(self, "name", "version", "cluster_name", "cluster_id")
        _check_tuple("cws_workloads", self.cws_workloads, str)


@dataclass(frozen=True, slots=True)
class Package:
    """A package that an updater manages."""

    name: str
    stable_version: str = ""
    experiment_version: str = ""

    def __post_init__(self) -> None:
        _check_words(self, "name", "stable_version", "experiment_version")


@dataclass(frozen=True, slots=True)
class Updater:
    """Who polls, if it is an updater."""

    tags: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()

    def __post_init__(self) -> None:
        _check_tuple("tags", self.tags, str)
        _check_tuple("packages", self.packages, Package)


def client_id(random: bytes) -> str:
    """The id that ``ID_LENGTH`` random bytes make."""
    return "".join(ID_ALPHABET[byte & 63] for byte in random[:ID_LENGTH])


def request(
    state: State, id: str, products: Sequence[str], who: Agent | Updater, error: str = ""
) -> pb.ClientGetConfigsRequest:
    """What a client in ``state`` asks; ``error`` is what became of its last update, if that is to be reported."""
    made = pb.ClientGetConfigsRequest()
    client = made.client
    client.id = id
    client.products.extend(products)
    client.state.root_version = state.root_version
    client.state.targets_version = state.targets_version
    client.state.has_error = bool(error)
    client.state.error = _encodable(error)[:_LONGEST_ERROR]
    client.state.backend_client_state = state.opaque
    for config in state.configs.values():
        client.state.config_states.add(
            id=config.id,
            version=config.version,
            product=config.product,
            apply_state=config.status.state,
            apply_error=_encodable(config.status.error)[:_LONGEST_ERROR],
        )
        cached = made.cached_target_files.add(path=config.path, length=config.length)
        for algorithm, value in config.hashes.items():
            cached.hashes.add(algorithm=algorithm, hash=value)
    _describe(client, who)
    return made


def update_of(answer: pb.ClientGetConfigsResponse) -> Update:
    """What a server's answer means to the state."""
    files = files_by_path((file.path, file.raw) for file in answer.target_files)
    return Update(tuple(answer.roots), answer.targets, files, tuple(answer.client_configs))


def parse_answer(raw: bytes) -> pb.ClientGetConfigsResponse:
    """An answer's bytes as protobuf; ``AnswerError`` if they are none."""
    try:
        return pb.ClientGetConfigsResponse.FromString(raw)
    except DecodeError as error:
        raise AnswerError(f"the server's {len(raw)} bytes are no answer: {error}") from None


def check(asked: pb.ClientGetConfigsRequest) -> None:
    """What a server asks of a request; ``MetadataError`` says what is missing."""
    client = asked.client
    if not asked.HasField("client"):
        raise MetadataError("the request has no client")
    if not client.HasField("state"):
        raise MetadataError("the request has no client state")
    if client.state.root_version < 1:
        raise MetadataError("the request's root version is below 1")
    if not client.id:
        raise MetadataError("the request's client has no id")
    kinds = [name for name in ("is_agent", "is_tracer", "is_updater") if getattr(client, name)]
    if len(kinds) != 1:
        raise MetadataError(f"the request's client is {' and '.join(kinds) or 'neither agent, tracer nor updater'}")


def _describe(client: pb.Client, who: Agent | Updater) -> None:
    if isinstance(who, Agent):
        client.is_agent = True
        agent = client.client_agent
        agent.name, agent.version = who.name, who.version
        agent.cluster_name, agent.cluster_id = who.cluster_name, who.cluster_id
        agent.cws_workloads.extend(who.cws_workloads)
        return
    client.is_updater = True
    client.client_updater.tags.extend(who.tags)
    for package in who.packages:
        client.client_updater.packages.add(
            package=package.name,
            stable_version=package.stable_version,
            experiment_version=package.experiment_version,
        )


def _encodable(text: str) -> str:
    """Protobuf takes no lone surrogates, and an error may quote anything."""
    return text.encode("utf-8", "backslashreplace").decode()


def _check_words(value: object, *names: str) -> None:
    for name in names:
        text = getattr(value, name)
        if not isinstance(text, str) or _encodable(text) != text:
            raise SettingsError(f"{name} must be text, not {text!r}")


def _check_tuple(name: str, values: object, kind: type) -> None:
    if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
        raise SettingsError(f"{name} must be a tuple of {kind.__name__}, not {values!r}")
