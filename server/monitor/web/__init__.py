"""The coordinator's page: one live, read-only page of a run, served by `--web` of `breakwater server`, `run`, `watch`.

``page`` runs it in its own thread. ``gate`` decides who gets in, ``connections`` bounds what peers may cost,
``streams`` sends states as server-sent events; ``html``, ``style`` and ``script`` are the page itself. They are text in
modules, not files beside them, because a Flower App Bundle takes no files of other kinds.
"""
