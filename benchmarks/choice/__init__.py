"""How good the choice of parallelism is: whole calls beside those of peers.

::

    workloads  ─┐
                ├─> cell (one contender, one workload, a fresh process) ─> table
    contenders ─┘
"""
