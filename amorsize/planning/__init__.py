"""The decision how to run the items, by measurement: the machine, the first items, cost, the
planner."""
