"""``breakwater sweep``: many runs of one config, side by side, as one table and its pictures.

``experiment.py`` reads the file and plans the runs, ``runner.py`` runs them, ``results.py`` makes the tables and
``figures.py`` the pictures; ``sweep.py`` does it all.
"""
