"""What runs inside any worker: a chunk, its numbers, logs, spans and item slots.

Nothing here knows who called; of amorsize it imports the errors alone.
"""
