"""The documentation: pages in Markdown, and ``docs.make``, which makes a site of them."""
