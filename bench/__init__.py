"""Measures the ops: ``python -m bench.gpu`` on a GPU, ``pytest bench --benchmark-only`` against peers on the CPU."""
