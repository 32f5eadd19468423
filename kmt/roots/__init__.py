"""The root file systems: the guest's image and the compiler's environment."""
