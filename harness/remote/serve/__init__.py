"""A serving side for tests and demos: signs configurations with python-tuf and answers clients that poll.

``repository`` signs, ``answers`` follows the rules of serving, ``directory`` keeps a repository on disk, ``server``
and ``http_server`` are its faces; ``misbehave`` and ``wire_faults`` are what an attacker could do instead.
"""
