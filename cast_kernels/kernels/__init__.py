"""Triton kernels and their launchers, one file per op; imported by the first launch on a GPU only."""
