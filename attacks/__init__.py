"""What a Byzantine client sends, and what it may know."""
