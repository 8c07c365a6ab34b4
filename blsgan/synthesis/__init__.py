"""Radiographs with a known truth: overlaps composed from real joints, and phantoms."""
