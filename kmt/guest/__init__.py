"""What runs in a guest: init and agent. Standard library only, relative imports only, small."""
