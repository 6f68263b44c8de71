"""Makes the documentation site: ``python -m docs.make``, or ``make docs``.

``pages`` gathers the Markdown of the site in one folder, ``config_page``, ``commands_page`` and ``code_pages`` write
its reference out of the code. What they leave is plain Markdown with ``mkdocs.yml`` beside it: no plugin or hook of our
own, so that another generator can take the same folder.
"""
