"""Where chunks run, behind one interface: :class:`amorsize.engines.base.Backend`."""
