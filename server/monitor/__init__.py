"""What people see of a run: the live state and its views, exporters, curves, suspects, reports."""
