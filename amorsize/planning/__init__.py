"""What to do with the items, by measurement: the machine, the first items, cost, the planner."""
