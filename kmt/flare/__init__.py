"""A support bundle for a bug report: ``gather.py`` collects it, ``redact.py`` (pure) takes secrets out of it."""
