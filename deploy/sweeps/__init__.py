"""``breakwater sweep``: many runs of one config, side by side, as one table and its pictures.

``experiment.py`` reads the file and says which runs there are, ``runner.py`` has them run, ``results.py`` makes the
tables and ``figures.py`` the pictures; ``sweep.py`` is the whole.
"""
