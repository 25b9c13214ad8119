"""``amorsize demo``: the main job on real input that every machine has.

``sources`` finds the input, Python's own standard library; ``stages`` holds the three functions
that work on it, ``service`` the slow HTTP service that one of them asks, ``cluster`` a Dask cluster
to run them on; ``run`` executes them and ``report`` tells what happened.
"""
