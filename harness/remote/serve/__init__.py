"""A serving side for tests and demos: signs configurations with python-tuf and answers clients that poll.

``repository`` signs, ``directory`` keeps a repository on disk, ``stored`` puts an agent's store behind it, ``answers``
follows the rules of serving, ``host`` asks the one and answers by the other, ``server`` and ``http_server`` are its
faces; ``misbehave`` and ``wire_faults`` are what an attacker could do instead.
"""
