"""Remote configuration: TUF-verified state and its client."""
