"""(pure) What an honest serving side answers.

Laws: an incomplete request is refused (``messages.check``); a client that has the present targets version gets an
empty answer; any other gets the targets, every root after its own, the paths that it is to have (of the products that
it asks for) and those of the files that it does not say it has.
"""

from __future__ import annotations

from harness.remote import messages
from harness.remote.serve.repository import Cached, Published
from harness.remote.state import Update
from harness.remote.wire import config_pb2 as pb


def answer(published: Published, asked: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
    """The answer; MetadataError where the request is refused."""
    messages.check(asked)
    if asked.client.state.targets_version == published.targets_version:
        return pb.ClientGetConfigsResponse()
    return whole(published, asked)


def whole(published: Published, asked: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
    """The answer to one who does not have these targets."""
    cached = {
        file.path: Cached(file.length, {hash.algorithm: hash.hash for hash in file.hashes})
        for file in asked.cached_target_files
    }
    return response(published.update(asked.client.state.root_version, cached, set(asked.client.products)))


def response(update: Update) -> pb.ClientGetConfigsResponse:
    """An update as a message."""
    return pb.ClientGetConfigsResponse(
        roots=update.roots,
        targets=update.targets,
        target_files=[pb.File(path=path, raw=raw) for path, raw in update.files.items()],
        client_configs=update.client_configs,
    )
