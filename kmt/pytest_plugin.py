"""``pytest --kernel``: the entry point by which people meet this project."""
