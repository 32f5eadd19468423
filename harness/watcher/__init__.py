"""The shared-library watcher."""
