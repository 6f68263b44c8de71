"""A Flower app that runs a method of Breakwater."""
