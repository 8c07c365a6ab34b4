"""A joint in its picture: where the bones lie, and the windows that are cut out around it."""
