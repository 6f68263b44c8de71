"""Breakwater inside other people's Flower apps: their arrays and nodes on one side, methods of ours on the other."""
