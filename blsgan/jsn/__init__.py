"""Joint space narrowing: bones registered between visits, measured, and how far to trust it."""
