"""The one loop: input, chunks, dispatch, retries, results, event reporting, signals."""
