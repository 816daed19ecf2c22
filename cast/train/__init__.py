"""Training: MoCo v3, DeiT's recipe, linear probes. `cast train` and `cast probe` are its commands."""
