"""What every room may use: errors, text, units, signals. It imports nothing of ours."""
