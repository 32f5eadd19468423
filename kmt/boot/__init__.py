"""What a guest boots from and what its console says: disks, initramfs, the choice of an accelerator."""
