"""The server side: the ServerApp, the `breakwater server` process, metrics and reports."""
