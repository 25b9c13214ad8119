"""The engines that chunks run on: one module each, one interface (``base``)."""
