"""The matrix in CI: from pipelines that are generated to one verdict over what their jobs left.

``plan.py`` (pure) says what jobs there are and what a job does, ``gitlab.py`` and ``github.py`` (pure) write that as
their pipelines, ``merge.py`` (pure) makes one run of the jobs' results, ``junit.py`` one file of their JUnit files.
"""
