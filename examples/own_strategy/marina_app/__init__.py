"""A Flower app of one's own around a method of Breakwater."""
