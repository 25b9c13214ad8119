"""The code that runs inside any worker: a chunk, its user metrics, logs, spans and item slots.

Nothing here knows the engine; of amorsize it imports the errors alone.
"""
