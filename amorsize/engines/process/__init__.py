"""Worker processes of our own: the engine, the pool, the worker, and the protocol between them."""
