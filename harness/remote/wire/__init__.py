"""The messages and the service of remote configuration as protobuf: ``*.proto``, and what protoc makes of them.

``*_pb2.py`` and ``*_pb2.pyi`` are made by ``generate`` and never edited.
"""
