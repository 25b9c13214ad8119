"""``amorsize demo``: the main job on real input that every machine has.

``sources`` finds the input, Python's own standard library. ``stages`` has the three functions that
work on it, ``service`` is the slow HTTP service that one of them asks, and ``cluster`` connects to
a Dask cluster to run them on. ``run`` executes them, and ``report`` formats the results.
"""
