"""Executors that the caller owns: ``concurrent.futures`` and Dask."""
