"""Measures the choice of parallelism: whole calls, beside the peers'.

::

    workloads  ─┐
                ├─> cell (one contender, one workload, a fresh process) ─> table
    contenders ─┘
"""
