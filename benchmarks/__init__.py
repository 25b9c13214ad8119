"""What amorsize costs, side by side with its peers: ``python -m benchmarks``.

``harness`` measures, ``report`` shows, and each module of ``figures`` declares some figures.
A new figure is a function with a decorator in one of them, or in a new one beside them.
"""
