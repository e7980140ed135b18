"""Benchmarks: `make bench`. Each writes JSON to `bench/results/`, its figure beside a peer's from the same run."""
