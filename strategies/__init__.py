"""The methods: NumPy in the middle, the Flower Strategy at the edge."""
