"""The wheel from outside: built, installed into fresh environments, and used in folders that have nothing of ours.

``make test-wheel`` runs these tests.
"""
