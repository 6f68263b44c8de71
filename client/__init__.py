"""The client side: the ClientApp, the worker behind it, the `breakwater client` process."""
