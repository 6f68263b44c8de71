"""The scripts and the notebook of examples/; ``tests/unit/adapters/test_component_examples.py`` has the Flower apps."""
