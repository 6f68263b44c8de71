"""The client side: the ClientApp, the worker behind it, the `breakwater client` process."""

import link as link  # it says so where Flower is too old, before anything else is missing
