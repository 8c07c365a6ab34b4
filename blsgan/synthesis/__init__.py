"""Radiographs with a known truth: overlaps composed from real joints, phantoms made from nothing."""
